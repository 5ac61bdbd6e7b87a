"""Pixel-Face (Lyu et al. 2020), as its authors release it and as DF-MVR arranges it.

DF-MVR's: `{train,val}/<subject>/<expression>/Images/` with `{0,1,2}/t.jpg` and `fusion/nicp_106_pts.txt`.
Released: `release_id/release_info.txt` with a line "subject sample sex age expression" for each sample,
`<sample>/{0,1,2}/t.bmp` and `<sample>/fusion/gt.mat`, and `release_id/split/release_{train,eva}.txt`.

Folders 0, 1, 2 are left, front, right. Coordinates are in units of 100 mm. In `gt.mat`, `new_kpt_gt_obj` is
the scan: v [N, 3], and f [3, F] and kpt_ind [106], which count from 1.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from dfmvr.data import storage
from dfmvr.data.datasets.records import (
    Array,
    BadFile,
    Picture,
    Problem,
    Record,
    Turn,
    attempt,
    check_file,
    name_of,
    parse_points,
    read_file,
    subfolders,
)
from dfmvr.morphable.landmarks import ALIGN_7_IN_101, KEPT_OF_106
from dfmvr.types import VIEW_NAMES

MM = 100.0
"""mm for one unit of the files."""
N_POINTS = 106
SCAN = "new_kpt_gt_obj"
SCAN_FIELDS = ("v", "f", "kpt_ind")
MAT_LIMIT = 2**29
"""Bytes that a gt.mat may hold, packed and unpacked."""
VALIDATION_SHARE = 0.1
"""Share of the training subjects that is set aside: the data set has no validation split."""
TURNS: tuple[Turn, ...] = ("cw90_mirror", "none")

_INFO = ("release_id/release_info.txt", "release_info.txt")
_MAT_HEADER = 128
_PACKED = 15
"""A .mat file's type of a compressed element."""


def iter_records(root: str, *, turn: str = "cw90_mirror") -> Iterator[Record | Problem]:
    """Read either arrangement.

    Args:
        root: folder of the data set, local or s3://.
        turn: what brings the pictures upright, one of TURNS.

    Raises:
        NotADirectoryError: there is no such folder.
        ValueError: it has neither arrangement, its lists cannot be read, or `turn` is unknown.
    """
    chosen = next((known for known in TURNS if known == turn), None)
    if chosen is None:
        raise ValueError(f"turn: expected one of {', '.join(TURNS)}, got {turn!r}")
    arrangements = f"train/ and val/, or {_INFO[0]}"
    folders = {name_of(folder): folder for folder in subfolders(root, arrangements)}
    halves = [name for name in ("train", "val") if name in folders]
    if halves:
        return _arranged([folders[name] for name in halves], chosen)
    info = next((uri for uri in (storage.join(root, name) for name in _INFO) if storage.exists(uri)), None)
    if info is None:
        raise ValueError(f"{root}: expected {arrangements} of Pixel-Face, got {', '.join(folders)}")
    return _released(root, info, _lines(info), _released_splits(info), chosen)


def _arranged(halves: list[str], turn: Turn) -> Iterator[Record | Problem]:
    for half in halves:
        for subject in storage.list_folders(half):
            split = "test" if name_of(half) == "val" else _training_split(name_of(subject))
            for expression in storage.list_folders(subject):
                yield attempt(_arranged_record, subject, expression, split, turn)


def _arranged_record(subject: str, expression: str, split: str, turn: Turn) -> Record:
    images = storage.join(expression, "Images")
    uri = storage.join(images, "fusion", "nicp_106_pts.txt")
    pictures = _pictures(images, "t.jpg", turn)
    text = read_file(uri, f"the {N_POINTS} points of the face").decode("ascii", "replace")
    points = MM * parse_points(uri, text, N_POINTS, 3)[list(KEPT_OF_106)]
    return Record(name_of(subject), name_of(expression), pictures, split=split, landmarks_3d=points)


def _released(
    root: str, info: str, lines: list[str], splits: dict[str, str], turn: Turn
) -> Iterator[Record | Problem]:
    for number, line in enumerate(lines, 1):
        words = line.replace(",", " ").split()
        if len(words) != 5:
            yield Problem(info, "subject, sample, sex, age, expression", f"{line[:60]!r} in line {number}")
            continue
        subject, sample, _, _, expression = words
        split = splits.get(sample)
        split = _training_split(subject) if split == "train" else split
        folder = storage.join(root, sample)
        yield attempt(_released_record, subject, f"{expression}-{name_of(sample)}", folder, split, turn)


def _released_record(subject: str, expression: str, folder: str, split: str | None, turn: Turn) -> Record:
    pictures = _pictures(folder, "t.bmp", turn)
    vertices, triangles, points = _read_scan(storage.join(folder, "fusion", "gt.mat"))
    return Record(
        subject,
        expression,
        pictures,
        split=split,
        landmarks_3d=points,
        scan_vertices=vertices,
        scan_triangles=triangles,
        scan_landmarks_7=points[list(ALIGN_7_IN_101)],
    )


