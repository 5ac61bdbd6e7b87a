"""The optimiser, its learning-rate schedule and gradient clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class OptimiserSettings:
    """Adam with warm-up and cosine decay."""

    learning_rate: float = 1e-4
    """Peak learning rate."""
    final_learning_rate: float = 1e-6
    """Learning rate that the cosine decays to at the last step."""
    warmup_steps: int = 100
    """Optimiser steps of linear warm-up from zero."""
    flat_share: float = 0.0
    """Share of all steps at the peak before the decay starts (warm-up included), in [0, 1)."""
    beta1: float = 0.9
    """Adam's decay of the gradient's mean."""
    beta2: float = 0.999
    """Adam's decay of the gradient's square."""
    clip_norm: float = 1.0
    """Largest L2 norm of all gradients together; larger ones are scaled down to it."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"optimiser.learning_rate: expected > 0, got {self.learning_rate}")
        if not 0 <= self.final_learning_rate <= self.learning_rate:
            raise ValueError(
                "optimiser.final_learning_rate: expected 0 to learning_rate "
                f"({self.learning_rate}), got {self.final_learning_rate}"
            )
        if self.warmup_steps < 0:
            raise ValueError(f"optimiser.warmup_steps: expected >= 0, got {self.warmup_steps}")
        if not 0 <= self.flat_share < 1:
            raise ValueError(f"optimiser.flat_share: expected 0 <= share < 1, got {self.flat_share}")
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= beta < 1:
                raise ValueError(f"optimiser.{name}: expected 0 <= beta < 1, got {beta}")
        if self.clip_norm <= 0:
            raise ValueError(f"optimiser.clip_norm: expected > 0, got {self.clip_norm}")


def build_optimiser(network: nn.Module, settings: OptimiserSettings) -> torch.optim.Adam:
    """Return Adam over all of the network's parameters that are trained, as one fused kernel."""
    return torch.optim.Adam(
        [p for p in network.parameters() if p.requires_grad],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        fused=True,
    )


def learning_rate_at(step: int, total_steps: int, settings: OptimiserSettings) -> float:
    """Return the learning rate of a step: a pure function, so that resuming needs no scheduler state.

    Args:
        step: index of the optimiser step, from 0.
        total_steps: steps of the whole run; from there on the rate stays at its final value.
        settings: peak, final value, warm-up and flat share.
    """
    peak, final = settings.learning_rate, settings.final_learning_rate
    if step < settings.warmup_steps:
        return peak * (step + 1) / settings.warmup_steps
    start = max(settings.warmup_steps, round(settings.flat_share * total_steps))
    if step < start:
        return peak
    progress = min(1.0, (step - start) / max(1, total_steps - start))
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_learning_rate(optimiser: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate


def clip_gradients(network: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradients down to an L2 norm of at most `max_norm`.

    Returns:
        The norm before clipping, a scalar; not finite when any gradient is not.
    """
    return torch.nn.utils.clip_grad_norm_(network.parameters(), max_norm, foreach=True)
