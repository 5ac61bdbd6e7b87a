"""Variation of pictures with their labels."""

from __future__ import annotations

import torch

from dfmvr.data.parsing import mirrored_names, vary_geometry
from dfmvr.types import REGION_NAMES


def test_labels_go_where_their_pixels_go() -> None:
    """Pictures are painted with their labels' colour: they agree afterwards, but for sides that changed."""
    labels = torch.zeros(8, 32, 32, dtype=torch.int64)
    labels[:, 4:28, 4:28] = 1
    labels[:, 8:16, 6:14] = REGION_NAMES.index("right_eye")
    labels[:, 8:16, 18:26] = REGION_NAMES.index("left_eye")
    images = (labels.float() / 9).unsqueeze(1).expand(-1, 3, -1, -1)
    varied, moved = vary_geometry(images, labels, 48, torch.Generator().manual_seed(3))
    assert varied.shape == (8, 3, 48, 48)
    painted = varied[:, 0] * 9
    same = ((painted - moved).abs() < 0.5).float().mean((1, 2))
    swapped = ((painted - mirrored_names(moved)).abs() < 0.5).float().mean((1, 2))
    mirrored = swapped > same
    assert 0 < int(mirrored.sum()) < 8, "some are mirrored and some are not"
    assert float(torch.maximum(same, swapped).min()) > 0.9
    for one in moved:
        right, left = (
            (one == REGION_NAMES.index(name)).nonzero()[:, 1].float() for name in ("right_eye", "left_eye")
        )
        assert float(right.mean()) < float(left.mean()), "the right eye stays at the picture's left"
    assert not torch.equal(moved[0], moved[1])


def test_names_change_sides_and_the_others_stay() -> None:
    changed = mirrored_names(torch.arange(10)).tolist()
    assert [REGION_NAMES[k] for k in changed] == [
        *("background", "skin", "left_brow", "right_brow", "left_eye", "right_eye", "nose", "mouth"),
        *("upper_lip", "lower_lip"),
    ]


def test_the_same_state_gives_the_same_pictures() -> None:
    images, labels = torch.rand(2, 3, 16, 16), torch.randint(0, 10, (2, 16, 16))
    first, again = (vary_geometry(images, labels, 16, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
