"""How a predicted face is measured against a scan.

1. The scan is cropped to a ball around the face (NoW's centre and radius), without hidden parts.
2. The prediction is aligned on seven landmarks, then registered to the cropped scan (`registration.refine`).
3. Distances run from every cropped scan vertex to the predicted surface, in the scan's millimetres. A vertex
   counts with the area of scan around it: a mesh that is finer at the eyes does not make eyes matter more.

Two registrations are made: a *similarity*, because a face seen by uncalibrated cameras has no certain size
(behind every number without a prefix), and a *rigid* one that keeps the predicted size (`metric_rmse_mm`).

Axis letters: M measured scan vertices, N dense (level-1) vertices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dfmvr.evaluation.distance import Floats, Ints, Surface
from dfmvr.evaluation.regions import REGIONS, UNMEASURED
from dfmvr.evaluation.registration import (
    Registration,
    Transform,
    align_points,
    curve_order,
    even_subset,
    refine,
)
from dfmvr.evaluation.settings import EvaluationSettings
from dfmvr.geometry.mesh import vertex_areas

BIN_MM = 0.01
"""Width of the bins in which distances are counted, so that samples can be pooled without keeping them."""
N_BINS = 2000
"""Bins up to 20 mm; a last one holds everything beyond."""


@dataclass(frozen=True)
class Truth:
    """What a face is measured against."""

    points: Floats
    """[M, 3] mm: the scan vertices inside the crop, in `registration.curve_order`."""
    vertex_ids: Ints
    """[M] their numbers in the scan."""
    areas: Floats
    """[M] mm²: the scan's surface around each; vertices without any are not kept."""
    regions: NDArray[np.int8]
    """[M] index into REGIONS."""
    registered: Ints
    """Which of the M drive the registration."""
    landmarks_7: Floats
    """[7, 3] mm."""
    dense: Floats
    """[N, 3] mm: true positions of the face model's level-1 vertices."""
    dense_areas: Floats
    """[N] mm²: the surface around each, zero outside the crop."""


@dataclass(frozen=True)
class Face:
    """A prediction, in any frame."""

    surface: Surface
    landmarks_7: Floats
    """[7, 3] mm."""
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


@dataclass(frozen=True)
class LabelledMesh:
    """A true surface whose vertices have regions."""

    vertices: Floats
    """[N, 3] mm."""
    triangles: Ints
    """[F, 3]."""
    regions: NDArray[np.int8]
    """[N] index into REGIONS or UNMEASURED."""

    def areas_in_ball(self, centre: Floats, radius: float) -> Floats:
        """Return [N] mm² around each vertex; zero outside the ball and where nothing is measured."""
        vertices = torch.from_numpy(np.asarray(self.vertices, dtype=np.float64))
        areas = vertex_areas(vertices, torch.from_numpy(np.asarray(self.triangles, dtype=np.int64))).numpy()
        inside = np.linalg.norm(self.vertices - centre, axis=1) < radius
        return np.where(inside & (self.regions != UNMEASURED), areas, 0.0)


def crop_truth(
    scan: LabelledMesh, dense: LabelledMesh, landmarks_7: Floats, settings: EvaluationSettings
) -> Truth:
    """Cut a scan to the part that is measured.

    Args:
        scan: the true surface.
        dense: the face model's level-1 mesh in its true shape.
        landmarks_7: [7, 3] mm, the scan's.
        settings: how large the crop is, how many points drive the registration.

    Raises:
        ValueError: nothing of the scan lies inside the crop.
    """
    centre, radius = crop_ball(landmarks_7, settings.crop_factor)
    areas = scan.areas_in_ball(centre, radius)
    kept = np.flatnonzero(areas)
    if len(kept) == 0:
        raise ValueError(
            f"scan: expected surface within {radius:.0f} mm of {np.round(centre).tolist()} (from its seven "
            f"landmarks), got none of {len(areas)} vertices"
        )
    kept = kept[curve_order(scan.vertices[kept])]
    points = np.asarray(scan.vertices, dtype=np.float64)[kept]
    return Truth(
        points=points,
        vertex_ids=kept,
        areas=areas[kept],
        regions=scan.regions[kept],
        registered=even_subset(areas[kept], settings.icp_points),
        landmarks_7=np.asarray(landmarks_7, dtype=np.float64),
        dense=np.asarray(dense.vertices, dtype=np.float64),
        dense_areas=dense.areas_in_ball(centre, radius),
    )


