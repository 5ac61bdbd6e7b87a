"""Where does a training step's time go, and how near are its convolutions to the machine's arithmetic?

    python -m benchmarks.stages [--config configs/small.yaml] [--samples N] [--rounds 3] [key=value ...]

Steps under torch's profiler, on one thread so that a stage's time is its work: each operation, forward and
backward, is counted to the stage that asked for it. `step_seconds` and all rates are in processor time,
without the profiler: what others do on the machine counts less. The convolutions' arithmetic over their
share of a step is `convolution_gflops`; `matmul_gflops` is a large matrix multiplication's in the same run.
`saved_mb_*` is what each stage keeps for the backward pass, which is most of a step's memory, and
`saved_mb_port` what the port (benchmarks/port.py) keeps in all.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import report
from benchmarks.port import Port
from benchmarks.step import make_batch, new_reconstructor
from dfmvr.config import Settings, load_settings
from dfmvr.losses.total import total_loss
from dfmvr.reconstructor import Reconstructor
from dfmvr.threads import use_threads
from dfmvr.training.optim import build_optimiser, clip_gradients
from dfmvr.types import ViewBatch

KERNELS = {
    "onvolution": "convolution",  # aten::convolution and ConvolutionBackward0
    "_CompiledInvolution": "involution",
    "_Rasterise": "render",
}
"""Operations that are a stage of their own, by a part of their names."""
STAGES = ("convolution", "involution", "rest_of_network", "decode_and_shade", "render", "losses", "optimiser")
PREFIX = "stage: "
BACKWARD_NODE = "autograd::engine::evaluate_function: "
MATRIX = torch.rand(2048, 2048)
MATMUL_GFLOP = 2 * len(MATRIX) ** 3 / 1e9
CONVOLUTIONS = (torch.ops.aten.convolution, torch.ops.aten.convolution_backward)


def main() -> None:
    """Profile and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/small.yaml", help="YAML file of settings")
    parser.add_argument("--samples", type=int, help="samples of a step (default: data.batch_size)")
    parser.add_argument("--rounds", type=int, default=3, help="profiled steps (%(default)d)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    options = parser.parse_args()
    use_threads(1)
    settings = load_settings(options.config, options.overrides)
    batch = make_batch(settings, options.samples or settings.data.batch_size)
    reconstructor = new_reconstructor(settings, settings.network)
    step = Step(reconstructor, settings, batch)
    with FlopCounterMode(display=False) as counter:
        step()
    counts = counter.get_flop_counts()["Global"]
    gflop = sum(counts.get(operation, 0) for operation in CONVOLUTIONS) / 1e9
    constants = [*reconstructor.buffers(), *reconstructor.parameters()]
    port = Port(reconstructor, settings.losses, settings.optimiser)
    saved, saved_by_port = SavedBytes(constants), SavedBytes([*constants, *port.network.parameters()])
    with saved:
        step(saved)
    with saved_by_port, saved_by_port.stage("port"):
        port(batch)
    totals: Counter[str] = Counter()
    matmul, seconds = [], []
    for _ in range(options.rounds):
        matmul.append(MATMUL_GFLOP / processor_seconds(lambda: MATRIX @ MATRIX))
        seconds.append(processor_seconds(step))
        totals.update(profiled(step))
    shares = {stage: value / totals.total() for stage, value in totals.items()}
    step_seconds = statistics.median(seconds)
    gflops = gflop / (shares["convolution"] * step_seconds)
    metrics = {f"share_{stage}": share for stage, share in shares.items()} | {
        "step_seconds": step_seconds,
        "convolution_gflop": gflop,
        "convolution_gflops": gflops,
        "matmul_gflops": max(matmul),
        "convolution_over_matmul": gflops / max(matmul),
        **{f"saved_mb_{name}": size / 2**20 for name, size in (saved.bytes | saved_by_port.bytes).items()},
    }
    report(
        "stages",
        {name: round(value, 4) for name, value in metrics.items()},
        config=options.config,
        batch_size=len(batch.images),
    )


class Step:
    """A training step (dfmvr.training.step) in pieces that the profiler can tell apart."""

    def __init__(self, reconstructor: Reconstructor, settings: Settings, batch: ViewBatch) -> None:
        self.reconstructor, self.settings, self.batch = reconstructor, settings, batch
        self.optimiser = build_optimiser(reconstructor.network, settings.optimiser)

    def __call__(self, saved: SavedBytes | None = None) -> None:
        model, batch = self.reconstructor, self.batch
        stage = _stage if saved is None else saved.stage
        with stage("rest_of_network" if saved is None else "network"):
            params = model.network(batch.images, batch.masks, batch.view_present)
        with stage("decode_and_shade"):
            prediction = model.draw(params, batch.intrinsics, batch.images.shape[-1])
        with stage("losses"):
            loss, _ = total_loss(prediction, batch, model.face_model, self.settings.losses)
        loss.backward()
        with _stage("optimiser"):
            clip_gradients(model.network, self.settings.optimiser.clip_norm)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts what is kept for the backward pass, each piece of memory once, by stage.

    Args:
        constants: parameters and buffers, which are there anyway.
    """

    def __init__(self, constants: Iterable[Tensor]) -> None:
        super().__init__(self._count, lambda tensor: tensor)
        self.bytes: dict[str, int] = {}
        self._name = "other"
        self._seen = {_address(tensor): tensor for tensor in constants}
        """By address; held on to, so that no address is used twice."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count to this stage."""
        self._name, before = name, self._name
        yield
        self._name = before

    def _count(self, tensor: Tensor) -> Tensor:
        if _address(tensor) not in self._seen:
            self._seen[_address(tensor)] = tensor.detach()
            self.bytes[self._name] = self.bytes.get(self._name, 0) + tensor.untyped_storage().nbytes()
        return tensor


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _stage(name: str) -> record_function:
    return record_function(PREFIX + name)


def profiled(step: Step) -> dict[str, float]:
    """Return the seconds of each stage of a step; "other" is what belongs to none."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    events: Iterable[FunctionEvent] = profiler.events()
    makers = _makers(events)
    seconds: dict[str, float] = dict.fromkeys((*STAGES, "other"), 0.0)
    for event in events:
        seconds[_stage_of(event, makers)] += event.self_cpu_time_total * 1e-6
    return seconds


def _makers(events: Iterable[FunctionEvent]) -> dict[int, str]:
    """Return the stage whose forward pass made each node of the backward pass, by sequence number."""
    stages: dict[int, str] = defaultdict(lambda: "other")
    for event in sorted(events, key=lambda event: event.time_range.start):
        outer = _outermost(event)
        if event.sequence_nr >= 0 and outer.startswith(PREFIX):
            stages[event.sequence_nr] = outer.removeprefix(PREFIX)
    return stages


def _stage_of(event: FunctionEvent, makers: dict[int, str]) -> str:
    node: FunctionEvent | None = event
    while node is not None:
        for part, stage in KERNELS.items():
            if part in node.name:
                return stage
        if node.name.startswith(BACKWARD_NODE):
            if "AccumulateGrad" in node.name:
                return "rest_of_network"
            return makers[node.sequence_nr]
        if node.name.startswith(PREFIX):
            return node.name.removeprefix(PREFIX)
        node = node.cpu_parent
    return "other"


def _outermost(event: FunctionEvent) -> str:
    while event.cpu_parent is not None:
        event = event.cpu_parent
    return event.name


def processor_seconds(work: Callable[[], object]) -> float:
    """Return the processor time of some work."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
