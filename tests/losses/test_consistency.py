"""Consistency between views: on the real face model, and on planes whose correspondence is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from dfmvr.geometry.camera import default_intrinsics, to_camera
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.lighting import AMBIENT
from dfmvr.losses import consistency
from dfmvr.losses.consistency import ConsistencyTerms, pixel_difference, view_consistency
from dfmvr.morphable.model import MorphableModel
from dfmvr.reconstructor import Prediction, Reconstructor
from dfmvr.render.zbuffer import ZBufferRenderer
from dfmvr.types import FaceParams

SIZE = 112
YAWS = (-0.6, 0.0, 0.6)


def render_and_compare(
    images: Tensor,
    masks: Tensor | None,
    vertices_camera: Tensor,
    rotation: Tensor,
    translation: Tensor,
    intrinsics: Tensor,
    triangles: Tensor,
) -> ConsistencyTerms:
    size = images.shape[-1]
    drawn = ZBufferRenderer()(vertices_camera, triangles, vertices_camera, intrinsics, size)
    return view_consistency(
        images, masks, drawn, vertices_camera, rotation, translation, intrinsics, triangles
    )


class Face:
    """One textured face in three views, drawn from parameters that are known."""

    def __init__(self) -> None:
        self.reconstructor = Reconstructor(nn.Identity(), MorphableModel.load(), ZBufferRenderer())
        generator = torch.Generator().manual_seed(0)
        self.identity, albedo, self.other = torch.randn(3, 1, 80, generator=generator)
        light = torch.zeros(1, 3, 9, 3)
        light[:, :, 0] = AMBIENT
        angles = torch.zeros(1, 3, 3)
        angles[..., 1] = torch.tensor(YAWS)
        self.rotation = euler_to_matrix(angles)
        self.translation = torch.tensor([[[3.0, 0.0, 5.0], [0.0, 2.0, 0.0], [-3.0, 1.0, -4.0]]])
        self.intrinsics = default_intrinsics(SIZE).expand(1, 3, 3, 3)
        params = FaceParams(self.identity, torch.zeros(1, 64), albedo, light, self.rotation, self.translation)
        with torch.no_grad():
            self.truth: Prediction = self.reconstructor.draw(params, self.intrinsics, SIZE)
        self.vertices = self.truth.vertices.unsqueeze(1).repeat(1, 3, 1, 1)  # [1, 3, N, 3] model space

    def changed_front(self) -> Tensor:
        """Vertices of which the front view's are another person's."""
        vertices = self.vertices.clone()
        vertices[:, 1] = self.reconstructor.face_model.vertices(
            self.identity + self.other, torch.zeros(1, 64)
        )
        return vertices

    def terms(
        self, vertices: Tensor | None = None, translation: Tensor | None = None, masks: Tensor | None = None
    ) -> ConsistencyTerms:
        vertices = self.vertices if vertices is None else vertices
        translation = self.translation if translation is None else translation
        return render_and_compare(
            self.truth.image.movedim(-1, 2),
            self.truth.mask.long() if masks is None else masks,
            to_camera(vertices, self.rotation, translation),
            self.rotation,
            translation,
            self.intrinsics,
            self.reconstructor.face_model.triangles,
        )


@pytest.fixture(scope="module")
def face() -> Face:
    return Face()


# ---- the face


def test_the_truth_is_consistent(face):
    terms = face.terms()
    assert 0 < terms.pixel.item() < 0.02
    assert 0 < terms.depth.item() < 0.015


@pytest.mark.parametrize("shift", [(4.0, 0.0, 0.0), (0.0, -4.0, 0.0), (0.0, 0.0, 60.0)])
def test_a_wrong_translation_shows_in_the_pixels_and_not_in_the_depths(face, shift):
    translation = face.translation.clone()
    translation[0, 1] += torch.tensor(shift)
    truth, shifted = face.terms(), face.terms(translation=translation)
    assert shifted.pixel.item() > 2 * truth.pixel.item()
    assert shifted.depth.item() == pytest.approx(truth.depth.item(), abs=0.005)  # both faces moved together


def test_another_face_in_one_view_shows_in_both(face):
    truth, changed = face.terms(), face.terms(face.changed_front())
    assert changed.pixel.item() > 1.2 * truth.pixel.item()
    assert changed.depth.item() > 10 * truth.depth.item()


def test_a_step_along_the_gradient_of_a_translation_lowers_the_pixel_term(face):
    translation = face.translation.clone()
    translation[0, 1, 0] += 4.0
    translation.requires_grad_()
    before = face.terms(translation=translation)
    (gradient,) = torch.autograd.grad(before.pixel.sum(), translation)
    assert (gradient[0].norm(dim=-1) > 0).all()
    step = 0.3 * gradient / gradient.norm()
    after = face.terms(translation=translation.detach() - step)
    assert after.pixel.item() < before.pixel.item()
    assert gradient[0, 1, 0] > 0  # the front view was moved too far along +x


@pytest.mark.parametrize("name", ["pixel", "depth"])
def test_a_step_along_the_gradient_of_the_shapes_lowers_each_term(face, name):
    vertices = face.changed_front().requires_grad_()
    before = getattr(face.terms(vertices), name)
    (gradient,) = torch.autograd.grad(before.sum(), vertices)
    assert gradient.isfinite().all()
    assert (gradient[0].norm(dim=(-2, -1)) > 0).all()
    step = 0.2 * gradient / gradient.norm(dim=-1).max()
    assert getattr(face.terms(vertices.detach() - step), name).item() < before.item()


def test_pixels_outside_a_pictures_face_do_not_count(face):
    masks = face.truth.mask.long()
    masks[:, :, : SIZE // 2] = 0
    assert face.terms(masks=masks).pixel.item() != face.terms().pixel.item()
    masks[:, 1] = 0  # no neighbour is left
    vertices = face.changed_front().requires_grad_()
    terms = face.terms(vertices, masks=masks)
    (terms.pixel + terms.depth).sum().backward()
    assert terms.pixel.item() == terms.depth.item() == 0
    assert vertices.grad.abs().max() == 0


def test_a_pair_with_too_little_in_common_counts_zero(face):
    masks = torch.zeros_like(face.truth.mask, dtype=torch.int64)
    masks[:, :, SIZE // 2 : SIZE // 2 + 4] = 1
    terms = face.terms(face.changed_front(), masks=masks)
    assert terms.pixel.item() == terms.depth.item() == 0


def test_the_sides_are_not_compared_with_each_other(face):
    vertices = face.vertices.clone()
    vertices[:, 2] = face.changed_front()[:, 1]
    vertices[:, 0] = vertices[:, 2]
    masks = face.truth.mask.long()
    masks[:, 1] = 0
    assert face.terms(vertices, masks=masks).pixel.item() == 0


# ---- planes

PLANE = 32
FOCAL = 100.0
SQUARE = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
SQUARE_TRIANGLES = torch.tensor([[0, 2, 1], [0, 3, 2]])  # faces the camera
INTRINSICS = torch.tensor([[FOCAL, 0.0, PLANE / 2], [0.0, FOCAL, PLANE / 2], [0.0, 0.0, 1.0]])


def square(half: float, depth: float) -> Tensor:
    """A frontal square's corners [4, 3] in model space, seen at this depth under zero translation."""
    return torch.cat([half * SQUARE * torch.tensor([1.0, -1.0]), torch.full((4, 1), 1000.0 - depth)], -1)


