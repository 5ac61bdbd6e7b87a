"""Scans of the Bosphorus database as what predictions are measured against.

The formats, and the stand-in for the nose's bottom, are those of dfmvr.data.datasets.bnt.
"""

from __future__ import annotations

from pathlib import Path

from dfmvr.data.datasets.bnt import landmarks_7, parse_bnt, parse_landmarks
from dfmvr.evaluation.mesh_files import MILLIMETRES, MarkedMesh, MeshFileError, read_marked_mesh


def read_scan(path: Path, unit: str = "mm") -> MarkedMesh:
    """Read a scan with its landmarks: Bosphorus' `.bnt` and `.lm3`, or any mesh of read_marked_mesh.

    Args:
        path: a file with one of mesh_files.SCAN_ENDINGS.
        unit: that both are in, one of MILLIMETRES.

    Raises:
        ValueError: a file is missing, cannot be read, or holds something else.
    """
    if path.suffix.lower() != ".bnt":
        return read_marked_mesh(path, unit)
    factor = MILLIMETRES[unit]
    beside = path.with_suffix(".lm3")
    if not beside.is_file():
        raise MeshFileError(f"{path}: expected its landmarks in {beside.name}, found none")
    vertices, triangles = parse_bnt(str(path), path.read_bytes())
    vertices = vertices * factor
    named = {
        name: point * factor for name, point in parse_landmarks(str(beside), beside.read_bytes()).items()
    }
    try:
        return MarkedMesh(vertices, triangles, landmarks_7(named, vertices))
    except ValueError as error:
        raise MeshFileError(f"{beside}: {error}") from error
