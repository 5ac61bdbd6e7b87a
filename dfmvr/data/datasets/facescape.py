"""FaceScape's multi-view photographs and scans (Yang et al. 2020).

`<id>/<n>_<expression>/{k}.jpg` and `params.json` with `k_K`, `k_Rt` (scan to camera, OpenCV's axes),
`k_distortion` and `k_valid`; the scan `<id>/<n>_<expression>.ply`. Scans lie in frames and sizes of their
own: `Rt_scale_dict.json` of FaceScape's toolkit has, under id and n, the scale and the [3, 4] matrix that
bring each to the common frame (x to the subject's left, y up, z out of the face), in mm as far as FaceScape
knows them: every head is scaled to the same distance between the eyes.

The cameras stand all around the head: front, left and right are those that look most nearly along the wanted
directions. Distortion is passed on with the picture; it is removed where the picture is read.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dfmvr.data import storage
from dfmvr.data.datasets.records import (
    TEXT_LIMIT,
    Array,
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

ALIGNMENT = "Rt_scale_dict.json"
CAMERAS = "params.json"
ALIGNMENT_LIMIT = 2**26
SCAN_LIMIT = 2**30
"""Bytes of the largest scan that is read."""
FURTHEST = 20.0
"""Degrees that a camera may stand off the wanted direction."""
DISTORTIONS = (4, 5, 8, 12, 14)
"""Numbers of coefficients that OpenCV knows."""

_EXPRESSION = re.compile(r"(\d+)_\w+")


def iter_records(root: str, *, side: str = "45", alignment: str = "") -> Iterator[Record | Problem]:
    """Read one triple of cameras of each expression, and its scan.

    Args:
        root: folder of the subjects' folders, local or s3://.
        side: degrees that left and right stand off the front, 10 to 90.
        alignment: where Rt_scale_dict.json lies; in the root, unless given.

    Raises:
        NotADirectoryError: there is no such folder.
        ValueError: it has no folders of subjects, no readable alignment, or `side` is no such angle.
    """
    if not side.isdigit() or not 10 <= int(side) <= 90:
        raise ValueError(f"side: expected whole degrees from 10 to 90, got {side!r}")
    expected = "folders of subjects such as 1 or 122"
    subjects = [folder for folder in subfolders(root, expected) if name_of(folder).isdigit()]
    if not subjects:
        raise ValueError(f"{root}: expected {expected}, found none")
    alignment = alignment or storage.join(root, ALIGNMENT)
    frames = _read_json(alignment, f"FaceScape's {ALIGNMENT}", ALIGNMENT_LIMIT)
    return (item for subject in subjects for item in _subject(subject, frames, math.radians(int(side))))


def _subject(folder: str, frames: Mapping[str, Any], side: float) -> Iterator[Record | Problem]:
    shots = [shot for shot in storage.list_folders(folder) if _EXPRESSION.fullmatch(name_of(shot))]
    if not shots:
        yield Problem(folder, "folders of expressions such as 1_neutral", "none")
    for shot in shots:
        yield attempt(_record, folder, shot, frames.get(name_of(folder)), side)


def _record(folder: str, shot: str, frames: Any, side: float) -> Record:
    scale, frame = _frame(shot, frames)
    cameras = _read_cameras(storage.join(shot, CAMERAS))
    eyes = {number: _place(camera["Rt"], scale, frame) for number, camera in cameras.items()}
    pictures = {}
    for name, yaw in {"left": -side, "front": 0.0, "right": side}.items():
        number = _nearest(shot, eyes, name, yaw)
        camera = cameras[number]
        pictures[name] = Picture(
            check_file(storage.join(shot, f"{number}.jpg"), f"the photograph of camera {number}"),
            yaw=_yaw(eyes[number]),
            intrinsics=camera["K"] + [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]],
            distortion=camera["distortion"],
        )
    vertices, triangles = _read_scan(f"{shot}.ply")
    return Record(
        name_of(folder),
        name_of(shot),
        pictures,
        scan_vertices=scale * vertices @ frame[:, :3].T + frame[:, 3],
        scan_triangles=triangles,
    )


def _frame(shot: str, frames: Any) -> tuple[float, Array]:
    """Return scale and [3, 4] matrix from the scan's frame to the common one."""
    number = name_of(shot).partition("_")[0]
    entry = frames.get(number) if isinstance(frames, dict) else None
    expected = f"scale and [3, 4] matrix of this expression in {ALIGNMENT}"
    if not isinstance(entry, list) or len(entry) != 2:
        raise BadFile(shot, expected, "none" if entry is None else json.dumps(entry)[:60])
    scale = _array(shot, expected, entry[0])
    matrix = _array(shot, expected, entry[1])
    if scale.shape != () or scale <= 0 or matrix.shape not in ((3, 4), (4, 4)):
        raise BadFile(shot, expected, f"scale {entry[0]} and matrix {list(matrix.shape)}")
    return float(scale), matrix[:3]


