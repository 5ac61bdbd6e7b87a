"""What `python -m ray_jobs.train --dry-run` does."""

from __future__ import annotations

import torch

from dfmvr.config import Settings
from dfmvr.networks.parser import FaceParser
from dfmvr.reconstructor import build_reconstructor
from dfmvr.training.dry_run import estimate_memory, measure_step


def dry_run(settings: Settings) -> None:
    """Build the model, run one step without a data set or a cluster, and print what it costs."""
    device = "cuda" if settings.training.use_gpu and torch.cuda.is_available() else "cpu"
    torch.manual_seed(settings.seed)
    reconstructor = build_reconstructor(settings.network, settings.face_model).to(device).train()
    parser = FaceParser.load(settings.parser.weights).to(device) if settings.losses.needs_parser else None
    cost = measure_step(
        reconstructor,
        settings.network,
        settings.losses,
        settings.optimiser,
        settings.data.image_size,
        settings.training.precision,
        parser=parser,
    )
    memory = estimate_memory(
        reconstructor, settings.network, settings.losses, settings.data.image_size, parser
    )
    gib = {name: held.of_batch(settings.data.batch_size) / 2**30 for name, held in memory.items()}
    for name, count in cost.parameters.items():
        print(f"{'parameters, ' + name:<28}{count:>14,}")
    print(f"{'parameters, all':<28}{sum(cost.parameters.values()):>14,}")
    print(f"{'forward pass of a sample':<28}{cost.gmac:>14.2f} GMAC")
    print(f"{'step of ' + str(cost.samples) + ' samples, ' + device:<28}{cost.seconds:>14.1f} s")
    print(f"{'its memory':<28}{cost.peak_mib:>14,.0f} MiB above {device}'s before")
    print(f"{'its loss':<28}{cost.loss:>14.4g}")
    print(
        f"{'a batch of ' + str(settings.data.batch_size):<28}"
        f"about {gib['fp32']:.1f} GiB in float32, {gib['bf16']:.1f} GiB in bf16 on one worker "
        "(estimate: weights, gradients, Adam, and what autograd keeps, counted by shapes; kernels need more)"
    )
