"""RMSE against multiply-adds: what is compared, and what is drawn."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.light import LIGHT, MODELS, Point, draw, figures
from benchmarks.tables.results import Rows, combine
from benchmarks.tables.systems import BY_NAME
from dfmvr.config import load_settings

ROOT = Path(__file__).parents[2]


def rows(*rmse: float) -> Rows:
    return [{"sample_id": f"x{k}", "subject_id": f"p{k}", "rmse": value} for k, value in enumerate(rmse)]


@pytest.mark.parametrize("model", MODELS)
def test_the_light_network_differs_in_its_network_alone(model: str) -> None:
    light, other = (
        load_settings(ROOT / "configs" / f"{BY_NAME[name].config}.yaml") for name in (LIGHT, model)
    )
    assert dataclasses.replace(light, name=other.name, network=other.network) == other
    assert BY_NAME[LIGHT].seeds == BY_NAME[model].seeds


def test_figures_set_the_light_network_beside_its_models() -> None:
    full, light = combine([rows(1, 2), rows(1, 2)]), combine([rows(1.1, 2.2), rows(1.3, 2.6)])
    points = {"v6": Point(8.0, full), "light": Point(2.0, light), "narrow": Point(2.0, light)}
    found = figures(points)
    assert found["share_of_macs_of_v6"] == 0.25
    assert found["below_v6"] == found["below_v6_ci_low"] == pytest.approx(-0.2)
    assert found["narrow_rmse_mm"] == pytest.approx(1.8)
    assert "below_ours" not in found
    assert points["light"].spread == pytest.approx(0.3 / 2**0.5)
    picture = Image.open(io.BytesIO(draw(points)))
    assert picture.width > 600
