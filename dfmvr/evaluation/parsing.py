"""How well a parser's regions cover the true ones: intersection over union."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from dfmvr.types import REGION_NAMES

_REGIONS = len(REGION_NAMES)


def confusion(labels: Int[Tensor, "*L"], truth: Int[Tensor, "*L"]) -> Int[Tensor, "R R"]:
    """Count the pixels of every (true region, labelled region), 0-9 each."""
    return torch.bincount((truth * _REGIONS + labels).flatten(), minlength=_REGIONS**2).reshape(
        _REGIONS, _REGIONS
    )


def intersection_over_union(counts: Tensor) -> dict[str, float]:
    """Return the figure of each region that is there or was labelled, by name, and their mean as `mean`.

    Args:
        counts: [10, 10] of `confusion`, summed over all pictures.

    Raises:
        ValueError: there is no pixel.
    """
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    if not bool(union.any()):
        raise ValueError("intersection over union: expected at least one pixel, got none")
    figures = {
        name: float(both) / float(either)
        for name, both, either in zip(REGION_NAMES, counts.diagonal(), union, strict=True)
        if either > 0
    }
    return {**figures, "mean": sum(figures.values()) / len(figures)}
