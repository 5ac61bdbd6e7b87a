"""Variation of training samples: colours and sharpness, alike in all views, and what photographs may lack."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from dfmvr.data.settings import DataSettings
from dfmvr.types import FRONT, ViewBatch

_BLUR_SIGMAS = (1.0, 3.0)
"""Range of the blur's standard deviation in pixels of a picture 224 px wide."""
_OF_A_VIEW = (
    *("images", "masks", "weight_maps", "landmarks_2d", "landmarks_2d_weights", "intrinsics", "view_yaws"),
)
"""Fields of a ViewBatch that have a view axis."""


def augment(batch: ViewBatch, settings: DataSettings, generator: torch.Generator) -> ViewBatch:
    """Return the batch with its samples varied.

    Brightness, contrast, saturation and sharpness are each multiplied by U(1 - j, 1 + j), j the settings'
    `colour_jitter`; a share of the samples is blurred, a share loses its masks, a share its yaws, a share
    side views. Where views are chosen by chance (`fewest_views`), the batch has fewer of them.

    Args:
        batch: on any device.
        settings: strength and shares.
        generator: on the CPU; the same state gives the same pictures.
    """
    batch = _choose_views(batch, settings.fewest_views, generator)  # first: the others need not be varied
    n_samples, n_views, _, _, width = batch.images.shape
    device = batch.images.device

    def for_each_view(draws: Tensor) -> Tensor:
        return draws.repeat_interleave(n_views).to(device)

    jitter = settings.colour_jitter
    factors = 1 - jitter + 2 * jitter * torch.rand(4, n_samples, generator=generator)
    blurred = torch.rand(n_samples, generator=generator) < settings.blur_probability
    low, high = (sigma * width / 224 for sigma in _BLUR_SIGMAS)
    sigmas = low + (high - low) * torch.rand(n_samples, generator=generator)
    kernel = 2 * math.ceil(2 * high) + 1

    images = _jitter(batch.images.flatten(0, 1), [for_each_view(factor) for factor in factors])
    images = _blur(images, for_each_view(sigmas), for_each_view(blurred), kernel)
    batch = dataclasses.replace(batch, images=images.reshape(batch.images.shape))
    batch = _leave_out_masks(batch, settings.missing_mask_share, generator)
    batch = _leave_out_yaws(batch, settings.untold_yaw_share, generator)
    return _leave_out_views(batch, settings, generator)


def step_generator(seed: int, *path: int) -> torch.Generator:
    """Return a generator that depends on the seed and on the way to a step (epoch, rank, batch) alone."""
    mixed = seed
    for part in path:
        mixed = (mixed * 1_000_003 + part + 1) % 2**63
    return torch.Generator().manual_seed(mixed)


def _jitter(images: Tensor, factors: list[Tensor]) -> Tensor:
    from kornia import enhance  # seconds to import, and only training needs it

    brightness, contrast, saturation, sharpness = factors
    images = enhance.adjust_brightness_accumulative(images, brightness)
    images = enhance.adjust_contrast_with_mean_subtraction(images, contrast)
    images = enhance.adjust_saturation_with_gray_subtraction(images, saturation)
    return _sharpen(images, sharpness)


def _sharpen(images: Tensor, factors: Tensor) -> Tensor:
    """PIL's sharpness, as `kornia.enhance.sharpness`, with sums in place of its slow convolution."""
    rows = images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    inner = images[..., 1:-1, 1:-1]
    smooth = (box + 4 * inner) / 13
    sharpened = images.clone()  # PIL leaves the border as it is
    sharpened[..., 1:-1, 1:-1] = smooth + factors.view(-1, 1, 1, 1) * (inner - smooth)
    return sharpened.clamp(0, 1)


def _blur(images: Tensor, sigmas: Tensor, blurred: Tensor, kernel: int) -> Tensor:
    from kornia import filters

    if not bool(blurred.any()):
        return images
    chosen = images[blurred]
    sigma = sigmas[blurred].unsqueeze(-1).expand(-1, 2)
    images = images.clone()
    images[blurred] = filters.gaussian_blur2d(chosen, (kernel, kernel), sigma)
    return images


def _leave_out_masks(batch: ViewBatch, share: float, generator: torch.Generator) -> ViewBatch:
    """Make the masks of a share of the samples background: their photo and mask losses are then zero."""
    if share == 0:
        return batch
    kept = torch.rand(len(batch.masks), generator=generator) >= share
    return dataclasses.replace(batch, masks=batch.masks * kept.to(batch.masks.device).view(-1, 1, 1, 1))


def _leave_out_yaws(batch: ViewBatch, share: float, generator: torch.Generator) -> ViewBatch:
    """Make the yaws of a share of the samples unknown."""
    if share == 0:
        return batch
    untold = torch.rand(len(batch.view_yaws), generator=generator) < share
    yaws = batch.view_yaws.masked_fill(untold.to(batch.view_yaws.device).unsqueeze(1), torch.nan)
    return dataclasses.replace(batch, view_yaws=yaws)


def _choose_views(batch: ViewBatch, fewest: int, generator: torch.Generator) -> ViewBatch:
    """Keep as many views as chance says, at least `fewest` (0: leave all), of each sample others."""
    if fewest == 0:
        return batch
    n_samples, n_views = batch.masks.shape[:2]
    count = int(torch.randint(fewest, n_views + 1, (), generator=generator))
    order = torch.rand(n_samples, n_views, generator=generator).argsort(1)[:, :count]
    return _take_views(batch, order.to(batch.masks.device))


def _take_views(batch: ViewBatch, views: Tensor) -> ViewBatch:
    """Return a batch of the views [B, v] out of [B, V]."""
    samples = torch.arange(len(views), device=views.device).unsqueeze(1)
    changes = {name: getattr(batch, name)[samples, views] for name in _OF_A_VIEW}
    return dataclasses.replace(batch, **changes)


def _leave_out_views(batch: ViewBatch, settings: DataSettings, generator: torch.Generator) -> ViewBatch:
    """Take one or more side views out of a share of the samples (paper 5.3).

    Every set of missing views is as likely as any other; with three views these are the paper's three forms.
    """
    others = [v for v, name in enumerate(settings.views) if name != FRONT]
    if settings.missing_view_share == 0 or not others:
        return batch
    n_samples, n_views = batch.masks.shape[:2]
    chosen = torch.rand(n_samples, generator=generator) < settings.missing_view_share
    sets = torch.randint(1, 2 ** len(others), (n_samples,), generator=generator) * chosen
    missing = torch.zeros(n_samples, n_views, dtype=torch.bool)
    for bit, view in enumerate(others):
        missing[:, view] = sets.bitwise_right_shift(bit) % 2 == 1
    return without_views(batch, missing.to(batch.masks.device), settings)


def without_views(batch: ViewBatch, missing: Tensor, settings: DataSettings) -> ViewBatch:
    """Return a batch that lacks the views `missing` [B, V].

    Where the network is told, no loss looks at such a view. Else the front view, which must be there,
    stands in for it.
    """
    if settings.tell_missing_views:
        present = ~missing
        return dataclasses.replace(
            batch,
            masks=batch.masks * present[:, :, None, None],
            landmarks_2d_weights=batch.landmarks_2d_weights * present[:, :, None],
            view_present=present,
        )
    n_samples, n_views = missing.shape
    sources = torch.arange(n_views, device=missing.device).repeat(n_samples, 1)
    return _take_views(batch, sources.where(~missing, sources.new_tensor(settings.views.index(FRONT))))
