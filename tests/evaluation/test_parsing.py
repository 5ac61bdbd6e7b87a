"""Intersection over union, against counts by hand."""

from __future__ import annotations

import pytest
import torch

from dfmvr.evaluation.parsing import confusion, intersection_over_union


def test_it_is_what_one_counts_by_hand() -> None:
    truth = torch.tensor([[0, 0, 1, 1], [1, 1, 2, 2]])
    seen = torch.tensor([[0, 1, 1, 1], [1, 5, 2, 2]])
    figures = intersection_over_union(confusion(seen, truth))
    assert figures == pytest.approx(
        {
            "background": 1 / 2,
            "skin": 3 / 5,
            "right_brow": 1.0,
            "left_eye": 0.0,
            "mean": (0.5 + 0.6 + 1 + 0) / 4,
        }
    )


def test_rows_are_the_truth() -> None:
    counts = confusion(torch.tensor([3]), torch.tensor([7]))
    assert int(counts[7, 3]) == 1
    assert int(counts.sum()) == 1


def test_pictures_add_up() -> None:
    torch.manual_seed(0)
    seen, truth = torch.randint(0, 10, (2, 3, 8, 8))
    assert torch.equal(confusion(seen, truth), sum(map(confusion, seen, truth)))


def test_no_pixel_has_no_figure() -> None:
    with pytest.raises(ValueError, match="expected at least one pixel, got none"):
        intersection_over_union(torch.zeros(10, 10))
