import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.losses.landmark import (
    IMPORTANT,
    landmark_2d_loss,
    landmark_3d_loss,
    landmark_map_loss,
    landmark_weights,
    seen_landmark_loss,
    yaw_of,
)
from dfmvr.losses.mask import mask_loss
from dfmvr.losses.photo import photo_loss
from dfmvr.losses.regularisation import (
    albedo_unevenness,
    expression_prior,
    light_colour,
    normal_prior,
    range_penalty,
)
from dfmvr.networks.landmark_maps import expected_places

SIZE = 8


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def rand(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64)


def leaf(*shape: int) -> Tensor:
    return rand(*shape).requires_grad_()


# ---- photo


def test_photo_is_the_weighted_mean_norm_over_what_is_shared():
    image = rand(2, SIZE, SIZE, 3)
    drawn = image.clone()
    drawn[0, 0, 0] += torch.tensor([0.3, 0.0, 0.4])  # norm 0.5
    drawn[0, 0, 1] += 0.1
    weights = torch.full((2, SIZE, SIZE), 0.25, dtype=torch.float64)
    weights[0, 0, 0] = 1.0
    shared = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    shared[:, 0, 0] = shared[:, 1, 1] = True  # not (0, 1): its difference must not count
    loss = photo_loss(drawn, image, weights, shared)
    assert loss[0].item() == pytest.approx(0.5 * 1.0 / 1.25, abs=1e-3)
    assert loss[1].item() == 0


def test_photo_gradient_against_finite_differences():
    image, weights = rand(2, 3, 4, 4, 3), rand(2, 3, 4, 4)
    shared = rand(2, 3, 4, 4) > 0.4
    assert gradcheck(lambda drawn: photo_loss(drawn, image, weights, shared), leaf(2, 3, 4, 4, 3))


def test_photo_is_smooth_at_equal_pictures():
    image = rand(1, SIZE, SIZE, 3)
    drawn = image.clone().requires_grad_()
    photo_loss(
        drawn, image, rand(1, SIZE, SIZE), torch.ones(1, SIZE, SIZE, dtype=torch.bool)
    ).sum().backward()
    assert torch.equal(drawn.grad, torch.zeros_like(image))


@pytest.mark.parametrize("empty", ["shared", "weights"])
def test_photo_of_nothing_is_zero(empty):
    drawn = leaf(2, SIZE, SIZE, 3)
    shared = torch.full((2, SIZE, SIZE), empty == "weights")
    weights = rand(2, SIZE, SIZE) * (empty == "shared")
    loss = photo_loss(drawn, rand(2, SIZE, SIZE, 3), weights, shared)
    loss.sum().backward()
    assert torch.equal(loss, torch.zeros_like(loss))
    assert drawn.grad.isfinite().all()


# ---- mask


def one_hot(labels: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels, 10).double()


def square(left: int, size: int = 32) -> Tensor:
    """Labels [size, size]: skin, with a nose 8 pixels wide that starts at column `left`."""
    labels = torch.ones(size, size, dtype=torch.int64)
    labels[12:20, left : left + 8] = 6
    return labels


def everywhere(labels: Tensor) -> Tensor:
    return torch.ones_like(labels, dtype=torch.bool)


def test_mask_is_zero_for_equal_maps_and_two_for_disjoint_ones():
    labels = torch.stack([square(12), square(5)])
    assert torch.equal(mask_loss(one_hot(labels), labels, everywhere(labels)), torch.zeros(2).double())
    brows, lips = torch.full_like(labels, 3), torch.full_like(labels, 9)
    torch.testing.assert_close(
        mask_loss(one_hot(brows), lips, everywhere(lips)), torch.full((2,), 2.0).double()
    )


def test_mask_grows_with_the_distance_even_where_nothing_overlaps():
    labels = square(2)
    lefts = range(2, 16, 2)  # from the tenth column on nothing overlaps
    losses = [mask_loss(one_hot(square(left)), labels, everywhere(labels)).item() for left in lefts]
    assert losses[0] == 0
    assert all(near < far for near, far in itertools.pairwise(losses))


