"""Landmark losses, in the picture and in space (paper 4.3)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dfmvr.geometry.align import Similarity, umeyama
from dfmvr.types import N_LANDMARKS

IMPORTANT = (*range(27, 36), *range(60, 68))
"""iBUG indices of the nose and the inner mouth."""
HEAVY = {"paper": IMPORTANT, "code": (*range(27, 31), *range(36, 48), *range(60, 68))}
"""Landmarks that count more: in the paper, and in its released code (nose's ridge, eyes, inner mouth)."""
IMPORTANT_WEIGHT = 20.0
ALIGNMENTS = ("umeyama", "rms")

PAPER_IMAGE_SIZE = 224

_JAW = 17
"""The first 17 landmarks run along the jaw from the subject's right ear over the chin (8) to the left ear."""
_FAITHFUL_YAW = math.radians(10.0)
_LOST_YAW = math.radians(40.0)


def landmark_weights(yaw: Float[Tensor, "*L"], heavy: str = "paper") -> Float[Tensor, "*L 68"]:
    """Return what each landmark counts in a view.

    Nose and inner mouth count 20, all else 1 (paper; HEAVY names another choice). A jaw landmark is a fixed
    place on the face model, but on the side that turns away, people and detectors put it on the visible
    outline, which is another place. So the far side fades out, the more the farther from the chin: not at all
    up to 10 degrees of yaw, and the point at the ear wholly at 40.

    Args:
        yaw: [*L] radians; negative when the nose points to the image's left.
        heavy: which landmarks count 20, a key of HEAVY.
    """
    weights = yaw.new_ones(N_LANDMARKS)
    weights[list(HEAVY[heavy])] = IMPORTANT_WEIGHT
    to_left = torch.linspace(-1.0, 1.0, _JAW, device=yaw.device, dtype=yaw.dtype)
    # yaw < 0 hides the subject's right side, the beginning of the jaw
    farness = (to_left * yaw.sign().unsqueeze(-1)).clamp_min(0.0)
    turn = ((yaw.abs() - _FAITHFUL_YAW) / (_LOST_YAW - _FAITHFUL_YAW)).clamp(0.0, 1.0)
    jaw = 1.0 - farness * turn.unsqueeze(-1)
    rest = weights[_JAW:].expand(*yaw.shape, -1)
    return torch.cat([jaw, rest], -1)


def yaw_of(rotation: Float[Tensor, "*L 3 3"]) -> Float[Tensor, "*L"]:
    """Return the yaw of poses in radians: where the nose (0, 0, 1) points."""
    return torch.atan2(rotation[..., 0, 2], rotation[..., 2, 2])


def landmark_2d_loss(
    predicted: Float[Tensor, "*L 68 2"],
    target: Float[Tensor, "*L 68 2"],
    weights: Float[Tensor, "*L 68"],
    image_size: int,
) -> Float[Tensor, "*L"]:
    """Return the mean over the landmarks of weight x squared distance, for each picture.

    Args:
        predicted: [*L, 68, 2] pixels.
        target: [*L, 68, 2] pixels; any finite value where the weight is 0.
        weights: [*L, 68]: what a landmark counts times how sure it is.
        image_size: side of the picture in pixels. Distances are taken at the paper's 224 px, so that a weight
            means the same at every size.

    Returns:
        [*L] square pixels at 224 px.
    """
    scale = PAPER_IMAGE_SIZE / image_size
    squared = (scale * (predicted - target)).square().sum(-1)
    return (weights * squared).mean(-1)


def seen_landmark_loss(
    seen: Float[Tensor, "*L 68 2"],
    target: Float[Tensor, "*L 68 2"],
    weights: Float[Tensor, "*L 68"],
    image_size: int,
) -> Float[Tensor, "*L"]:
    """Return the weighted mean distance between landmarks seen in a picture and the detector's.

    Distances, not their squares: the network finds a landmark by itself here, so the detector's outliers must
    not pull at it.

    Args:
        seen: [*L, 68, 2] pixels: the heat maps' centres of mass.
        target: [*L, 68, 2] pixels; any finite value where the weight is 0.
        weights: [*L, 68] confidences.
        image_size: side of the picture in pixels.

    Returns:
        [*L] pixels at 224 px, rounded off below one pixel (pseudo-Huber).
    """
    scale = PAPER_IMAGE_SIZE / image_size
    squared = (scale * (seen - target)).square().sum(-1)
    return (weights * ((1 + squared).sqrt() - 1)).mean(-1)


def landmark_map_loss(
    scores: Float[Tensor, "*L 68 h w"],
    target: Float[Tensor, "*L 68 2"],
    weights: Float[Tensor, "*L 68"],
    image_size: int,
) -> Float[Tensor, "*L"]:
    """Return the weighted mean cross-entropy of landmarks' heat maps.

    The ideal map spreads a landmark over the four cells about it, so that its centre of mass is the landmark.
    The distance of the centres (`seen_landmark_loss`) teaches faster, but has no gradient once a map has
    settled in a wrong place: without this loss such landmarks are lost for good.

    Args:
        scores: [*L, 68, h, w], before the softmax over the picture.
        target: [*L, 68, 2] pixels; landmarks outside the picture do not count.
        weights: [*L, 68] confidences.
        image_size: side of the picture in pixels.

    Returns:
        [*L] nats.
    """
    height, width = scores.shape[-2:]
    cells = target.new_tensor([width, height])
    inside = ((target >= 0) & (target <= image_size)).all(-1)
    place = (target / image_size * cells - 0.5).clamp_min(0).minimum(cells - 1)
    low = place.floor().minimum(cells - 2)
    share = place - low
    logarithms = scores.flatten(-2).log_softmax(-1)
    loss = torch.zeros_like(weights)
    for right in (0, 1):
        for below in (0, 1):
            column, row = (low[..., 0] + right).long(), (low[..., 1] + below).long()
            weight = (share[..., 0] - (1 - right)).abs() * (share[..., 1] - (1 - below)).abs()
            found = logarithms.gather(-1, (row * width + column).unsqueeze(-1)).squeeze(-1)
            loss = loss - weight * found
    return (weights * inside * loss).mean(-1)


def landmark_3d_loss(
    predicted: Float[Tensor, "*L K 3"],
    target: Float[Tensor, "*L K 3"],
    align_ids: Int[Tensor, " A"],
    with_scale: bool = True,
    alignment: str = "umeyama",
) -> Float[Tensor, "*L"]:
    """Return the mean squared distance after the similarity that fits a few of the points best.

    Args:
        predicted: [*L, K, 3] mm.
        target: [*L, K, 3] mm, in any frame.
        align_ids: [A] the points that decide the alignment.
        with_scale: align the size too; without it the points are in true mm, and size is learnt from them.
        alignment: `umeyama`: the similarity of least squares. `rms`: that rotation, but the scale is the
            ratio of the points' RMS sizes whatever with_scale says (a defect of the paper's released code,
            kept for comparison): the more two faces differ, the more it makes the predicted one too large.

    Returns:
        [*L] mm^2, measured in the target's frame.
    """
    source, aim = predicted[..., align_ids, :], target[..., align_ids, :]
    similarity = _rms_alignment(source, aim) if alignment == "rms" else umeyama(source, aim, None, with_scale)
    return (similarity.apply(predicted) - target).square().sum(-1).mean(-1)


def _rms_alignment(source: Float[Tensor, "*L A 3"], target: Float[Tensor, "*L A 3"]) -> Similarity:
    source_mean, target_mean = source.mean(-2), target.mean(-2)
    source_size = (source - source_mean.unsqueeze(-2)).square().sum((-2, -1))
    target_size = (target - target_mean.unsqueeze(-2)).square().sum((-2, -1))
    scale = (target_size / source_size.clamp_min(torch.finfo(source.dtype).tiny)).sqrt()
    rotation = umeyama(source, target, with_scale=False).rotation
    moved = scale.unsqueeze(-1) * (rotation @ source_mean.unsqueeze(-1)).squeeze(-1)
    return Similarity(scale, rotation, target_mean - moved)
