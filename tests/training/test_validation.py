from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.losses.total import LossSettings
from dfmvr.reconstructor import Reconstructor
from dfmvr.training.validation import (
    ValidationBatch,
    rigid_distance,
    validation_means,
    validation_sums,
)
from dfmvr.types import ViewBatch


def test_rigid_distance_ignores_pose_but_not_size() -> None:
    torch.manual_seed(0)
    points = torch.randn(2, 50, 3) * 40
    rotation = euler_to_matrix(torch.tensor([0.2, -0.4, 0.1]))
    moved = points @ rotation.T + torch.tensor([5.0, -3.0, 90.0])
    torch.testing.assert_close(rigid_distance(points, moved), torch.zeros(2), atol=1e-3, rtol=0)
    assert (rigid_distance(points, 1.1 * points) > 1).all()


def test_figures_are_means_over_samples_whatever_the_batches(
    reconstructor: Reconstructor, batch: ViewBatch
) -> None:
    mean_shape = reconstructor.face_model.mean_shape
    torch.manual_seed(1)
    truth = mean_shape + 2 * torch.randn(2, *mean_shape.shape)
    both = ValidationBatch(batch, truth)
    singles = [ValidationBatch(_one(batch, b), truth[b : b + 1]) for b in range(2)]
    together = validation_means(validation_sums(reconstructor, [both], LossSettings()))
    apart = validation_means(validation_sums(reconstructor, singles, LossSettings()))
    assert together == pytest.approx(apart, rel=1e-3)
    # An untrained network predicts the mean face; the distance of 3D noise of 2 mm is 2 sqrt(8 / pi).
    assert together["val_mean_face_mm"] == pytest.approx(2 * math.sqrt(8 / math.pi), rel=0.02)
    assert together["val_dense_mm"] == pytest.approx(together["val_mean_face_mm"], rel=0.1)


def test_validation_leaves_the_network_as_it_was(reconstructor: Reconstructor, batch: ViewBatch) -> None:
    before = {name: tensor.clone() for name, tensor in reconstructor.state_dict().items()}
    validation_sums(reconstructor, [ValidationBatch(batch, None)], LossSettings())
    assert reconstructor.network.training
    for name, tensor in reconstructor.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_without_truth_there_is_only_the_loss(reconstructor: Reconstructor, batch: ViewBatch) -> None:
    sums = validation_sums(reconstructor, [ValidationBatch(batch, None)], LossSettings())
    assert validation_means(sums).keys() == {"val_loss"}


def test_no_sample_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="validation: expected at least one sample on some worker, got none"):
        validation_means(torch.zeros(5, dtype=torch.float64))


def _one(batch: ViewBatch, b: int) -> ViewBatch:
    tensors = {
        field.name: getattr(batch, field.name)[b : b + 1]
        for field in dataclasses.fields(batch)
        if isinstance(getattr(batch, field.name), torch.Tensor)
    }
    return dataclasses.replace(batch, **tensors, sample_ids=batch.sample_ids[b : b + 1])
