import torch

from dfmvr.networks import NetworkSettings, build_network
from dfmvr.networks.landmark_maps import LandmarkMaps, PlaceReader, expected_places


def test_a_peak_is_found_at_the_centre_of_its_cell():
    scores = torch.zeros(2, 3, 8, 16)
    scores[0, 0, 1, 4] = scores[1, 0, 7, 15] = 50.0
    expected = torch.tensor([[4.5 / 16, 1.5 / 8], [15.5 / 16, 7.5 / 8]])
    torch.testing.assert_close(expected_places(scores)[:, 0], expected)


def test_two_equal_peaks_meet_in_the_middle():
    scores = torch.zeros(1, 1, 4, 4)
    scores[0, 0, 0, 0] = scores[0, 0, 3, 1] = 50.0
    torch.testing.assert_close(expected_places(scores)[0], torch.tensor([[0.25, 0.5]]))


def test_every_level_of_the_pyramid_moves_the_places():
    maps = LandmarkMaps([4, 8, 16])
    scores = maps([torch.rand(2, 4, 16, 16), torch.rand(2, 8, 8, 8), torch.rand(2, 16, 4, 4)])
    assert scores.shape == (2, 68, 16, 16)
    expected_places(scores).square().sum().backward()
    assert all(score.weight.grad.abs().sum() > 0 for score in maps.scores)


def test_the_reader_sees_places_of_unit_spread_in_training_as_in_use():
    torch.manual_seed(0)
    reader = PlaceReader(n_views=1, out_features=4)
    middle = torch.rand(68, 2)
    for _ in range(300):
        reader(middle + 0.03 * torch.randn(16, 1, 68, 2))
    torch.testing.assert_close(reader.mean.view(68, 2), middle, atol=0.01, rtol=0)
    torch.testing.assert_close(reader.variance.sqrt().mean(), torch.tensor(0.03), atol=0.003, rtol=0)
    places = middle + 0.03 * torch.randn(16, 1, 68, 2)
    trained = reader(places)  # one more batch hardly moves the statistics
    torch.testing.assert_close(reader.eval()(places), trained, atol=0.05, rtol=0.05)


def mapped_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(NetworkSettings(width=1 / 16, landmark_maps=True))


def test_maps_join_the_regression():
    images, masks = torch.rand(2, 3, 3, 32, 64), torch.zeros(2, 3, 32, 64, dtype=torch.int64)
    assert build_network(NetworkSettings(width=1 / 16))(images, masks).landmark_scores is None
    network = mapped_network()
    params = network(images, masks)
    assert params.landmark_scores.shape == (2, 3, 68, 8, 16)
    params.identity.sum().backward()
    assert all(score.weight.grad.abs().sum() > 0 for maps in network.maps for score in maps.scores)


def test_a_views_maps_come_from_that_view_alone():
    network = mapped_network().eval()
    images, masks = torch.rand(1, 3, 3, 32, 32), torch.zeros(1, 3, 32, 32, dtype=torch.int64)
    before = network(images, masks).landmark_scores
    images[:, 1] = 1 - images[:, 1]
    moved = (network(images, masks).landmark_scores - before).abs().amax((0, 2, 3, 4))
    assert moved[1] > 1e-3
    assert moved[0] == moved[2] == 0


def test_the_maps_own_loss_trains_encoders_and_maps_and_nothing_else():
    network = mapped_network()
    images, masks = torch.rand(2, 3, 3, 32, 32), torch.zeros(2, 3, 32, 32, dtype=torch.int64)
    network(images, masks).landmark_scores.square().sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    trained = [name for name, gradient in gradients.items() if gradient.abs().sum() > 0]
    groups = {".".join(name.split(".")[: 3 if name.startswith("fusion") else 2]) for name in trained}
    assert groups == {f"{group}.{v}" for group in ("fusion.encoders", "maps") for v in range(3)}
