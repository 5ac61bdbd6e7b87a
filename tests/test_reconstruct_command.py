"""Files as cameras, phones and mistakes make them: `dfmvr reconstruct` and the job judge them alike."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import trimesh
from PIL import Image

from dfmvr.cli import main
from dfmvr.data import storage
from dfmvr.data.manifest import SPLITS
from dfmvr.data.preprocess.settings import PreprocessSettings
from dfmvr.data.sample import decode_row

Encode = Callable[[Image.Image], bytes]
ORIENTATION, QUARTER_TURN = 0x0112, 6
FIFTY_MEGAPIXELS = (7072, 7072)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(portrait: Image.Image) -> bytes:
    """Return the portrait lying on its side, with the camera's note of it."""
    exif = Image.Exif()
    exif[ORIENTATION] = QUARTER_TURN
    return encode(portrait.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)


def sixteen_bits(portrait: Image.Image) -> bytes:
    return cv2.imencode(".png", np.asarray(portrait)[..., ::-1].astype(np.uint16) * 257)[1].tobytes()


def pair(portrait: Image.Image) -> bytes:
    face = np.asarray(portrait)[:260, 100:350]
    return encode(Image.fromarray(np.concatenate([face, face], 1)), "PNG")


GOOD: dict[str, Encode] = {
    "plain.png": lambda portrait: encode(portrait, "PNG"),
    "cmyk.jpg": lambda portrait: encode(portrait.convert("CMYK"), "JPEG", quality=95),
    "deep.png": sixteen_bits,
    "turned.jpg": turned,
    "large.jpg": lambda portrait: encode(portrait.resize(FIFTY_MEGAPIXELS), "JPEG", quality=90),
}
BAD: dict[str, tuple[Encode, str]] = {
    "sky.png": (lambda _: encode(Image.new("RGB", (300, 200)), "PNG"), "expected one face, found none"),
    "pair.png": (pair, "expected one face, found 2: 88 px at"),
    "letter.jpg": (lambda _: b"Dear diary,", "expected a picture (JPEG, PNG, TIFF, WebP, ...), got text"),
    "empty.jpg": (lambda _: b"", "expected a picture (JPEG, PNG, TIFF, WebP, ...), got an empty file"),
    "torn.jpg": (
        lambda portrait: encode(portrait, "JPEG")[:9000], "expected a whole picture, got a damaged one"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from skimage.data import astronaut

    folder = tmp_path_factory.mktemp("pictures")
    portrait = Image.fromarray(astronaut())
    for name, make in [*GOOD.items(), *((name, make) for name, (make, _) in BAD.items())]:
        (folder / name).write_bytes(make(portrait))
    return folder


def reconstruct(picture: Path, out: Path) -> np.ndarray:
    """Return the vertices [N, 3] in mm."""
    assert main(["reconstruct", str(picture), "--out", str(out)]) == 0
    return np.asarray(trimesh.load(out, process=False).vertices)


@pytest.fixture(scope="module")
def plain_face(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return reconstruct(pictures / "plain.png", tmp_path_factory.mktemp("plain") / "face.ply")


@pytest.mark.parametrize("name", [name for name in GOOD if name != "plain.png"])
def test_the_face_is_that_of_the_plain_file(
    name: str, pictures: Path, plain_face: np.ndarray, tmp_path: Path
) -> None:
    """With red and blue swapped it would be 2.8 mm away, as a negative 3.4."""
    face = reconstruct(pictures / name, tmp_path / "face.ply")
    assert np.linalg.norm(face - plain_face, axis=1).mean() < 0.8


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_in_one_line(
    name: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reconstruct", str(pictures / name), "--out", str(tmp_path / "face.ply")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dfmvr reconstruct: error: ")
    assert BAD[name][1] in line
    assert not list(tmp_path.iterdir())


@pytest.mark.ray
def test_the_job_makes_samples_of_the_good_files_and_tells_of_the_bad(
    ray_cluster: None, pictures: Path, tmp_path: Path
) -> None:
    from ray_jobs.preprocess import preprocess

    for picture in pictures.iterdir():
        shot = tmp_path / "photographs" / picture.stem / "neutral"
        shot.mkdir(parents=True)
        (shot / f"front{picture.suffix}").symlink_to(picture)
    settings = PreprocessSettings(image_size=64, views=("front",), parser="landmarks")
    made = str(tmp_path / "made")
    _, rejects = preprocess("folder", str(tmp_path / "photographs"), made, settings, {})
    files = [file for split in SPLITS for file in storage.list_files(storage.join(made, split))]
    samples = [
        decode_row(row, file, index, views=("front",), image_size=64)
        for file in files
        for index, row in enumerate(pq.read_table(file).to_pylist())
    ]
    crops = {sample.subject_id: sample.images[0].astype(float) for sample in samples}
    assert set(crops) == {Path(name).stem for name in GOOD}
    for name, crop in crops.items():
        assert np.abs(crop - crops["plain"]).mean() < 6, name
    told = {reject.subject_id: reject.detail for reject in rejects}
    assert set(told) == {Path(name).stem for name in BAD}
    for name, (_, words) in BAD.items():
        assert words in told[Path(name).stem]
