"""Mask loss through the face parser: does it see the features of the drawn face where the mask has them?

The paper's form (4.2). The parser looks at the drawn face in the picture's own surroundings, as it has learnt
to; its probabilities differ smoothly as colours move, so that the loss reaches shape, pose, albedo and light.
Differences are taken as in losses/mask.py, so that both forms have one unit and one weight.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from dfmvr.losses.mask import mask_loss
from dfmvr.networks.parser import FaceParser


def parser_mask_loss(
    parser: FaceParser,
    drawn: Float[Tensor, "*L 3 H W"],
    pictures: Float[Tensor, "*L 3 H W"],
    covered: Bool[Tensor, "*L H W"],
    labels: Int[Tensor, "*L H W"],
) -> Float[Tensor, "*L"]:
    """Return how far the parser's regions of the drawn face lie from the picture's, for each picture.

    Args:
        parser: frozen.
        drawn: [*L, 3, H, W] sRGB in [0, 1].
        pictures: [*L, 3, H, W] sRGB in [0, 1]: what surrounds the drawn face.
        covered: [*L, H, W] where the face is drawn.
        labels: [*L, H, W] the picture's region labels, 0-9; where they are 0 nothing is compared.

    Returns:
        [*L]: 0 for equal regions, at most 2; 0 where nothing is shared.
    """
    together = drawn.where(covered.unsqueeze(-3), pictures)
    seen = parser.probabilities(together).movedim(-3, -1)
    return mask_loss(seen, labels, covered & (labels > 0))
