"""Priors: what faces, expressions, colours and lights are like before a picture is seen (paper 4.4)."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def normal_prior(coefficients: Float[Tensor, "*L P"]) -> Float[Tensor, "*L"]:
    """Return the sum of squares: for coefficients in standard deviations, minus twice the log density.

    Args:
        coefficients: [*L, P] of identity or albedo.
    """
    return coefficients.square().sum(-1)


def expression_prior(
    expression: Float[Tensor, "*L P"], mean: Float[Tensor, " P"], precision: Float[Tensor, "P P"]
) -> Float[Tensor, "*L"]:
    """Return the squared Mahalanobis distance from plausible expressions.

    Activations are sparse and move together (both corners of the mouth in a smile): neither their mean nor
    their covariance is that of N(0, 1).

    Args:
        expression: [*L, P] activations.
        mean: [P] of plausible activations.
        precision: [P, P] inverse covariance of plausible activations.
    """
    offset = expression - mean
    return ((offset @ precision) * offset).sum(-1)


def range_penalty(expression: Float[Tensor, "*L P"]) -> Float[Tensor, "*L"]:
    """Return the sum of squares of what leaves [0, 1], where activations have no meaning.

    Args:
        expression: [*L, P] activations.
    """
    return (expression - expression.clamp(0.0, 1.0)).square().sum(-1)


def light_colour(light: Float[Tensor, "*L 9 3"]) -> Float[Tensor, "*L"]:
    """Return the mean squared distance of a light from grey: colour belongs to the albedo first.

    Args:
        light: [*L, 9, 3] coefficients of RGB light.
    """
    return (light - light.mean(-1, keepdim=True)).square().mean((-2, -1))


def albedo_unevenness(albedo: Float[Tensor, "*L N 3"], skin: Bool[Tensor, " N"]) -> Float[Tensor, "*L"]:
    """Return the variance of the skin's albedo over the face: shadows belong to the light.

    Args:
        albedo: [*L, N, 3] linear, not shaded.
        skin: [N] the vertices that are skin; at least one.
    """
    colours = albedo[..., skin, :]
    return (colours - colours.mean(-2, keepdim=True)).square().sum(-1).mean(-1)
