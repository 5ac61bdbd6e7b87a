"""Picture files as they come from cameras and phones, to upright 8-bit RGB."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dfmvr.data import storage
from dfmvr.data.datasets.records import Turn

MAX_MEGAPIXELS = 80
"""A file of a few kilobytes may claim to hold many gigabytes of pixels."""

Picture8 = NDArray[np.uint8]


class PictureError(ValueError):
    """A file is no picture that can be used; the message names it."""


def read_picture(uri: str) -> Picture8:
    """Read a picture, local or s3://, as upright RGB [H, W, 3] uint8.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it cannot be read.
        PictureError: it is no whole picture, or too large.
    """
    return decode_picture(storage.read_bytes(uri), uri)


def decode_picture(data: bytes, name: str) -> Picture8:
    """Return a picture file's pixels as RGB [H, W, 3] uint8, turned as its EXIF data say.

    Grey, palette, CMYK and 16-bit pictures are converted; transparency is put on white; the first picture of
    several is taken.

    Raises:
        PictureError: it is no whole picture, or too large.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            megapixels = image.width * image.height / 1e6
            if megapixels > MAX_MEGAPIXELS:
                size = f"{image.width} x {image.height}"
                raise PictureError(f"{name}: expected at most {MAX_MEGAPIXELS} megapixels, got {size}")
            return _as_rgb(ImageOps.exif_transpose(image), name)
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name}: expected at most {MAX_MEGAPIXELS} megapixels, got more") from error
    except UnidentifiedImageError as error:
        raise PictureError(
            f"{name}: expected a picture (JPEG, PNG, TIFF, WebP, ...), got {_kind(data)}"
        ) from error
    except (OSError, SyntaxError, EOFError) as error:  # what Pillow raises for damaged files
        raise PictureError(f"{name}: expected a whole picture, got a damaged one ({error})") from error


def turn_picture(image: Picture8, turn: Turn) -> Picture8:
    """Bring a picture upright as its data set says: `none`, or 90 degrees clockwise and then mirrored."""
    if turn == "none":
        return image
    return np.ascontiguousarray(image.swapaxes(0, 1))  # what the two come to


def undistort(image: Picture8, intrinsics: NDArray[Any], distortion: NDArray[Any]) -> Picture8:
    """Take a lens's distortion (OpenCV's coefficients) out of a picture; `intrinsics` [3, 3] stay its own."""
    # OpenCV puts a pixel's centre at whole numbers, this project at +0.5.
    camera = np.array(intrinsics, np.float64)
    camera[:2, 2] -= 0.5
    return np.asarray(cv2.undistort(image, camera, np.asarray(distortion, np.float64)), np.uint8)


def undistort_points(
    points: NDArray[Any], intrinsics: NDArray[Any], distortion: NDArray[Any]
) -> NDArray[np.float64]:
    """Carry points [K, 2] of a distorted picture to the undistorted one."""
    camera, coefficients = np.asarray(intrinsics, np.float64), np.asarray(distortion, np.float64)
    moved = cv2.undistortPoints(np.asarray(points, np.float64)[:, None], camera, coefficients, P=camera)
    return np.asarray(moved[:, 0], np.float64)


def _as_rgb(image: Image.Image, name: str) -> Picture8:
    if image.mode.startswith("I"):  # 16 bits of grey, in one of Pillow's several ways
        grey = np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, -1)
    if image.mode == "F":
        raise PictureError(f"{name}: expected whole numbers as pixels, got floating ones")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _kind(data: bytes) -> str:
    """Say what a file seems to be."""
    if not data:
        return "an empty file"
    if data[4:8] == b"ftyp":
        return "a HEIC, AVIF or video file (save it as JPEG)"
    try:
        data[:1000].decode()
    except UnicodeDecodeError:
        return "something else"
    return "text"
