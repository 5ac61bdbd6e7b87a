"""How training scales: measured from 1 to 2 workers here, computed for many GPUs.

    python -m benchmarks.scaling [--seconds 6] [--rounds 5]
    python -m benchmarks.scaling --compute [--efficiency 0.3 --network-gbps 400 ...]

Measured (weak scaling: twice the workers, twice the samples, one thread each): `alone`, one process that
trains; `apart`, two that know nothing of each other; `together`, two that share their gradients (gloo).
together / apart is what sharing costs; apart / alone is what the machine's cores take from each other.

Computed: a step of the paper's network on N GPUs as the slowest of N lognormal step times, plus what the ring
all-reduce adds beyond the backward pass, against what storage, decoding cores and checkpoints allow. All
assumptions are options; what can be counted or measured without a GPU is.
"""

from __future__ import annotations

import argparse
import math
import socket
import statistics
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch.multiprocessing import get_context
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common import report
from dfmvr.config import Settings, load_settings
from dfmvr.networks.face_network import build_network
from dfmvr.reconstructor import Reconstructor, build_reconstructor
from dfmvr.threads import use_threads
from dfmvr.training.dry_run import count_macs, count_parameters, made_up_batch
from dfmvr.training.optim import build_optimiser
from dfmvr.training.step import train_step

GPUS = (8, 64, 512)
GPUS_PER_NODE = 8
STEPS = 4000
SEED = 3


def main() -> None:
    """Measure or compute, and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", help="network and losses (default: configs/small.yaml, or paper.yaml)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each side and round (%(default)g)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)d)")
    parser.add_argument("--compute", action="store_true", help="compute for many GPUs in place of measuring")
    for name, value, meaning in ASSUMPTIONS:
        parser.add_argument(f"--{name}", type=float, default=value, help=f"{meaning} (%(default)g)")
    options = parser.parse_args()
    if options.compute:
        settings = load_settings(options.config or "configs/paper.yaml")
        print_table(Model(settings, vars(options)))
    else:
        settings = load_settings(options.config or "configs/small.yaml")
        report("scaling", measure(settings, options.seconds, options.rounds), config=settings.name)


# Measured


def measure(settings: Settings, seconds: float, rounds: int) -> dict[str, float]:
    """Time the three sides in turn."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("spawn")
    pipes, processes = [], []
    for rank in range(2):
        mine, theirs = context.Pipe()
        process = context.Process(target=train, args=(rank, port, settings, theirs), daemon=True)
        process.start()
        pipes.append(mine)
        processes.append(process)

    def rate(sides: dict[int, str]) -> float:
        for rank, side in sides.items():
            pipes[rank].send((side, seconds))
        return float(sum(pipes[rank].recv() for rank in sides))

    for side in ("apart", "together"):  # warm up
        rate({0: side, 1: side})
    rates: dict[str, list[float]] = {"alone": [], "apart": [], "together": []}
    for _ in range(rounds):
        rates["alone"].append(rate({0: "apart"}))
        rates["apart"].append(rate({0: "apart", 1: "apart"}))
        rates["together"].append(rate({0: "together", 1: "together"}))
    for pipe in pipes:
        pipe.send(("stop", 0.0))

    def efficiency(of: str, over: str, factor: float) -> float:
        pairs = zip(rates[of], rates[over], strict=True)
        return statistics.median(a / (factor * b) for a, b in pairs)

    return {
        **{f"{side}_samples_per_second": statistics.median(values) for side, values in rates.items()},
        "efficiency_of_sharing": efficiency("together", "apart", 1),
        "efficiency_of_the_cores": efficiency("apart", "alone", 2),
        "efficiency": efficiency("together", "alone", 2),
    }


def train(rank: int, port: int, settings: Settings, pipe: Connection) -> None:
    """Train on made-up data when told so, and answer with samples a second."""
    use_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    plain = build_reconstructor(settings.network, settings.face_model).train()
    optimiser = build_optimiser(plain.network, settings.optimiser)
    wrapped = DistributedDataParallel(plain.network, gradient_as_bucket_view=True)
    shared = Reconstructor(wrapped, plain.face_model, plain.renderer)
    size, n_views = settings.data.batch_size, settings.network.n_views
    batch = made_up_batch(size, n_views, settings.data.image_size)
    while True:
        side, seconds = pipe.recv()
        if side == "stop":
            return
        model = shared if side == "together" else plain
        start, steps = time.perf_counter(), 0
        go_on = True
        while go_on:
            train_step(model, [batch], optimiser, settings.losses, settings.optimiser.clip_norm)
            steps += 1
            go_on = time.perf_counter() - start < seconds
            if side == "together":  # both make the same number of steps
                vote = torch.tensor(int(go_on))
                torch.distributed.all_reduce(vote, torch.distributed.ReduceOp.MIN)
                go_on = bool(vote)
        pipe.send(steps * size / (time.perf_counter() - start))


# Computed

