import math

import pytest
import torch
from torch.autograd import gradcheck

from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.lighting import AMBIENT, SH_BANDS, linear_to_srgb, sh_basis, shade, shade_views, srgb_to_linear


def directions(count: int) -> torch.Tensor:
    """Evenly spread unit vectors (a Fibonacci sphere)."""
    index = torch.arange(count, dtype=torch.float64) + 0.5
    z = 1 - 2 * index / count
    azimuth = index * math.pi * (1 + math.sqrt(5))
    radius = (1 - z * z).sqrt()
    return torch.stack((radius * azimuth.cos(), radius * azimuth.sin(), z), -1)


def test_the_basis_is_orthogonal_with_lamberts_factors():
    basis = sh_basis(directions(20_000))
    gram = basis.mT @ basis / len(basis)
    factors = torch.tensor([1.0] + [2 / 3] * 3 + [1 / 4] * 5, dtype=torch.float64)
    torch.testing.assert_close(gram, torch.diag(factors.square()), atol=1e-3, rtol=0)


def test_the_order_of_the_bands():
    x, y, z = torch.tensor([0.36, 0.48, 0.8]).tolist()
    basis = sh_basis(torch.tensor([[x, y, z]]))[0]
    raw = torch.tensor([1, y, z, x, x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y])
    constants = basis / raw
    assert (constants > 0).all()
    torch.testing.assert_close(constants[1:4], torch.full((3,), 2 / math.sqrt(3)))
    torch.testing.assert_close(constants[[4, 5, 7]], torch.full((3,), math.sqrt(15) / 4))
    assert constants[6].item() == pytest.approx(math.sqrt(5) / 8)
    assert constants[8].item() == pytest.approx(math.sqrt(15) / 8)


def test_a_distant_lamp_shades_by_the_cosine():
    """The nine bands of a small lamp give Lambert's max(cos, 0) within the known 9-band error."""
    normals = directions(2000)
    lamp = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    # Irradiance 1 at normal incidence: the light's coefficients are the basis towards the lamp without
    # Lambert's factors, scaled so that the constant band holds the mean cosine, 1/4.
    factors = torch.tensor([1.0] + [2 / 3] * 3 + [1 / 4] * 5, dtype=torch.float64)
    light = (sh_basis(lamp[None])[0] / factors / 4)[:, None].expand(9, 3)
    radiance = shade(torch.ones_like(normals), normals, light)[:, 0]
    assert (radiance - (normals @ lamp).clamp_min(0)).abs().max() < 0.1


def test_the_neutral_light_shows_four_fifths_of_the_albedo():
    light = torch.zeros(SH_BANDS, 3, dtype=torch.float64)
    light[0] = AMBIENT
    albedo = torch.rand(50, 3, dtype=torch.float64)
    torch.testing.assert_close(shade(albedo, directions(50), light), 0.8 * albedo)


def test_turning_the_light_is_turning_the_normals():
    rng = torch.Generator().manual_seed(0)
    albedo = torch.rand(2, 50, 3, generator=rng, dtype=torch.float64)
    light = torch.randn(2, 4, 9, 3, generator=rng, dtype=torch.float64)
    rotation = euler_to_matrix(torch.randn(2, 4, 3, generator=rng, dtype=torch.float64))
    normals = directions(50).expand(2, -1, -1)
    expected = shade(albedo.unsqueeze(1), normals.unsqueeze(1) @ rotation.mT, light)
    torch.testing.assert_close(shade_views(albedo, normals, light, rotation), expected)
    inputs = [tensor[:1, :3].clone().requires_grad_() for tensor in (albedo, normals, light, rotation)]
    assert gradcheck(shade_views, inputs)


def test_light_comes_from_where_its_band_says():
    light = torch.zeros(9, 3)
    light[1] = 1.0  # y: from above
    up, down = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.0, -1.0, 0.0]])
    assert (shade(torch.ones(1, 3), up, light) > 0).all()
    assert (shade(torch.ones(1, 3), down, light) < 0).all()


def test_leading_dimensions_broadcast():
    shaded = shade(torch.rand(2, 1, 7, 3), torch.rand(2, 3, 7, 3), torch.rand(2, 3, 9, 3))
    assert shaded.shape == (2, 3, 7, 3)


def test_srgb_known_values():
    linear = torch.tensor([0.0, 0.0031308, 0.18, 0.5, 1.0], dtype=torch.float64)
    expected = torch.tensor([0.0, 0.0404499, 0.4613561, 0.7353570, 1.0], dtype=torch.float64)
    torch.testing.assert_close(linear_to_srgb(linear), expected, atol=1e-6, rtol=0)


def test_srgb_round_trip_and_order_beyond_the_unit_range():
    values = torch.linspace(-0.5, 2.0, 501, dtype=torch.float64)
    encoded = linear_to_srgb(values)
    assert (encoded.diff() > 0).all()
    torch.testing.assert_close(srgb_to_linear(encoded), values)


@pytest.mark.parametrize("function", [linear_to_srgb, srgb_to_linear])
def test_srgb_gradients_are_finite_and_alive_everywhere(function):
    values = torch.tensor([-1.0, -1e-9, 0.0, 1e-9, 0.002, 0.04, 1.0, 3.0], requires_grad=True)
    function(values).sum().backward()
    assert values.grad.isfinite().all()
    assert (values.grad > 0).all()


@pytest.mark.parametrize("function", [linear_to_srgb, srgb_to_linear])
def test_srgb_gradients(function):
    values = torch.tensor([-0.2, 0.001, 0.02, 0.3, 0.9, 1.3], dtype=torch.float64, requires_grad=True)
    assert gradcheck(function, (values,))


def test_shading_gradients():
    generator = torch.Generator().manual_seed(0)
    arguments = [
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((2, 4, 3), (2, 4, 3), (2, 9, 3))
    ]
    assert gradcheck(shade, arguments)
