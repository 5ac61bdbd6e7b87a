from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from dfmvr.evaluation.distance import Surface
from dfmvr.evaluation.protocol import (
    BIN_MM,
    N_BINS,
    Face,
    LabelledMesh,
    Truth,
    area_by_distance,
    crop_ball,
    crop_truth,
    measure,
    rmse_by_region,
    weighted_median,
)
from dfmvr.evaluation.regions import REGIONS, UNMEASURED
from dfmvr.evaluation.registration import Transform
from dfmvr.evaluation.settings import EvaluationSettings

SETTINGS = EvaluationSettings(distance_backend="kdtree")
LANDMARKS = np.array(
    [[-45, 30, 30], [-15, 30, 45], [15, 30, 45], [45, 30, 30], [0, -18, 68], [-25, -45, 50], [25, -45, 50]],
    dtype=float,
)


def on_relief(relief: trimesh.Trimesh, points: np.ndarray) -> np.ndarray:
    """Landmarks are vertices."""
    return np.linalg.norm(relief.vertices[:, None] - points, axis=2).argmin(axis=0)


def truth_of(relief: trimesh.Trimesh, vertices: np.ndarray, settings: EvaluationSettings = SETTINGS) -> Truth:
    regions = np.zeros(len(vertices), np.int8)
    mesh = LabelledMesh(vertices, np.asarray(relief.faces), regions)
    return crop_truth(mesh, mesh, vertices[on_relief(relief, LANDMARKS)], settings)


def face_of(relief: trimesh.Trimesh, vertices: np.ndarray) -> Face:
    surface = Surface(vertices, np.asarray(relief.faces), "kdtree")
    return Face(surface, vertices[on_relief(relief, LANDMARKS)], vertices)


def test_the_crop_is_now_s_ball() -> None:
    centre, radius = crop_ball(LANDMARKS, 1.4)
    bridge = np.array([0, 30, 45])
    np.testing.assert_allclose(centre, LANDMARKS[4] + 0.3 * (bridge - LANDMARKS[4]))
    assert radius == pytest.approx(1.4 * (90 + np.linalg.norm([0, 48, -23])) / 2)


def test_only_measured_surface_inside_the_ball_counts(relief: trimesh.Trimesh) -> None:
    vertices = np.asarray(relief.vertices)
    regions = np.where(vertices[:, 0] > 10, UNMEASURED, 2).astype(np.int8)
    mesh = LabelledMesh(vertices, np.asarray(relief.faces), regions)
    truth = crop_truth(mesh, mesh, LANDMARKS, dataclasses.replace(SETTINGS, crop_factor=0.9))
    centre, radius = crop_ball(LANDMARKS, 0.9)
    assert 0 < len(truth.points) < len(vertices) / 2
    assert np.linalg.norm(truth.points - centre, axis=1).max() < radius
    assert truth.points[:, 0].max() <= 10
    np.testing.assert_array_equal(vertices[truth.vertex_ids], truth.points)
    np.testing.assert_array_equal(np.flatnonzero(truth.dense_areas), np.sort(truth.vertex_ids))


def test_a_scan_that_is_elsewhere_is_refused(relief: trimesh.Trimesh) -> None:
    mesh = LabelledMesh(
        relief.vertices + 900, np.asarray(relief.faces), np.zeros(len(relief.vertices), np.int8)
    )
    with pytest.raises(ValueError, match=r"expected surface within .* mm of .* got none of 3721 vertices"):
        crop_truth(mesh, mesh, LANDMARKS, SETTINGS)


def test_a_perfect_prediction_in_another_frame_and_scale_measures_zero(relief: trimesh.Trimesh) -> None:
    vertices = np.asarray(relief.vertices)
    away = Transform(
        1.1, Rotation.from_euler("xyz", [20, -35, 10], degrees=True).as_matrix(), np.array([40.0, 5, -60])
    )
    result = measure(face_of(relief, away.apply(vertices)), truth_of(relief, vertices), SETTINGS)
    assert result.converged
    assert result.transform.scale == pytest.approx(1 / 1.1, abs=1e-6)
    for name in ("rmse", "mean", "median", "std", "point_to_plane_rmse", "legacy_df_mvr", "dense"):
        assert result.values[name] == pytest.approx(0, abs=1e-3), name
    # 10 % too large, and not allowed to shrink
    assert result.values["metric_rmse"] > 0.5
    assert result.values["dense_rigid"] > 3


