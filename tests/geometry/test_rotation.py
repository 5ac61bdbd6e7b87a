import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from dfmvr.geometry.rotation import euler_to_matrix, matrix_to_euler, matrix_to_six_d, six_d_to_matrix

angle = st.floats(-1.5, 1.5)


def random_angles(*leading: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(*leading, 3, generator=generator, dtype=torch.float64) - 0.5) * 2.0


@given(st.tuples(angle, angle, angle))
@settings(max_examples=50, deadline=None)
def test_euler_angles_survive_the_way_to_a_matrix_and_back(angles):
    given_angles = torch.tensor(angles, dtype=torch.float64)
    rotation = euler_to_matrix(given_angles)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
    assert torch.linalg.det(rotation).item() == pytest.approx(1.0)
    torch.testing.assert_close(matrix_to_euler(rotation), given_angles, atol=1e-9, rtol=0)


def test_the_order_is_x_then_y_then_z():
    angles = random_angles()
    rx, ry, rz = (euler_to_matrix(angles * torch.eye(3, dtype=torch.float64)[axis]) for axis in range(3))
    torch.testing.assert_close(euler_to_matrix(angles), rz @ ry @ rx)


def test_a_negative_yaw_turns_the_nose_to_the_images_left():
    nose = torch.tensor([0.0, 0.0, 1.0])
    turned = euler_to_matrix(torch.tensor([0.0, -0.5, 0.0])) @ nose
    torch.testing.assert_close(turned, torch.tensor([math.sin(-0.5), 0.0, math.cos(-0.5)]))


def test_a_positive_pitch_lowers_the_nose():
    turned = euler_to_matrix(torch.tensor([0.3, 0.0, 0.0])) @ torch.tensor([0.0, 0.0, 1.0])
    assert turned[1] < 0


@pytest.mark.parametrize("yaw", [math.pi / 2, -math.pi / 2])
def test_gimbal_lock_gives_the_same_matrix_and_finite_gradients(yaw):
    rotation = euler_to_matrix(torch.tensor([0.4, yaw, 0.9], dtype=torch.float64)).requires_grad_()
    angles = matrix_to_euler(rotation)
    assert angles[2] == 0
    torch.testing.assert_close(euler_to_matrix(angles), rotation, atol=1e-7, rtol=0)
    angles.sum().backward()
    assert rotation.grad.isfinite().all()


def test_any_leading_dimensions():
    angles = random_angles(2, 5)
    rotation = euler_to_matrix(angles)
    assert rotation.shape == (2, 5, 3, 3)
    torch.testing.assert_close(rotation[1, 3], euler_to_matrix(angles[1, 3]))
    assert matrix_to_euler(rotation).shape == (2, 5, 3)
    assert matrix_to_six_d(rotation).shape == (2, 5, 6)
    torch.testing.assert_close(six_d_to_matrix(matrix_to_six_d(rotation)), rotation)


def test_six_d_gives_a_rotation_whatever_the_lengths_and_angle():
    six_d = torch.randn(20, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 7.0
    rotation = six_d_to_matrix(six_d)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(20, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize("function", [euler_to_matrix, lambda a: matrix_to_euler(euler_to_matrix(a))])
def test_gradients_of_euler_angles(function):
    assert gradcheck(function, (random_angles(3).requires_grad_(),))


def test_gradients_of_six_d():
    six_d = torch.randn(3, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert gradcheck(six_d_to_matrix, (six_d.requires_grad_(),))
