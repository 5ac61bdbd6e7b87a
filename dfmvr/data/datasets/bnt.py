"""Files of the Bosphorus database (Savran et al. 2008): a grid of points (.bnt), landmarks (.lm3, .lm2).

A `.bnt` is packed and little-endian: u16 rows, u16 columns, f64 depth of the background, u16 length and the
characters of a picture's name, u32 count, then as many f64: x, y, z and two picture coordinates, each for all
rows x columns points, row after row. x runs to the viewer's right, y up, z out of the face, in mm. Nobody
published this; it is what the readers that are in use agree on, so that sizes and order are checked here.
"""

from __future__ import annotations

import re
import struct

import numpy as np
from numpy.typing import NDArray

from dfmvr.data.datasets.records import BadFile

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

VALUES = 5
"""Numbers of a point: x, y, z, and where the picture shows it."""
LONGEST_EDGE = 6.0
"""Edges over this multiple of the grid's median spacing bridge a gap in depth: no triangle has one."""
MOST_UNEVEN = 5.0
"""Neighbours within a row and between rows lie apart alike within this ratio, or the order is another."""
MIDLINE_MM = 3.0
"""Scan points this near the plane of symmetry show the profile."""

_SIZES, _TEXT, _COUNT = struct.Struct("<HHd"), struct.Struct("<H"), struct.Struct("<I")
_HEADER = re.compile(r"(\d+)\s+landmarks:?", re.IGNORECASE)


def parse_bnt(uri: str, data: bytes) -> tuple[Floats, Ints]:
    """Read a grid of points as a triangle mesh, without background and without bridges over gaps in depth.

    Args:
        uri: of the file, for the error.
        data: its content.

    Returns:
        Vertices [N, 3] in the file's unit and triangles [F, 3], counter-clockwise seen from the front.

    Raises:
        BadFile: the file is cut off, too long, or not a grid.
    """
    grid, background = _read_grid(uri, data)
    valid = np.isfinite(grid).all(axis=2) & (grid[..., 2] != background)
    along, between = _spacing(grid, valid), _spacing(grid.swapaxes(0, 1), valid.T)
    even = along < MOST_UNEVEN * between and between < MOST_UNEVEN * along
    if not even:  # nor are NaN, where no points have neighbours
        raise BadFile(
            uri,
            "points row after row, as far apart within a row as between rows",
            f"{along:.2f} and {between:.2f}",
        )
    triangles = _triangulate(grid, valid, LONGEST_EDGE * max(along, between))
    if len(triangles) == 0:
        raise BadFile(uri, "a surface", f"no three neighbours of {valid.sum()} points")
    used, triangles = np.unique(triangles, return_inverse=True)
    return grid.reshape(-1, 3)[used], triangles.reshape(-1, 3)


