from __future__ import annotations

import itertools

import pytest
import torch

from dfmvr.training.optim import (
    OptimiserSettings,
    build_optimiser,
    clip_gradients,
    learning_rate_at,
    set_learning_rate,
)


def test_learning_rate_warms_up_stays_and_decays_to_its_final_value() -> None:
    settings = OptimiserSettings(
        learning_rate=1e-3, final_learning_rate=1e-5, warmup_steps=10, flat_share=0.5
    )
    rates = [learning_rate_at(step, 100, settings) for step in range(101)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9:51] == pytest.approx([1e-3] * 42)
    assert all(a > b for a, b in itertools.pairwise(rates[50:]))
    assert rates[75] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[100] == pytest.approx(1e-5)
    assert learning_rate_at(1000, 100, settings) == pytest.approx(1e-5)


def test_learning_rate_without_warm_up_starts_at_the_peak() -> None:
    assert learning_rate_at(0, 10, OptimiserSettings(warmup_steps=0)) == pytest.approx(1e-4)


def test_set_learning_rate_reaches_the_update() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    optimiser = build_optimiser(network, OptimiserSettings())
    before = network.weight.detach().clone()
    set_learning_rate(optimiser, 0.25)
    network.weight.grad = torch.ones(1, 1)
    optimiser.step()
    assert (before - network.weight).item() == pytest.approx(0.25, rel=1e-5)  # Adam's first step is the rate


def test_optimiser_leaves_frozen_parameters_out() -> None:
    network = torch.nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    optimiser = build_optimiser(network, OptimiserSettings())
    assert [p is network.weight for g in optimiser.param_groups for p in g["params"]] == [True]


def test_clip_gradients_scales_to_the_norm_and_returns_the_old_one() -> None:
    network = torch.nn.Linear(2, 1, bias=False)
    network.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradients(network, 1.0).item() == pytest.approx(5.0)
    assert network.weight.grad.norm().item() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("learning_rate", 0.0, r"optimiser\.learning_rate: expected > 0, got 0.0"),
        ("final_learning_rate", 1.0, r"optimiser\.final_learning_rate: expected 0 to learning_rate"),
        ("warmup_steps", -1, r"optimiser\.warmup_steps: expected >= 0, got -1"),
        ("flat_share", 1.0, r"optimiser\.flat_share: expected 0 <= share < 1, got 1.0"),
        ("beta2", 1.0, r"optimiser\.beta2: expected 0 <= beta < 1, got 1.0"),
        ("clip_norm", 0.0, r"optimiser\.clip_norm: expected > 0, got 0.0"),
    ],
)
def test_wrong_settings_are_named(field: str, value: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OptimiserSettings(**{field: value})  # type: ignore[arg-type]