def test_a_known_offset_is_measured_as_such(relief: trimesh.Trimesh) -> None:
    """Bumps of +-1 mm along the normal, too fine for any motion to follow."""
    vertices = np.asarray(relief.vertices)
    signs = np.where((np.indices((61, 61)).sum(axis=0) // 3) % 2 == 0, 1.0, -1.0).reshape(-1, 1)
    bumpy = vertices + signs * np.asarray(relief.vertex_normals)
    result = measure(face_of(relief, vertices), truth_of(relief, bumpy), SETTINGS)
    assert result.values["rmse"] == pytest.approx(1, abs=0.06)
    assert result.values["median"] == pytest.approx(1, abs=0.06)
    assert result.values["mean"] <= result.values["rmse"]
    assert result.values["rmse"] ** 2 == pytest.approx(
        result.values["mean"] ** 2 + result.values["std"] ** 2, rel=1e-9
    )
    assert result.values["dense"] == pytest.approx(1, abs=0.06)


def test_the_fast_path_agrees_with_trimesh_on_every_scan_vertex(relief: trimesh.Trimesh) -> None:
    vertices = np.asarray(relief.vertices)
    warped = vertices + 2 * np.stack(
        [np.sin(vertices[:, 1] / 25), np.cos(vertices[:, 0] / 20), np.sin(vertices[:, 0] / 15)], axis=1
    )
    truth = truth_of(relief, warped)
    result = measure(face_of(relief, vertices), truth, SETTINGS)
    moved = trimesh.Trimesh(result.transform.apply(vertices), relief.faces, process=False)
    picks = np.random.default_rng(0).permutation(len(truth.points))[:200]
    _, expected, _ = trimesh.proximity.closest_point_naive(moved, truth.points[picks])
    np.testing.assert_allclose(result.distances[picks], expected, atol=1e-3)


def test_metric_numbers_are_never_below_those_with_scale(relief: trimesh.Trimesh) -> None:
    vertices = np.asarray(relief.vertices)
    result = measure(face_of(relief, 0.97 * vertices), truth_of(relief, vertices), SETTINGS)
    assert result.values["metric_rmse"] > result.values["rmse"]
    assert result.values["dense_rigid"] > result.values["dense"]


def test_numbers_do_not_depend_on_how_finely_a_part_is_meshed(relief: trimesh.Trimesh) -> None:
    vertices = np.asarray(relief.vertices)
    bent = vertices + np.array([0, 0, 1]) * (np.maximum(vertices[:, :1], 0) / 30) ** 2
    face = face_of(relief, vertices)
    coarse = truth_of(relief, bent)
    right = np.flatnonzero(relief.triangles_center[:, 0] > 0)
    fine_vertices, fine_faces = trimesh.remesh.subdivide(bent, relief.faces, right)
    mesh = LabelledMesh(fine_vertices, fine_faces, np.zeros(len(fine_vertices), np.int8))
    dense = LabelledMesh(bent, np.asarray(relief.faces), np.zeros(len(bent), np.int8))
    fine = crop_truth(mesh, dense, coarse.landmarks_7, SETTINGS)
    assert len(fine.points) > 2 * len(coarse.points)
    ours, expected = measure(face, fine, SETTINGS).values, measure(face, coarse, SETTINGS).values
    assert ours["rmse"] == pytest.approx(expected["rmse"], rel=0.01)
    assert ours["legacy_df_mvr"] != pytest.approx(
        expected["legacy_df_mvr"], rel=0.03
    )  # counts vertices alike


def test_regions_pool_to_the_whole() -> None:
    distances, areas = np.array([1.0, 2, 3, 4]), np.array([1.0, 1, 2, 4])
    regions = np.array([0, 0, 2, 2], np.int8)
    by_region = rmse_by_region(distances, areas, regions)
    assert by_region[0] == pytest.approx(np.sqrt(2.5))
    assert by_region[2] == pytest.approx(np.sqrt((2 * 9 + 4 * 16) / 6))
    assert np.isnan(by_region[[1, 3, 4, 5]]).all()
    assert len(by_region) == len(REGIONS)


def test_binned_areas_keep_the_total_and_hold_what_is_beyond() -> None:
    bins = area_by_distance(np.array([0.0, 0.015, 19.999, 55.0]), np.array([1.0, 2, 3, 4]))
    assert len(bins) == N_BINS + 1
    assert bins.sum() == pytest.approx(10)
    assert (bins[0], bins[1], bins[N_BINS - 1], bins[N_BINS]) == (1, 2, 3, 4)
    assert pytest.approx(0.01) == BIN_MM


def test_the_median_is_by_weight() -> None:
    assert weighted_median(np.array([5.0, 1, 3]), np.array([1.0, 1, 1])) == 3
    assert weighted_median(np.array([5.0, 1, 3]), np.array([5.0, 1, 1])) == 5
