from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dfmvr.data.sample import Sample
from dfmvr.evaluation.floor import FloorFit
from dfmvr.evaluation.registration import Transform, align_points
from dfmvr.morphable.model import MorphableModel


@pytest.fixture(scope="module")
def fit(dense_model: MorphableModel) -> FloorFit:
    return FloorFit(dense_model, np.arange(len(dense_model.mean_shape)), ridge=1e-8)


def decode(model: MorphableModel, identity: np.ndarray, expression: np.ndarray) -> np.ndarray:
    return model.vertices(
        torch.as_tensor(identity, dtype=torch.float32), torch.as_tensor(expression, dtype=torch.float32)
    ).numpy()


def test_a_face_of_the_model_is_found_in_any_pose(fit: FloorFit, dense_model: MorphableModel) -> None:
    rng = np.random.default_rng(0)
    identity, expression = rng.normal(size=80), np.clip(rng.normal(0.1, 0.2, 64), 0, 1)
    truth = decode(dense_model, identity, expression)
    turned = Transform(
        1.0, Rotation.from_euler("xyz", [25, -40, 15], degrees=True).as_matrix(), np.array([9.0, 8, 7])
    )
    found = decode(dense_model, *fit(turned.apply(truth)))
    residual = align_points(found, truth, with_scale=False).apply(found) - truth
    assert np.sqrt(np.mean(np.sum(residual**2, axis=1))) < 0.02


def test_no_small_change_of_the_coefficients_comes_closer(
    fit: FloorFit, dense_model: MorphableModel, sample: Sample
) -> None:
    truth = np.asarray(sample.dense_vertices, dtype=np.float64)
    identity, expression = fit(truth)
    weights = fit.weights

    def error(change: np.ndarray) -> float:
        shape = decode(dense_model, identity + change[:80], expression + change[80:]).astype(np.float64)
        moved = align_points(shape, truth, with_scale=False, weights=weights).apply(shape)
        return float(np.average(np.sum((moved - truth) ** 2, axis=1), weights=weights))

    best = error(np.zeros(144))
    assert 0.01 < np.sqrt(best) < 1.0  # the truth lies outside the model
    rng = np.random.default_rng(1)
    for _ in range(8):
        assert error(rng.normal(0, 0.02, 144)) > best
