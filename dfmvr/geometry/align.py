"""Similarity alignment of corresponding points (Umeyama 1991), batched and differentiable.

The rotation is the proper orthogonal matrix R that maximises trace(R^T M), M being the cross-covariance
(target times source transposed). Its gradient is written out instead of taken through the SVD: with
M = U S V^T, D = diag(1, 1, det(U V^T)) and R = U D V^T, an infinitesimal change of M turns R by

    dR = R V [ V^T (R^T dM - dM^T R) V / (s_i + s_j) ] V^T,     s = diag(D S).

Only sums of signed singular values divide, so equal singular values and planar points are regular, where the
SVD's own gradient is infinite. Where a sum vanishes (points on a line, a mirrored tie) the turn about that
axis is undetermined, and its gradient is taken as zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

_RELATIVE_GUARD = 1e-6
"""Sums of singular values below this share of the largest one count as zero."""


@dataclass(frozen=True)
class Similarity:
    """The map p -> scale * rotation @ p + translation."""

    scale: Tensor
    """[*L]."""
    rotation: Tensor
    """[*L, 3, 3], determinant +1."""
    translation: Tensor
    """[*L, 3] mm."""

    def apply(self, points: Float[Tensor, "*#L K 3"]) -> Float[Tensor, "*L K 3"]:
        """Map points [*L, K, 3] from the source's frame to the target's."""
        scaled = self.scale[..., None, None] * points
        return scaled @ self.rotation.mT + self.translation.unsqueeze(-2)


def umeyama(
    source: Float[Tensor, "*L K 3"],
    target: Float[Tensor, "*L K 3"],
    weights: Float[Tensor, "*L K"] | None = None,
    with_scale: bool = True,
) -> Similarity:
    """Return the similarity that maps `source` onto `target` with the least (weighted) squared error.

    Args:
        source: [*L, K, 3] mm.
        target: [*L, K, 3] mm, corresponding points.
        weights: [*L, K] non-negative; all equal if None. They are constants: no gradient flows to them.
        with_scale: estimate a scale; otherwise it is 1.

    Returns:
        Similarity, differentiable in `source` and `target`. Coinciding points (or all-zero weights) leave the
        scale at 1; points on a line leave the turn about it arbitrary. The rotation is always proper.
    """
    if weights is None:
        weights = torch.ones_like(source[..., 0])
    weights = weights.detach().unsqueeze(-1)
    weights = weights / weights.sum(-2, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    source_mean = (weights * source).sum(-2, keepdim=True)
    target_mean = (weights * target).sum(-2, keepdim=True)
    centred = source - source_mean
    covariance = (weights * (target - target_mean)).mT @ centred
    rotation = nearest_rotation(covariance)
    scale = torch.ones_like(covariance[..., 0, 0])
    if with_scale:
        variance = (weights * centred.square()).sum((-2, -1))
        spread = variance > 0
        ratio = (rotation * covariance).sum((-2, -1)) / torch.where(spread, variance, scale)
        scale = torch.where(spread, ratio, scale)
    moved = scale[..., None] * (rotation @ source_mean.mT).squeeze(-1)
    return Similarity(scale, rotation, target_mean.squeeze(-2) - moved)


def nearest_rotation(matrix: Float[Tensor, "*L 3 3"]) -> Float[Tensor, "*L 3 3"]:
    """Return the proper rotation [*L, 3, 3] that is nearest in the Frobenius norm, differentiable.

    A matrix that is not finite gives NaN, so that one bad sample does not raise for its whole batch.
    """
    rotation: Tensor = _NearestRotation.apply(matrix)  # type: ignore[no-untyped-call]
    return rotation


class _NearestRotation(torch.autograd.Function):
    """Orthogonal Procrustes with the gradient of the module's docstring."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        finite = matrix.isfinite().all(-1).all(-1)[..., None, None]
        u, singular, vh = torch.linalg.svd(torch.where(finite, matrix, 0.0))
        sign = torch.ones_like(singular)
        sign[..., 2] = torch.linalg.det(u @ vh).sign()
        rotation: Tensor = torch.where(finite, (u * sign.unsqueeze(-2)) @ vh, torch.nan)
        ctx.save_for_backward(rotation, vh, singular * sign)
        return rotation

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        rotation, vh, signed = ctx.saved_tensors
        turn = rotation.mT @ gradient
        turn = vh @ (turn - turn.mT) @ vh.mT
        sums = signed.unsqueeze(-1) + signed.unsqueeze(-2)
        regular = sums > _RELATIVE_GUARD * signed[..., :1, None]
        turn = torch.where(
            regular, turn / torch.where(regular, sums, torch.ones_like(sums)), torch.zeros_like(turn)
        )
        product: Tensor = rotation @ (vh.mT @ turn @ vh)
        return product
