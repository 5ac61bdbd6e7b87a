from __future__ import annotations

import numpy as np
import pytest

from dfmvr.data.preprocess.weight_map import weight_map


def slow_weight_map(mask: np.ndarray, radius: float) -> np.ndarray:
    """Every pixel against every other."""
    rows, columns = np.indices(mask.shape)
    weights = np.full(mask.shape, 32 / 255)
    for region, weight in ((mask >= 1, 128 / 255), (mask >= 2, 254 / 255)):
        for row, column in zip(*np.nonzero(region), strict=True):
            weights[np.hypot(rows - row, columns - column) <= radius] = weight
    return weights


def mask_with(label: int) -> np.ndarray:
    mask = np.zeros((56, 56), np.uint8)
    mask[15:45, 18:40] = 1
    mask[20:24, 22:30] = label
    return mask


@pytest.mark.parametrize("label", range(2, 10))
def test_matches_the_slow_dilation(label: int) -> None:
    mask = mask_with(label)
    np.testing.assert_allclose(weight_map(mask), slow_weight_map(mask, 20 * 56 / 224), atol=1e-6)


def test_grows_by_20_pixels_at_224() -> None:
    mask = np.zeros((224, 224), np.uint8)
    mask[100:110, 100:110] = 1
    face = np.argwhere(weight_map(mask) > 0.4)
    assert face.min() == 80
    assert face.max() == 129


def test_any_leading_dimensions_and_levels() -> None:
    masks = np.stack([[mask_with(1), mask_with(4)], [np.zeros((56, 56), np.uint8), mask_with(9)]])
    weights = weight_map(masks)
    assert weights.shape == masks.shape
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(weights[0, 1], weight_map(mask_with(4)))
    np.testing.assert_allclose(np.unique(weights[1, 0]), [32 / 255])
    np.testing.assert_allclose(np.unique(weights[0, 0]), [32 / 255, 128 / 255])
    np.testing.assert_allclose(np.unique(weights), [32 / 255, 128 / 255, 254 / 255])
