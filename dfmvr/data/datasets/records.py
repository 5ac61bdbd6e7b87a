"""What every data set of photographs is read as: records (one face at one moment), and what is wrong.

An adapter is a module with `iter_records(root, **options)`, which yields a Record for what is whole and a
Problem for what is not, and goes on: one subject's broken file stops no other. It lists and reads small files
(landmarks, cameras, scans); photographs are only named, and decoded by whoever wants them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dfmvr.data import storage

Array = NDArray[Any]
Turn = Literal["none", "cw90_mirror"]

TEXT_LIMIT = 2**22
"""Bytes of the largest file of text (landmarks, cameras, lists) that is read."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One photograph of a record."""

    uri: str
    """Local path or s3://bucket/key."""
    yaw: float = math.nan
    """Radians, nominal: `left` views have yaw < 0, `right` views yaw > 0 (VIEW_NAMES); NaN where unknown."""
    turn: Turn = "none"
    """What brings the stored pixels upright: "cw90_mirror" is 90 degrees clockwise, then left and right
    exchanged."""
    landmarks: Array | None = None
    """[68, 2] float64 pixels of the turned picture, iBUG order, where the data set has them."""
    intrinsics: Array | None = None
    """[3, 3] float64 pixels of the turned picture (a pixel's centre is at +0.5, unlike OpenCV's)."""
    distortion: Array | None = None
    """[4, 5, 8, 12 or 14] float64 coefficients in OpenCV's order."""


@dataclass(frozen=True, eq=False)
class Record:
    """One face at one moment."""

    subject_id: str
    expression_id: str
    pictures: Mapping[str, Picture]
    """View name (one of VIEW_NAMES) -> photograph."""
    split: str | None = None
    """One of SPLITS where the data set fixes it; None leaves the choice to the reader."""
    landmarks_3d: Array | None = None
    """[101, 3] float64 mm, in any rigid frame."""
    scan_vertices: Array | None = None
    """[M, 3] float64 mm: the true surface."""
    scan_triangles: Array | None = None
    """[T, 3] int64."""
    scan_landmarks_7: Array | None = None
    """[7, 3] float64 mm, in the scan's frame: ALIGN_7_IN_68's points."""


@dataclass(frozen=True)
class Problem:
    """Something of a data set that could not become a record, or not wholly."""

    path: str
    """Local path or URI of the file or folder."""
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, got {self.got}"


class BadFile(ValueError):
    """Raised while a record is put together; names the file, what was expected and what came."""

    def __init__(self, path: str, expected: str, got: str) -> None:
        super().__init__(path, expected, got)
        self.problem = Problem(path, expected, got)

    def __str__(self) -> str:
        return str(self.problem)


def attempt(make: Callable[..., Record], *arguments: Any) -> Record | Problem:
    """Return the record that `make(*arguments)` gives, or what kept it from becoming one."""
    try:
        return make(*arguments)
    except BadFile as error:
        return error.problem


def subfolders(root: str, expected: str) -> list[str]:
    """Return the folders directly in a data set's root.

    Raises:
        NotADirectoryError: there is no such folder, or it has no folders; the message says what was expected.
    """
    try:
        folders = storage.list_folders(root)
    except storage.StorageError as error:
        raise NotADirectoryError(f"{root}: expected a folder with {expected}, got {error}") from error
    if not folders:
        raise NotADirectoryError(f"{root}: expected a folder with {expected}, found none")
    return folders


def name_of(uri: str) -> str:
    """Return the last part of a file's or folder's URI."""
    return uri.rstrip("/").rpartition("/")[2]


def read_file(uri: str, expected: str, limit: int = TEXT_LIMIT) -> bytes:
    """Return a file's content.

    Args:
        uri: of the file.
        expected: what it should be, for the error.
        limit: bytes that it may hold.

    Raises:
        BadFile: it is missing, larger, or cannot be read.
    """
    try:
        return storage.read_bytes(uri, limit)
    except FileNotFoundError as error:
        raise BadFile(uri, expected, "no such file") from error
    except storage.StorageError as error:
        raise BadFile(uri, expected, str(error)) from error


def check_file(uri: str, expected: str) -> str:
    """Return the URI of a file that is there.

    Raises:
        BadFile: it is not.
    """
    if not storage.exists(uri):
        raise BadFile(uri, expected, "no such file")
    return uri


def parse_points(uri: str, text: str, count: int, size: int) -> Array:
    """Return [count, size] float64, the numbers of a text with a point on each line.

    Raises:
        BadFile: there are more or fewer lines or numbers, or one is not finite.
    """
    expected = f"{count} lines of {size} numbers"
    lines = [line.replace(",", " ") for line in text.splitlines() if line.strip()]
    if len(lines) != count:
        raise BadFile(uri, expected, f"{len(lines)} lines")
    points = []
    for number, line in enumerate(lines, 1):
        try:
            point = [float(word) for word in line.split()]
        except ValueError:
            point = []
        if len(point) != size or not all(map(math.isfinite, point)):
            raise BadFile(uri, expected, f"{line.strip()[:40]!r} in line {number}")
        points.append(point)
    return np.array(points)


def triples(pictures: Sequence[Picture]) -> list[dict[str, Picture]]:
    """Arrange any number of photographs of one moment as left, front and right.

    The one that is nearest to frontal is the front of every group. The others go by the sign of their yaw,
    and the k-th left from the front stands with the k-th right, as far as either side reaches.

    Args:
        pictures: at least one, each of a known yaw, no two of the same.

    Returns:
        For each group, view name -> photograph; a side may be missing.
    """
    front = min(pictures, key=lambda picture: abs(picture.yaw))
    others = sorted((picture for picture in pictures if picture is not front), key=lambda p: abs(p.yaw))
    sides = {
        "left": [picture for picture in others if picture.yaw < front.yaw],
        "right": [picture for picture in others if picture.yaw > front.yaw],
    }
    return [
        {"front": front} | {name: side[k] for name, side in sides.items() if k < len(side)}
        for k in range(max(1, *map(len, sides.values())))
    ]
