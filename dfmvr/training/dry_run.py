"""What a training run costs, before it starts: its size, its arithmetic, a step's time, a batch's memory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from dfmvr.data.collate import N_LANDMARKS_3D
from dfmvr.geometry.camera import default_intrinsics
from dfmvr.losses.total import LossSettings, total_loss
from dfmvr.networks.face_network import build_network
from dfmvr.networks.involution import Involution
from dfmvr.networks.parser import FaceParser
from dfmvr.networks.settings import NetworkSettings
from dfmvr.reconstructor import Reconstructor
from dfmvr.training.optim import OptimiserSettings, build_optimiser
from dfmvr.training.step import PRECISIONS, train_step
from dfmvr.types import N_LANDMARKS, FaceParams, ViewBatch

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What one step was measured to take."""

    parameters: dict[str, int]
    """By part of the network."""
    gmac: float
    """10^9 multiply-adds of one sample's forward pass through the network, all views."""
    samples: int
    """Of the step."""
    loss: float
    seconds: float
    peak_mib: float
    """MiB by which the largest memory so far (CUDA: allocated; CPU: resident) grew in the step."""


def measure_step(
    reconstructor: Reconstructor,
    network: NetworkSettings,
    losses: LossSettings,
    optimiser: OptimiserSettings,
    image_size: int,
    precision: str,
    samples: int = 2,
    parser: FaceParser | None = None,
) -> Cost:
    """Run one training step on made-up data and measure it.

    Args:
        reconstructor: of `network`, on the device to measure.
        network: what it was built from.
        losses: all terms are computed.
        optimiser: likewise.
        image_size: pixels a side.
        precision: as in training.
        samples: of the step; batch norm needs two.
        parser: on the device, where a term needs it.
    """
    device = next(reconstructor.network.parameters()).device
    batch = made_up_batch(samples, network.n_views, image_size).to(device)
    adam = build_optimiser(reconstructor.network, optimiser)
    before = _peak_mib(device)
    started = time.perf_counter()
    result = train_step(reconstructor, [batch], adam, losses, optimiser.clip_norm, precision, parser)
    peak = _peak_mib(device)  # waits for the device
    seconds = time.perf_counter() - started
    return Cost(
        parameters=count_parameters(reconstructor.network),
        gmac=count_macs(network, image_size) / 1e9,
        samples=samples,
        loss=result.loss,
        seconds=seconds,
        peak_mib=peak - before,
    )


def count_parameters(network: nn.Module) -> dict[str, int]:
    """Return the number of parameters of each part of a network that has any."""
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    return {name: count for name, count in counts.items() if count}


def count_macs(settings: NetworkSettings, image_size: int) -> int:
    """Return the multiply-adds of one sample's forward pass: convolutions, matrix products and involutions.

    The network is built without memory (torch's meta device), so that any size can be counted anywhere.
    """
    with torch.device("meta"):
        network = build_network(settings).eval()
        images = torch.empty(1, settings.n_views, 3, image_size, image_size)
        masks = torch.zeros(1, settings.n_views, image_size, image_size, dtype=torch.int64)
    involutions = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal involutions
        assert isinstance(module, Involution)
        involutions += output.numel() * module.kernel_size**2

    for module in network.modules():
        if isinstance(module, Involution):
            module.register_forward_hook(count)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images, masks)
    return counter.get_total_flops() // 2 + involutions


@dataclass(frozen=True)
class Memory:
    """Bytes that training holds, at least: autograd's and the weights', without what lives for a moment."""

    fixed: float
    """Weights, gradients and Adam's two moments in float32, and what autograd keeps for a batch of any size
    (copies of the weights in bfloat16, a parser's weights)."""
    per_sample: float
    """What autograd keeps for each sample until the backward pass."""

    def of_batch(self, samples: int) -> float:
        """Return the bytes for a batch on one worker."""
        return self.fixed + samples * self.per_sample


