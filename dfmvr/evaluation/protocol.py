"""How a predicted face is measured against a scan.

1. The scan is cropped to a ball around the face (NoW's centre and radius), without the mouth's inside.
2. The prediction is aligned on seven landmarks, then registered to the cropped scan (`registration.refine`).
3. Distances run from every cropped scan vertex to the predicted surface, in the scan's millimetres.

Two registrations are made: a *similarity*, because a face seen by uncalibrated cameras has no certain size
(behind every number without a prefix), and a *rigid* one that keeps the predicted size (`metric_rmse_mm`).

Axis letters: M measured scan vertices, N dense (level-1) vertices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfmvr.evaluation.distance import Floats, Surface
from dfmvr.evaluation.regions import REGIONS, UNMEASURED
from dfmvr.evaluation.registration import Transform, align_points, refine
from dfmvr.evaluation.settings import EvaluationSettings

BIN_MM = 0.01
"""Width of the bins in which distances are counted, so that samples can be pooled without keeping them."""
N_BINS = 2000
"""Bins up to 20 mm; a last one holds everything beyond."""
NOSE_BOTTOM = 4
"""Place of the nose's bottom among the seven landmarks."""


@dataclass(frozen=True)
class Truth:
    """What a face is measured against."""

    points: Floats
    """[M, 3] mm: the scan vertices inside the crop."""
    regions: NDArray[np.int8]
    """[M] index into REGIONS."""
    landmarks_7: Floats
    """[7, 3] mm."""
    dense: Floats
    """[N, 3] mm: true positions of the face model's level-1 vertices."""
    dense_measured: NDArray[np.bool_]
    """[N]: those inside the crop."""


@dataclass(frozen=True)
class Face:
    """A prediction, in any frame."""

    surface: Surface
    landmarks_7: Floats
    """[7, 3] mm."""
    nose_tip: Floats
    """[3] mm: iBUG 30, for the legacy number."""
    dense: Floats
    """[N, 3] mm: level-1 vertices, in the truth's order."""


@dataclass(frozen=True)
class Measurement:
    """The errors of one face."""

    values: dict[str, float]
    """Numbers in mm by name, see `measure`."""
    distances: Floats
    """[M] mm, point to surface, after the similarity registration."""
    transform: Transform
    """Prediction -> scan, the similarity."""
    converged: bool


def crop_ball(landmarks_7: Floats, factor: float) -> tuple[Floats, float]:
    """Return centre [3] and radius (mm) of the ball that NoW crops a scan to.

    Args:
        landmarks_7: [7, 3] mm: the right eye's outer and inner corner, the left eye's inner and outer corner,
            the nose's bottom, the right and left corner of the mouth.
        factor: 1.4 in NoW.
    """
    outer_right, inner_right, inner_left, outer_left, nose_bottom = landmarks_7[:5]
    bridge = (inner_right + inner_left) / 2
    eye_distance = np.linalg.norm(outer_left - outer_right)
    nose_length = np.linalg.norm(bridge - nose_bottom)
    centre = nose_bottom + 0.3 * (bridge - nose_bottom)
    return centre, float(factor * (eye_distance + nose_length) / 2)


def crop_truth(
    scan_vertices: Floats,
    scan_regions: NDArray[np.int8],
    landmarks_7: Floats,
    dense: Floats,
    dense_regions: NDArray[np.int8],
    factor: float,
) -> Truth:
    """Cut a scan to the part that is measured.

    Args:
        scan_vertices: [*, 3] mm.
        scan_regions: [*] index into REGIONS or UNMEASURED.
        landmarks_7: [7, 3] mm, the scan's.
        dense: [N, 3] mm dense correspondences.
        dense_regions: [N] as `scan_regions`.
        factor: see `crop_ball`.

    Raises:
        ValueError: nothing of the scan lies inside the crop.
    """
    centre, radius = crop_ball(landmarks_7, factor)

    def measured(points: Floats, regions: NDArray[np.int8]) -> NDArray[np.bool_]:
        return (np.linalg.norm(points - centre, axis=1) < radius) & (regions != UNMEASURED)

    kept = measured(scan_vertices, scan_regions)
    if not kept.any():
        raise ValueError(
            f"scan: expected vertices within {radius:.0f} mm of {np.round(centre).tolist()} (from its seven "
            f"landmarks), got none of {len(scan_vertices)}"
        )
    return Truth(
        points=np.asarray(scan_vertices, dtype=np.float64)[kept],
        regions=scan_regions[kept],
        landmarks_7=np.asarray(landmarks_7, dtype=np.float64),
        dense=np.asarray(dense, dtype=np.float64),
        dense_measured=measured(dense, dense_regions),
    )


