"""One training step, and the settings of training."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dfmvr.losses.total import LossSettings, total_loss
from dfmvr.networks.parser import FaceParser
from dfmvr.reconstructor import SHADINGS, Reconstructor
from dfmvr.training.optim import clip_gradients
from dfmvr.types import ViewBatch

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class TrainingSettings:
    """How long to train, on what, and how often to look and to save."""

    epochs: int = 20
    """Passes over the training split."""
    workers: int = 2
    """Training processes; each takes data.batch_size samples a step."""
    min_workers: int = 0
    """Go on with as few as this many while nodes are missing, and take more as they come: more batches are
    then accumulated, so that a step is of as many samples as before. 0: all `workers` or none."""
    cpus_per_worker: float = 0.0
    """CPUs that a worker claims of the Ray cluster; 0 shares them out, leaving one for reading data."""
    render_from: float = 0.0
    """Share of the steps after which photo and mask loss begin. Until then training steps do not render,
    which makes them cheaper. (The paper's released code begins its mask loss after 100 of 280 epochs.)"""
    mask_from: float = 0.0
    """Share of the steps after which the mask loss begins, where render_from has not held it back longer."""
    accumulate: int = 1
    """Batches of every worker that make one optimiser step, one after another: the gradient of a batch as
    many times as large, in the memory of one. Batch norm sees each batch by itself, though."""
    shade_in_view: str = "own"
    """Whose pose shades a view: its `own`, or the `last` view's for all of them (a defect of the paper's
    released code, kept for comparison)."""
    precision: str = "fp32"
    """`bf16`: the network's forward pass in bfloat16 where that is safe (autocast), in half the memory.
    Weights, heads, face model, renderer and losses stay in float32."""
    use_gpu: bool = False
    """Give every worker one GPU."""
    runs: str = "runs"
    """Folder of all runs: a local path or s3://bucket/prefix."""
    checkpoint_every_steps: int = 200
    """Optimiser steps between checkpoints inside an epoch; the end of an epoch always writes one."""
    keep: int = 2
    """Checkpoints kept by validation loss, beside the newest."""
    validate_every_epochs: int = 1
    """Epochs between validations; the last epoch is always validated."""
    max_failures: int = 3
    """Worker failures after which the run gives up; -1 for never."""
    max_skipped_in_a_row: int = 10
    """Steps in a row with a non-finite loss after which the run gives up."""
    hang_timeout_s: int = 600
    """Seconds that workers wait for each other before they are started anew; more than a checkpoint or a
    first compiled step takes. A worker whose own step, or wait for data, takes twice as long ends itself."""

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "workers",
            "accumulate",
            "checkpoint_every_steps",
            "keep",
            "validate_every_epochs",
            "max_skipped_in_a_row",
            "hang_timeout_s",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name}: expected >= 1, got {getattr(self, name)}")
        if not 0 <= self.min_workers <= self.workers:
            raise ValueError(
                f"training.min_workers: expected 0 to training.workers ({self.workers}), "
                f"got {self.min_workers}"
            )
        for name in ("render_from", "mask_from"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"training.{name}: expected 0 <= share < 1, got {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"training.precision: expected one of {PRECISIONS}, got {self.precision!r}")
        if self.shade_in_view not in SHADINGS:
            raise ValueError(
                f"training.shade_in_view: expected one of {SHADINGS}, got {self.shade_in_view!r}"
            )
        if self.cpus_per_worker < 0:
            raise ValueError(f"training.cpus_per_worker: expected >= 0, got {self.cpus_per_worker}")
        if self.max_failures < -1:
            raise ValueError(f"training.max_failures: expected >= -1, got {self.max_failures}")
        if not self.runs:
            raise ValueError("training.runs: expected a folder or s3:// address, got an empty string")

    def batches_per_step(self, world_size: int) -> int:
        """Return the batches that each of `world_size` workers accumulates: the step's samples stay the same.

        Where `workers` is no multiple of `world_size`, they stay nearly the same.
        """
        return max(1, round(self.accumulate * self.workers / world_size))

    def losses_at(self, step: int, total_steps: int, losses: LossSettings) -> LossSettings:
        """Return the weights of a step (index from 0), without the terms that begin later."""
        if step < self.render_from * total_steps:
            return losses.without_rendering()
        if step < self.mask_from * total_steps:
            return dataclasses.replace(losses, mask=0.0)
        return losses


class NonFiniteLossError(RuntimeError):
    """Too many steps in a row had a non-finite loss or gradient."""


@dataclass(frozen=True)
class StepResult:
    """What one step did on this worker."""

    loss: float
    terms: dict[str, float]
    """The loss's weighted terms by name."""
    gradient_norm: float
    """L2 norm before clipping, the same on every worker."""

    @property
    def bad_terms(self) -> list[str]:
        """Names of this worker's terms that are not finite."""
        return [name for name, value in self.terms.items() if not math.isfinite(value)]

    @property
    def skipped(self) -> bool:
        """The gradients were not finite and the weights were left as they were."""
        return not math.isfinite(self.gradient_norm)


def train_step(
    reconstructor: Reconstructor,
    batches: Sequence[ViewBatch],
    optimiser: torch.optim.Optimizer,
    losses: LossSettings,
    clip_norm: float,
    precision: str = "fp32",
    parser: FaceParser | None = None,
) -> StepResult:
    """Predict, compare, and move the weights once, by the mean gradient of some batches of one size.

    With a distributed network every worker must call this together. A worker with a non-finite loss makes the
    shared gradient non-finite, so that all of them skip the step alike; the network's buffers (the running
    statistics of batch norm) are put back then, for the bad batch has passed through them. Only a fused
    optimiser (build_optimiser) can skip a step.
    """
    buffers = [buffer.clone() for buffer in reconstructor.network.buffers()]
    optimiser.zero_grad(set_to_none=True)
    values: list[dict[str, Tensor]] = []
    for number, batch in enumerate(batches, start=1):
        with _sharing_gradients(reconstructor.network, number == len(batches)):
            prediction = reconstructor(batch, losses.needs_rendering, bf16=precision == "bf16")
            loss, terms = total_loss(prediction, batch, reconstructor.face_model, losses, parser)
            del prediction  # the backward pass does without most of it
            (_poison_if_not_finite(loss) / len(batches)).backward()
        values.append({"": loss.detach(), **terms})
    norm = clip_gradients(reconstructor.network, clip_norm)
    step_where_finite(reconstructor.network, optimiser, norm, buffers)
    return _to_result(values, norm)


def step_where_finite(
    network: nn.Module, optimiser: torch.optim.Optimizer, norm: Tensor, buffers: Sequence[Tensor]
) -> None:
    """Move the weights, or put the buffers back: the device decides, and the host does not wait for it.

    Args:
        network: that is trained, its gradients clipped.
        optimiser: fused, over the network's parameters.
        norm: of the gradients, a scalar; where it is not finite, nothing moves.
        buffers: the network's, as they were before the step.
    """
    finite = norm.detach().isfinite()
    # How torch.amp.GradScaler tells a fused optimiser to leave weights, moments and step count as they are.
    optimiser.found_inf = finite.logical_not().float()  # type: ignore[attr-defined]
    optimiser.step()
    with torch.no_grad():
        for buffer, saved in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(torch.where(finite, buffer, saved))


class SkipCounter:
    """Counts skipped steps, and stops the run when they come in a row."""

    def __init__(self, max_in_a_row: int, total: int = 0) -> None:
        self.max_in_a_row = max_in_a_row
        self.total = total
        self.in_a_row = 0

    def count(self, result: StepResult, step: int) -> None:
        """Count one step.

        Raises:
            NonFiniteLossError: naming the term, after `max_in_a_row` skipped steps in a row.
        """
        if not result.skipped:
            self.in_a_row = 0
            return
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row >= self.max_in_a_row:
            bad = result.bad_terms
            cause = f"term {', '.join(bad)}" if bad else "gradients of finite terms, or another worker's loss"
            raise NonFiniteLossError(
                f"step {step}: {self.in_a_row} steps in a row were not finite ({cause}); "
                "lower optimiser.learning_rate or inspect the data"
            )


def _poison_if_not_finite(loss: Tensor) -> Tensor:
    """Make the gradients of a non-finite loss non-finite too (an infinite loss can have finite ones)."""
    # Not torch.where with numbers: on CUDA it copies them from the host, and waits.
    return loss * torch.ones_like(loss).masked_fill(loss.detach().isfinite().logical_not(), torch.nan)


def _sharing_gradients(network: nn.Module, share: bool) -> AbstractContextManager[None]:
    """Where `share` is false, keep a distributed network's gradients to this worker: they add up first."""
    if share or not isinstance(network, DistributedDataParallel):
        return contextlib.nullcontext()
    return network.no_sync()


def _to_result(batches: list[dict[str, Tensor]], norm: Tensor) -> StepResult:
    """Average the batches' loss (named "") and terms; copy all numbers to the host at once."""
    means = torch.stack([torch.stack([*batch.values()]) for batch in batches]).mean(0)
    loss, *terms, gradient_norm = torch.cat([means, norm.detach().reshape(1)]).tolist()
    return StepResult(loss, dict(zip([*batches[0]][1:], terms, strict=True)), gradient_norm)
