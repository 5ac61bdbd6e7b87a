from __future__ import annotations

import pytest
import torch

from dfmvr.losses.total import LossSettings
from dfmvr.networks.settings import PRESETS, NetworkSettings
from dfmvr.reconstructor import Reconstructor
from dfmvr.training.dry_run import count_macs, count_parameters, measure_step
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


def test_multiply_adds_count_involutions() -> None:
    """Against ResNet's: of equal layout, its 3 x 3 convolutions and stem in the place of involutions."""
    red = count_macs(NetworkSettings(width=1 / 16), 32)
    res = count_macs(NetworkSettings(name="mulen_unet_resnet", width=1 / 16), 32)
    assert red != res
    assert count_macs(NetworkSettings(width=1 / 16), 64) == pytest.approx(4 * red, rel=0.05)


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
