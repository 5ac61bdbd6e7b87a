from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from dfmvr.losses.total import LossSettings
from dfmvr.reconstructor import Reconstructor
from dfmvr.training.optim import OptimiserSettings, build_optimiser
from dfmvr.training.step import NonFiniteLossError, SkipCounter, StepResult, TrainingSettings, train_step
from dfmvr.types import ViewBatch


def test_steps_lower_the_loss_of_one_batch(reconstructor: Reconstructor, batch: ViewBatch) -> None:
    optimiser = build_optimiser(reconstructor.network, OptimiserSettings(learning_rate=1e-3))
    losses = [train_step(reconstructor, [batch], optimiser, LossSettings(), 1.0).loss for _ in range(4)]
    assert losses[-1] < 0.99 * losses[0]


def test_step_reports_the_terms_that_the_loss_is_the_sum_of(
    reconstructor: Reconstructor, batch: ViewBatch
) -> None:
    optimiser = build_optimiser(reconstructor.network, OptimiserSettings())
    result = train_step(reconstructor, [batch], optimiser, LossSettings(), 1.0)
    assert result.loss == pytest.approx(sum(result.terms.values()), rel=1e-5)
    assert "photo" in result.terms
    assert result.gradient_norm > 0
    assert not result.skipped


def test_nothing_is_rendered_for_losses_that_do_not_look(
    reconstructor: Reconstructor, batch: ViewBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimiser = build_optimiser(reconstructor.network, OptimiserSettings())
    monkeypatch.setattr(reconstructor, "renderer", None)
    result = train_step(reconstructor, [batch], optimiser, LossSettings().without_rendering(), 1.0)
    assert not result.skipped
    with pytest.raises(TypeError):
        train_step(reconstructor, [batch], optimiser, LossSettings(), 1.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_changes_nothing(
    reconstructor: Reconstructor, batch: ViewBatch, bad: float
) -> None:
    optimiser = build_optimiser(reconstructor.network, OptimiserSettings(learning_rate=1e-2))
    train_step(reconstructor, [batch], optimiser, LossSettings(), 1.0)  # moments exist from now on
    before = {name: tensor.clone() for name, tensor in reconstructor.state_dict().items()}
    poisoned = dataclasses.replace(batch, images=torch.full_like(batch.images, bad))
    result = train_step(reconstructor, [poisoned], optimiser, LossSettings(), 1.0)
    assert result.skipped
    for name, tensor in reconstructor.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, msg=name)


def test_an_infinite_loss_with_finite_gradients_is_skipped_too(
    reconstructor: Reconstructor, batch: ViewBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def infinite(*arguments):  # type: ignore[no-untyped-def]
        return arguments[0].vertices.mean() + math.inf, {"photo": torch.tensor(math.inf)}

    monkeypatch.setattr("dfmvr.training.step.total_loss", infinite)
    optimiser = build_optimiser(reconstructor.network, OptimiserSettings())
    assert train_step(reconstructor, [batch], optimiser, LossSettings(), 1.0).skipped


BAD = StepResult(loss=math.nan, terms={"photo": 1.0, "mask": math.nan}, gradient_norm=math.nan)
GOOD = StepResult(loss=1.0, terms={"photo": 1.0}, gradient_norm=1.0)


def test_skips_in_a_row_stop_the_run_and_name_the_term() -> None:
    skips = SkipCounter(max_in_a_row=3)
    for result in (BAD, BAD, GOOD, BAD, BAD):
        skips.count(result, step=1)
    assert skips.total == 4
    with pytest.raises(NonFiniteLossError, match=r"step 7: 3 steps in a row were not finite \(term mask\)"):
        skips.count(BAD, step=7)


def test_skips_without_a_bad_term_are_told_as_gradients() -> None:
    bad_gradients = dataclasses.replace(GOOD, gradient_norm=math.inf)
    with pytest.raises(NonFiniteLossError, match="gradients of finite terms, or another worker's loss"):
        SkipCounter(max_in_a_row=1).count(bad_gradients, step=1)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("epochs", 0, r"training\.epochs: expected >= 1, got 0"),
        ("mask_from", 1.0, r"training\.mask_from: expected 0 <= share < 1, got 1.0"),
        ("accumulate", 0, r"training\.accumulate: expected >= 1, got 0"),
        ("precision", "fp16", r"training\.precision: expected one of .* got 'fp16'"),
        ("render_from", 1.0, r"training\.render_from: expected 0 <= share < 1, got 1.0"),
        ("workers", 0, r"training\.workers: expected >= 1, got 0"),
        ("cpus_per_worker", -1.0, r"training\.cpus_per_worker: expected >= 0, got -1.0"),
        ("max_failures", -2, r"training\.max_failures: expected >= -1, got -2"),
        ("runs", "", r"training\.runs: expected a folder or s3:// address"),
    ],
)
def test_wrong_settings_are_named(field: str, value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainingSettings(**{field: value})  # type: ignore[arg-type]


def gradients(
    reconstructor: Reconstructor, batches: list[ViewBatch], precision: str = "fp32"
) -> torch.Tensor:
    optimiser = torch.optim.SGD(reconstructor.network.parameters(), lr=0.0, fused=True)
    result = train_step(reconstructor, batches, optimiser, LossSettings(), 1e9, precision)
    assert not result.skipped
    return torch.cat([p.grad.flatten() for p in reconstructor.network.parameters() if p.grad is not None])


def test_accumulated_batches_make_the_step_of_one_large_batch(
    reconstructor: Reconstructor, batch: ViewBatch
) -> None:
    reconstructor.eval()  # batch norm would see each batch by itself
    halves = [part(batch, slice(0, 1)), part(batch, slice(1, 2))]
    whole, accumulated = gradients(reconstructor, [batch]), gradients(reconstructor, halves)
    torch.testing.assert_close(accumulated, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))


def part(batch: ViewBatch, rows: slice) -> ViewBatch:
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    tensors = {name: value[rows] for name, value in fields.items() if isinstance(value, torch.Tensor)}
    return dataclasses.replace(batch, **tensors, sample_ids=batch.sample_ids[rows])


def test_one_bad_batch_skips_the_whole_step(reconstructor: Reconstructor, batch: ViewBatch) -> None:
    poisoned = dataclasses.replace(batch, images=torch.full_like(batch.images, math.nan))
    optimiser = build_optimiser(reconstructor.network, OptimiserSettings(learning_rate=1e-2))
    before = [p.detach().clone() for p in reconstructor.network.parameters()]
    for batches in ([batch, poisoned], [poisoned, batch]):
        assert train_step(reconstructor, batches, optimiser, LossSettings(), 1.0).skipped
    for old, new in zip(before, reconstructor.network.parameters(), strict=True):
        assert torch.equal(old, new)


def test_bfloat16_changes_the_gradient_little(reconstructor: Reconstructor, batch: ViewBatch) -> None:
    reconstructor.eval()
    full, rough = gradients(reconstructor, [batch]), gradients(reconstructor, [batch], "bf16")
    assert not torch.equal(full, rough)
    assert torch.nn.functional.cosine_similarity(full, rough, dim=0) > 0.95


def test_mask_loss_begins_when_the_settings_say() -> None:
    training = TrainingSettings(render_from=0.2, mask_from=0.5)
    weights = [training.losses_at(step, 10, LossSettings()) for step in (1, 2, 4, 5)]
    assert [w.photo > 0 for w in weights] == [False, True, True, True]
    assert [w.mask > 0 for w in weights] == [False, False, False, True]
