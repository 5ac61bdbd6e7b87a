"""What a face parser is trained by."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def parsing_loss(scores: Float[Tensor, "B R H W"], labels: Int[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Return cross-entropy, plus 1 less the mean overlap (Dice) of the regions that the batch shows.

    A pixel's cross-entropy alone hardly minds a brow of twenty pixels among four thousand; overlap gives each
    region the same weight.

    Args:
        scores: [B, R, H, W] of the regions; their softmax is each one's probability.
        labels: [B, H, W] true regions, 0 to R - 1.
    """
    truth = functional.one_hot(labels, scores.shape[1]).movedim(-1, 1).to(scores.dtype)
    seen = scores.softmax(1)
    size = truth.sum((0, 2, 3))
    overlap = 2 * (seen * truth).sum((0, 2, 3)) / (seen.sum((0, 2, 3)) + size).clamp_min(1)
    return functional.cross_entropy(scores, labels) + 1 - overlap[size > 0].mean()
