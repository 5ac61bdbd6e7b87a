from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dfmvr.data import storage
from dfmvr.data.datasets.adapters import ADAPTERS, open_records, option_names
from dfmvr.data.datasets.folder import iter_records
from dfmvr.data.datasets.records import BadFile, Picture, Problem, Record, parse_points, triples


def fill(root: str, *names: str) -> None:
    for name in names:
        storage.write_bytes(storage.join(root, name), b"picture")


def list_views(shot: Path, entries: object) -> Path:
    shot.mkdir(parents=True, exist_ok=True)
    file = shot / "views.json"
    file.write_text(json.dumps(entries))
    return file


def degrees(record: Record) -> dict[str, float]:
    return {name: round(math.degrees(picture.yaw)) for name, picture in record.pictures.items()}


@pytest.mark.parametrize("place", ["local", "s3"])
def test_views_are_known_by_their_names(place: str, tmp_path: Path, s3_server: str) -> None:
    root = str(tmp_path) if place == "local" else f"{s3_server}/{tmp_path.name}"
    fill(root, "ann/smile/right.JPG", "ann/smile/front.png", "ann/smile/left.jpg", "ann/smile/note.txt")
    fill(root, "bob/1/front.jpg")
    ann, bob = iter_records(root)
    assert isinstance(ann, Record)
    assert isinstance(bob, Record)
    assert (ann.subject_id, ann.expression_id, ann.split) == ("ann", "smile", None)
    assert list(ann.pictures) == ["left", "front", "right"]
    assert ann.pictures["right"].uri == f"{root}/ann/smile/right.JPG"
    assert storage.read_bytes(ann.pictures["left"].uri) == b"picture"
    assert ann.pictures["front"].yaw == 0
    assert math.isnan(ann.pictures["left"].yaw)
    assert list(bob.pictures) == ["front"]


def test_other_pictures_and_empty_folders_are_told_and_stop_nothing(tmp_path: Path) -> None:
    fill(str(tmp_path), "a/1/front.jpg", "a/1/selfie.jpg", "a/1/front.png", "b/1/note.txt", "d/2/left.jpg")
    (tmp_path / "c").mkdir()
    items = list(iter_records(str(tmp_path)))
    assert [item.subject_id for item in items if isinstance(item, Record)] == ["a", "d"]
    assert [str(item) for item in items if isinstance(item, Problem)] == [
        f"{tmp_path}/a/1/front.png: expected left, front, right, each once, got front.png",
        f"{tmp_path}/a/1/selfie.jpg: expected left, front, right, or a views.json, got selfie.jpg",
        f"{tmp_path}/b/1: expected left, front, right (.jpg, .jpeg, .png, .bmp, .webp, .tif, .tiff), "
        "got none of them",
        f"{tmp_path}/c: expected a folder for each shot, got none",
    ]


def test_any_number_of_listed_views_becomes_triples(tmp_path: Path) -> None:
    yaws = {"a.jpg": -60, "b.jpg": 3, "c.jpg": 30, "d.jpg": -25.5, "e.jpg": 55, "f.jpg": 80}
    fill(str(tmp_path), *(f"ann/smile/{file}" for file in yaws))
    list_views(tmp_path / "ann/smile", [{"file": file, "yaw": yaw} for file, yaw in yaws.items()])
    records = list(iter_records(str(tmp_path)))
    assert all(isinstance(record, Record) for record in records)
    assert [degrees(record) for record in records] == [
        {"front": 3, "left": -26, "right": 30},
        {"front": 3, "left": -60, "right": 55},
        {"front": 3, "right": 80},
    ]
    assert [record.expression_id for record in records] == ["smile-0", "smile-1", "smile-2"]
    assert records[0].pictures["left"].uri == f"{tmp_path}/ann/smile/d.jpg"


def test_one_listed_view_is_the_front() -> None:
    assert list(triples([Picture("a", yaw=0.3)])[0]) == ["front"]


@pytest.mark.parametrize(
    ("entries", "got"),
    [
        ({"file": "a.jpg"}, "got dict of 1 entries"),
        ([], "got list of 0 entries"),
        ([{"file": "a.jpg"}], r'got {"file": "a.jpg"}'),
        ([{"file": "a.jpg", "yaw": "0"}], r'yaw from -90 to 90, got {"file": "a.jpg", "yaw": "0"}'),
        ([{"file": "a.jpg", "yaw": 91}], r'got {"file": "a.jpg", "yaw": 91}'),
        ([{"file": "a.jpg", "yaw": True}], r'got {"file": "a.jpg", "yaw": true}'),
        ([{"file": "../a.jpg", "yaw": 0}], r"expected a file of 1/, got ../a.jpg"),
        ([{"file": "a.jpg", "yaw": 5}, {"file": "b.jpg", "yaw": 5}], "different yaws, got 5, 5"),
        (
            [{"file": "c.jpg", "yaw": 0}],
            "c.jpg: expected the photograph that views.json names, got no such file",
        ),
    ],
)
def test_a_list_that_is_not_right_is_told(entries: object, got: str, tmp_path: Path) -> None:
    fill(str(tmp_path), "bad/1/a.jpg", "bad/1/b.jpg", "good/1/front.jpg")
    list_views(tmp_path / "bad/1", entries)
    problem, record = iter_records(str(tmp_path))
    assert isinstance(problem, Problem)
    assert isinstance(record, Record)
    assert f"{tmp_path}/bad/1/" in problem.path
    assert got in str(problem)


def test_a_list_that_is_no_json_is_told(tmp_path: Path) -> None:
    list_views(tmp_path / "a/1", []).write_text("{")
    (problem,) = iter_records(str(tmp_path))
    assert 'views.json: expected a list of {"file": name, "yaw": degrees}, got Expecting' in str(problem)


def test_a_folder_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for name in ("absent", "file"):
        with pytest.raises(NotADirectoryError, match=rf"{name}: expected a folder with <subject>/<shot>/"):
            iter_records(str(tmp_path / name))


def test_data_sets_are_opened_by_name(tmp_path: Path) -> None:
    fill(str(tmp_path), "a/1/front.jpg")
    (record,) = open_records("folder", str(tmp_path), {})
    assert isinstance(record, Record)
    assert {name: option_names(name) for name in ADAPTERS} == {
        "folder": (),
        "pixel_face": ("turn",),
        "multi_pie": ("cameras", "lights"),
        "bosphorus": ("codes",),
        "facescape": ("side", "alignment"),
    }


def test_unknown_names_and_options_are_told_with_the_near_one(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"dataset: expected one of folder, .*, got 'multipie'; did you mean multi_pie"
    ):
        open_records("multipie", str(tmp_path), {})
    words = "option of multi_pie: expected one of cameras, lights, got 'camera'; did you mean cameras"
    with pytest.raises(ValueError, match=words):
        open_records("multi_pie", str(tmp_path), {"camera": "051"})
    with pytest.raises(ValueError, match=r"option of folder: expected none, got 'views'$"):
        open_records("folder", str(tmp_path), {"views": "3"})


def test_points_of_text_are_checked() -> None:
    assert parse_points("p", "1 2\n\n3,4\n", 2, 2).tolist() == [[1, 2], [3, 4]]
    for text, got in {
        "1 2": "1 lines",
        "1 2\n3": "'3' in line 2",
        "1 2\n3 nan": "'3 nan'",
        "1 2\n3 x": "'3 x'",
    }.items():
        with pytest.raises(BadFile, match=f"p: expected 2 lines of 2 numbers, got {got}"):
            parse_points("p", text, 2, 2)
