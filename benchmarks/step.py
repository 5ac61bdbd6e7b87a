"""How long does a training step take, and how much memory, against a plain port of the paper's code?

    python -m benchmarks.step [--config configs/small.yaml] [--samples N] [--rounds 7] [key=value ...]

Timed in turn on one synthetic batch, from the same weights: the whole step (network, rendering, all losses,
backward pass, optimiser); the port's (benchmarks/port.py); ours before training.render_from, which renders
nothing; and ours without landmark maps, where the settings have them. `worst_difference` is that of the two
sides' first step: of a loss term as a share of it, of a parameter in its head's unit (or as a share of the
largest, where that is more). Memory is the peak of a step beyond what model and data hold, the median of
three processes of each side (Linux). float32 throughout.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.common import add_timing, ratio, report, start_timing, time_in_turn
from benchmarks.port import Port
from dfmvr.config import Settings, load_settings
from dfmvr.data.collate import collate
from dfmvr.data.datasets.synthetic import render_sample
from dfmvr.losses.total import LossSettings, total_loss
from dfmvr.networks.heads import TRANSLATION_UNIT
from dfmvr.networks.settings import NetworkSettings
from dfmvr.reconstructor import Reconstructor, build_reconstructor
from dfmvr.threads import use_threads
from dfmvr.training.optim import build_optimiser
from dfmvr.training.step import train_step
from dfmvr.types import ViewBatch

PROCESSES = 3
"""Whose peaks are compared by their median: the allocator's share of them varies."""
SIDES = ("ours", "port")
BLOCK_GAIN = 0.2
"""Of RedNet's blocks, which start at zero: an involution would not matter to what is compared."""


def main() -> None:
    """Parse, time, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/small.yaml", help="YAML file of settings")
    parser.add_argument("--samples", type=int, help="samples of a step (default: data.batch_size)")
    add_timing(parser, rounds=7)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    options = parser.parse_args()
    clock = start_timing(options)
    settings = load_settings(options.config, options.overrides)
    size = options.samples or settings.data.batch_size
    batch = make_batch(settings, size)
    peaks = {
        side: statistics.median(peak_mb(side, settings, batch, options.threads) for _ in range(PROCESSES))
        for side in SIDES
    }
    difference = worst_difference(settings, batch)
    gc.collect()
    sides = {
        "ours": step(settings, settings.network, settings.losses, batch),
        "port": port_step(settings, batch),
        "unrendered": step(settings, settings.network, settings.losses.without_rendering(), batch),
    }
    if settings.network.landmark_maps:
        plain = dataclasses.replace(settings.network, landmark_maps=False)
        sides["without_maps"] = step(settings, plain, settings.losses, batch)
    times = time_in_turn(sides, options.rounds, warm_up=1, clock=clock)
    metrics = {
        "ratio_vs_port": ratio(times["port"], times["ours"]),
        "memory_ratio": peaks["ours"] / peaks["port"],
        "samples_per_second": 1e3 * size / statistics.median(times["ours"]),
        "samples_per_second_port": 1e3 * size / statistics.median(times["port"]),
        "samples_per_second_unrendered": 1e3 * size / statistics.median(times["unrendered"]),
        "ratio_vs_unrendered": ratio(times["ours"], times["unrendered"]),
        "peak_mb": peaks["ours"],
        "peak_mb_port": peaks["port"],
    }
    if "without_maps" in times:
        metrics["ratio_vs_without_maps"] = ratio(times["ours"], times["without_maps"])
    rounded = {name: round(value, 3) for name, value in metrics.items()}
    report(
        "step",
        rounded | {"worst_difference": difference},
        config=options.config,
        batch_size=size,
        clock=clock.__name__,
    )


def make_batch(settings: Settings, size: int) -> ViewBatch:
    """Draw the first synthetic people."""
    return collate([render_sample(settings.synthetic, 0, k, 0) for k in range(size)], settings.data)


def new_reconstructor(settings: Settings, network: NetworkSettings) -> Reconstructor:
    """Return a new network in training mode, the same in every process."""
    torch.manual_seed(settings.seed)
    return build_reconstructor(network, settings.face_model).train()


def step(
    settings: Settings, network: NetworkSettings, losses: LossSettings, batch: ViewBatch
) -> Callable[[], object]:
    """Return a run of one training step of a new network."""
    reconstructor = new_reconstructor(settings, network)
    optimiser = build_optimiser(reconstructor.network, settings.optimiser)
    return lambda: train_step(reconstructor, [batch], optimiser, losses, settings.optimiser.clip_norm)


def port_step(settings: Settings, batch: ViewBatch) -> Callable[[], object]:
    """Return a run of one training step of the port."""
    port = Port(new_reconstructor(settings, settings.network), settings.losses, settings.optimiser)
    return lambda: port.step(batch)


@torch.no_grad()
def worst_difference(settings: Settings, batch: ViewBatch) -> float:
    """Compare what both sides predict and what they make of it."""
    reconstructor = new_reconstructor(settings, settings.network)
    for block in reconstructor.network.regressor.blocks:
        torch.nn.init.constant_(block.norm.weight, BLOCK_GAIN)
    theirs = Port(reconstructor, settings.losses, settings.optimiser)(batch)
    prediction = reconstructor(batch)
    _, terms = total_loss(prediction, batch, reconstructor.face_model, settings.losses)
    if terms.keys() != theirs.terms.keys():
        raise ValueError(f"terms: expected those of the port, {sorted(theirs.terms)}, got {sorted(terms)}")
    differences = [abs(terms[name] - term) / abs(term) for name, term in theirs.terms.items()]
    for field in dataclasses.fields(prediction.params):
        ours, of_port = (getattr(params, field.name) for params in (prediction.params, theirs.params))
        if ours is not None:
            unit = ours.new_tensor(TRANSLATION_UNIT) if field.name == "translation" else 1.0
            differences.append(((ours - of_port) / unit).abs().max() / of_port.abs().max().clamp_min(1))
    return float(torch.stack(differences).max())


def peak_mb(side: str, settings: Settings, batch: ViewBatch, threads: int) -> float:
    """Measure a side in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_mb, side, settings, batch, threads).result()


def _peak_mb(side: str, settings: Settings, batch: ViewBatch, threads: int) -> float:
    """Return the resident memory that steps need at their peak beyond what there is before them."""
    use_threads(threads)
    if side == "ours":
        run = step(settings, settings.network, settings.losses, batch)
        _load_compiled_code()
    else:
        run = port_step(settings, batch)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status_mb("VmRSS")
    for _ in range(2):  # the optimiser's moments come with the first
        run()
    return _status_mb("VmHWM") - before


def _load_compiled_code() -> None:
    """Let numba load its kernels: tens of MB that do not grow with the batch."""
    from dfmvr.networks.involution import involution
    from dfmvr.render.zbuffer import ZBufferRenderer

    x, kernels = torch.zeros(1, 4, 8, 8, requires_grad=True), torch.zeros(1, 1, 9, 8, 8)
    involution(x, kernels, 3).sum().backward()
    corners = torch.tensor([[0.0, 0.0, 1000.0], [9.0, 0.0, 1000.0], [0.0, 9.0, 1000.0]], requires_grad=True)
    camera = torch.tensor([[100.0, 0.0, 4.0], [0.0, 100.0, 4.0], [0.0, 0.0, 1.0]])
    drawn = ZBufferRenderer()(corners, torch.tensor([[0, 1, 2]]), torch.ones(3, 1), camera, 8)
    drawn.attributes.sum().backward()


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


if __name__ == "__main__":
    main()