def measure(face: Face, truth: Truth, settings: EvaluationSettings) -> Measurement:
    """Register a face to the truth and measure it.

    The values, all in mm, over the scan's area:
        rmse, mean, median, std: of the point-to-surface distances (similarity registration);
        metric_rmse: root mean square with the predicted size kept (rigid registration);
        point_to_plane_rmse: the paper's metric (similarity registration);
        legacy_df_mvr: what the code released with the paper computes and calls RMSE: the plain *mean* of the
            distances, every scan vertex counting alike. (Its registration starts with a wrong point of the
            nose; measured on this project's faces, the registration ends at the same place, to 0.01 mm.)
        dense: root mean square between corresponding vertices (similarity registration);
        dense_rigid: the same after the best rigid alignment of the correspondences themselves.
    """
    areas, evenly = truth.areas, truth.points[truth.registered]

    def register(start: Transform, with_scale: bool) -> Registration:
        return refine(
            face.surface,
            evenly,
            start,
            with_scale=with_scale,
            iterations=settings.icp_iterations,
            tolerance=settings.icp_tolerance,
        )

    fit = register(align_points(face.landmarks_7, truth.landmarks_7, with_scale=True), with_scale=True)
    similarity = fit.transform
    rigid_fit = register(similarity.without_scale(evenly.mean(axis=0)), with_scale=False)
    rigid = rigid_fit.transform

    local = similarity.invert(truth.points)
    closest = face.surface.closest(local)
    distances = similarity.scale * closest.distances
    planes = similarity.scale * face.surface.plane_distances(local, closest)
    metric = face.surface.closest(rigid.invert(truth.points)).distances
    mean = float(np.average(distances, weights=areas))

    dense_areas = truth.dense_areas
    own_fit = align_points(face.dense, truth.dense, with_scale=False, weights=dense_areas)
    values = {
        "rmse": _rms(distances, areas),
        "mean": mean,
        "median": weighted_median(distances, areas),
        "std": _rms(distances - mean, areas),
        "metric_rmse": _rms(metric, areas),
        "point_to_plane_rmse": _rms(planes, areas),
        "legacy_df_mvr": float(distances.mean()),
        "dense": _rms(_gaps(similarity, face.dense, truth.dense), dense_areas),
        "dense_rigid": _rms(_gaps(own_fit, face.dense, truth.dense), dense_areas),
    }
    return Measurement(values, distances, similarity, fit.converged and rigid_fit.converged)


def area_by_distance(distances: Floats, areas: Floats) -> NDArray[np.float32]:
    """Return [N_BINS + 1] how much area (mm²) lies at each bin of distances; the last holds all beyond."""
    bins = np.minimum((distances / BIN_MM).astype(np.int64), N_BINS)
    return np.bincount(bins, areas, minlength=N_BINS + 1).astype(np.float32)


def rmse_by_region(distances: Floats, areas: Floats, regions: NDArray[np.int8]) -> Floats:
    """Return [len(REGIONS)] the root mean square in each region; NaN where the scan has nothing of it."""
    totals = np.bincount(regions, areas, minlength=len(REGIONS))
    squares = np.bincount(regions, areas * distances**2, minlength=len(REGIONS))
    return np.sqrt(np.divide(squares, totals, out=np.full(len(REGIONS), np.nan), where=totals > 0))


def weighted_median(values: Floats, weights: Floats) -> float:
    """Return the value that half of the weight does not exceed."""
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(cumulative, 0.5 * cumulative[-1])]])


def _gaps(transform: Transform, source: Floats, target: Floats) -> Floats:
    return np.linalg.norm(transform.apply(source) - target, axis=1)


def _rms(lengths: Floats, weights: Floats) -> float:
    return float(np.sqrt(np.average(lengths**2, weights=weights)))
