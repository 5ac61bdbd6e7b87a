"""What does making a sample on the fly cost beside training on it, reading it, or rendering it for storage?

    python -m benchmarks.on_the_fly [--config FILE] [--rounds 5] [--processor-time] [key=value ...]

Timed in turn, and on the GPU where there is one (`made` and the steps; what is stored is always decoded and
drawn by the CPU): `made` a batch of made samples with its variation, `decoded` a batch of the same size from
rows in memory, varied too, `rendered` one sample of the stored kind, `step` the training step that renders,
and `step_unrendered` the one before training.render_from.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import add_timing, ratio, report, start_timing, time_in_turn
from dfmvr.config import Settings, load_settings
from dfmvr.data.augment import augment, step_generator
from dfmvr.data.collate import collate
from dfmvr.data.datasets.synthetic import render_sample
from dfmvr.data.on_the_fly.generator import TRAINING, OnTheFly, place_generator
from dfmvr.data.rejects import Rejects, decode_rows
from dfmvr.data.sample import encode_sample
from dfmvr.reconstructor import build_reconstructor
from dfmvr.training.optim import build_optimiser
from dfmvr.training.step import train_step

STORED = 4
"""Rows that are drawn once and decoded again and again."""


def main() -> None:
    """Parse, time, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="configs/beyond/on_the_fly.yaml", help="YAML file of settings")
    add_timing(parser, rounds=5)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    options = parser.parse_args()
    clock = start_timing(options)
    settings = load_settings(options.config, options.overrides)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    times = time_in_turn(sides(settings, device), options.rounds, warm_up=1, clock=clock)
    size = settings.data.batch_size
    metrics = {
        f"{name}_samples_per_second": 1e3 * (1 if name == "rendered" else size) / statistics.median(values)
        for name, values in times.items()
    }
    metrics["share_of_step"] = ratio(times["made"], times["step"])
    metrics["share_of_step_unrendered"] = ratio(times["made"], times["step_unrendered"])
    metrics["ratio_vs_rendered"] = size * ratio(times["rendered"], times["made"])
    report("on_the_fly", metrics, device=device, batch_size=size, image_size=settings.data.image_size)


def sides(settings: Settings, device: str) -> dict[str, Callable[[], object]]:
    """Return what is timed."""
    data, places = settings.data, itertools.count()
    maker = OnTheFly(data, settings.synthetic).to(device)

    def made() -> Any:
        batch, _ = maker.make(data.batch_size, place_generator(device, 0, TRAINING, next(places)))
        return augment(batch, data, step_generator(0, next(places)))

    model = build_reconstructor(settings.network, settings.face_model).to(device).train()
    if device == "cuda":
        model.network.to(memory_format=torch.channels_last)
    adam = build_optimiser(model.network, settings.optimiser)
    batch, precision = made(), settings.training.precision

    def step(rendering: bool) -> Callable[[], object]:
        losses = settings.losses if rendering else settings.losses.without_rendering()
        return lambda: train_step(model, [batch], adam, losses, settings.optimiser.clip_norm, precision)

    return {
        "made": made,
        "decoded": decoding(settings),
        "rendered": lambda: render_sample(settings.synthetic, 0, next(places) % STORED, 0),
        "step": step(rendering=True),
        "step_unrendered": step(rendering=False),
    }


def decoding(settings: Settings) -> Callable[[], object]:
    """Return what decodes, collates and varies a batch of rows that are in memory."""
    data = settings.data
    rows = [encode_sample(render_sample(settings.synthetic, 0, person, 0)) for person in range(STORED)]
    rows = [{"row": k, "path": "memory", **rows[k % STORED]} for k in range(data.batch_size)]
    rejects = Rejects(0.0, len(rows))

    def decoded() -> Any:
        return augment(collate(decode_rows(rows, data, rejects), data), data, step_generator(0))

    return decoded


if __name__ == "__main__":
    main()