def measure(face: Face, truth: Truth, settings: EvaluationSettings) -> Measurement:
    """Register a face to the truth and measure it.

    The values, all in mm:
        rmse, mean, median, std: of the point-to-surface distances (similarity registration);
        metric_rmse: root mean square with the predicted size kept (rigid registration);
        point_to_plane_rmse: the paper's metric (similarity registration);
        legacy_df_mvr: what the code released with the paper computes and calls RMSE: the *mean* distance,
            with scale, and a registration that starts with the predicted nose *tip* on the true nose bottom;
        dense: root mean square between corresponding vertices (similarity registration);
        dense_rigid: the same after the best rigid alignment of the correspondences themselves.
    """
    subset = truth.points[:: max(1, len(truth.points) // settings.icp_points)]

    def register(landmarks: Floats, with_scale: bool) -> tuple[Transform, bool]:
        start = align_points(landmarks, truth.landmarks_7, with_scale)
        fit = refine(
            face.surface,
            subset,
            start,
            with_scale=with_scale,
            iterations=settings.icp_iterations,
            tolerance=settings.icp_tolerance,
        )
        return fit.transform, fit.converged

    similarity, converged = register(face.landmarks_7, with_scale=True)
    local = similarity.invert(truth.points)
    closest = face.surface.closest(local)
    distances = similarity.scale * closest.distances
    planes = similarity.scale * face.surface.plane_distances(local, closest)

    rigid, rigid_converged = register(face.landmarks_7, with_scale=False)
    wrong_landmarks = face.landmarks_7.copy()
    wrong_landmarks[NOSE_BOTTOM] = face.nose_tip
    legacy, _ = register(wrong_landmarks, with_scale=True)

    chosen = truth.dense_measured
    own_fit = align_points(face.dense[chosen], truth.dense[chosen], with_scale=False)
    values = {
        "rmse": _rms(distances),
        "mean": float(distances.mean()),
        "median": float(np.median(distances)),
        "std": float(distances.std()),
        "metric_rmse": _rms(_surface_distances(face.surface, rigid, truth.points)),
        "point_to_plane_rmse": _rms(planes),
        "legacy_df_mvr": float(_surface_distances(face.surface, legacy, truth.points).mean()),
        "dense": _rms(_gaps(similarity, face.dense[chosen], truth.dense[chosen])),
        "dense_rigid": _rms(_gaps(own_fit, face.dense[chosen], truth.dense[chosen])),
    }
    return Measurement(values, distances, similarity, converged and rigid_converged)


def count_distances(distances: Floats) -> NDArray[np.int32]:
    """Return [N_BINS + 1] how many distances fall into each bin; the last holds all beyond."""
    bins = np.minimum((distances / BIN_MM).astype(np.int64), N_BINS)
    return np.bincount(bins, minlength=N_BINS + 1).astype(np.int32)


def rmse_by_region(distances: Floats, regions: NDArray[np.int8]) -> Floats:
    """Return [len(REGIONS)] the root mean square in each region; NaN where the scan has no vertex of it."""
    counts = np.bincount(regions, minlength=len(REGIONS))
    squares = np.bincount(regions, distances**2, minlength=len(REGIONS))
    return np.sqrt(np.divide(squares, counts, out=np.full(len(REGIONS), np.nan), where=counts > 0))


def _surface_distances(surface: Surface, transform: Transform, points: Floats) -> Floats:
    return transform.scale * surface.closest(transform.invert(points)).distances


def _gaps(transform: Transform, source: Floats, target: Floats) -> Floats:
    return np.linalg.norm(transform.apply(source) - target, axis=1)


def _rms(lengths: Floats) -> float:
    return float(np.sqrt(np.mean(lengths**2)))
