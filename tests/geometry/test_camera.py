import pytest
import torch
from torch.autograd import gradcheck

from dfmvr.geometry.camera import (
    FOCAL_AT_224,
    SUBJECT_DISTANCE,
    default_intrinsics,
    from_camera,
    project,
    to_camera,
)
from dfmvr.geometry.rotation import euler_to_matrix


def test_model_axes_become_opencv_axes():
    points = torch.tensor([[0.0, 0.0, 0.0], [10.0, 0.0, 0.0], [0.0, 10.0, 0.0], [0.0, 0.0, 10.0]])
    camera = to_camera(points, torch.eye(3), torch.zeros(3))
    expected = torch.tensor(
        [[0.0, 0.0, 1000.0], [10.0, 0.0, 1000.0], [0.0, -10.0, 1000.0], [0.0, 0.0, 990.0]]
    )
    torch.testing.assert_close(camera, expected)


def test_the_translation_is_in_model_axes_after_the_rotation():
    rotation = euler_to_matrix(torch.tensor([0.1, -0.5, 0.2]))
    point, translation = torch.tensor([[3.0, 4.0, 5.0]]), torch.tensor([7.0, 8.0, 9.0])
    x, y, z = rotation @ point[0] + translation
    camera = to_camera(point, rotation, translation)
    torch.testing.assert_close(camera[0], torch.stack((x, -y, SUBJECT_DISTANCE - z)))


def test_from_camera_inverts_to_camera():
    points = torch.randn(2, 1, 5, 3, dtype=torch.float64)
    rotation = euler_to_matrix(torch.randn(2, 4, 3, dtype=torch.float64))
    translation = torch.randn(2, 4, 3, dtype=torch.float64)
    back = from_camera(to_camera(points, rotation, translation), rotation, translation)
    torch.testing.assert_close(back, points.expand(2, 4, 5, 3))


def test_the_origin_projects_to_the_centre_and_a_millimetre_to_about_a_pixel():
    pixels = project(torch.tensor([[0.0, 0.0, 1000.0], [1.0, -1.0, 1000.0]]), default_intrinsics(224))
    torch.testing.assert_close(pixels, torch.tensor([[112.0, 112.0], [113.015, 110.985]]))


@pytest.mark.parametrize("size", [64, 224, 513])
def test_the_field_of_view_does_not_depend_on_the_image_size(size):
    intrinsics = default_intrinsics(size)
    assert intrinsics[0, 0].item() == pytest.approx(FOCAL_AT_224 * size / 224)
    pixels = project(torch.tensor([[50.0, 20.0, 900.0]]), intrinsics)
    reference = project(torch.tensor([[50.0, 20.0, 900.0]]), default_intrinsics(224))
    torch.testing.assert_close(pixels / size, reference / 224)


def test_skew_is_used():
    intrinsics = torch.tensor([[2.0, 0.5, 1.0], [0.0, 3.0, 2.0], [0.0, 0.0, 1.0]])
    pixels = project(torch.tensor([[4.0, 6.0, 2.0]]), intrinsics)
    torch.testing.assert_close(pixels, torch.tensor([[2.0 * 2 + 0.5 * 3 + 1, 3.0 * 3 + 2]]))


@pytest.mark.parametrize("depth", [0.0, -5.0, -0.0])
def test_points_behind_the_camera_stay_finite(depth):
    point = torch.tensor([[1.0, 2.0, depth]], requires_grad=True)
    pixels = project(point, default_intrinsics(64))
    pixels.sum().backward()
    assert pixels.isfinite().all()
    assert point.grad.isfinite().all()


def test_leading_dimensions_broadcast():
    points = torch.randn(2, 1, 5, 3)
    rotations = euler_to_matrix(torch.randn(2, 4, 3))
    camera = to_camera(points, rotations, torch.zeros(2, 4, 3))
    assert camera.shape == (2, 4, 5, 3)
    assert project(camera, default_intrinsics(64)).shape == (2, 4, 5, 2)


def test_gradients():
    generator = torch.Generator().manual_seed(0)
    points = (torch.randn(2, 3, 3, generator=generator, dtype=torch.float64) * 50).requires_grad_()
    angles = torch.randn(2, 3, generator=generator, dtype=torch.float64).requires_grad_()
    translation = torch.randn(2, 3, generator=generator, dtype=torch.float64).requires_grad_()
    intrinsics = default_intrinsics(224).double()

    def image_of(points, angles, translation):
        return project(to_camera(points, euler_to_matrix(angles), translation), intrinsics)

    assert gradcheck(image_of, (points, angles, translation))


def test_an_image_needs_pixels():
    with pytest.raises(ValueError, match="image_size: expected a positive number of pixels, got 0"):
        default_intrinsics(0)