def _read_cameras(uri: str) -> dict[int, dict[str, Array]]:
    """Return number -> K [3, 3], Rt [3, 4] and distortion of the valid cameras."""
    content = _read_json(uri, "cameras of FaceScape")
    numbers = sorted(int(key[:-2]) for key in content if key.endswith("_K") and key[:-2].isdigit())
    cameras = {}
    for number in numbers:
        if not content.get(f"{number}_valid", True):
            continue
        expected = f"{number}_K [3, 3], {number}_Rt [3, 4] and {number}_distortion"
        camera = {
            name: _array(uri, expected, content.get(f"{number}_{name}")) for name in ("K", "Rt", "distortion")
        }
        camera["distortion"] = camera["distortion"].ravel()
        shapes = [list(array.shape) for array in camera.values()]
        if shapes[:2] != [[3, 3], [3, 4]] or camera["distortion"].size not in DISTORTIONS:
            raise BadFile(uri, expected, f"shapes {shapes[0]}, {shapes[1]} and {shapes[2]}")
        cameras[number] = camera
    return cameras


def _place(world_to_camera: Array, scale: float, frame: Array) -> Array:
    """Return where a camera stands [3], in mm in the common frame."""
    centre = -world_to_camera[:, :3].T @ world_to_camera[:, 3]
    return np.asarray(scale * frame[:, :3] @ centre + frame[:, 3])


def _yaw(place: Array) -> float:
    """Return the yaw of the head as a camera sees it: to the subject's left, it sees that side (yaw < 0)."""
    return -math.atan2(place[0], place[2])


def _nearest(shot: str, places: Mapping[int, Array], name: str, yaw: float) -> int:
    """Return the camera that stands nearest to a direction level with the face.

    Raises:
        BadFile: none stands within FURTHEST degrees of it.
    """
    wanted = np.array([math.sin(-yaw), 0.0, math.cos(yaw)])
    angles = {
        number: math.degrees(math.acos(np.clip(place @ wanted / np.linalg.norm(place), -1, 1)))
        for number, place in places.items()
    }
    number = min(angles, key=angles.__getitem__, default=None)
    if number is None or angles[number] > FURTHEST:
        got = "no valid camera" if number is None else f"the nearest {angles[number]:.0f} degrees off"
        expected = f"a camera for the {name} view within {FURTHEST:g} degrees of yaw {math.degrees(yaw):.0f}"
        raise BadFile(storage.join(shot, CAMERAS), expected, got)
    return number


def _read_scan(uri: str) -> tuple[Array, Array]:
    """Return vertices [M, 3] and triangles [T, 3] in the file's own frame."""
    import trimesh

    data = read_file(uri, "the scan of this expression", SCAN_LIMIT)
    try:
        mesh: Any = trimesh.load(io.BytesIO(data), file_type="ply", process=False)
        vertices, triangles = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
    except Exception as error:  # its readers raise whatever their parsers do
        raise BadFile(uri, "a mesh in a PLY file", str(error) or type(error).__name__) from error
    if len(triangles) == 0 or not np.isfinite(vertices).all():
        raise BadFile(uri, "finite vertices and triangles", f"{len(vertices)} and {len(triangles)}")
    return vertices, triangles


def _read_json(uri: str, expected: str, limit: int = TEXT_LIMIT) -> dict[str, Any]:
    data = read_file(uri, expected, limit)
    try:
        content = json.loads(data)
    except ValueError as error:
        raise BadFile(uri, f"{expected} (JSON)", str(error)) from error
    if not isinstance(content, dict):
        raise BadFile(uri, f"{expected} (a JSON object)", type(content).__name__)
    return content


def _array(uri: str, expected: str, values: Any) -> Array:
    try:
        array = np.array(values, np.float64)
    except (TypeError, ValueError):
        array = np.array(math.nan)
    if not np.isfinite(array).all():
        raise BadFile(uri, expected, json.dumps(values)[:60])
    return array
