"""Samples to a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dfmvr.data.preprocess.weight_map import weight_map
from dfmvr.data.sample import Array, Sample
from dfmvr.data.settings import DataSettings
from dfmvr.types import ViewBatch

N_LANDMARKS_3D = 101


def collate(samples: Sequence[Sample], settings: DataSettings) -> ViewBatch:
    """Stack samples into a batch, and make their weight maps.

    Args:
        samples: B samples of the same views and image size, as `decode_row` gives them.
        settings: the weight maps' dilation.

    Raises:
        ValueError: there is no sample, or views or image sizes differ.
    """
    if not samples:
        raise ValueError("collate: expected at least one sample, got none")
    first = samples[0]
    for sample in samples:
        if sample.view_names != first.view_names or sample.images.shape != first.images.shape:
            raise ValueError(
                f"collate: expected views {first.view_names} of shape {first.images.shape} as in sample "
                f"{first.sample_id!r}, got {sample.view_names} of shape {sample.images.shape} in "
                f"{sample.sample_id!r}"
            )
    masks = np.stack([sample.masks for sample in samples])
    images = torch.from_numpy(np.stack([sample.images for sample in samples]))
    unknown = np.zeros((N_LANDMARKS_3D, 3), np.float32)
    known = [sample.landmarks_3d is not None for sample in samples]
    return ViewBatch(
        images=images.permute(0, 1, 4, 2, 3).float().div_(255).contiguous(),
        masks=torch.from_numpy(masks).long(),
        weight_maps=torch.from_numpy(weight_map(masks, settings.weight_dilation)),
        landmarks_2d=_stack([sample.landmarks_2d for sample in samples]),
        landmarks_2d_weights=_stack([sample.landmarks_2d_weights for sample in samples]),
        landmarks_3d=_stack([unknown if s.landmarks_3d is None else s.landmarks_3d for s in samples]),
        landmarks_3d_valid=torch.tensor(known),
        intrinsics=_stack([sample.intrinsics for sample in samples]),
        view_yaws=_stack([sample.view_yaws for sample in samples]),
        sample_ids=tuple(sample.sample_id for sample in samples),
    )


def _stack(arrays: Sequence[Array]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))
