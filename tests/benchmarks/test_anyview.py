"""The benchmarks of any number of views: what they report and draw, and that fusion learns."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks.anyview import CONFIG, ORDER, THREE_VIEWS, UNTOLD, Errors, _with_views, draw, figures
from benchmarks.anyview_fusion import AnyViews, ThreeViews, errors, load, some_views, three_views, train
from dfmvr.config import load_settings, with_changes
from dfmvr.data.datasets.synthetic import SyntheticSettings, render_sample, split_of
from dfmvr.data.sample import samples_to_parquet
from dfmvr.morphable.model import MorphableModel
from dfmvr.types import NINE_VIEWS


@pytest.fixture
def made_up() -> Errors:
    people = np.linspace(0.8, 1.2, 20)
    falling = 1 + 1 / np.arange(1, 10)
    return Errors(
        by_views=people[:, None] * falling,
        unknown_yaws=1.1 * people[:, None] * falling[[count - 1 for count in UNTOLD]],
        of_three={"three": people * falling[2] * 1.25, "v6": people * falling[2] * 2},
        mean_face=3 * people,
    )


@pytest.mark.parametrize("name", THREE_VIEWS)
def test_all_networks_learn_from_the_same_rows(name: str) -> None:
    any_views, three = load_settings(CONFIG), load_settings(THREE_VIEWS[name])
    assert any_views.synthetic == three.synthetic
    assert (any_views.data.uri, any_views.optimiser, any_views.losses) == (
        three.data.uri,
        three.optimiser,
        three.losses,
    )
    assert sorted(ORDER) == sorted(any_views.data.views) == sorted(NINE_VIEWS)


def test_figures_say_how_the_error_falls_and_compares(made_up: Errors) -> None:
    found = figures(made_up)
    assert found["rmse_mm_1_views"] == pytest.approx(2)
    assert found["rmse_mm_3_views_yaws_unknown"] == pytest.approx(1.1 * 4 / 3)
    assert found["steps_that_fall"] == 8
    assert found["at_3_views_below_three_share"] == pytest.approx(0.2)
    assert found["at_3_views_below_v6_ci_low"] == pytest.approx(0.5)
    assert found["rmse_mm_mean_face"] == pytest.approx(3)


def test_the_chart_is_drawn(made_up: Errors, tmp_path: Path) -> None:
    draw(tmp_path / "new" / "chart.png", made_up)
    image = cv2.imread(str(tmp_path / "new" / "chart.png"))
    assert image is not None
    assert image.std() > 10


def test_views_are_taken_in_the_order_that_is_asked() -> None:
    sample = render_sample(SyntheticSettings(n_subjects=40, image_size=32), 0, 0, 0)
    taken = _with_views(sample, ("right", "left"))
    assert taken.view_names == ("right", "left")
    np.testing.assert_array_equal(taken.images, sample.images[[2, 0]])
    np.testing.assert_array_equal(taken.view_yaws, sample.view_yaws[[2, 0]])


def test_fusion_learns_from_landmarks_alone(tmp_path: Path) -> None:
    synthetic = SyntheticSettings(n_subjects=40, image_size=32, view_yaws=tuple(range(-80, 81, 20)))
    tests = [k for k in range(40) if split_of(synthetic, k) == "test"]
    for split, people in (("train", [0]), ("test", tests[:2])):
        samples = [render_sample(synthetic, 0, person, 0) for person in people]
        (tmp_path / split).mkdir()
        (tmp_path / split / "part-00000.parquet").write_bytes(samples_to_parquet(samples))
    changes = {"data.uri": str(tmp_path), "data.image_size": 32, "data.batch_size": 2}
    settings = with_changes(load_settings(CONFIG), changes)
    model = MorphableModel.load(level=1)
    networks = {"any": (AnyViews(), some_views), "three": (ThreeViews(), three_views)}
    for network, choose in networks.values():
        learnt = [network.reader.linear.weight, network.heads.identity.weight, network.heads.pose.weight]
        before = [parameter.clone() for parameter in learnt]
        train(network, choose, load(settings, "train"), model, settings, steps=2)
        assert not any(torch.equal(a, b) for a, b in zip(before, learnt, strict=True))
    found = errors(networks["any"][0], networks["three"][0], load(settings, "test"), model, settings)
    assert found.by_views.shape == (2, 9)
    assert found.unknown_yaws.shape == (2, len(UNTOLD))
    assert np.isfinite(found.of_three["three"]).all()
    assert (found.mean_face > 0.5).all()
