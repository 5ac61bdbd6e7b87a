from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from dfmvr.data.datasets.multi_pie import YAWS, iter_records
from dfmvr.data.datasets.records import Problem, Record


def write(
    root: Path, subject: str, cameras: tuple[str, ...] = tuple(YAWS), moment: str = "01_01", light: str = "07"
) -> None:
    folder = root / "multi_PIE_crop_128" / subject
    folder.mkdir(parents=True, exist_ok=True)
    for camera in cameras:
        cv2.imwrite(
            str(folder / f"{subject}_{moment}_{camera}_{light}_crop_128.png"),
            np.zeros((128, 128, 3), np.uint8),
        )


def test_a_triple_is_read_for_each_moment_and_chosen_light(tmp_path: Path) -> None:
    for moment in ("01_01", "02_01", "02_02"):
        for light in ("00", "07"):
            write(tmp_path, "001", moment=moment, light=light)
    write(tmp_path, "250")
    records = list(iter_records(str(tmp_path)))
    ids = [(record.subject_id, record.expression_id) for record in records if isinstance(record, Record)]
    assert ids == [("001", "01_01_07"), ("001", "02_01_07"), ("001", "02_02_07"), ("250", "01_01_07")]
    first = records[0]
    assert isinstance(first, Record)
    assert first.split is None
    files = {name: Path(picture.uri).name for name, picture in first.pictures.items()}
    assert files == {
        "left": "001_01_01_080_07_crop_128.png",
        "front": "001_01_01_051_07_crop_128.png",
        "right": "001_01_01_190_07_crop_128.png",
    }
    assert [math.degrees(picture.yaw) for picture in first.pictures.values()] == pytest.approx([-45, 0, 45])
    inside = list(iter_records(str(tmp_path / "multi_PIE_crop_128"), lights="00,07"))
    assert len(inside) == 7
    assert len(list(iter_records(str(tmp_path), lights="all"))) == 7


def test_any_triple_of_cameras(tmp_path: Path) -> None:
    write(tmp_path, "001")
    (record,) = iter_records(str(tmp_path), cameras="090,140,041")
    assert isinstance(record, Record)
    assert [round(math.degrees(picture.yaw)) for picture in record.pictures.values()] == [-60, -15, 30]
    assert "_090_" in record.pictures["left"].uri


def test_missing_and_foreign_pictures_are_told_and_stop_nothing(tmp_path: Path) -> None:
    write(tmp_path, "001", cameras=("051", "190"))
    write(tmp_path, "002")
    write(tmp_path, "003", light="01")
    (tmp_path / "multi_PIE_crop_128/002/thumb.png").write_bytes(b"x")
    items = list(iter_records(str(tmp_path)))
    assert [item.subject_id for item in items if isinstance(item, Record)] == ["002"]
    root = tmp_path / "multi_PIE_crop_128"
    assert [str(item) for item in items if isinstance(item, Problem)] == [
        f"{root}/001/001_01_01_07: expected pictures of the cameras 080, 051, 190, got no 080",
        f"{root}/002/thumb.png: expected 002_<session>_<recording>_<camera>_<light>_crop_128.png, "
        "got another name",
        f"{root}/003: expected pictures of the cameras 080, 051, 190, got none in the chosen lights",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cameras": "080,051"}, "cameras: expected left, front and right out of 090, .*, got '080,051'"),
        ({"cameras": "080,051,999"}, "cameras: expected left, front and right out of 090, "),
        ({"cameras": "190,051,080"}, "cameras: expected the left one first .* at 45, 0 and -45 degrees"),
        ({"lights": "7"}, "lights: expected 00 to 19, with commas between, or all; got '7'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, str], words: str, tmp_path: Path) -> None:
    write(tmp_path, "001")
    with pytest.raises(ValueError, match=words):
        iter_records(str(tmp_path), **options)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(
        ValueError, match="expected multi_PIE_crop_128 or folders of subjects such as 001, got train"
    ):
        iter_records(str(tmp_path))
    with pytest.raises(NotADirectoryError, match="absent: expected a folder with multi_PIE_crop_128"):
        iter_records(str(tmp_path / "absent"))
