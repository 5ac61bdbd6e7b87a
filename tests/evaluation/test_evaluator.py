from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dfmvr.data.sample import Sample
from dfmvr.evaluation.evaluator import METHODS, Coefficients, Evaluator
from dfmvr.evaluation.regions import REGIONS
from dfmvr.evaluation.settings import EvaluationSettings
from dfmvr.evaluation.summary import summarise


@pytest.fixture(scope="module")
def half_way(evaluator: Evaluator, sample: Sample) -> Coefficients:
    """As a network that has learnt something would predict."""
    floor = evaluator.floor(sample)
    return Coefficients(0.5 * floor.identity, 0.5 * floor.expression)


@pytest.fixture(scope="module")
def row(evaluator: Evaluator, sample: Sample, half_way: Coefficients) -> dict:
    return evaluator(sample, half_way)


def test_the_three_rows_come_in_their_order(row: dict) -> None:
    for name in ("rmse", "metric_rmse", "dense", "dense_rigid", "point_to_plane_rmse"):
        assert row[f"mean_face_{name}_mm"] > row[f"network_{name}_mm"] > row[f"floor_{name}_mm"] > 0, name
    assert row["floor_rmse_mm"] < 0.5


def test_every_method_converges_and_has_every_region(row: dict) -> None:
    for method in METHODS:
        assert row[f"{method}_converged"]
        assert np.isfinite(row[f"{method}_regions_mm"]).all()
        assert row[f"{method}_regions_mm"].shape == (len(REGIONS),)
    areas = [row[f"{method}_areas"].sum() for method in METHODS]
    np.testing.assert_allclose(areas, areas[0], rtol=1e-5)  # all are measured on the same surface


def test_a_row_is_enough_for_the_summary(row: dict) -> None:
    metrics = summarise([row], 100)
    assert metrics["rmse_mm"]["network"] == pytest.approx(row["network_rmse_mm"])
    assert 0.2 < metrics["improvement_over_mean_face"]["share"] < 0.8


def test_a_mean_face_prediction_measures_as_the_mean_face(evaluator: Evaluator, sample: Sample) -> None:
    row = evaluator(sample, evaluator.mean_coefficients)
    assert row["network_rmse_mm"] == pytest.approx(row["mean_face_rmse_mm"], rel=1e-6)


def test_a_sample_without_a_scan_is_refused(evaluator: Evaluator, sample: Sample) -> None:
    with pytest.raises(
        ValueError, match="sample 's<1>': expected scan_vertices to measure against, got none"
    ):
        evaluator.truth(dataclasses.replace(sample, scan_vertices=None))


def test_a_sample_of_another_face_model_is_refused(evaluator: Evaluator, sample: Sample) -> None:
    with pytest.raises(ValueError, match=r"dense_vertices \(the face model's level 1\), got 20"):
        evaluator.truth(dataclasses.replace(sample, dense_vertices=np.zeros((20, 3), np.float32)))


def test_models_at_the_wrong_levels_are_refused(evaluator: Evaluator) -> None:
    with pytest.raises(ValueError, match=r"expected one file at levels 2 and 1, got .* at level 1 and"):
        Evaluator(evaluator.dense_model, evaluator.dense_model, EvaluationSettings())
