"""The reader of CelebAMask-HQ, on a made-up folder of its layout."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from dfmvr.data.datasets.celebamask_hq import ANNOTATIONS, PICTURES, picture_numbers, read_picture
from dfmvr.data.sample import BadRow, check_sample
from dfmvr.types import REGION_NAMES

RIGHT_EYE, LEFT_EYE = (150, 200, 190, 220), (320, 200, 360, 220)
"""Left, top, right, bottom in the 512 px of the annotations; the subject's right is at the picture's left."""
PARTS = {
    "skin": (100, 100, 412, 450),
    "nose": (235, 200, 275, 300),
    "l_eye": RIGHT_EYE,
    "r_eye": LEFT_EYE,
    "l_brow": (320, 160, 370, 180),
    "r_brow": (140, 160, 190, 180),
    "mouth": (220, 350, 290, 380),
    "u_lip": (210, 340, 300, 352),
    "l_lip": (210, 378, 300, 395),
    "hair": (100, 60, 412, 130),
    "cloth": (60, 440, 450, 512),
    "neck": (200, 430, 310, 470),
}
"""The eyes' names are the viewer's and the brows' the subject's: neither may matter."""


def write_face(folder: Path, number: int, parts: dict[str, tuple[int, int, int, int]] = PARTS) -> None:
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    annotations = folder / ANNOTATIONS / str(number // 2000)
    annotations.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    picture = cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), (1024, 1024))
    cv2.imwrite(str(folder / PICTURES / f"{number}.jpg"), picture)
    for name, (left, top, right, bottom) in parts.items():
        part = np.zeros((512, 512, 3), np.uint8)
        part[top:bottom, left:right] = 255
        cv2.imwrite(str(annotations / f"{number:05d}_{name}.png"), part)


def label_at(labels: np.ndarray, x: int, y: int) -> str:
    return REGION_NAMES[labels[y * labels.shape[0] // 512, x * labels.shape[1] // 512]]


def test_parts_become_regions(tmp_path: Path) -> None:
    write_face(tmp_path, 2001)
    sample = read_picture(tmp_path, 2001, 128)
    check_sample(sample, 128)
    labels = sample.masks[0]
    expected = {
        (170, 210): "right_eye", (340, 210): "left_eye", (165, 170): "right_brow", (345, 170): "left_brow",
        (255, 250): "nose", (255, 365): "mouth", (255, 346): "upper_lip", (255, 388): "lower_lip",
        (255, 110): "background", (255, 480): "background", (255, 445): "background", (20, 20): "background",
        (120, 300): "skin",
    }  # fmt: skip
    assert {place: label_at(labels, *place) for place in expected} == expected


@pytest.mark.parametrize(("eye", "name"), [(RIGHT_EYE, "right_eye"), (LEFT_EYE, "left_eye")])
def test_a_lone_eye_gets_its_side_from_the_nose(tmp_path: Path, eye: tuple[int, ...], name: str) -> None:
    parts = {key: box for key, box in PARTS.items() if not key.endswith("_eye")}
    write_face(tmp_path, 7, parts | {"l_eye": eye})  # type: ignore[dict-item]
    labels = read_picture(tmp_path, 7, 128).masks[0]
    assert label_at(labels, (eye[0] + eye[2]) // 2, 210) == name


def test_glasses_and_what_hides_a_face_are_background(tmp_path: Path) -> None:
    write_face(tmp_path, 7, PARTS | {"eye_g": (130, 190, 380, 240), "hat": (100, 60, 412, 175)})
    labels = read_picture(tmp_path, 7, 128).masks[0]
    assert label_at(labels, 170, 210) == "right_eye", "seen through the glass"
    assert label_at(labels, 140, 235) == "background"
    assert label_at(labels, 255, 235) == "background", "the bridge of the glasses"
    assert label_at(labels, 165, 168) == "background", "the brow under the hat"


def test_the_splits_are_apart_and_complete(tmp_path: Path) -> None:
    for number in (0, 1, 2, 49, 50, 51):
        write_face(tmp_path, number, {"skin": PARTS["skin"]})
    (tmp_path / PICTURES / "notes.jpg").write_bytes(b"")
    assert picture_numbers(tmp_path, "train") == [2, 49]
    assert picture_numbers(tmp_path, "validation") == [1, 51]
    assert picture_numbers(tmp_path, "test") == [0, 50]
    with pytest.raises(ValueError, match="split: expected one of train, validation, test, got 'val'"):
        picture_numbers(tmp_path, "val")
    with pytest.raises(FileNotFoundError, match="nowhere/CelebA-HQ-img: expected CelebAMask-HQ's pictures"):
        picture_numbers(tmp_path / "nowhere", "train")


def test_bad_and_missing_files_are_named(tmp_path: Path) -> None:
    write_face(tmp_path, 7)
    annotations = tmp_path / ANNOTATIONS / "0"
    with pytest.raises(
        BadRow, match=r"CelebA-HQ-img/8\.jpg, row 8: picture: expected a JPEG, got no such file"
    ):
        read_picture(tmp_path, 8, 64)
    nose = (annotations / "00007_nose.png").read_bytes()
    cv2.imwrite(str(annotations / "00007_nose.png"), np.zeros((256, 512), np.uint8))
    with pytest.raises(BadRow, match=r"00007_nose\.png.*nose: expected 512 x 512 px, got 512 x 256 px"):
        read_picture(tmp_path, 7, 64)
    (annotations / "00007_nose.png").write_bytes(nose[:20])
    with pytest.raises(BadRow, match=r"00007_nose\.png.*expected a picture, got 20 bytes that do not decode"):
        read_picture(tmp_path, 7, 64)
    (annotations / "00007_nose.png").write_bytes(b"")
    with pytest.raises(BadRow, match=r"00007_nose\.png.*got 0 bytes"):
        read_picture(tmp_path, 7, 64)
    (annotations / "00007_nose.png").write_bytes(nose)
    (annotations / "00007_skin.png").unlink()
    with pytest.raises(BadRow, match=r"00007_skin\.png.*skin: expected an outline, got no such file"):
        read_picture(tmp_path, 7, 64)
