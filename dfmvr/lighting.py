"""Light as spherical harmonics of the second order, Lambertian shading, and the sRGB transfer.

The basis is the real spherical harmonics Y_lm(n) times Lambert's convolution factor A_l / pi = (1, 2/3, 1/4),
divided by Y_00 so that its first entry is exactly 1:

    1,  c1 y, c1 z, c1 x,  c2 xy, c2 yz, c3 (3 z^2 - 1), c2 xz, c4 (x^2 - y^2)
    c1 = 2/3 sqrt(3),  c2 = 1/4 sqrt(15),  c3 = 1/8 sqrt(5),  c4 = 1/8 sqrt(15)

A light of radiance r from everywhere is therefore r on the first band and zero elsewhere. The neutral light,
AMBIENT on the first band, gives a radiance of 0.8 x albedo whatever the normal. Normals are in view-aligned
model axes (x to the viewer's right, y up, z to the viewer), so that a light belongs to the camera, not to the
head.
"""

from __future__ import annotations

import functools
import math

import torch
from jaxtyping import Float
from torch import Tensor

SH_BANDS = 9
"""Number of spherical-harmonic coefficients of a light, for each colour."""
AMBIENT = 0.8
"""First coefficient of the neutral light: the share of an albedo that it shows."""

_C1 = 2.0 / 3.0 * math.sqrt(3.0)
_C2 = math.sqrt(15.0) / 4.0
_C3 = math.sqrt(5.0) / 8.0
_C4 = math.sqrt(15.0) / 8.0

_XYZ_OF_BANDS = [1, 2, 0]
_BANDS_OF_XYZ = [2, 0, 1]
"""The linear bands' axes (y, z, x), and where each axis's band is."""
_SRGB_LINEAR_BELOW = 0.0031308
_SRGB_ENCODED_BELOW = 12.92 * _SRGB_LINEAR_BELOW


def sh_basis(normals: Float[Tensor, "*L N 3"]) -> Float[Tensor, "*L N 9"]:
    """Evaluate the convolved basis of the module's docstring.

    Args:
        normals: [*L, N, 3] unit vectors, view-aligned model axes.

    Returns:
        [*L, N, 9].
    """
    x, y, z = normals.unbind(-1)
    return torch.stack(
        (
            torch.ones_like(x),
            _C1 * y,
            _C1 * z,
            _C1 * x,
            _C2 * x * y,
            _C2 * y * z,
            _C3 * (3.0 * z * z - 1.0),
            _C2 * x * z,
            _C4 * (x * x - y * y),
        ),
        -1,
    )


def shade(
    albedo: Float[Tensor, "*#L N 3"], normals: Float[Tensor, "*#L N 3"], light: Float[Tensor, "*#L 9 3"]
) -> Float[Tensor, "*L N 3"]:
    """Return the radiance of a Lambertian surface.

    Args:
        albedo: [*L, N, 3] linear RGB in [0, 1].
        normals: [*L, N, 3] unit vectors, view-aligned model axes.
        light: [*L, 9, 3] coefficients of RGB light.

    Returns:
        [*L, N, 3] linear RGB radiance, not clamped. The leading dimensions of the arguments broadcast.
    """
    return albedo * (sh_basis(normals) @ light)


def shade_views(
    albedo: Float[Tensor, "B N 3"],
    normals: Float[Tensor, "B N 3"],
    light: Float[Tensor, "B V 9 3"],
    rotation: Float[Tensor, "B V 3 3"],
) -> Float[Tensor, "B V N 3"]:
    """Return the radiance of surfaces that are turned, each view in its own light.

    The same as `shade` of turned normals, but the lights are turned instead: a face's views share its basis.

    Args:
        albedo: [B, N, 3] linear RGB in [0, 1].
        normals: [B, N, 3] unit vectors, model axes.
        light: [B, V, 9, 3] coefficients of RGB light, in the views' axes.
        rotation: [B, V, 3, 3] from model axes to the views'.

    Returns:
        [B, V, N, 3] linear RGB radiance, not clamped.
    """
    turned = rotate_light(light, rotation.mT)
    radiance = torch.einsum("bni,bvic->bvnc", sh_basis(normals), turned)
    return (albedo.unsqueeze(1) * radiance).contiguous()  # the order that a renderer takes


def rotate_light(
    light: Float[Tensor, "*L 9 3"], rotation: Float[Tensor, "*L 3 3"]
) -> Float[Tensor, "*L 9 3"]:
    """Turn a light: what it shows of a normal n, the turned light shows of `rotation` n.

    Args:
        light: [*L, 9, 3] coefficients.
        rotation: [*L, 3, 3].
    """
    ambient, linear, quadratic = torch.split(light, [1, 3, 5], -2)
    linear = rotation @ linear[..., _BANDS_OF_XYZ, :]
    shapes = _quadratic_bands(light.dtype, light.device)
    forms = torch.einsum("kij,...kc->...cij", shapes, quadratic)
    forms = rotation.unsqueeze(-3) @ forms @ rotation.unsqueeze(-3).mT
    quadratic = torch.einsum("kij,...cij->...kc", shapes, forms)
    return torch.cat([ambient, linear[..., _XYZ_OF_BANDS, :], quadratic], -2)


@functools.cache  # on a GPU every other way to have constants waits for it
def _quadratic_bands(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return orthonormal M [5, 3, 3]: quadratic bands of a unit normal n are n^T M n, up to one factor."""
    forms = [
        [[0, 1, 0], [1, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 1], [0, 1, 0]],
        [[-1, 0, 0], [0, -1, 0], [0, 0, 2]],
        [[0, 0, 1], [0, 0, 0], [1, 0, 0]],
        [[1, 0, 0], [0, -1, 0], [0, 0, 0]],
    ]
    bands = torch.tensor(forms, dtype=dtype)
    unit: Tensor = bands / torch.linalg.matrix_norm(bands)[:, None, None]
    return unit.to(device)


def linear_to_srgb(linear: Float[Tensor, "*L"]) -> Float[Tensor, "*L"]:
    """Encode linear light as sRGB; below 0 the linear piece goes on, above 1 the power, so gradients live."""
    power = linear.clamp_min(_SRGB_LINEAR_BELOW).pow(1.0 / 2.4)
    return torch.where(linear <= _SRGB_LINEAR_BELOW, 12.92 * linear, 1.055 * power - 0.055)


def srgb_to_linear(srgb: Float[Tensor, "*L"]) -> Float[Tensor, "*L"]:
    """Decode sRGB to linear light; the inverse of linear_to_srgb on all numbers."""
    power = ((srgb.clamp_min(_SRGB_ENCODED_BELOW) + 0.055) / 1.055).pow(2.4)
    return torch.where(srgb <= _SRGB_ENCODED_BELOW, srgb / 12.92, power)