def compare(images: Tensor, vertices: Tensor, triangles: Tensor, shift: float) -> ConsistencyTerms:
    """Compare two unrotated views [2, ...], of which the second is moved by `shift` mm to the right."""
    translation = torch.tensor([[[0.0, 0.0, 0.0], [shift, 0.0, 0.0]]]).to(vertices)
    rotation = torch.eye(3).expand(1, 2, 3, 3).to(vertices)
    camera = to_camera(vertices.expand(1, 2, -1, 3), rotation, translation)
    intrinsics = INTRINSICS.expand(1, 2, 3, 3).to(vertices)
    return render_and_compare(images.unsqueeze(0), None, camera, rotation, translation, intrinsics, triangles)


@pytest.fixture
def two_planes() -> tuple[Tensor, Tensor, Tensor]:
    """Images, vertices and triangles of a square 16 px wide, 500 mm away, in front of a wall at 1000 mm.

    A shift of 30 mm moves the square by 6 px and the wall by 3 px, so each view hides 3 columns of the wall
    that the other shows. Everything else corresponds exactly.
    """
    generator = torch.Generator().manual_seed(0)
    wall, near = (
        torch.rand(3, PLANE, PLANE + 3, generator=generator),
        torch.rand(3, 16, 16, generator=generator),
    )
    first, second = wall[:, :, 3:].clone(), wall[:, :, :PLANE].clone()
    first[:, 8:24, 8:24] = second[:, 8:24, 14:30] = near
    vertices = torch.cat([square(300.0, 1000.0), square(40.0, 500.0)])
    return torch.stack([first, second]), vertices, torch.cat([SQUARE_TRIANGLES, SQUARE_TRIANGLES + 4])


def test_what_one_view_hides_is_excluded_and_the_rest_corresponds_exactly(two_planes):
    terms = compare(*two_planes, shift=30.0)
    assert terms.pixel.item() < 1e-4
    assert terms.depth.item() < 1e-4