def test_mask_counts_only_what_is_shared():
    labels = square(12)
    drawn = square(4)
    shared = labels == drawn
    assert mask_loss(one_hot(drawn), labels, shared).item() == 0
    nothing = torch.zeros_like(shared)
    soft = one_hot(drawn).requires_grad_()
    loss = mask_loss(soft, labels, nothing)
    loss.backward()
    assert loss.item() == 0
    assert soft.grad.isfinite().all()


def test_mask_does_not_depend_on_how_much_of_the_picture_the_face_fills():
    labels, drawn = torch.zeros(64, 64, dtype=torch.int64), torch.zeros(64, 64, dtype=torch.int64)
    labels[:32, :32], drawn[:32, :32] = square(12), square(8)
    part = mask_loss(one_hot(drawn), labels, labels > 0)
    labels[:32, 32:], drawn[:32, 32:] = square(12), square(8)
    torch.testing.assert_close(mask_loss(one_hot(drawn), labels, labels > 0), part, rtol=0.15, atol=0)


@pytest.mark.parametrize("size", [8, 20, 33])
def test_mask_gradient_against_finite_differences(size):
    labels = torch.randint(0, 4, (2, size, size))
    shared = rand(2, size, size) > 0.3
    small = rand(2, size, size, 4)
    # the loss is quadratic: a directional derivative by central differences is exact
    drawn, direction = small.clone().requires_grad_(), torch.randn_like(small)
    mask_loss(drawn, labels, shared).sum().backward()
    ahead, behind = (mask_loss(small + step * direction, labels, shared).sum() for step in (0.5, -0.5))
    torch.testing.assert_close((drawn.grad * direction).sum(), ahead - behind)


# ---- landmarks


def test_nose_and_inner_mouth_count_20():
    weights = landmark_weights(torch.zeros(()))
    assert weights.shape == (68,)
    assert set(torch.nonzero(weights == 20).flatten().tolist()) == set(IMPORTANT)
    assert set(IMPORTANT) == {*range(27, 36), *range(60, 68)}
    assert (weights[list(set(range(68)) - set(IMPORTANT))] == 1).all()


def test_the_far_side_of_the_jaw_fades_with_yaw():
    yaws = torch.deg2rad(torch.tensor([[-60.0, -25.0, -10.0, 0.0], [10.0, 25.0, 40.0, 60.0]]))
    weights = landmark_weights(yaws)
    assert weights.shape == (2, 4, 68)
    left = weights[0, 0]  # the nose points to the image's left: the subject's right side is hidden
    torch.testing.assert_close(left[:9], torch.arange(9) / 8)
    assert (left[8:27] == 1).all()
    torch.testing.assert_close(weights[0, 1, 0], torch.tensor(0.5))
    assert (weights[0, 2:, :27] == 1).all()
    mirrored = landmark_weights(-yaws)[..., :17].flip(-1)
    torch.testing.assert_close(weights[..., :17], mirrored)
    assert (weights[..., 17:] == landmark_weights(torch.zeros(()))[17:]).all()


def test_yaw_is_where_the_nose_points():
    angles = torch.tensor([[0.2, -0.5, 0.0], [0.0, 0.7, 0.0]])
    torch.testing.assert_close(yaw_of(euler_to_matrix(angles)), angles[:, 1], atol=0.02, rtol=0)


def test_landmark_2d_is_measured_at_224_pixels():
    target = rand(2, 3, 68, 2) * 112
    predicted = target.clone()
    predicted[0, 1, 5] += torch.tensor([3.0, 4.0])
    weights = torch.ones(2, 3, 68, dtype=torch.float64)
    weights[0, 1, 5] = 2.0
    loss = landmark_2d_loss(predicted, target, weights, image_size=112)
    assert loss.shape == (2, 3)
    assert loss[0, 1].item() == pytest.approx(2 * (2 * 5.0) ** 2 / 68)
    assert loss.sum().item() == pytest.approx(loss[0, 1].item())


