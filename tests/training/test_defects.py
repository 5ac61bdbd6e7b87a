"""The configurations of the released code's defects: each is v6 but for its switch, and it trains."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from dfmvr.config import load_settings
from dfmvr.reconstructor import build_reconstructor
from dfmvr.training.optim import OptimiserSettings, build_optimiser
from dfmvr.training.step import TrainingSettings, train_step
from dfmvr.types import ViewBatch

CONFIGS = Path(__file__).parents[2] / "configs"
SWITCHES = {
    "no_mask_gradient": {"losses": {"mask": 0.0}},
    "rms_alignment": {"losses": {"landmarks_3d_with_scale": True, "alignment": "rms"}},
    "shaded_unevenness": {"losses": {"unevenness_of": "shaded"}},
    "wrong_light": {"network": {"shared_light": True}, "training": {"shade_in_view": "last"}},
}


def test_each_defect_changes_its_switch_and_nothing_else() -> None:
    full = load_settings(CONFIGS / "ablation/v6.yaml")
    assert {path.stem for path in (CONFIGS / "defect").glob("*.yaml")} == set(SWITCHES)
    for name, switch in SWITCHES.items():
        parts = {part: dataclasses.replace(getattr(full, part), **values) for part, values in switch.items()}
        expected = dataclasses.replace(full, name=name, **parts)
        assert load_settings(CONFIGS / f"defect/{name}.yaml") == expected
        assert all(getattr(full, part) != changed for part, changed in parts.items())


@pytest.mark.parametrize("name", sorted(SWITCHES))
def test_each_defect_trains(name: str, batch: ViewBatch) -> None:
    smallest = ["network.width=0.0625", "network.regressor_width=0.0625"]
    settings = load_settings(CONFIGS / f"defect/{name}.yaml", smallest)
    torch.manual_seed(0)
    reconstructor = build_reconstructor(
        settings.network, settings.face_model, settings.training.shade_in_view
    ).train()
    assert reconstructor.shade_in_view == settings.training.shade_in_view
    optimiser = build_optimiser(reconstructor.network, OptimiserSettings(learning_rate=1e-3, warmup_steps=0))
    steps = [train_step(reconstructor, [batch], optimiser, settings.losses, 1.0) for _ in range(3)]
    assert not any(step.skipped for step in steps)
    assert steps[-1].loss < steps[0].loss


def test_a_wrong_view_to_shade_in_is_refused() -> None:
    with pytest.raises(ValueError, match=r"training\.shade_in_view: expected one of \(.*\), got 'right'"):
        TrainingSettings(shade_in_view="right")
