"""Picture files of every kind: each read right, or refused with its name."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dfmvr.data.preprocess.read_picture import (
    MAX_MEGAPIXELS,
    PictureError,
    decode_picture,
    read_picture,
    turn_picture,
    undistort,
    undistort_points,
)

NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
RED = np.zeros((8, 12, 3), np.uint8) + np.array([200, 30, 60], np.uint8)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_usual_kinds_are_read_as_rgb(kind: str) -> None:
    decoded = decode_picture(encode(Image.fromarray(RED), kind), "red")
    assert decoded.shape == RED.shape
    assert np.abs(decoded.astype(int) - RED).max() <= 4


def test_cmyk_is_converted() -> None:
    data = encode(Image.fromarray(RED).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode_picture(data, "cmyk").astype(int) - RED).max() <= 6


def test_sixteen_bits_are_converted() -> None:
    ramp = np.linspace(0, 65535, 12, dtype=np.uint16) * np.ones((8, 1), np.uint16)
    for deep in (ramp, np.stack([ramp] * 3, -1)):
        data = cv2.imencode(".png", deep)[1].tobytes()
        assert np.abs(decode_picture(data, "deep")[..., 0].astype(int) - (ramp >> 8)).max() <= 1


def test_grey_palette_and_transparent_pictures_are_converted() -> None:
    grey = Image.fromarray(RED[..., 0])
    assert (decode_picture(encode(grey, "PNG"), "grey") == 200).all()
    palette = Image.fromarray(RED).quantize(4)
    assert np.abs(decode_picture(encode(palette, "PNG"), "palette").astype(int) - RED).max() <= 3
    clear = Image.fromarray(np.zeros((4, 4, 4), np.uint8))
    assert (decode_picture(encode(clear, "PNG"), "clear") == 255).all()


@pytest.mark.parametrize(("orientation", "shape"), [(1, (8, 12, 3)), (6, (12, 8, 3)), (8, (12, 8, 3))])
def test_pictures_are_turned_as_their_camera_says(orientation: int, shape: tuple[int, ...]) -> None:
    marked = RED.copy()
    marked[:4, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_picture(encode(Image.fromarray(marked), "JPEG", exif=exif, quality=95), "turned")
    assert decoded.shape == shape
    corner = {1: decoded[0, 0], 6: decoded[0, -1], 8: decoded[-1, 0]}[orientation]
    assert corner.min() > 200


def test_fifty_megapixels_are_read(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    Image.new("L", (8660, 5774), 128).save(path)
    assert read_picture(str(path)).shape == (5774, 8660, 3)


def claim_of_size(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("width", [9000, 60_000])
def test_too_many_pixels_are_refused_before_they_are_made(width: int) -> None:
    with pytest.raises(PictureError, match=rf"bomb.png: expected at most {MAX_MEGAPIXELS} megapixels, got"):
        decode_picture(claim_of_size(width, 9000), "bomb.png")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"Dear diary,", r"x.jpg: expected a picture \(JPEG, PNG, TIFF, WebP, ...\), got text"),
        (b"", "x.jpg: expected a picture .* got an empty file"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00", "got a HEIC, AVIF or video file"),
        (b"\x93\xff\x00\x12" * 9, "got something else"),
        (encode(Image.fromarray(NOISE), "JPEG")[:900], "x.jpg: expected a whole picture, got a damaged one"),
        (encode(Image.fromarray(RED[..., 0].astype(np.float32)), "TIFF"), "x.jpg: expected whole numbers"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(PictureError, match=message):
        decode_picture(data, "x.jpg")


def test_a_missing_file_is_told_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jpg: no such file"):
        read_picture(str(tmp_path / "none.jpg"))


def test_turning_is_a_quarter_clockwise_and_a_mirror() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    np.testing.assert_array_equal(turn_picture(image, "none"), image)
    expected = np.rot90(image, -1)[:, ::-1]
    np.testing.assert_array_equal(turn_picture(image, "cw90_mirror"), expected)


def test_pictures_and_points_are_undistorted_alike() -> None:
    """A dot of the distorted picture is found where the undistorted point says, to a part of a pixel."""
    camera = np.array([[150.0, 0, 80], [0, 150.0, 60], [0, 0, 1]])
    distortion = np.array([-0.25, 0.08, 0.0, 0.0])
    point = np.array([[130.0, 95.0]])
    rows, columns = np.mgrid[0:120, 0:160] + 0.5
    blob = 255 * np.exp(-((columns - point[0, 0]) ** 2 + (rows - point[0, 1]) ** 2) / 18)
    flat = undistort(np.repeat(blob[..., None], 3, -1).astype(np.uint8), camera, distortion)[..., 0]
    centre = np.array([(columns * flat).sum(), (rows * flat).sum()]) / flat.sum()
    moved = undistort_points(point, camera, distortion)[0]
    assert np.linalg.norm(moved - point[0]) > 2
    np.testing.assert_allclose(centre, moved, atol=0.2)
