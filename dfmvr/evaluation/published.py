"""Protocols of published benchmarks, each as a function of one scan and one prediction in any topology.

Every function returns the distances (mm) of scan vertices to the prediction; `summarise` turns those of many
faces into the numbers that the benchmark's tables hold. Registration is this project's (registration.py): it
minimises the very point-to-surface distances that are measured, as the benchmarks' own optimisers aim to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dfmvr.evaluation.distance import Floats, Surface
from dfmvr.evaluation.mesh_files import MarkedMesh
from dfmvr.evaluation.protocol import crop_ball
from dfmvr.evaluation.registration import Transform, align_points, curve_order, even_subset, refine
from dfmvr.geometry.mesh import vertex_areas

PROTOCOLS = {
    "now": "median, mean and std over all scans' vertices, similarity registration (Sanyal et al., 2019)",
    "now-metrical": "the same with the predicted size kept (Zielonka et al., 2022)",
    "micc": "point-to-plane RMSE per scan within 95 mm of the nose's tip (Deep3DFaceRecon on MICC)",
    "df-mvr": "point-to-plane RMSE per scan, front of the face (DF-MVR, 5.1)",
    "df-mvr-legacy": "what the code released with DF-MVR computes: the mean distance per scan",
}
"""Names of the protocols, and what each measures."""

NOW_CROP, MICC_RADIUS_MM = 1.4, 95.0
REGISTERED_POINTS = 4000
"""Scan vertices that drive a registration, spread evenly."""
_NOSE_REACH_MM = 40.0
"""The nose's tip lies within this of its bottom."""


@dataclass(frozen=True)
class _Fit:
    """A registered prediction and what it is measured at."""

    surface: Surface
    points: Floats
    """[M, 3] mm: the scan's cropped vertices."""
    transform: Transform
    """Prediction -> scan."""

    def to_surface(self) -> Floats:
        """[M] mm to the closest point of the prediction."""
        return self.transform.scale * self.surface.closest(self.transform.invert(self.points)).distances

    def to_plane(self) -> Floats:
        """[M] mm along the prediction's normal at the closest vertex."""
        local = self.transform.invert(self.points)
        return self.transform.scale * self.surface.plane_distances(local, self.surface.closest(local))


def measure_published(protocol: str, scan: MarkedMesh, prediction: MarkedMesh) -> Floats:
    """Return the distances (mm) that a protocol takes of one face.

    Args:
        protocol: one of PROTOCOLS.
        scan: the truth; a cloud of points will do.
        prediction: needs triangles.

    Raises:
        ValueError: unknown protocol, or nothing of the scan lies where the protocol measures.
    """
    match protocol:
        case "now":
            return now(scan, prediction)
        case "now-metrical":
            return now(scan, prediction, metrical=True)
        case "micc":
            return micc(scan, prediction)
        case "df-mvr":
            return df_mvr(scan, prediction)
        case "df-mvr-legacy":
            return df_mvr_legacy(scan, prediction)
        case _:
            raise ValueError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}")


def now(scan: MarkedMesh, prediction: MarkedMesh, *, metrical: bool = False) -> Floats:
    """NoW (Sanyal et al., 2019): from every cropped scan vertex to the predicted surface.

    Args:
        scan: the truth.
        prediction: any topology.
        metrical: keep the predicted size (Zielonka et al., 2022).
    """
    centre, radius = crop_ball(scan.landmarks_7, NOW_CROP)
    return _register(scan, prediction, centre, radius, with_scale=not metrical).to_surface()


def micc(scan: MarkedMesh, prediction: MarkedMesh) -> Floats:
    """Deep3DFaceRecon's protocol for MICC: point-to-plane within 95 mm of the nose's tip, similarity."""
    return _register(scan, prediction, nose_tip(scan), MICC_RADIUS_MM, with_scale=True).to_plane()


def df_mvr(scan: MarkedMesh, prediction: MarkedMesh) -> Floats:
    """DF-MVR (5.1): point-to-plane on the front of the face, seven landmarks, then ICP; NoW's crop."""
    centre, radius = crop_ball(scan.landmarks_7, NOW_CROP)
    return _register(scan, prediction, centre, radius, with_scale=True).to_plane()


def df_mvr_legacy(scan: MarkedMesh, prediction: MarkedMesh) -> Floats:
    """The number that DF-MVR's released code calls RMSE is the mean of these unsigned distances."""
    return now(scan, prediction)


def summarise(protocol: str, faces: Sequence[Floats]) -> dict[str, float]:
    """Return the numbers (mm) of a protocol's tables.

    NoW pools the vertices of all scans; the others take one number a scan, then mean and std over scans.

    Args:
        protocol: one of PROTOCOLS.
        faces: the distances [M] of each face; at least one.
    """
    if not faces:
        raise ValueError("faces: expected the distances of at least one face, got none")
    if protocol.startswith("now"):
        pooled = np.concatenate(faces)
        return {
            "median_mm": float(np.median(pooled)),
            "mean_mm": float(pooled.mean()),
            "std_mm": float(pooled.std()),
        }
    each = [np.mean(d) if protocol == "df-mvr-legacy" else np.sqrt(np.mean(d**2)) for d in faces]
    name = "mean_distance" if protocol == "df-mvr-legacy" else "rmse"
    return {f"{name}_mm": float(np.mean(each)), f"{name}_std_mm": float(np.std(each))}


def nose_tip(scan: MarkedMesh) -> Floats:
    """Return the scan's foremost vertex [3] near the nose; forward is told by eyes and mouth."""
    outer_right, inner_right, inner_left, outer_left, nose_bottom, *mouth = scan.landmarks_7
    right, left = (outer_right + inner_right) / 2, (inner_left + outer_left) / 2
    forward = np.cross(left - right, (left + right) / 2 - np.mean(mouth, axis=0))
    near = scan.vertices[np.linalg.norm(scan.vertices - nose_bottom, axis=1) < _NOSE_REACH_MM]
    if len(near) == 0:
        raise ValueError(f"scan: expected vertices within {_NOSE_REACH_MM:g} mm of the nose, got none")
    return np.asarray(near[np.argmax(near @ forward)])


def surface_shares(scan: MarkedMesh) -> Floats:
    """Return [N] mm² around each vertex; a cloud's points count alike."""
    if len(scan.triangles) == 0:
        return np.ones(len(scan.vertices))
    return np.asarray(vertex_areas(torch.from_numpy(scan.vertices), torch.from_numpy(scan.triangles)).numpy())


def _register(
    scan: MarkedMesh, prediction: MarkedMesh, centre: Floats, radius: float, *, with_scale: bool
) -> _Fit:
    """Crop the scan to a ball, align on the landmarks, refine on the surfaces."""
    inside = np.linalg.norm(scan.vertices - centre, axis=1) < radius
    points, areas = scan.vertices[inside], surface_shares(scan)[inside]
    if not areas.any():
        raise ValueError(
            f"scan: expected surface within {radius:.0f} mm of {np.round(centre).tolist()}, got none of "
            f"{len(scan.vertices)} vertices"
        )
    order = curve_order(points)
    points, areas = points[order], areas[order]
    surface = Surface(prediction.vertices, prediction.triangles)
    start = align_points(prediction.landmarks_7, scan.landmarks_7, with_scale=with_scale)
    evenly = points[even_subset(areas, REGISTERED_POINTS)]
    return _Fit(surface, points, refine(surface, evenly, start, with_scale=with_scale).transform)
