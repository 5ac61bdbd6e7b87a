"""Meshes and landmarks that any project wrote, paired by name for measuring."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dfmvr.evaluation.distance import Floats, Ints

MESH_ENDINGS = (".obj", ".ply", ".stl", ".glb", ".off")
SCAN_ENDINGS = (*MESH_ENDINGS, ".bnt")
"""Those of scans; see bnt.py for the last."""
LANDMARK_ENDINGS = (".npy", ".txt", ".json")
MILLIMETRES = {"um": 1e-3, "mm": 1.0, "cm": 10.0, "m": 1000.0}
"""Length of each unit in mm."""
SCAN_REGIONS = ("nose", "mouth", "forehead", "cheek")
"""What a scan's labels 0-3 stand for; -1 is none of them."""
LABEL_ENDING = ".regions.txt"


class MeshFileError(ValueError):
    """A mesh or its landmarks cannot be used; the message names the file, what was expected and what came."""


@dataclass(frozen=True)
class MarkedMesh:
    """A surface with seven landmarks, in a frame of its own."""

    vertices: Floats
    """[N, 3] mm."""
    triangles: Ints
    """[F, 3]; F = 0 for a cloud of points."""
    landmarks_7: Floats
    """[7, 3] mm: right eye's outer and inner corner, left eye's inner and outer corner, nose bottom, right
    and left corner of the mouth (iBUG 36, 39, 42, 45, 33, 48, 54; the subject's right)."""
    regions: Ints | None = None
    """[N] index into SCAN_REGIONS or -1, where labels lie beside the mesh."""


@dataclass(frozen=True)
class Pair:
    """The files of one face."""

    name: str
    prediction: Path
    scan: Path


def pair_files(predictions: Path, scans: Path) -> tuple[list[Pair], list[str]]:
    """Find the meshes of two folders that have the same name but for the ending.

    Bosphorus' scans (.bnt) may also lie in the folders of their subjects, one level below.

    Returns:
        The pairs, by name, and a line for each file that has no partner or more than one.

    Raises:
        MeshFileError: a folder does not exist or holds no mesh.
    """
    predicted, scanned = _meshes_by_name(predictions, MESH_ENDINGS), _meshes_by_name(scans, SCAN_ENDINGS)
    pairs, problems = [], []
    for name in sorted(set(predicted) | set(scanned)):
        ours, theirs = predicted.get(name, []), scanned.get(name, [])
        if len(ours) == len(theirs) == 1:
            pairs.append(Pair(name, ours[0], theirs[0]))
            continue
        counts = f"{len(ours)} in {predictions} and {len(theirs)} in {scans}"
        problems.append(f"{name}: expected one mesh in each folder, got {counts}")
    return pairs, problems


def read_marked_mesh(path: Path, unit: str = "mm") -> MarkedMesh:
    """Read a mesh, and the landmarks that lie beside it under its name (.npy, .txt or .json).

    Labels of its regions may lie there too, as NAME.regions.txt: a number a vertex (SCAN_REGIONS).

    Args:
        path: a file with one of MESH_ENDINGS.
        unit: that both are in, one of MILLIMETRES.

    Raises:
        MeshFileError: a file is missing, cannot be read, or holds something else.
    """
    import trimesh

    try:
        mesh: Any = trimesh.load(path, process=False, force="mesh" if path.suffix != ".ply" else None)
    except Exception as error:  # its readers raise whatever their parsers do
        raise MeshFileError(f"{path}: expected a mesh, got {error or type(error).__name__}") from error
    vertices = np.asarray(mesh.vertices, np.float64)
    triangles = np.asarray(getattr(mesh, "faces", np.zeros((0, 3))), np.int64)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or len(vertices) == 0:
        raise MeshFileError(f"{path}: expected vertices [N, 3], got {list(vertices.shape)}")
    if not np.isfinite(vertices).all():
        raise MeshFileError(f"{path}: expected finite vertices, got NaN or infinity")
    factor = MILLIMETRES[unit]
    landmarks, regions = _read_landmarks(path) * factor, _read_regions(path, len(vertices))
    return MarkedMesh(vertices * factor, triangles, landmarks, regions)


def _meshes_by_name(folder: Path, endings: tuple[str, ...]) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise MeshFileError(f"{folder}: expected a folder of meshes, found none")
    meshes: dict[str, list[Path]] = {}
    for path in sorted([*folder.iterdir(), *folder.glob("*/*.bnt")]):
        if path.suffix.lower() in endings:
            meshes.setdefault(path.stem, []).append(path)
    if not meshes:
        raise MeshFileError(f"{folder}: expected meshes ({', '.join(endings)}), found none")
    return meshes


def _read_landmarks(mesh: Path) -> Floats:
    """Read the [7, 3] landmarks beside a mesh."""
    candidates = [mesh.with_suffix(ending) for ending in LANDMARK_ENDINGS]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        names = ", ".join(candidate.name for candidate in candidates)
        raise MeshFileError(f"{mesh}: expected its seven landmarks in one of {names}, found none")
    try:
        match path.suffix:
            case ".npy":
                landmarks = np.load(path, allow_pickle=False)
            case ".txt":
                landmarks = np.loadtxt(path, delimiter="," if "," in path.read_text() else None)
            case _:
                landmarks = np.array(json.loads(path.read_text()))
        landmarks = landmarks.astype(np.float64)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise MeshFileError(f"{path}: expected seven landmarks, got {error}") from error
    if landmarks.shape != (7, 3) or not np.isfinite(landmarks).all():
        raise MeshFileError(f"{path}: expected finite landmarks [7, 3], got {list(landmarks.shape)}")
    return landmarks


def _read_regions(mesh: Path, n_vertices: int) -> Ints | None:
    """Read the labels [N] beside a mesh, if there are some."""
    path = mesh.with_suffix(LABEL_ENDING)
    if not path.is_file():
        return None
    allowed = range(-1, len(SCAN_REGIONS))
    expected = f"{path}: expected a number from -1 to {len(SCAN_REGIONS) - 1} for each vertex"
    try:
        labels = np.array([int(word) for word in path.read_text().split()], np.int64)
    except ValueError as error:
        raise MeshFileError(f"{expected}, got {error}") from error
    if len(labels) != n_vertices:
        raise MeshFileError(f"{expected} of {n_vertices}, got {len(labels)}")
    if not np.isin(labels, allowed).all():
        raise MeshFileError(f"{expected}, got {labels.min()} to {labels.max()}")
    return labels