def parse_landmarks(uri: str, data: bytes, size: int = 3) -> dict[str, Floats]:
    """Read landmarks: lines of `#` comments, "22 landmarks:", then a name and its coordinates in turn.

    Args:
        uri: of the file, for the error.
        data: its content.
        size: coordinates of a point: 3 in an .lm3, 2 in an .lm2.

    Returns:
        A point [size], in the file's unit, for each name in lower case.

    Raises:
        BadFile: it holds something else.
    """
    lines = [line.strip() for line in data.decode("latin-1").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    header = _HEADER.fullmatch(lines[0]) if lines else None
    if header is None:
        raise BadFile(uri, "a line such as '22 landmarks:'", f"{lines[:1]}")
    names, points = lines[1::2], lines[2::2]
    if not len(names) == len(points) == int(header[1]):
        raise BadFile(uri, f"{header[1]} names and as many points", f"{len(names)} and {len(points)}")
    return {name.lower(): _point(uri, name, text, size) for name, text in zip(names, points, strict=True)}


def _point(uri: str, name: str, text: str, size: int) -> Floats:
    try:
        point = np.array([float(word) for word in text.split()])
    except ValueError:
        point = np.array([])
    if point.shape != (size,) or not np.isfinite(point).all():
        raise BadFile(uri, f"{'x y z'[: 2 * size - 1]} of {name}", repr(text))
    return point


def landmarks_7(named: dict[str, Floats], vertices: Floats) -> Floats:
    """Return the seven landmarks [7, 3], ALIGN_7_IN_68's points.

    Six are among Bosphorus' 22. The nose's bottom is not: the stand-in is the point of the scan that lies
    furthest behind the line from the nose's tip to the upper lip's outer middle, on the midline between them,
    where the profile turns from the nose to the lip. Whose left and right the names mean is told by x.

    Args:
        named: points [3] by Bosphorus' names, in lower case.
        vertices: [N, 3] mm of the scan.

    Raises:
        ValueError: a landmark is missing, or nothing of the scan lies between nose and lip.
    """
    needed = [f"{place} {side} eye corner" for place in ("outer", "inner") for side in ("left", "right")]
    needed += ["left mouth corner", "right mouth corner", "nose tip", "upper lip outer middle"]
    missing = [name for name in needed if name not in named]
    if missing:
        raise ValueError(f"expected {', '.join(needed)}, found no {', '.join(missing)}")
    right, left = sorted(("left", "right"), key=lambda side: float(named[f"outer {side} eye corner"][0]))
    eyes = [
        named[f"outer {right} eye corner"],
        named[f"inner {right} eye corner"],
        named[f"inner {left} eye corner"],
        named[f"outer {left} eye corner"],
    ]
    across = np.mean(eyes[2:], axis=0) - np.mean(eyes[:2], axis=0)
    bottom = _nose_bottom(named["nose tip"], named["upper lip outer middle"], across, vertices)
    return np.stack([*eyes, bottom, named[f"{right} mouth corner"], named[f"{left} mouth corner"]])


def _nose_bottom(tip: Floats, lip: Floats, across: Floats, vertices: Floats) -> Floats:
    """Return the vertex [3] furthest behind the line from tip to lip; `across` runs to the subject's left."""
    line = lip - tip
    behind, aside = np.cross(across, line), across / np.linalg.norm(across)
    arms = vertices - tip
    share = arms @ line / (line @ line)
    profile = np.flatnonzero((np.abs(arms @ aside) < MIDLINE_MM) & (share > 0) & (share < 1))
    if len(profile) == 0:
        raise ValueError(f"expected scan within {MIDLINE_MM:g} mm of the midline below the nose, found none")
    return np.asarray(vertices[profile[np.argmax(arms[profile] @ behind)]])


def _read_grid(uri: str, data: bytes) -> tuple[Floats, float]:
    """Return the points [rows, columns, 3] and the z that marks the background."""
    try:
        rows, columns, background = _SIZES.unpack_from(data)
        (n_characters,) = _TEXT.unpack_from(data, _SIZES.size)
        start = _SIZES.size + _TEXT.size + n_characters
        (count,) = _COUNT.unpack_from(data, start)
    except struct.error as error:
        raise BadFile(uri, "a Bosphorus scan", f"{len(data)} bytes: no header") from error
    if count != rows * columns * VALUES or count == 0:
        expected = f"{VALUES} numbers for each of {rows} x {columns} points"
        raise BadFile(uri, expected, f"a count of {count}")
    start += _COUNT.size
    if len(data) != start + 8 * count:
        raise BadFile(uri, f"{start + 8 * count} bytes", f"{len(data)}")
    values = np.frombuffer(data, "<f8", count, start).astype(np.float64)
    return values.reshape(VALUES, rows, columns)[:3].transpose(1, 2, 0), background


def _spacing(grid: Floats, valid: Ints) -> float:
    """Return the median distance between valid neighbours within a row; NaN if there are none."""
    both = valid[:, :-1] & valid[:, 1:]
    distances = np.linalg.norm(np.diff(grid, axis=1)[both], axis=1)
    return float(np.median(distances)) if len(distances) else float("nan")


def _triangulate(grid: Floats, valid: Ints, longest: float) -> Ints:
    """Return the triangles [F, 3] between valid neighbours of a grid whose edges are all short enough."""
    ids = np.arange(valid.size).reshape(valid.shape)
    a, b, c, d = (corner.ravel() for corner in (ids[:-1, :-1], ids[:-1, 1:], ids[1:, :-1], ids[1:, 1:]))
    diagonal = valid.ravel()[a] & valid.ravel()[d]
    first = np.where(diagonal[:, None], np.stack([a, b, d], 1), np.stack([a, b, c], 1))
    second = np.where(diagonal[:, None], np.stack([a, d, c], 1), np.stack([b, d, c], 1))
    triangles = np.concatenate([first, second])
    triangles = triangles[valid.ravel()[triangles].all(axis=1)]
    corners = grid.reshape(-1, 3)[triangles]
    edges = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2)
    near = edges.max(axis=1) <= longest
    triangles, corners = triangles[near], corners[near]
    from_the_front = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[:, 2].sum() > 0
    return triangles if from_the_front else triangles[:, ::-1]
