from __future__ import annotations

import numpy as np
import pytest
import torch

from dfmvr.data.on_the_fly.findings import detect_landmarks, parse_regions, visible, weight_maps
from dfmvr.data.preprocess.weight_map import weight_map


@pytest.mark.parametrize(("size", "dilation"), [(48, 20.0), (32, 7.0), (24, 0.0), (40, 56.0)])
def test_weight_maps_are_those_of_stored_samples(size: int, dilation: float) -> None:
    rng = np.random.default_rng(size)
    masks = np.zeros((3, size, size), np.uint8)
    masks[:, size // 4 : -size // 4, 3:-9] = 1
    for mask in masks:
        mask[tuple(rng.integers(0, size, (2, 3)))] = rng.integers(2, 10, 3)
    found = weight_maps(torch.from_numpy(masks).long(), dilation)
    np.testing.assert_array_equal(found.numpy(), weight_map(masks, dilation))


def test_what_lies_behind_is_hidden_outside_is_hidden_and_the_rest_is_seen() -> None:
    depth, hidden = torch.full((1, 8, 8), 900.0), torch.zeros(1, 8, 8, dtype=torch.bool)
    depth[..., 5:] = 0
    hidden[:, 6] = True
    pixels = torch.tensor([[[2.5, 2.5], [2.5, 2.5], [5.2, 2.5], [-0.1, 2.5], [2.5, 6.5]]])
    distance = torch.tensor([[905.0, 911.0, 2000.0, 900.0, 900.0]])
    seen = visible(depth, hidden, pixels, distance)
    # The third is beside the outline, where any depth will do.
    assert seen.tolist() == [[True, False, True, False, False]]


def test_landmarks_have_the_stated_noise_and_confidence() -> None:
    truth, generator = torch.zeros(400, 68, 2), torch.Generator().manual_seed(0)
    seen = torch.ones(400, 68, dtype=torch.bool)
    seen[:, [0, 30]] = False
    found, weights = detect_landmarks(truth, seen, 1.5, 0.0, generator)
    spread = found.std((0, 2))
    assert spread[40] == pytest.approx(1.5 * (1 + 0.35**2) ** 0.5, rel=0.1)
    assert spread[30] == pytest.approx(1.5 * (1.8**2 + 0.35**2) ** 0.5, rel=0.1)
    assert weights[0, [0, 1, 30]].tolist() == pytest.approx([0.15, 1.0, 0.5])
    wild, _ = detect_landmarks(truth, seen, 1.5, 0.05, generator)
    assert wild.abs().max() > 20 > found.abs().max()


def test_boundaries_are_bent_and_small_regions_missed() -> None:
    labels = torch.ones(50, 32, 32, dtype=torch.long)
    labels[:, :, :8] = 0
    labels[:, 10:16, 16:24] = 4
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(parse_regions(labels, 0.0, 0.0, generator), labels)
    bent = parse_regions(labels, 1.0, 0.0, generator)
    changed = (bent != labels).float().mean()
    assert 0.01 < changed < 0.15
    missed = parse_regions(labels, 0.0, 0.4, generator)
    lost = ~(missed == 4).flatten(1).any(1)
    assert 0.2 < lost.float().mean() < 0.6
    assert ((missed == 0) == (labels == 0)).all()
