"""Rotations: Euler angles and the 6D form to matrices, and back.

Matrices act on column vectors, R @ p; for points in rows write `points @ R.mT`. Euler angles are
(rx, ry, rz) in radians with R = Rz Ry Rx. Yaw is ry: R = Ry(yaw) moves the nose (0, 0, 1) to
(sin yaw, 0, cos yaw), so that a negative yaw turns the nose to the image's left.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

_GIMBAL_COSINE = 1e-6
"""Below this cosine of ry the angles rx and rz are not separable; rz is then taken as zero."""


def euler_to_matrix(angles: Float[Tensor, "*L 3"]) -> Float[Tensor, "*L 3 3"]:
    """Return R = Rz Ry Rx.

    Args:
        angles: [*L, 3] (rx, ry, rz) in radians.

    Returns:
        [*L, 3, 3] rotation matrices.
    """
    sx, sy, sz = angles.sin().unbind(-1)
    cx, cy, cz = angles.cos().unbind(-1)
    rows = (
        torch.stack((cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx), -1),
        torch.stack((sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx), -1),
        torch.stack((-sy, cy * sx, cy * cx), -1),
    )
    return torch.stack(rows, -2)


def matrix_to_euler(rotation: Float[Tensor, "*L 3 3"]) -> Float[Tensor, "*L 3"]:
    """Invert euler_to_matrix, with ry in [-pi/2, pi/2]; at gimbal lock rz is zero.

    Args:
        rotation: [*L, 3, 3] rotation matrices.

    Returns:
        [*L, 3] (rx, ry, rz) in radians.
    """
    r = rotation
    cosine_squared = r[..., 0, 0].square() + r[..., 1, 0].square()
    locked = cosine_squared < _GIMBAL_COSINE**2
    # The inputs of the branch that is not taken are replaced too: atan2(0, 0) has no finite gradient.
    one = torch.ones_like(cosine_squared)
    cosine = torch.where(locked, one, cosine_squared).sqrt()
    rx = torch.atan2(
        torch.where(locked, -r[..., 1, 2], r[..., 2, 1]), torch.where(locked, r[..., 1, 1], r[..., 2, 2])
    )
    ry = torch.atan2(-r[..., 2, 0], torch.where(locked, cosine_squared, cosine))
    rz = torch.atan2(
        torch.where(locked, torch.zeros_like(one), r[..., 1, 0]), torch.where(locked, one, r[..., 0, 0])
    )
    return torch.stack((rx, ry, rz), -1)


def six_d_to_matrix(six_d: Float[Tensor, "*L 6"]) -> Float[Tensor, "*L 3 3"]:
    """Orthonormalise two columns (Gram-Schmidt) and complete them: a continuous form for networks.

    Args:
        six_d: [*L, 6] the matrix's first column, then its second; they need not be unit or orthogonal,
            but must not be parallel.

    Returns:
        [*L, 3, 3] rotation matrices.
    """
    first, second = six_d[..., :3], six_d[..., 3:]
    x = functional.normalize(first, dim=-1)
    y = functional.normalize(second - (x * second).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack((x, y, torch.linalg.cross(x, y)), -1)


def matrix_to_six_d(rotation: Float[Tensor, "*L 3 3"]) -> Float[Tensor, "*L 6"]:
    """Return the first two columns, [*L, 6]; the inverse of six_d_to_matrix on rotations."""
    return torch.cat((rotation[..., 0], rotation[..., 1]), -1)
