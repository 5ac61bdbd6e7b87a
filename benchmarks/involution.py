"""How much faster than unfolding are our involutions, and what does the first one of a process cost?

    python -m benchmarks.involution [--samples 4] [--rounds 5]

Forward and backward pass of the 17 involutions of RedNet-50 as in the paper (64 base channels, 224 px), by
shape, against unfold + einsum on the same tensors, timed in turn. `ratio_vs_unfold` is that of all 17
together; `worst_difference` the largest of outputs and gradients, over the largest value. The cold start is
the first forward and backward pass in a new process, numba's import included: with an empty cache
(compilation) and with a filled one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.common import add_timing, ratio, report, start_timing, time_in_turn
from benchmarks.port import unfold_involution
from dfmvr.networks.involution import GROUP_CHANNELS, involution

Function = Callable[[Tensor, Tensor, int, int], Tensor]

FIRST_CALL = """
import time, torch
from dfmvr.networks.involution import involution
x, kernels = torch.rand(1, 16, 8, 8, requires_grad=True), torch.rand(1, 1, 49, 8, 8, requires_grad=True)
start = time.CLOCK()
involution(x, kernels, 7).sum().backward()
print(time.CLOCK() - start)
"""


@dataclass(frozen=True)
class Layer:
    """A shape of an involution in RedNet-50."""

    channels: int
    size: int
    """Side of the input in pixels."""
    kernel_size: int = 7
    stride: int = 1
    count: int = 1
    """How many of the network's layers have it."""

    @property
    def name(self) -> str:
        """What its figures are called."""
        return f"{self.channels}ch_{self.size}px" + ("_stride_2" if self.stride == 2 else "")


LAYERS = (
    Layer(32, 112, kernel_size=3),
    Layer(64, 56, count=3),
    Layer(128, 56, stride=2),
    Layer(128, 28, count=3),
    Layer(256, 28, stride=2),
    Layer(256, 14, count=5),
    Layer(512, 14, stride=2),
    Layer(512, 7, count=2),
)


def main() -> None:
    """Check, time, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=4, help="samples of a batch (%(default)d)")
    add_timing(parser, rounds=5)
    options = parser.parse_args()
    clock = start_timing(options)
    metrics: dict[str, float] = {}
    totals = {"ours": [0.0] * options.rounds, "unfold": [0.0] * options.rounds}
    differences = []
    for layer in LAYERS:
        x, kernels, gradient = inputs(layer, options.samples)
        results = [run(function, layer, x, kernels, gradient) for function in (involution, unfold_involution)]
        differences += [float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results, strict=True)]
        sides = {
            "ours": lambda i=(layer, x, kernels, gradient): run(involution, *i),
            "unfold": lambda i=(layer, x, kernels, gradient): run(unfold_involution, *i),
        }
        times = time_in_turn(sides, options.rounds, warm_up=1, clock=clock)
        for side, runs in times.items():
            totals[side] = [t + layer.count * ms for t, ms in zip(totals[side], runs, strict=True)]
        metrics[f"ms_{layer.name}"] = statistics.median(times["ours"]) / options.samples
        metrics[f"ratio_{layer.name}"] = ratio(times["unfold"], times["ours"])
    with tempfile.TemporaryDirectory() as cache:
        cold = {
            name: first_call(cache, clock)
            for name in ("first_call_s_empty_cache", "first_call_s_filled_cache")
        }
    summary = {
        "ratio_vs_unfold": ratio(totals["unfold"], totals["ours"]),
        "ms_per_sample": statistics.median(totals["ours"]) / options.samples,
        "ms_per_sample_unfold": statistics.median(totals["unfold"]) / options.samples,
    }
    figures = {name: round(value, 3) for name, value in (summary | cold | metrics).items()}
    report(
        "involution",
        figures | {"worst_difference": max(differences)},
        samples=options.samples,
        clock=clock.__name__,
    )


def inputs(layer: Layer, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, kernels and the output's gradient, laid out as a network's are."""
    generator = torch.Generator().manual_seed(0)
    out = layer.size // layer.stride
    groups = max(layer.channels // GROUP_CHANNELS, 1)

    def normal(channels: int, size: int) -> Tensor:
        return torch.randn(samples, channels, size, size, generator=generator)

    kernels = normal(groups * layer.kernel_size**2, out).unflatten(1, (groups, -1))
    return normal(layer.channels, layer.size), kernels, normal(layer.channels, out)


def run(
    function: Function, layer: Layer, x: Tensor, kernels: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, and the gradients of features and kernels."""
    x, kernels = x.detach().requires_grad_(), kernels.detach().requires_grad_()
    out = function(x, kernels, layer.kernel_size, layer.stride)
    return out.detach(), *torch.autograd.grad(out, (x, kernels), gradient)


def first_call(cache: str, clock: Callable[[], float]) -> float:
    """Return the seconds of the first involution in a new process, by a clock of module time."""
    environment = os.environ | {"NUMBA_CACHE_DIR": cache}
    command = [sys.executable, "-c", FIRST_CALL.replace("CLOCK", clock.__name__)]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)


if __name__ == "__main__":
    main()
