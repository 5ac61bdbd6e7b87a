"""Bosphorus, on a tree written here byte by byte (the data set may not be passed on)."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh

from dfmvr.data.datasets.bosphorus import iter_records
from dfmvr.data.datasets.records import Problem, Record

BACKGROUND = -1e9
ROWS, COLUMNS = 61, 51
X, Y = np.meshgrid(np.linspace(-75, 75, COLUMNS), np.linspace(-90, 90, ROWS))
TIP, BOTTOM, LIP = (0.0, 6.0, 68.0), (0.0, -15.0, 50.0), (0.0, -30.0, 52.0)
NAMED = {
    "Outer left eye corner": (45, 33, 40),
    "Inner left eye corner": (18, 33, 45),
    "Inner right eye corner": (-18, 33, 45),
    "Outer right eye corner": (-45, 33, 40),
    "Nose tip": TIP,
    "Left mouth corner": (24, -39, 45),
    "Right mouth corner": (-24, -39, 45),
    "Upper lip outer middle": LIP,
}


def face_grid() -> np.ndarray:
    """A face [ROWS, COLUMNS, 3] whose profile bends at the nose's bottom; below it is background."""
    z = 52 - X**2 / 150 - np.maximum(np.abs(Y) - 40, 0) ** 2 / 150
    ridge = np.interp(Y, [BOTTOM[1], TIP[1], 40], [-2, 16, 0], left=0, right=0)
    grid = np.stack([X, Y, z + ridge * np.exp(-((X / 12) ** 2))], axis=-1)
    grid[:4] = BACKGROUND
    return grid


def scan_bytes(name: str) -> bytes:
    values = np.concatenate([face_grid(), np.zeros((ROWS, COLUMNS, 2))], axis=-1).transpose(2, 0, 1)
    header = struct.pack("<HHdH", ROWS, COLUMNS, BACKGROUND, len(name)) + name.encode()
    return header + struct.pack("<I", values.size) + values.astype("<f8").tobytes()


def write_marks(path: Path, named: dict[str, tuple[float, ...]]) -> None:
    lines = ["# Bosphorus 3D Face Database", "# landmarks", "", f"{len(named)} landmarks:"]
    for name, point in named.items():
        lines += [name, " ".join(map(str, point))]
    path.write_text("\n".join(lines) + "\n")


def write_subject(
    root: Path, subject: str, *, left: str = "YR_R45", right: str = "YR_L45", scans: int = 1
) -> Path:
    """Write a subject whose picture `left` shows the left side: the nose is left of the eyes."""
    folder = root / subject
    folder.mkdir(parents=True)
    for code, tip in ((left, 500.0), (right, 900.0)):
        (folder / f"{subject}_{code}_0.png").write_bytes(b"picture")
        write_marks(
            folder / f"{subject}_{code}_0.lm2",
            {"Outer left eye corner": (700.0, 400.0), "Nose tip": (tip, 600.0)},
        )
    for k in range(scans):
        stem = f"{subject}_N_N_{k}"
        (folder / f"{stem}.png").write_bytes(b"picture")
        (folder / f"{stem}.bnt").write_bytes(scan_bytes(f"{stem}.png"))
        write_marks(folder / f"{stem}.lm3", NAMED)
    return folder


def test_each_neutral_scan_is_a_triple(tmp_path: Path) -> None:
    write_subject(tmp_path, "bs000", scans=2)
    write_subject(tmp_path, "bs104")
    records = [record for record in iter_records(str(tmp_path)) if isinstance(record, Record)]
    ids = [(record.subject_id, record.expression_id, record.split) for record in records]
    assert ids == [("bs000", "N_N_0", None), ("bs000", "N_N_1", None), ("bs104", "N_N_0", None)]
    pictures = records[0].pictures
    assert {name: Path(picture.uri).name for name, picture in pictures.items()} == {
        "left": "bs000_YR_R45_0.png",
        "front": "bs000_N_N_0.png",
        "right": "bs000_YR_L45_0.png",
    }
    assert [math.degrees(picture.yaw) for picture in pictures.values()] == pytest.approx([-45, 0, 45])


def test_sides_are_those_that_the_pictures_show(tmp_path: Path) -> None:
    write_subject(tmp_path, "bs000", left="YR_L45", right="YR_R30")
    (record,) = iter_records(str(tmp_path), codes="YR_R30,N_N,YR_L45")
    assert isinstance(record, Record)
    assert "YR_L45" in record.pictures["left"].uri
    assert [round(math.degrees(picture.yaw)) for picture in record.pictures.values()] == [-45, 0, 30]


