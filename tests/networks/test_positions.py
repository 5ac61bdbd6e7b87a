import torch

from dfmvr.networks import NetworkSettings, build_network
from dfmvr.networks.positions import ExpectedPositions


def positions_of(features: torch.Tensor) -> torch.Tensor:
    """x and y that the first channel's heat map reads, before batch norm."""
    module = ExpectedPositions(features.shape[1], n_maps=1, out_features=4)
    with torch.no_grad():
        module.maps.weight.zero_()
        module.maps.weight[0, 0] = 1.0
    module.read = torch.nn.Identity()
    return module(features)


def test_a_peak_is_found_where_it_is():
    features = torch.zeros(2, 3, 9, 17)
    features[0, 0, 2, 4] = 50.0
    features[1, 0, 8, 16] = 50.0
    # rows 0..8 and columns 0..16 lie evenly in [-1, 1]
    torch.testing.assert_close(positions_of(features), torch.tensor([[-0.5, -0.5], [1.0, 1.0]]))


def test_two_equal_peaks_meet_in_the_middle():
    features = torch.zeros(1, 1, 5, 5)
    features[0, 0, 0, 0] = features[0, 0, 4, 2] = 50.0
    torch.testing.assert_close(positions_of(features), torch.tensor([[-0.5, 0.0]]))


def test_heat_maps_join_the_regressors_features():
    torch.manual_seed(0)
    plain = build_network(NetworkSettings(width=1 / 16))
    wider = build_network(NetworkSettings(width=1 / 16, heat_maps=8))
    assert wider.heads.identity.in_features > plain.heads.identity.in_features
    params = wider(torch.rand(2, 3, 3, 32, 32), torch.zeros(2, 3, 32, 32, dtype=torch.int64))
    params.identity.sum().backward()
    assert wider.readers[1].maps.weight.grad.abs().sum() > 0
