"""Mask loss: do the drawn regions (brows, eyes, nose, lips) lie where the mask has them (paper 4.2)?

The renderer's visibility is fixed: which triangle a pixel shows has no gradient, only where in that triangle
the pixel lies. A region's border runs through triangles whose corners carry different labels; there the
interpolated labels are ramps, and these ramps are the one place where a label map feels the shape move.

Pixel by pixel (the paper's cross-entropy), a label map no longer tells near from far once a drawn feature and
the one in the mask do not overlap. So the differences are averaged over cells before they are squared, on a
pyramid of scales: in a coarse cell a ramp feels a mismatch anywhere within it, and the finer scales make the
fit exact. Squares stay bounded where cross-entropy is infinite: drawn labels are exact zeros and ones.
Against finite differences of the loss, visibility included, the gradient's cosine is about 0.98 at 64 px.

Only pixels where the face is drawn and the mask shows a face count. The outline of the face has no ramp, and
what hides a face (hair, a hand) is background in the mask: neither must pull at the features.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from dfmvr.types import REGION_NAMES, RenderOutput

_COARSEST = 16
"""Grids with fewer rows or columns than this are not halved again; the last cells are 8 to 16 pixels wide."""


def drawn_regions(drawn: RenderOutput, triangles: Int[Tensor, "F 3"], labels: Int[Tensor, " N"]) -> Tensor:
    """Return the region maps of what was drawn: the corners' labels, one-hot, as far as each corner weighs.

    Args:
        drawn: [*L, H, W, ...].
        triangles: [F, 3], those that were drawn.
        labels: [N] region of each vertex.

    Returns:
        [*L, H, W, R]; zeros where nothing was drawn.
    """
    regions = drawn.barycentrics.new_zeros(*drawn.mask.shape, len(REGION_NAMES))
    corners = labels[triangles][drawn.triangle_ids.clamp_min(0)]
    return regions.scatter_add(-1, corners, drawn.barycentrics)


def mask_loss(
    drawn: Float[Tensor, "*L H W R"], labels: Int[Tensor, "*L H W"], shared: Bool[Tensor, "*L H W"]
) -> Float[Tensor, "*L"]:
    """Return the mean square of the label maps' differences over all scales, for each picture.

    Args:
        drawn: [*L, H, W, R] interpolated one-hot labels of the R regions.
        labels: [*L, H, W] the picture's region labels, 0 to R - 1.
        shared: [*L, H, W] where the face is drawn and the picture shows a face.

    Returns:
        [*L]: 0 for equal maps, at most 2; 0 where nothing is shared.
    """
    index = labels.long().unsqueeze(-1)
    less = drawn.new_full((), -1.0).expand(index.shape)
    difference = drawn.scatter_add(-1, index, less) * shared.unsqueeze(-1)  # a one-hot map would be larger
    scale = difference.reshape(-1, *difference.shape[-3:]).movedim(-1, 1)
    squares = [_mean_square(scale)]
    while min(scale.shape[-2:]) >= _COARSEST:
        scale = functional.avg_pool2d(scale, kernel_size=4, stride=2, padding=1, count_include_pad=False)
        squares.append(_mean_square(scale))
    share = shared.to(drawn.dtype).mean((-2, -1))
    mean = torch.stack(squares).mean(0).reshape(share.shape)
    return mean / share.where(share > 0, share.new_ones(()))


def _mean_square(difference: Tensor) -> Tensor:
    """Sum over regions, average over cells: [P, R, h, w] -> [P]."""
    height, width = difference.shape[-2:]
    norm: Tensor = torch.linalg.vector_norm(difference, dim=(1, 2, 3))
    return norm.square() / (height * width)
