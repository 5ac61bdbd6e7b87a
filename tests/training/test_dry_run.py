from __future__ import annotations

import pytest
import torch
from torch import nn

from dfmvr.losses.total import LossSettings
from dfmvr.networks.face_network import build_network
from dfmvr.networks.settings import PRESETS, NetworkSettings
from dfmvr.reconstructor import Reconstructor
from dfmvr.training.dry_run import (
    count_macs,
    count_parameters,
    estimate_memory,
    kept_by_network,
    kept_bytes,
    measure_step,
)
from dfmvr.training.optim import OptimiserSettings


def test_multiply_adds_of_the_papers_fusion_network() -> None:
    """MulEn-Unet has about 69 GMAC at 224 px without its gates; here all are added up by their shapes."""
    gates, macs, channels, size = 0, 0, [4, 64, 128, 256, 512, 1024], 224

    def double(inner: int, outer: int, side: int) -> int:
        return 9 * side**2 * (inner * outer + outer * outer)

    for level in range(5):
        macs += 3 * double(channels[level], channels[level + 1], size >> level)
    for level in reversed(range(4)):
        outer, side = channels[level + 1], size >> level
        inner = 3 * 1024 if level == 3 else channels[level + 2]
        macs += inner * outer * side**2  # up: each output pixel comes from one input pixel
        gates += 3 * side**2 * (2 * outer * (outer // 2) + outer // 2)
        macs += double(4 * outer, outer, side) if level else 0
    assert macs == pytest.approx(69e9, rel=0.01)
    whole = count_macs(PRESETS["paper"], 224)
    assert macs + gates < whole < 1.1 * (macs + gates)


def test_multiply_adds_count_involutions(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = NetworkSettings(width=1 / 16)
    with_involutions = count_macs(settings, 32)
    monkeypatch.setattr("dfmvr.training.dry_run.Involution", nn.Bilinear)  # which is not in the network
    stem = 2 * 9 * 16**2
    blocks = {(4, 8): 3, (8, 4): 4, (16, 2): 6, (32, 1): 3}  # (channels, output size): how many
    expected = stem + sum(count * channels * 49 * size**2 for (channels, size), count in blocks.items())
    assert with_involutions - count_macs(settings, 32) == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_step_is_run_and_measured(reconstructor: Reconstructor, precision: str) -> None:
    before = [p.detach().clone() for p in reconstructor.network.parameters()]
    cost = measure_step(
        reconstructor, NetworkSettings(width=1 / 16), LossSettings(), OptimiserSettings(), 32, precision
    )
    parameters = list(reconstructor.network.parameters())
    assert sum(cost.parameters.values()) == sum(p.numel() for p in parameters)
    assert (
        set(cost.parameters)
        == set(count_parameters(reconstructor.network))
        == {"fusion", "regressor", "heads"}
    )
    assert cost.loss > 0
    assert cost.seconds > 0
    assert cost.peak_mib >= 0
    assert any(not torch.equal(old, new) for old, new in zip(before, parameters, strict=True))
    assert {p.dtype for p in parameters} == {torch.float32}


def test_what_autograd_keeps_of_a_known_module() -> None:
    """The input of each layer, once, though ReLU keeps its output as well; no weights."""
    module = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
    x = torch.randn(3, 5)
    kept, result = kept_bytes(lambda: module(x), module.parameters())
    assert kept == 4 * 3 * (5 + 7)
    torch.testing.assert_close(result, module(x))
    assert kept_bytes(lambda: module(x))[0] == 4 * (3 * (5 + 7) + 2 * 7), "the second layer's weights"
    assert kept_bytes(lambda: module(x).exp(), module.parameters())[0] == 4 * 3 * (5 + 7 + 2)
    with torch.no_grad():
        assert kept_bytes(lambda: module(x))[0] == 0


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.01)])
def test_shapes_tell_what_a_real_network_keeps(precision: str, tolerance: float) -> None:
    settings = NetworkSettings(width=1 / 16, landmark_maps=True)
    network = build_network(settings).train()
    images, masks = torch.rand(2, 3, 3, 32, 32), torch.ones(2, 3, 32, 32, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        weights = [*network.parameters(), *network.buffers()]
        real, _ = kept_bytes(lambda: network(images, masks), weights)
    ((counted, shapes),) = kept_by_network(settings, 32, precision, [2])
    assert counted == pytest.approx(real, rel=tolerance)
    assert shapes["translation"] == (2, 3, 3)
    assert shapes["landmark_scores"] == (2, 3, 68, 8, 8)


def test_memory_grows_with_the_batch_and_falls_with_the_precision(reconstructor: Reconstructor) -> None:
    settings = NetworkSettings(width=1 / 16)
    full, half = estimate_memory(reconstructor, settings, LossSettings(), 32).values()
    weights = 4 * sum(p.numel() for p in reconstructor.network.parameters())
    assert full.fixed == pytest.approx(4 * weights, rel=0.01)
    assert 4.2 * weights < half.fixed < 4.6 * weights, "weights in bfloat16 on top"
    assert 0 < half.per_sample < full.per_sample
    assert full.of_batch(3) == full.fixed + 3 * full.per_sample
    blind = estimate_memory(reconstructor, settings, LossSettings().without_rendering(), 32)["fp32"]
    assert blind.per_sample < full.per_sample
    assert blind.fixed == full.fixed
