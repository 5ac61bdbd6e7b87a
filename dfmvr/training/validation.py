"""The figures of a network on the validation split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dfmvr.geometry.align import umeyama
from dfmvr.losses.total import LossSettings, total_loss
from dfmvr.networks.parser import FaceParser
from dfmvr.reconstructor import Reconstructor
from dfmvr.types import ViewBatch

SUMS = ("loss", "samples", "dense_mm", "mean_face_mm", "dense_samples")


@dataclass(frozen=True)
class ValidationBatch:
    """A batch, and the truth where it is known."""

    views: ViewBatch
    dense_vertices: Tensor | None
    """[B, N, 3] mm: true positions of the face model's level-1 vertices, in any rigid frame."""

    def to(self, device: torch.device | str) -> ValidationBatch:
        """Return a copy on `device`."""
        dense = None if self.dense_vertices is None else self.dense_vertices.to(device)
        return ValidationBatch(self.views.to(device), dense)


@torch.no_grad()
def validation_sums(
    reconstructor: Reconstructor,
    batches: Iterable[ValidationBatch],
    losses: LossSettings,
    parser: FaceParser | None = None,
) -> Tensor:
    """Add up the figures of some batches; the network is left in training mode.

    Returns:
        [5] float64 sums over samples in the order of SUMS, to be added over workers for `validation_means`.
    """
    sums = torch.zeros(len(SUMS), dtype=torch.float64)
    reconstructor.network.eval()
    for batch in batches:
        prediction = reconstructor(batch.views)
        loss, _ = total_loss(prediction, batch.views, reconstructor.face_model, losses, parser)
        n_samples = batch.views.images.shape[0]
        sums[:2] += torch.tensor([float(loss) * n_samples, n_samples], dtype=torch.float64)
        truth = batch.dense_vertices
        if truth is not None and truth.shape == prediction.vertices.shape:
            mean_face = reconstructor.face_model.mean_shape.expand_as(truth)
            network_mm = rigid_distance(prediction.vertices, truth).sum()
            mean_face_mm = rigid_distance(mean_face, truth).sum()
            sums[2:] += torch.tensor([float(network_mm), float(mean_face_mm), n_samples], dtype=torch.float64)
    reconstructor.network.train()
    return sums


def validation_means(sums: Tensor) -> dict[str, float]:
    """Turn sums over samples into means.

    Args:
        sums: [5] as `validation_sums` returns them.

    Returns:
        `val_loss`; where the truth is known also `val_dense_mm`, the mean distance of the network's vertices
        from their true positions after rigid alignment, and `val_mean_face_mm`, the same of the mean face.

    Raises:
        ValueError: there was no sample.
    """
    named = dict(zip(SUMS, sums.tolist(), strict=True))
    if not named["samples"]:
        raise ValueError("validation: expected at least one sample on some worker, got none")
    means = {"val_loss": named["loss"] / named["samples"]}
    if named["dense_samples"]:
        means["val_dense_mm"] = named["dense_mm"] / named["dense_samples"]
        means["val_mean_face_mm"] = named["mean_face_mm"] / named["dense_samples"]
    return means


def rigid_distance(vertices: Tensor, truth: Tensor) -> Tensor:
    """Mean distance of corresponding points after the best rigid alignment.

    Args:
        vertices: [B, N, 3] mm.
        truth: [B, N, 3] mm.

    Returns:
        [B] mm.
    """
    aligned = umeyama(vertices, truth, with_scale=False).apply(vertices)
    return (aligned - truth).norm(dim=-1).mean(-1)