ASSUMPTIONS = (
    ("tflops", 400.0, "10^12 operations a second that a GPU reaches in large bf16 matrix products"),
    ("efficiency", 0.3, "share of them that the network's convolutions and the renderer leave"),
    ("spread", 0.05, "standard deviation of the logarithm of a step's time (stragglers)"),
    ("nvlink-gbps", 2400.0, "Gbit/s a GPU has towards those of its node"),
    ("network-gbps", 50.0, "Gbit/s a GPU has towards other nodes (400 for 8 GPUs)"),
    ("latency-us", 20.0, "microseconds of one hop of the ring"),
    ("hidden", 0.6, "share of the step behind which the all-reduce hides (the backward pass)"),
    ("sample-kb", 38.0, "bytes x 1000 of a stored sample (benchmarks.ingest)"),
    ("decode-ms", 17.3, "milliseconds of a core to decode, collate and vary a sample (benchmarks.ingest)"),
    ("cores-per-gpu", 12.0, "CPU cores beside each GPU"),
    ("storage-gbps", 100.0, "Gbit/s of the object store for the whole job"),
    ("upload-gbps", 8.0, "Gbit/s with which one worker writes a checkpoint"),
    ("checkpoint-minutes", 15.0, "between checkpoints"),
)


@dataclass(frozen=True)
class Model:
    """What a training step is made of."""

    settings: Settings
    assumed: dict[str, Any]

    def at(self, gpus: int) -> dict[str, float]:
        """Return the times of a step on so many GPUs, in ms, and what each part would allow, in samples/s."""
        a = self.assumed
        batch = self.settings.data.batch_size
        flops = 3 * 2 * count_macs(self.settings.network, self.settings.data.image_size) * batch
        compute = flops / (a["tflops"] * 1e12 * a["efficiency"])
        times = compute * np.exp(np.random.default_rng(SEED).normal(0, a["spread"], (STEPS, gpus)))
        slowest = float(times.max(1).mean())
        share = self._all_reduce(gpus)
        exposed = max(0.0, share - a["hidden"] * compute)
        save = 3 * self._bytes * 8 / (a["upload_gbps"] * 1e9)
        lost = save / (60 * a["checkpoint_minutes"] + save)
        step = slowest + exposed
        return {
            "step_ms": 1e3 * step,
            "waiting_ms": 1e3 * (slowest - compute),
            "all_reduce_ms": 1e3 * share,
            "exposed_ms": 1e3 * exposed,
            "checkpoint_share": lost,
            "wanted": gpus * batch / step * (1 - lost),
            "decoding": gpus * a["cores_per_gpu"] / (a["decode_ms"] / 1e3),
            "storage": a["storage_gbps"] * 1e9 / 8 / (a["sample_kb"] * 1e3),
            "one_gpu": batch / compute,
        }

    def _all_reduce(self, gpus: int) -> float:
        """Seconds of a ring within each node, then one over the nodes."""
        a, inside = self.assumed, min(gpus, GPUS_PER_NODE)
        nodes = math.ceil(gpus / GPUS_PER_NODE)
        within = 2 * (inside - 1) / inside * self._bytes * 8 / (a["nvlink_gbps"] * 1e9)
        between = 2 * (nodes - 1) / nodes * self._bytes / inside * 8 / (a["network_gbps"] * 1e9)
        return within + between + 2 * (inside - 1 + nodes - 1) * a["latency_us"] * 1e-6

    @property
    def _bytes(self) -> int:
        with torch.device("meta"):
            network = build_network(self.settings.network)
        return 4 * sum(count_parameters(network).values())


def print_table(model: Model) -> None:
    """Print what limits training, by number of GPUs, as Markdown; then the figures as JSON."""
    heads = ("GPUs", "step", "waiting for the slowest", "all-reduce (not hidden)", "checkpoints")
    heads += ("samples/s wanted", "decoding allows", "storage allows", "efficiency", "limit")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    metrics: dict[str, float] = {}
    for gpus in GPUS:
        t = model.at(gpus)
        got = min(t["wanted"], t["decoding"], t["storage"])
        limit = min(("wanted", "decoding", "storage"), key=lambda name: t[name])
        efficiency = got / (gpus * t["one_gpu"])
        print(
            f"| {gpus} | {t['step_ms']:.0f} ms | {t['waiting_ms']:.1f} ms | {t['all_reduce_ms']:.1f} ms "
            f"({t['exposed_ms']:.1f}) | {t['checkpoint_share']:.2%} | {t['wanted']:,.0f} | "
            f"{t['decoding']:,.0f} | {t['storage']:,.0f} | {efficiency:.2f} | "
            f"{'the GPUs' if limit == 'wanted' else limit} |"
        )
        metrics |= {f"{name}_{gpus}": round(value, 4) for name, value in t.items()}
        metrics[f"efficiency_{gpus}"] = round(efficiency, 4)
    assumed = {name: model.assumed[name.replace("-", "_")] for name, _, _ in ASSUMPTIONS}
    report("scaling_computed", metrics, assumed=assumed)


if __name__ == "__main__":
    main()