def test_seen_landmarks_cost_their_distance_at_224_pixels_rounded_off_below_one():
    target = rand(2, 68, 2)
    weights = torch.zeros(2, 68, dtype=torch.float64)
    weights[0, 5] = weights[1, 5] = 0.5
    seen = target.clone()
    seen[0, 5] += torch.tensor([3.0, 4.0])  # 5 px of a picture of 112
    seen[0, 6] += 100.0  # has no weight
    seen[1, 5, 0] += 0.05
    loss = seen_landmark_loss(seen, target, weights, image_size=112)
    assert loss[0].item() == pytest.approx(0.5 * (math.sqrt(1 + 10**2) - 1) / 68)
    assert loss[1].item() == pytest.approx(0.5 * 0.1**2 / 2 / 68, rel=0.01)


def test_seen_landmark_gradient_against_finite_differences():
    target, weights = rand(2, 68, 2), rand(2, 68)
    assert gradcheck(lambda seen: seen_landmark_loss(seen, target, weights, 64), leaf(2, 68, 2))


def test_the_ideal_heat_map_has_the_landmark_as_its_centre_and_the_least_cost():
    target = torch.tensor([[[20.0, 37.0]]], dtype=torch.float64).expand(1, 68, 2)
    scores = torch.zeros(1, 68, 16, 16, dtype=torch.float64, requires_grad=True)
    weights = torch.ones(1, 68, dtype=torch.float64)
    optimiser = torch.optim.Adam([scores], 0.5)
    for _ in range(400):
        optimiser.zero_grad()
        landmark_map_loss(scores, target, weights, image_size=64).sum().backward()
        optimiser.step()
    torch.testing.assert_close(64 * expected_places(scores.detach()), target, atol=0.02, rtol=0)
    x, y = 20 / 4 - 0.5 - 4, 37 / 4 - 0.5 - 8  # shares of the right and of the lower cell
    entropy = -sum(share * math.log(share) for share in (x, 1 - x, y, 1 - y))
    assert landmark_map_loss(scores, target, weights, 64).item() == pytest.approx(entropy, abs=1e-3)


def test_a_map_that_has_settled_in_a_wrong_place_is_still_pulled_away():
    scores = torch.zeros(1, 68, 16, 16)
    scores[..., 2, 2] = 60.0
    scores.requires_grad_()
    landmark_map_loss(scores, torch.full((1, 68, 2), 42.0), torch.ones(1, 68), 64).sum().backward()
    assert (scores.grad[..., 2, 2] > 0.9 / 68).all()


def test_landmarks_outside_the_picture_or_unknown_do_not_count():
    target = torch.full((2, 68, 2), 32.0)
    target[0, 3, 0], target[0, 4, 1] = -0.1, 64.1
    weights = torch.ones(2, 68)
    weights[0, 5] = 0.0
    scores = torch.randn(2, 68, 16, 16, requires_grad=True)
    landmark_map_loss(scores, target, weights, 64).sum().backward()
    reached = scores.grad.abs().amax((2, 3)) > 0
    assert reached[1].all()
    assert (~reached[0]).nonzero().flatten().tolist() == [3, 4, 5]


def test_landmark_map_gradient_against_finite_differences():
    target, weights = 64 * rand(2, 68, 2), rand(2, 68)
    assert gradcheck(lambda scores: landmark_map_loss(scores, target, weights, 64), leaf(2, 68, 4, 4))


def test_landmark_2d_gradient_against_finite_differences():
    target, weights = rand(2, 68, 2), rand(2, 68)
    assert gradcheck(lambda points: landmark_2d_loss(points, target, weights, 64), leaf(2, 68, 2))


def faces(count: int = 2, points: int = 20) -> Tensor:
    return 40 * torch.randn(count, points, 3, dtype=torch.float64)


ALIGN = torch.arange(3, 10)


def test_landmark_3d_ignores_pose_and_scale():
    predicted = faces()
    turn = euler_to_matrix(torch.tensor([0.3, 1.0, -2.0], dtype=torch.float64))
    target = 1.3 * predicted @ turn.mT + torch.tensor([10.0, 0.0, 900.0])
    torch.testing.assert_close(
        landmark_3d_loss(predicted, target, ALIGN), torch.zeros(2).double(), atol=1e-9, rtol=0
    )