def estimate_memory(
    reconstructor: Reconstructor,
    network: NetworkSettings,
    losses: LossSettings,
    image_size: int,
    parser: FaceParser | None = None,
) -> dict[str, Memory]:
    """Return what a worker's training step holds, by precision, the same on every machine.

    What autograd keeps of the network is counted by shapes, what it keeps of decoding, drawing and comparing
    (float32 in both) on mean faces that are drawn.

    Args:
        reconstructor: of `network`.
        network: what it was built from.
        losses: all terms are computed.
        image_size: pixels a side.
        parser: on the network's device, where a term needs it.
    """
    weights = sum(p.nbytes for p in reconstructor.network.parameters())
    estimates = {}
    for precision in PRECISIONS:
        two, four = (
            kept + _kept_by_drawing(reconstructor, shapes, losses, image_size, parser)
            for kept, shapes in kept_by_network(network, image_size, precision, (2, 4))
        )
        slope = (four - two) / 2
        estimates[precision] = Memory(4 * weights + two - 2 * slope, slope)
    return estimates


def kept_bytes(run: Callable[[], T], constants: Iterable[Tensor] = ()) -> tuple[int, T]:
    """Return the bytes of the tensors that autograd keeps of a forward pass, and the pass's result.

    Args:
        run: the forward pass; nothing can be propagated back through its result.
        constants: tensors that do not count, such as weights.
    """
    storages = {}

    def note(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # what is held here cannot lend its address to another

    with saved_tensors_hooks(note, lambda nothing: nothing):
        result = run()
    for tensor in constants:
        storages.pop(tensor.untyped_storage()._cdata, None)
    return sum(storage.nbytes() for storage in storages.values()), result


def kept_by_network(
    settings: NetworkSettings, image_size: int, precision: str, counts: Iterable[int]
) -> list[tuple[int, dict[str, torch.Size]]]:
    """Return, for each number of samples, the bytes kept by a network that trains and its outputs' shapes.

    No memory is taken: tensors are shapes. Autocast knows no meta device, so bfloat16 goes through fakes of
    the CPU's tensors.
    """
    found = []
    bf16 = precision == "bf16"
    with FakeTensorMode() if bf16 else torch.device("meta"):
        network = build_network(settings).train()
        weights = [*network.parameters(), *network.buffers()]
        for count in counts:
            images = torch.empty(count, settings.n_views, 3, image_size, image_size)
            masks = torch.zeros(count, settings.n_views, image_size, image_size, dtype=torch.int64)
            with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
                kept, params = kept_bytes(functools.partial(network, images, masks), weights)
            groups = {f.name: getattr(params, f.name) for f in dataclasses.fields(params)}
            found.append((kept, {name: x.shape for name, x in groups.items() if x is not None}))
    return found


def _kept_by_drawing(
    reconstructor: Reconstructor,
    shapes: Mapping[str, torch.Size],
    losses: LossSettings,
    image_size: int,
    parser: FaceParser | None,
) -> int:
    """Return the bytes that autograd keeps after the network, for as many mean faces as the shapes say."""
    device = next(reconstructor.network.parameters()).device
    groups = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}
    groups["rotation"] = groups["rotation"] + torch.eye(3, device=device)
    params = FaceParams(**{name: values.requires_grad_() for name, values in groups.items()})
    samples, views = params.translation.shape[:2]
    batch = made_up_batch(samples, views, image_size).to(device)

    def draw() -> None:
        prediction = reconstructor.draw(params, batch.intrinsics, image_size, losses.needs_rendering)
        total_loss(prediction, batch, reconstructor.face_model, losses, parser)

    return kept_bytes(draw, reconstructor.buffers())[0]


def made_up_batch(samples: int, views: int, image_size: int) -> ViewBatch:
    """Return pictures of noise, all skin, with landmarks anywhere: a step costs the same."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(samples, *shape, generator=generator)

    return ViewBatch(
        images=uniform(views, 3, image_size, image_size),
        masks=torch.ones(samples, views, image_size, image_size, dtype=torch.int64),
        weight_maps=uniform(views, image_size, image_size),
        landmarks_2d=image_size * uniform(views, N_LANDMARKS, 2),
        landmarks_2d_weights=torch.ones(samples, views, N_LANDMARKS),
        landmarks_3d=100 * uniform(N_LANDMARKS_3D, 3),
        landmarks_3d_valid=torch.ones(samples, dtype=torch.bool),
        intrinsics=default_intrinsics(image_size).expand(samples, views, 3, 3),
        view_yaws=torch.zeros(samples, views),
    )


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
