"""The network for any number of views: order, missing views and yaws, against slow versions of each part."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.networks import NetworkSettings, build_network
from dfmvr.networks import set_reader as reader_module
from dfmvr.networks.set_fusion import PresentViews, ViewAttention, YawModulation, yaw_features
from dfmvr.networks.set_network import SetNetwork
from dfmvr.networks.set_reader import SetReader, fuse
from dfmvr.types import FaceParams

SETTINGS = NetworkSettings(
    name="set_rednet", width=1 / 16, landmark_maps=True, n_views=9, view_flags=True, input_stride=2
)
SIZE = 32
PRESENT = torch.tensor([[True, False, True, True], [False, True, False, False]])
OF_FACE = ("identity", "expression", "albedo")
OF_VIEW = ("rotation", "translation", "light", "landmark_scores")


def build(**changes: object) -> SetNetwork:
    """A network whose untrained parts all have something to say."""
    torch.manual_seed(0)
    network = build_network(dataclasses.replace(SETTINGS, **changes)).double()  # type: ignore[arg-type]
    assert isinstance(network, SetNetwork)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return network.eval()


@pytest.fixture(scope="module")
def network() -> SetNetwork:
    return build()


def draw(views: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Images, masks and yaws, the last of them unknown."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(batch, views, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    masks = torch.randint(0, 10, (batch, views, SIZE, SIZE), generator=generator)
    yaws = 2 * torch.rand(batch, views, generator=generator, dtype=torch.float64) - 1
    yaws[:, -1] = torch.nan
    return images, masks, yaws


def assert_same(got: FaceParams, expected: FaceParams, views: Tensor | None = None) -> None:
    """Compare what is of the face, and what is of the views, `expected`'s in the order `views`."""
    for name in (*OF_FACE, *OF_VIEW):
        first, second = getattr(got, name), getattr(expected, name)
        if first is None or second is None:
            assert first is None
            assert second is None
            continue
        if name in OF_VIEW and views is not None:
            second = second[:, views]
        torch.testing.assert_close(first, second, rtol=0, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("views", [1, 2, 9])
def test_any_number_of_views_makes_one_face(network: SetNetwork, views: int) -> None:
    params = network(*draw(views)[:2])
    assert params.identity.shape == (2, 80)
    assert params.rotation.shape == (2, views, 3, 3)
    assert params.light.shape == (2, views, 9, 3)
    assert params.landmark_scores.shape == (2, views, 68, SIZE // 4, SIZE // 4)


def test_the_face_does_not_depend_on_the_order_and_poses_follow_their_views(network: SetNetwork) -> None:
    images, masks, yaws = draw(4)
    order = torch.tensor([2, 0, 3, 1])
    expected = network(images, masks, None, yaws)
    assert_same(network(images[:, order], masks[:, order], None, yaws[:, order]), expected, order)
    assert (expected.rotation[:, 0] - expected.rotation[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("training", [False, True])
def test_views_that_are_not_there_change_nothing(training: bool) -> None:
    images, masks, yaws = draw(4)
    other = torch.where(PRESENT[:, :, None, None, None], images, torch.nan)
    outcomes = []
    for pictures, labels in ((images, masks), (other, masks * PRESENT[:, :, None, None])):
        network = build().train(training)
        outcomes.append((network(pictures, labels, PRESENT, yaws), network.state_dict()))
    (first, statistics), (second, others) = outcomes
    assert_same(first, second)
    for name, value in statistics.items():
        torch.testing.assert_close(
            value, others[name], rtol=0, atol=0, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_a_sample_with_padding_is_the_sample_without(network: SetNetwork) -> None:
    images, masks, yaws = draw(4)
    padded = network(images, masks, PRESENT, yaws)
    for b, there in enumerate(PRESENT):
        alone = network(images[b, there][None], masks[b, there][None], None, yaws[b, there][None])
        for name in OF_FACE:
            torch.testing.assert_close(getattr(padded, name)[b], getattr(alone, name)[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(padded.rotation[b, there], alone.rotation[0], rtol=0, atol=1e-9)


def test_yaws_are_used_where_they_are_known(network: SetNetwork) -> None:
    images, masks, _ = draw(2)
    unknown = network(images, masks)
    nan = torch.full((2, 2), torch.nan, dtype=torch.float64)
    assert_same(network(images, masks, None, nan), unknown)
    known = network(images, masks, None, torch.zeros(2, 2, dtype=torch.float64))
    assert (known.identity - unknown.identity).abs().max() > 1e-4


def test_every_parameter_learns_and_unknown_yaws_give_no_nan() -> None:
    network = build().train()
    images, masks, yaws = draw(3)
    params = network(images, masks, None, yaws)
    torch.stack([getattr(params, name).square().sum() for name in (*OF_FACE, *OF_VIEW)]).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_it_works_without_maps_and_says_what_it_cannot_take() -> None:
    network = build(landmark_maps=False)
    images, masks, _ = draw(2)
    assert network(images, masks).landmark_scores is None
    with pytest.raises(ValueError, match="expected at least one view of each sample"):
        network(images, masks, torch.tensor([[True, False], [False, False]]))
    with pytest.raises(ValueError, match="expected multiples of 16 for both sides, got 8 x 16"):
        network(images[..., :16, :], masks[..., :16, :])
    with pytest.raises(ValueError, match=r"views: expected \[P, 4, H, W\], got \(2, 3, 32, 32\)"):
        network.fusion(
            images[0], yaw_features(torch.zeros(2)), PresentViews(torch.ones(1, 2, dtype=torch.bool))
        )


@pytest.mark.parametrize("changes", [{"view_flags": False}, {"shared_light": True}])
def test_settings_that_do_not_fit_are_refused(changes: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match="expected false and true for set_rednet"):
        dataclasses.replace(SETTINGS, **changes)


@pytest.mark.parametrize("present", [PRESENT, torch.ones(2, 4, dtype=torch.bool)])
def test_values_travel_between_samples_and_views(present: Tensor) -> None:
    which = PresentViews(present)
    dense = torch.arange(40.0).reshape(2, 4, 5)
    flat = torch.stack([dense[b, v] for b in range(2) for v in range(4) if present[b, v]])
    torch.testing.assert_close(which.pack(dense), flat)
    torch.testing.assert_close(which.unpack(flat), dense * present.unsqueeze(-1))
    samples = torch.tensor([[1.0], [2.0]])
    owners = torch.tensor([1.0 + b for b in range(2) for v in range(4) if present[b, v]]).unsqueeze(1)
    torch.testing.assert_close(which.spread(samples), owners)
    sums = torch.stack([sum(dense[b, v] for v in range(4) if present[b, v]) for b in range(2)])
    torch.testing.assert_close(which.sum(flat), sums)
    scores = flat / 10
    exponentials = which.sum(scores.exp())
    torch.testing.assert_close(which.shares(scores), scores.exp() / which.spread(exponentials))


def test_attention_averages_the_views_of_each_sample_and_group() -> None:
    torch.manual_seed(0)
    attention = ViewAttention(6, 8).double().eval()
    gate = torch.randn(2, 6, 3, 3, dtype=torch.float64)
    skips = torch.randn(4, 8, 3, 3, dtype=torch.float64)
    got = attention(gate, skips, PresentViews(PRESENT))
    owners = [0, 0, 0, 1]
    hidden = (attention.gate(gate)[owners] + attention.skip(skips)).relu()
    score = attention.score(hidden)
    for b in range(2):
        mine = [p for p, owner in enumerate(owners) if owner == b]
        for channel in range(8):
            group = channel // 2
            shares = torch.stack([score[p, 4 + group] for p in mine]).softmax(0)
            passed = [score[p, group].sigmoid() * skips[p, channel] for p in mine]
            expected = sum(share * value for share, value in zip(shares, passed, strict=True))
            torch.testing.assert_close(got[b, channel], expected)


def test_yaw_modulation_starts_by_changing_nothing() -> None:
    pyramid = [torch.randn(2, 4, 2, 2), torch.randn(2, 8, 1, 1)]
    turned = YawModulation([4, 8])
    for before, after in zip(
        pyramid, turned(pyramid, yaw_features(torch.tensor([0.3, torch.nan]))), strict=True
    ):
        torch.testing.assert_close(before, after)
    assert yaw_features(torch.tensor([torch.nan])).tolist() == [[0.0, 0.0, 0.0]]


def test_fused_observations_are_the_product_of_gaussians() -> None:
    values, scores = torch.tensor([[1.0], [3.0], [5.0], [7.0]]), torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    prior = torch.tensor([0.5])
    got = fuse(values, scores, prior, PresentViews(PRESENT))
    e = math.exp
    first = (1 * e(0) + 3 * e(1) + 5 * e(2)) / (e(0) + e(1) + e(2) + e(0.5))
    torch.testing.assert_close(got, torch.tensor([[first], [7 * e(3) / (e(3) + e(0.5))]]))
    extreme = fuse(values, 1e4 * scores, prior, PresentViews(PRESENT))
    torch.testing.assert_close(extreme, torch.tensor([[5.0], [7.0]]))
    none = fuse(values, scores - 1e4, prior, PresentViews(PRESENT))
    torch.testing.assert_close(none, torch.zeros(2, 1))


def test_a_rough_face_under_an_affine_camera_leaves_nothing_but_its_yaw() -> None:
    reader = SetReader(4).double()
    face = reader.face[:, :3]
    yaws = torch.deg2rad(torch.tensor([-70.0, -10.0, 0.0, 50.0], dtype=torch.float64))
    angles = torch.stack([torch.zeros(4).double(), yaws, torch.zeros(4).double()], 1)
    turned = face @ euler_to_matrix(angles).mT
    places = 0.5 + 0.3 * turned[..., :2] * torch.tensor([1.0, -1.0])
    split, yaw = reader._split(places)
    torch.testing.assert_close(yaw, yaws, rtol=0, atol=1e-5)
    torch.testing.assert_close(split[:, 8:], torch.zeros(4, 136).double(), rtol=0, atol=1e-6)


def test_statistics_follow_the_views_at_each_yaw() -> None:
    torch.manual_seed(0)
    reader = SetReader(4)
    near = reader_module._hats(reader.bends.repeat(50), reader.bends)
    mean, spread = torch.randn(len(reader.bends), 1), torch.rand(len(reader.bends), 1) + 0.5
    for _ in range(60):
        noise = torch.randn(len(near), reader.mean.shape[1])
        reader._take_in(near @ mean + near @ spread * noise, near)
    torch.testing.assert_close(reader.mean, mean.expand_as(reader.mean), rtol=0, atol=0.5)
    torch.testing.assert_close(reader.mean.mean(1, keepdim=True), mean, rtol=0, atol=0.1)
    torch.testing.assert_close(reader.variance.mean(1, keepdim=True), spread.square(), rtol=0.1, atol=0.02)


def test_layers_are_interpolated_between_the_bends() -> None:
    bends = torch.tensor([-1.0, 0.0, 1.0])
    got = reader_module._hats(torch.tensor([-2.0, -1.0, -0.25, 0.0, 0.5, 3.0]), bends)
    expected = [[1, 0, 0], [1, 0, 0], [0.25, 0.75, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float32))