def test_landmark_3d_is_square_millimetres_outside_the_alignment():
    target = faces()
    predicted = target.clone()
    predicted[1, 0] += torch.tensor([2.0, 0.0, 1.0])  # not one of the points that align
    loss = landmark_3d_loss(predicted, target, ALIGN)
    torch.testing.assert_close(loss, torch.tensor([0.0, 5.0 / 20], dtype=torch.float64), atol=1e-9, rtol=1e-9)


def test_landmark_3d_gradient_against_finite_differences():
    target = faces()
    predicted = (target + torch.randn_like(target)).requires_grad_()
    assert gradcheck(lambda points: landmark_3d_loss(points, target, ALIGN), predicted)


def test_size_costs_only_where_the_landmarks_are_in_true_mm():
    target = torch.randn(1, 20, 3, dtype=torch.float64)
    larger = 1.1 * target + 3.0
    assert landmark_3d_loss(larger, target, ALIGN).item() < 1e-12
    centred = target - target[:, ALIGN].mean(1, keepdim=True)
    expected = (0.1 * centred).square().sum(-1).mean(-1)
    torch.testing.assert_close(landmark_3d_loss(larger, target, ALIGN, with_scale=False), expected)


# ---- priors


def test_normal_prior_is_the_sum_of_squares():
    torch.testing.assert_close(
        normal_prior(torch.tensor([[3.0, 4.0], [0.0, 1.0]])), torch.tensor([25.0, 1.0])
    )


def test_expression_prior_is_the_mahalanobis_distance():
    draws = torch.randn(4000, 3, dtype=torch.float64) @ rand(3, 3) + 2.0
    mean, precision = draws.mean(0), torch.linalg.inv(draws.T.cov())
    distances = expression_prior(draws, mean, precision)
    assert distances.shape == (4000,)
    assert distances.mean().item() == pytest.approx(3.0, rel=1e-3)  # its expectation is the dimension
    assert expression_prior(mean, mean, precision).item() == 0


def test_range_penalty_counts_only_what_leaves_the_range():
    torch.testing.assert_close(
        range_penalty(torch.tensor([[0.0, 0.5, 1.0], [-0.3, 1.4, 0.2]])), torch.tensor([0.0, 0.09 + 0.16])
    )


def test_light_colour_is_zero_for_grey_light():
    grey = rand(2, 3, 9, 1).expand(2, 3, 9, 3)
    torch.testing.assert_close(light_colour(grey), torch.zeros(2, 3).double())
    tinted = grey.clone()
    tinted[0, 0, 0] += torch.tensor([0.3, 0.0, -0.3])
    assert light_colour(tinted)[0, 0].item() == pytest.approx(0.18 / 27)


def test_albedo_unevenness_is_the_variance_of_the_skin():
    albedo = torch.full((2, 4, 3), 0.5)
    albedo[1, 0] += 0.1
    albedo[1, 1] -= 0.1
    albedo[:, 3] = 0.0  # a lip
    skin = torch.tensor([True, True, True, False])
    torch.testing.assert_close(albedo_unevenness(albedo, skin), torch.tensor([0.0, 3 * 0.02 / 3]))


@pytest.mark.parametrize(
    "prior",
    [
        normal_prior,
        range_penalty,
        lambda x: expression_prior(x, torch.arange(6) / 10.0, torch.eye(6, dtype=torch.float64) + 0.1),
        lambda x: albedo_unevenness(x.reshape(2, 2, 3), torch.tensor([True, True])),
        lambda x: light_colour(x.repeat(1, 9)[:, :27].reshape(2, 9, 3)),
    ],
)
def test_prior_gradients_against_finite_differences(prior):
    coefficients = (3 * rand(2, 6) - 1).requires_grad_()
    assert gradcheck(prior, coefficients)


def test_jaw_weights_are_finite_for_every_yaw():
    assert landmark_weights(torch.linspace(-math.pi, math.pi, 33)).isfinite().all()
