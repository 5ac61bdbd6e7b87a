"""How long does a training step take? python -m benchmarks.step [--config configs/small.yaml] [--rounds 7]

Timed in turn on one synthetic batch, in this process alone: the whole step; the step before
training.render_from, which renders nothing; and the whole step without landmark maps.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable

import torch

from benchmarks.common import ratio, report, time_in_turn
from dfmvr.config import Settings, load_settings
from dfmvr.data.collate import collate
from dfmvr.data.datasets.synthetic import render_sample
from dfmvr.losses.total import LossSettings
from dfmvr.networks.settings import NetworkSettings
from dfmvr.reconstructor import build_reconstructor
from dfmvr.training.optim import build_optimiser
from dfmvr.training.step import train_step
from dfmvr.types import ViewBatch


def main() -> None:
    """Parse, time, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="configs/small.yaml", help="YAML file of settings")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each side")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    options = parser.parse_args()
    settings = load_settings(options.config, options.overrides)
    size = settings.data.batch_size
    batch = collate([render_sample(settings.synthetic, 0, k, 0) for k in range(size)], settings.data)
    plain = dataclasses.replace(settings.network, landmark_maps=False)
    times = time_in_turn(
        {
            "whole": step(settings, settings.network, settings.losses, batch),
            "unrendered": step(settings, settings.network, settings.losses.without_rendering(), batch),
            "without_maps": step(settings, plain, settings.losses, batch),
        },
        options.rounds,
    )
    metrics = {
        "samples_per_second": 1e3 * size / statistics.median(times["whole"]),
        "samples_per_second_unrendered": 1e3 * size / statistics.median(times["unrendered"]),
        "ratio_vs_unrendered": ratio(times["whole"], times["unrendered"]),
        "ratio_vs_without_maps": ratio(times["whole"], times["without_maps"]),
    }
    report("step", {name: round(value, 3) for name, value in metrics.items()}, batch_size=size)


def step(
    settings: Settings, network: NetworkSettings, losses: LossSettings, batch: ViewBatch
) -> Callable[[], object]:
    """Return a run of one training step of a new network."""
    torch.manual_seed(settings.seed)
    reconstructor = build_reconstructor(network, settings.face_model).train()
    optimiser = build_optimiser(reconstructor.network, settings.optimiser)
    return lambda: train_step(reconstructor, [batch], optimiser, losses, settings.optimiser.clip_norm)


if __name__ == "__main__":
    main()
