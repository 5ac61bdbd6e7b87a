"""Bosphorus (Savran et al. 2008): photographs and scans of turned heads, one triple for each neutral scan.

`bs000/bs000_<code>_<n>.{png,bnt,lm2,lm3}`, where the code is `N_N` (neutral), `YR_R10`, `R20`, `R30`, `R45`,
`YR_L45` and so on. The head turns before a camera that stands: the truth is the scan of the frontal picture.
Which side of the face a turned picture shows is told by its own landmarks (.lm2), not by the code's letter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np

from dfmvr.data import storage
from dfmvr.data.datasets.bnt import landmarks_7, parse_bnt, parse_landmarks
from dfmvr.data.datasets.records import (
    BadFile,
    Picture,
    Problem,
    Record,
    attempt,
    check_file,
    name_of,
    read_file,
    subfolders,
)
from dfmvr.types import FRONT, VIEW_NAMES

SCAN_LIMIT = 2**28
"""Bytes of the largest .bnt that is read."""

_SUBJECT = re.compile(r"bs\d{3}")
_TURNED = re.compile(r"YR_[LR](\d+)")


def iter_records(root: str, *, codes: str = "YR_R45,N_N,YR_L45") -> Iterator[Record | Problem]:
    """Read a triple of codes: a record, with its scan, for each frontal scan of each subject.

    Args:
        root: folder of bs000, bs001, ...; local or s3://.
        codes: of one side, the front and the other side, such as YR_R30,N_N,YR_L45.

    Raises:
        NotADirectoryError: there is no such folder.
        ValueError: it has no folders of subjects, or a code is wrong.
    """
    one, front, other = _codes(codes)
    expected = "folders of subjects such as bs000"
    subjects = [folder for folder in subfolders(root, expected) if _SUBJECT.fullmatch(name_of(folder))]
    if not subjects:
        raise ValueError(f"{root}: expected {expected}, found none")
    return (item for subject in subjects for item in _subject(subject, front, (one, other)))


def _codes(text: str) -> tuple[str, str, str]:
    codes = text.split(",")
    if len(codes) != len(VIEW_NAMES) or not (_TURNED.fullmatch(codes[0]) and _TURNED.fullmatch(codes[2])):
        raise ValueError(
            f"codes: expected one side's, the front's and the other's (YR_R45,N_N,YR_L45), got {text!r}"
        )
    return codes[0], codes[1], codes[2]


def _subject(folder: str, front: str, sides: tuple[str, str]) -> Iterator[Record | Problem]:
    stem = f"{name_of(folder)}_{front}_"
    scans = [file for file in storage.list_files(folder, ".bnt") if name_of(file).startswith(stem)]
    if not scans:
        yield Problem(folder, f"a scan {stem}<n>.bnt", "none")
    for scan in scans:
        yield attempt(_record, folder, scan, sides)


def _record(folder: str, scan: str, sides: tuple[str, str]) -> Record:
    stem = scan.removesuffix(".bnt")
    pictures = {FRONT: Picture(check_file(f"{stem}.png", "the frontal photograph"), yaw=0.0)}
    for code in sides:
        turned = storage.join(folder, f"{name_of(folder)}_{code}_0")
        side = _shown_side(f"{turned}.lm2")
        if side in pictures:
            raise BadFile(f"{turned}.lm2", f"the other side than {sides[0]} shows", f"the {side} one again")
        degrees = int(code[len("YR_R") :]) * (-1 if side == "left" else 1)
        photograph = check_file(f"{turned}.png", "the photograph of a turned head")
        pictures[side] = Picture(photograph, yaw=math.radians(degrees))
    vertices, triangles = parse_bnt(scan, read_file(scan, "a scan", SCAN_LIMIT))
    marks = f"{stem}.lm3"
    named = parse_landmarks(marks, read_file(marks, "the landmarks of the scan"))
    try:
        points = landmarks_7(named, vertices)
    except ValueError as error:
        raise BadFile(marks, "the landmarks of a frontal scan", f"this: {error}") from error
    return Record(
        name_of(folder),
        name_of(stem).removeprefix(f"{name_of(folder)}_"),
        {name: pictures[name] for name in VIEW_NAMES},
        scan_vertices=vertices,
        scan_triangles=triangles,
        scan_landmarks_7=points,
    )


def _shown_side(uri: str) -> str:
    """Return which side a turned picture shows: "left" where the nose's tip lies to the left of the eyes.

    Raises:
        BadFile: the landmarks are missing or broken, or hold neither.
    """
    named = parse_landmarks(uri, read_file(uri, "the landmarks of a turned head"), size=2)
    eyes = [point[0] for name, point in named.items() if name.endswith("eye corner")]
    tip = named.get("nose tip")
    if tip is None or not eyes:
        raise BadFile(uri, "nose tip and eye corners", ", ".join(named) or "no landmarks")
    return "left" if tip[0] < np.mean(eyes) else "right"
