"""Every system of the paper's tables, at the smallest width: it trains, and it is validated on all views."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from dfmvr.config import Settings, load_settings
from dfmvr.data.augment import augment, step_generator
from dfmvr.morphable.model import FaceModelSettings
from dfmvr.reconstructor import build_reconstructor
from dfmvr.training.optim import OptimiserSettings, build_optimiser
from dfmvr.training.step import train_step
from dfmvr.training.validation import ValidationBatch, validation_means, validation_sums
from dfmvr.types import ViewBatch

CONFIGS = Path(__file__).parents[2] / "configs"
SYSTEMS = sorted([*(CONFIGS / "ablation").glob("*.yaml"), *(CONFIGS / "baseline").glob("*.yaml")])
SMALLEST = ["network.width=0.0625", "network.regressor_width=0.0625", "data.image_size=32"]


def load(path: Path) -> Settings:
    return load_settings(path, SMALLEST)


@pytest.mark.parametrize("path", [*SYSTEMS, CONFIGS / "single_view.yaml"], ids=lambda path: path.stem)
def test_each_system_trains_and_is_validated(path: Path, batch: ViewBatch) -> None:
    settings = load(path)
    torch.manual_seed(0)
    reconstructor = build_reconstructor(settings.network, FaceModelSettings()).train()
    optimiser = build_optimiser(reconstructor.network, OptimiserSettings(learning_rate=1e-3, warmup_steps=0))
    varied = augment(batch, dataclasses.replace(settings.data, missing_mask_share=0.0), step_generator(0))
    if settings.data.single_views:
        varied = varied.split_views()
    steps = [train_step(reconstructor, [varied], optimiser, settings.losses, 1.0) for _ in range(4)]
    assert not any(step.skipped for step in steps)
    assert steps[-1].loss < steps[0].loss
    for name in ("mask", "consistency_pixel", "consistency_depth"):
        assert (steps[0].terms.get(name, 0.0) > 0) == (getattr(settings.losses, name) > 0), name
    figures = validation_means(
        validation_sums(reconstructor, [ValidationBatch(batch, None)], settings.losses)
    )
    assert figures["val_loss"] > 0


def test_the_variants_change_what_the_table_says_and_nothing_else() -> None:
    full = load(CONFIGS / "ablation/v6.yaml")
    variants = {path.stem: load(path) for path in SYSTEMS if path.parent.name == "ablation"}
    names = {"v1": "cnn_rednet", "v2": "unet_rednet", "v3": "mulen_unet_resnet"}
    expected = {
        name: dataclasses.replace(full, network=dataclasses.replace(full.network, name=network))
        for name, network in names.items()
    }
    expected["v4"] = dataclasses.replace(
        full,
        network=dataclasses.replace(full.network, mask_input="none"),
        losses=dataclasses.replace(full.losses, mask=0.0),
    )
    expected["v5"] = dataclasses.replace(full, losses=dataclasses.replace(full.losses, landmarks_3d=0.0))
    expected["v6"] = full
    expected["v6_scaled"] = dataclasses.replace(
        full, losses=dataclasses.replace(full.losses, landmarks_3d_with_scale=True)
    )
    expected["v6_single_view"] = dataclasses.replace(
        full,
        data=dataclasses.replace(full.data, missing_view_share=0.3333, tell_missing_views=True),
        network=dataclasses.replace(full.network, view_flags=True),
    )
    expected["ours"] = dataclasses.replace(
        full, network=dataclasses.replace(full.network, landmark_maps=True)
    )
    assert variants == {name: dataclasses.replace(value, name=name) for name, value in expected.items()}
