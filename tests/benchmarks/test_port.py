"""The port that benchmarks.step is measured against computes what we compute."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks.involution import LAYERS, inputs, run
from benchmarks.port import Port, unfold_involution
from benchmarks.step import BLOCK_GAIN, make_batch
from dfmvr.config import load_settings
from dfmvr.losses.total import LossSettings, total_loss
from dfmvr.networks.involution import involution
from dfmvr.networks.rednet import RedNet
from dfmvr.reconstructor import Reconstructor, build_reconstructor
from dfmvr.training.optim import OptimiserSettings
from dfmvr.types import ViewBatch

ROOT = Path(__file__).parents[2]
TINY = (
    "network.width=0.0625",
    "network.regressor_width=0.0625",
    "synthetic.image_size=32",
    "data.image_size=32",
)
SETTINGS = load_settings(ROOT / "configs/small.yaml", TINY)


@pytest.fixture(scope="module")
def batch() -> ViewBatch:
    return make_batch(SETTINGS, 2)


@pytest.fixture
def reconstructor() -> Reconstructor:
    torch.manual_seed(0)
    reconstructor = build_reconstructor(SETTINGS.network, SETTINGS.face_model).double().train()
    for block in reconstructor.network.regressor.blocks:
        torch.nn.init.constant_(block.norm.weight, BLOCK_GAIN)
    reconstructor.network.reader.eval()  # its running statistics are float32's
    return reconstructor


def in_float64(batch: ViewBatch) -> ViewBatch:
    changes = {
        field.name: value.double()
        for field in dataclasses.fields(batch)
        if isinstance(value := getattr(batch, field.name), torch.Tensor) and value.is_floating_point()
    }
    return dataclasses.replace(batch, **changes)


@pytest.mark.parametrize("with_scale", [False, True])
def test_port_and_ours_agree_on_every_term_and_gradient(
    reconstructor: Reconstructor, batch: ViewBatch, with_scale: bool
) -> None:
    losses = dataclasses.replace(SETTINGS.losses, landmarks_3d_with_scale=with_scale)
    batch = in_float64(batch)
    # One sample without 3D landmarks: the loop over samples leaves it out.
    batch = dataclasses.replace(batch, landmarks_3d_valid=torch.tensor([False, True]))
    port = Port(reconstructor, losses, SETTINGS.optimiser)
    prediction = reconstructor(batch)
    loss, terms = total_loss(prediction, batch, reconstructor.face_model, losses)
    result = port(batch)
    assert result.terms.keys() == terms.keys()
    for name, term in terms.items():
        torch.testing.assert_close(result.terms[name].detach(), term, rtol=1e-7, atol=1e-9, msg=name)
    torch.testing.assert_close(result.images, prediction.image, rtol=1e-7, atol=1e-7)
    assert prediction.mask.any(-1).any(-1).all(), "nothing is drawn"
    loss.backward()
    torch.stack([*result.terms.values()]).sum().backward()
    for ours, theirs in zip(reconstructor.network.parameters(), port.network.parameters(), strict=True):
        scale = float(ours.grad.abs().max())
        torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-5, atol=1e-6 * scale + 1e-9)


def test_a_step_of_the_port_moves_its_own_weights_only(
    reconstructor: Reconstructor, batch: ViewBatch
) -> None:
    port = Port(reconstructor, SETTINGS.losses, SETTINGS.optimiser)
    before = [weight.clone() for weight in reconstructor.network.parameters()]
    port.step(in_float64(batch))
    pairs = zip(before, reconstructor.network.parameters(), strict=True)
    assert all(torch.equal(old, new) for old, new in pairs)
    moved = zip(before, port.network.parameters(), strict=True)
    assert sum(not torch.equal(old, new) for old, new in moved) > 0.9 * len(before)


@pytest.mark.parametrize("change", [{"consistency_pixel": 1.0}, {"alignment": "rms"}])
def test_losses_that_the_port_lacks_are_refused(
    reconstructor: Reconstructor, change: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match="losses: expected"):
        Port(reconstructor, LossSettings(**change), OptimiserSettings())


def test_the_timed_involutions_are_rednets_and_agree() -> None:
    found = []
    network = RedNet(4, 64)
    for name, _ in network.named_modules():
        if name.endswith("kernels"):
            parent = network.get_submodule(name.rpartition(".")[0])
            found.append((parent.kernels[1].in_channels, parent.kernel_size, parent.stride))
    expected = [
        (layer.channels, layer.kernel_size, layer.stride) for layer in LAYERS for _ in range(layer.count)
    ]
    assert sorted(found) == sorted(expected)
    layer = dataclasses.replace(LAYERS[2], channels=32, size=8)
    for a, b in zip(
        *(run(function, layer, *inputs(layer, 1)) for function in (involution, unfold_involution)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