def test_the_scan_is_meshed_and_marked(tmp_path: Path) -> None:
    write_subject(tmp_path, "bs000")
    (record,) = iter_records(str(tmp_path))
    assert isinstance(record, Record)
    assert record.scan_vertices is not None
    assert record.scan_triangles is not None
    assert record.scan_landmarks_7 is not None
    assert record.landmarks_3d is None
    np.testing.assert_allclose(
        np.unique(record.scan_vertices, axis=0), np.unique(face_grid()[4:].reshape(-1, 3), axis=0)
    )
    assert len(record.scan_triangles) == 2 * (ROWS - 5) * (COLUMNS - 1)
    mesh = trimesh.Trimesh(record.scan_vertices, record.scan_triangles, process=False)
    assert mesh.face_normals[:, 2].min() > 0
    assert record.scan_landmarks_7[[0, 1, 2, 3, 5, 6], 0].tolist() == [-45, -18, 18, 45, -24, 24]
    np.testing.assert_allclose(record.scan_landmarks_7[4], BOTTOM, atol=3.1)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def swap_count(file: Path) -> None:
    data, start = file.read_bytes(), len(scan_bytes("bs000_N_N_0.png")) - 8 * ROWS * COLUMNS * 5 - 4
    file.write_bytes(data[:start] + struct.pack("<I", 7) + data[start + 4 :])


def shorten(file: Path) -> None:
    file.write_text("\n".join(file.read_text().splitlines()[:-1]))


def show_the_other_side(file: Path) -> None:
    write_marks(file, {"Inner right eye corner": (400.0, 1.0), "Nose tip": (500.0, 2.0)})


def rename(file: Path) -> None:
    file.write_text(file.read_text().replace("Nose tip", "Tip"))


def hide_the_nose(file: Path) -> None:
    write_marks(file, {"Inner right eye corner": (400.0, 1.0)})


BYTES = len(scan_bytes("bs000_N_N_0.png"))


@pytest.mark.parametrize(
    ("file", "spoil", "words"),
    [
        ("YR_R45_0.png", Path.unlink, "expected the photograph of a turned head, got no such file"),
        ("YR_R45_0.lm2", Path.unlink, "expected the landmarks of a turned head, got no such file"),
        ("YR_R45_0.lm2", shorten, "expected 2 names and as many points, got 2 and 1"),
        ("YR_R45_0.lm2", show_the_other_side, "the other side than YR_R45 shows, got the right one again"),
        ("YR_R45_0.lm2", hide_the_nose, "expected nose tip and eye corners, got inner right eye corner"),
        ("N_N_0.png", Path.unlink, "expected the frontal photograph, got no such file"),
        ("N_N_0.lm3", Path.unlink, "expected the landmarks of the scan, got no such file"),
        ("N_N_0.lm3", shorten, "expected 8 names and as many points, got 8 and 7"),
        ("N_N_0.lm3", hide_the_nose, "expected x y z of Inner right eye corner, got '400.0 1.0'"),
        (
            "N_N_0.lm3",
            rename,
            "expected the landmarks of a frontal scan, got this: expected outer left eye corner, ",
        ),
        ("N_N_0.bnt", cut, f"expected {BYTES} bytes, got {BYTES - 8}"),
        (
            "N_N_0.bnt",
            swap_count,
            f"expected 5 numbers for each of {ROWS} x {COLUMNS} points, got a count of 7",
        ),
        ("N_N_0.bnt", Path.unlink, "expected a scan bs000_N_N_<n>.bnt, got none"),
    ],
)
def test_a_broken_file_is_told_and_stops_no_other_subject(
    file: str, spoil: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    spoil(write_subject(tmp_path, "bs000") / f"bs000_{file}")
    write_subject(tmp_path, "bs001")
    problem, record = iter_records(str(tmp_path))
    assert isinstance(problem, Problem)
    assert isinstance(record, Record)
    assert record.subject_id == "bs001"
    assert problem.path.startswith(f"{tmp_path}/bs000")
    assert words in str(problem)


def test_wrong_options_and_folders_are_refused(tmp_path: Path) -> None:
    write_subject(tmp_path, "bs000")
    for codes in ("YR_R45,N_N", "YR_R45,YR_L45,N_N", "N_N"):
        with pytest.raises(ValueError, match=rf"codes: expected one side's, .*, got '{codes}'"):
            iter_records(str(tmp_path), codes=codes)
    with pytest.raises(ValueError, match="expected folders of subjects such as bs000, found none"):
        iter_records(str(tmp_path.parent))
    with pytest.raises(
        NotADirectoryError, match="absent: expected a folder with folders of subjects such as"
    ):
        iter_records(str(tmp_path / "absent"))
