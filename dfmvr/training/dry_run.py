"""What a training run costs, before it starts: its size, its arithmetic, and one step's time and memory."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dfmvr.data.collate import N_LANDMARKS_3D
from dfmvr.geometry.camera import default_intrinsics
from dfmvr.losses.total import LossSettings
from dfmvr.networks.face_network import build_network
from dfmvr.networks.involution import Involution
from dfmvr.networks.settings import NetworkSettings
from dfmvr.reconstructor import Reconstructor
from dfmvr.training.optim import OptimiserSettings, build_optimiser
from dfmvr.training.step import train_step
from dfmvr.types import N_LANDMARKS, ViewBatch


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
    """
    device = next(reconstructor.network.parameters()).device
    batch = made_up_batch(samples, network.n_views, image_size).to(device)
    adam = build_optimiser(reconstructor.network, optimiser)
    before = _peak_mib(device)
    started = time.perf_counter()
    result = train_step(reconstructor, [batch], adam, losses, optimiser.clip_norm, precision)
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