def test_hidden_pixels_would_count_if_any_depth_agreed(two_planes, monkeypatch):
    monkeypatch.setattr(consistency, "DEPTH_AGREEMENT", 1e4)
    assert compare(*two_planes, shift=30.0).pixel.item() > 0.01


@pytest.mark.parametrize(("apart", "expected"), [(0.0, 0.0), (5.0, 0.5), (9.0, 0.9), (15.0, 0.0)])
def test_the_depth_term_is_the_distance_in_units_of_the_agreement(apart, expected):
    vertices = torch.stack([square(300.0, 1000.0), square(300.0, 1000.0 + apart)])
    terms = compare(torch.rand(2, 3, PLANE, PLANE), vertices, SQUARE_TRIANGLES, shift=30.0)
    assert terms.depth.item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("degrees", "counts"), [(0, True), (60, True), (80, False)])
def test_a_surface_seen_at_a_grazing_angle_does_not_count(degrees, counts):
    turn = euler_to_matrix(torch.tensor([0.0, torch.deg2rad(torch.tensor(float(degrees))), 0.0]))
    vertices = square(300.0, 1000.0) @ turn.mT
    images = torch.stack([torch.zeros(3, PLANE, PLANE), torch.ones(3, PLANE, PLANE)])
    terms = compare(images, vertices, SQUARE_TRIANGLES, shift=0.0)
    assert (terms.pixel.item() > 0.1) is counts


def test_gradients_against_finite_differences():
    torch.manual_seed(0)
    images = torch.rand(1, 2, 3, 8, 8, dtype=torch.float64)
    corners = torch.stack([square(300.0, 1000.0), square(300.0, 1003.0)]).double().unsqueeze(0)
    vertices = (corners + 0.5 * torch.rand(1, 2, 4, 3)).requires_grad_()
    angles = (0.05 * torch.randn(1, 2, 3, dtype=torch.float64)).requires_grad_()
    translation = torch.randn(1, 2, 3, dtype=torch.float64).requires_grad_()
    intrinsics = torch.tensor([[30.0, 0.2, 4.1], [0.0, 31.0, 3.9], [0.0, 0.0, 1.0]]).double()

    def terms(vertices: Tensor, angles: Tensor, translation: Tensor) -> tuple[Tensor, Tensor]:
        rotation = euler_to_matrix(angles)
        both = render_and_compare(
            images,
            None,
            to_camera(vertices, rotation, translation),
            rotation,
            translation,
            intrinsics.expand(1, 2, 3, 3),
            SQUARE_TRIANGLES,
        )
        assert both.pixel.item() > 0
        assert both.depth.item() > 0
        return both.pixel, both.depth

    assert gradcheck(terms, (vertices, angles, translation), atol=1e-7)


def test_one_view_has_no_neighbour():
    with pytest.raises(ValueError, match=r"images: expected .* at least 2 views, got \[1, 1, 3, 8, 8\]"):
        render_and_compare(
            torch.zeros(1, 1, 3, 8, 8),
            None,
            square(300.0, 1000.0).expand(1, 1, 4, 3),
            torch.eye(3).expand(1, 1, 3, 3),
            torch.zeros(1, 1, 3),
            INTRINSICS.expand(1, 1, 3, 3),
            SQUARE_TRIANGLES,
        )


def test_pictures_must_be_square():
    with pytest.raises(ValueError, match="images: expected square pictures, got 8 x 9"):
        compare(torch.zeros(2, 3, 8, 9), square(300.0, 1000.0), SQUARE_TRIANGLES, shift=0.0)


# ---- the difference of pixels


def test_the_difference_is_masked_ssim_and_l1():
    torch.manual_seed(0)
    a, b = torch.rand(2, 3, 6, 7, dtype=torch.float64)
    inside = torch.rand(6, 7) > 0.3
    difference = pixel_difference(a, b, inside)
    for y, x in inside.nonzero().tolist():
        window = (slice(max(y - 1, 0), y + 2), slice(max(x - 1, 0), x + 2))
        chosen = inside[window]
        expected = 0.0
        for p, q in zip(a, b, strict=True):
            s, t = p[window][chosen], q[window][chosen]
            covariance = ((s - s.mean()) * (t - t.mean())).mean()
            ssim = (2 * s.mean() * t.mean() + 1e-4) * (2 * covariance + 9e-4)
            ssim /= s.mean() ** 2 + t.mean() ** 2 + 1e-4
            ssim /= s.var(correction=0) + t.var(correction=0) + 9e-4
            expected += (0.85 * (1 - ssim) / 2 + 0.15 * (p[y, x] - q[y, x]).abs()) / 3
        torch.testing.assert_close(difference[y, x], expected)
