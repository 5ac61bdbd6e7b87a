"""What differs on CUDA, tested on whatever device there is."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch

from dfmvr.losses.total import LossSettings
from dfmvr.reconstructor import Reconstructor
from dfmvr.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from dfmvr.training.optim import OptimiserSettings, build_optimiser, clip_gradients
from dfmvr.training.step import step_where_finite, train_step
from dfmvr.types import ViewBatch

LOSSES = LossSettings().without_rendering()


def fused_adam(network: torch.nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=1e-2, fused=True)


def test_the_device_moves_the_weights_as_the_host_does() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4))
    fused = copy.deepcopy(plain)
    adams = torch.optim.Adam(plain.parameters(), lr=1e-2), fused_adam(fused)
    for _ in range(3):
        images = torch.randn(2, 3, 8, 8)
        buffers = [buffer.clone() for buffer in fused.buffers()]
        for network in (plain, fused):
            network.zero_grad()
            network(images).pow(3).mean().backward()
        adams[0].step()
        step_where_finite(fused, adams[1], torch.ones(()), buffers)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-6)
    for norm in (math.nan, math.inf):
        step_where_finite(fused, adams[1], torch.tensor(norm), buffers)
    torch.testing.assert_close(fused[0].state_dict(), plain[0].state_dict(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(list(fused.buffers()), buffers, rtol=0, atol=0)


def test_the_device_leaves_everything_after_a_bad_batch(
    reconstructor: Reconstructor, batch: ViewBatch
) -> None:
    optimiser = fused_adam(reconstructor.network)
    train_step(reconstructor, [batch], optimiser, LOSSES, 1.0)  # moments exist from now on
    before = copy.deepcopy((reconstructor.state_dict(), optimiser.state_dict()["state"]))
    poisoned = dataclasses.replace(batch, images=torch.full_like(batch.images, math.nan))
    assert train_step(reconstructor, [poisoned], optimiser, LOSSES, 1.0).skipped
    after = (reconstructor.state_dict(), optimiser.state_dict()["state"])
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert not train_step(reconstructor, [batch], optimiser, LOSSES, 1.0).skipped


def test_channels_last_changes_no_result_and_survives_a_checkpoint(
    reconstructor: Reconstructor, batch: ViewBatch, tmp_path: Path
) -> None:
    other = copy.deepcopy(reconstructor)
    other.network.to(memory_format=torch.channels_last)
    optimiser = fused_adam(other.network)
    expected = train_step(reconstructor, [batch], fused_adam(reconstructor.network), LOSSES, 1.0)
    found = train_step(other, [batch], optimiser, LOSSES, 1.0)
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-3)
    state = TrainingState("run")
    save_checkpoint(tmp_path, other.network, optimiser, state)
    resumed = fused_adam(other.network)
    load_checkpoint(tmp_path, other.network, resumed)
    for parameter, moments in resumed.state.items():
        assert moments["exp_avg"].stride() == parameter.stride()
        torch.testing.assert_close(moments["exp_avg"], optimiser.state[parameter]["exp_avg"], rtol=0, atol=0)
    assert not train_step(other, [batch], resumed, LOSSES, 1.0).skipped


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_host_does_not_wait_for_the_device_to_move_the_weights() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).cuda()
    network.to(memory_format=torch.channels_last)
    optimiser = build_optimiser(network, OptimiserSettings())
    assert optimiser.defaults["fused"]
    images = torch.randn(2, 3, 8, 8, device="cuda")
    for mode in ("default", "error"):  # the first step makes the moments
        buffers = [buffer.clone() for buffer in network.buffers()]
        network(images).square().mean().backward()
        torch.cuda.set_sync_debug_mode(mode)
        try:
            step_where_finite(network, optimiser, clip_gradients(network, 1.0), buffers)
        finally:
            torch.cuda.set_sync_debug_mode("default")