def _released_splits(info: str) -> dict[str, str]:
    """Return sample -> "train" or "test" as far as the release's lists tell."""
    folder = info.removesuffix(name_of(info)) + "split"
    files = {"train": "release_train.txt", "test": "release_eva.txt"}
    uris = {split: storage.join(folder, file) for split, file in files.items()}
    return {
        line.split()[0]: split for split, uri in uris.items() if storage.exists(uri) for line in _lines(uri)
    }


def _lines(uri: str) -> list[str]:
    text = read_file(uri, "a list of samples").decode("utf-8", "replace")
    return [line for line in text.splitlines() if line.strip()]


def _training_split(subject: str) -> str:
    """Return "validation" for VALIDATION_SHARE of the subjects, always the same ones."""
    place = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:4], "big") / 2**32
    return "validation" if place < VALIDATION_SHARE else "train"


def _pictures(folder: str, file: str, turn: Turn) -> dict[str, Picture]:
    """Return the three views; the yaw of the sides is not known.

    Raises:
        BadFile: a file is missing.
    """
    return {
        name: Picture(
            check_file(storage.join(folder, str(number), file), f"the {name} view"),
            yaw=0.0 if name == "front" else math.nan,
            turn=turn,
        )
        for number, name in enumerate(VIEW_NAMES)
    }


def _read_scan(uri: str) -> tuple[Array, Array, Array]:
    """Return vertices [N, 3] mm, triangles [F, 3] and the 101 landmarks [101, 3] mm.

    Raises:
        BadFile: the file is missing or damaged, or lacks a field.
    """
    from scipy.io import loadmat

    expected = f"a .mat file (version 5 to 7) with {SCAN}: {', '.join(SCAN_FIELDS)}"
    data = read_file(uri, expected, MAT_LIMIT)
    _check_unpacked(uri, data)
    try:
        content = loadmat(io.BytesIO(data), variable_names=(SCAN,))
    except Exception as error:  # scipy raises many kinds on damaged bytes
        raise BadFile(uri, expected, str(error) or type(error).__name__) from error
    scan = content.get(SCAN)
    fields = scan.dtype.names if isinstance(scan, np.ndarray) else None
    if scan is None or scan.size != 1 or not set(SCAN_FIELDS) <= set(fields or ()):
        raise BadFile(uri, expected, f"{SCAN} with {', '.join(fields)}" if fields else f"no struct {SCAN}")
    vertices, faces, points = (_numbers(uri, name, scan[name].item()) for name in SCAN_FIELDS)
    vertices = _rows_of_three(uri, "v", vertices)
    triangles, marks = (
        _indices(uri, name, values, len(vertices)) for name, values in (("f", faces), ("kpt_ind", points))
    )
    if marks.size != N_POINTS:
        raise BadFile(uri, f"{N_POINTS} landmarks in {SCAN}.kpt_ind", str(marks.size))
    kept = vertices[marks.ravel()[list(KEPT_OF_106)]]
    return MM * vertices, _rows_of_three(uri, "f", triangles), MM * kept


def _check_unpacked(uri: str, data: bytes) -> None:
    """Refuse a .mat file whose compressed parts are broken, or far larger than any scan.

    Raises:
        BadFile: see above.
    """
    start, size = _MAT_HEADER, 0
    while start + 8 <= len(data):
        kind, length = struct.unpack_from("<II", data, start)
        if kind == _PACKED:
            unpacker = zlib.decompressobj()
            try:
                size += len(unpacker.decompress(data[start + 8 : start + 8 + length], MAT_LIMIT - size + 1))
            except zlib.error as error:
                raise BadFile(uri, "whole compressed parts", str(error)) from error
            if size > MAT_LIMIT:
                raise BadFile(uri, f"at most {MAT_LIMIT} bytes unpacked", "more")
        start += 8 + length


def _numbers(uri: str, name: str, values: Any) -> Array:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        kind = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
        raise BadFile(uri, f"finite numbers in {SCAN}.{name}", f"{kind}")
    return values.astype(np.float64)


def _rows_of_three(uri: str, name: str, values: Array) -> Array:
    """Return [n, 3] from that or from [3, n]."""
    if values.ndim != 2 or 3 not in values.shape:
        raise BadFile(uri, f"shape [n, 3] or [3, n] of {SCAN}.{name}", f"{list(values.shape)}")
    return values if values.shape[1] == 3 else values.T


def _indices(uri: str, name: str, values: Array, n_vertices: int) -> Array:
    """Return indices that count from 1 as int64 that count from 0."""
    if values.size == 0 or not ((values >= 1) & (values <= n_vertices) & (values == np.rint(values))).all():
        span = f"{values.min():g} to {values.max():g}" if values.size else "none"
        raise BadFile(uri, f"whole numbers 1 to {n_vertices} in {SCAN}.{name}", span)
    return values.astype(np.int64) - 1
