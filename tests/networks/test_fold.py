"""Folded batch-norms: the same answers with fewer operations."""

import torch
from torch import nn

from dfmvr.networks.face_network import build_network
from dfmvr.networks.fold import fold_batch_norms
from dfmvr.networks.settings import NetworkSettings


def test_a_folded_network_answers_as_before() -> None:
    torch.manual_seed(0)
    network = build_network(NetworkSettings(width=4 / 64)).eval()
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    network, views = network.double(), torch.rand(2, 3, 3, 32, 32, dtype=torch.double)
    masks = torch.zeros(2, 3, 32, 32, dtype=torch.int64)
    folded = fold_batch_norms(network)
    with torch.inference_mode():
        expected, got = network(views, masks), folded(views, masks)
    for name in ("identity", "expression", "albedo", "light", "rotation", "translation"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=1e-4, atol=1e-5)


def test_most_batch_norms_are_gone_and_the_network_is_as_it_was() -> None:
    network = build_network(NetworkSettings(width=4 / 64))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    folded = fold_batch_norms(network)

    def count(of: nn.Module) -> int:
        return sum(isinstance(module, nn.BatchNorm2d) for module in of.modules())

    assert count(folded) < 0.4 * count(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
