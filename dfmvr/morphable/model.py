"""The morphable face model: coefficients to vertices and albedo.

Axis letters: N vertex, F triangle, K landmark, P parameter; `*L` any leading dimensions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from dfmvr.morphable.io import (
    DEFAULT_MODEL,
    FIXED_MODEL_FORMAT,
    FaceFileError,
    read_model_file,
    recipe_hash,
)
from dfmvr.morphable.landmarks import ALIGN_7_IN_68, ALIGN_7_IN_101
from dfmvr.morphable.topology import LEVELS, BaseMesh, fixed_topology, part_topology, subdivide

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

COVARIANCE_FLOOR = 0.02
"""Standard deviation added to every expression unit before inverting the covariance (units are sparse)."""


@dataclass(frozen=True)
class FaceModelSettings:
    """Which face model, and how fine."""

    path: str = ""
    """A face-model .npz; empty means the one shipped with the package."""
    level: int = 1
    """Subdivision level of the mesh: 1 (about 10 k vertices) or 2 (about 41 k); an imported model has the
    same mesh at both."""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"face_model.level: expected one of {LEVELS}, got {self.level!r}")


class MorphableModel(nn.Module):
    """A linear model of the face: identity, expression and albedo.

    All constants are non-persistent buffers. Units: mm, linear RGB; axes: x to the subject's left, y up, z
    out of the face; the origin is the centre of the mean face's skin.
    """

    mean_shape: Tensor
    """[N, 3] mm."""
    identity_basis: Tensor
    """[80, N, 3] mm per standard deviation; coefficients of the population are N(0, 1)."""
    expression_basis: Tensor
    """[64, N, 3] mm per unit of activation; activations of people lie in [0, 1], or are N(0, 1) in the Basel
    face model."""
    mean_albedo: Tensor
    """[N, 3] linear RGB."""
    albedo_basis: Tensor
    """[80, N, 3] linear RGB per standard deviation."""
    triangles: Tensor
    """[F, 3] int64, counter-clockwise seen from outside."""
    uvs: Tensor
    """[N, 2], origin at the bottom left."""
    labels: Tensor
    """[N] int64 region labels (types.REGION_NAMES); 0 on the head outside the face."""
    landmarks_68: Tensor
    """[68] int64 vertex ids, iBUG order."""
    landmarks_101: Tensor
    """[101] int64 vertex ids, Pixel-Face's order."""
    landmarks_7: Tensor
    """[7] int64 vertex ids: iBUG 36, 39, 42, 45, 33, 48, 54."""
    align_7_in_101: Tensor
    """[7] int64 positions of these seven in the 101."""
    mirror: Tensor
    """[N] int64: `vertices[mirror] * (-1, 1, 1)` is the mirror image; about so on a fixed mesh."""
    head_ids: Tensor
    """[N] int64: the number of each vertex in the `head` part of the same level."""
    expression_mean: Tensor
    """[64] mean of plausible activations."""
    expression_deviation: Tensor
    """[64] standard deviation of plausible activations."""
    expression_precision: Tensor
    """[64, 64] inverse covariance of plausible activations."""
    identity_variance: Tensor
    """[80] share of the population's shape variance that each mode explains."""

    def __init__(self, arrays: dict[str, np.ndarray], level: int = 1, part: str = "face") -> None:
        """Build the model from the arrays of a checked file (`io.read_model_file`)."""
        super().__init__()
        fixed = str(arrays["format"]) == FIXED_MODEL_FORMAT
        if fixed:
            triangles, mirror = (arrays[name].astype(np.int64) for name in ("triangles", "mirror"))
            topology = fixed_topology(triangles, mirror, level, part)
        else:
            base = base_mesh(arrays)
            topology = part_topology(base, level, part)
        self.level, self.part = level, part
        self.hash = str(arrays["hash"])
        self.recipe_hash = recipe_hash(json.loads(str(arrays["recipe"])))
        self.licence, self.credits = str(arrays["licence"]), str(arrays["credits"])
        self.expression_names = tuple(str(name) for name in arrays["expression_names"])

        ids = topology.head_ids
        self._constant("mean_shape", topology.matrix @ arrays["mean_shape"])
        for kind in ("identity", "expression"):
            basis = _basis(arrays, kind)
            self._constant(f"{kind}_basis", _at_level(topology.matrix, basis))
        mean_albedo, albedo_basis = arrays["albedo_mean"], _basis(arrays, "albedo")
        if not fixed:
            mean_albedo, albedo_basis = (_albedo_at(base, level, a) for a in (mean_albedo, albedo_basis))
        self._constant("mean_albedo", mean_albedo[ids])
        self._constant("albedo_basis", albedo_basis[:, ids])
        self._constant("triangles", topology.triangles)
        self._constant("uvs", topology.matrix @ arrays["uvs"])
        self._constant("labels", arrays["labels"][ids].astype(np.int64))
        self._constant("mirror", topology.mirror)
        self._constant("head_ids", ids)
        for name in ("landmarks_68", "landmarks_101"):
            self._constant(name, _landmarks_in(arrays[name].astype(np.int64), ids, name))
        self._constant("landmarks_7", self.landmarks_68[list(ALIGN_7_IN_68)])
        self._constant("align_7_in_101", np.array(ALIGN_7_IN_101))
        covariance = arrays["expression_covariance"].astype(np.float64)
        floor = COVARIANCE_FLOOR**2 * np.eye(len(covariance))
        self._constant("expression_mean", arrays["expression_mean"])
        self._constant("expression_deviation", np.sqrt(np.diag(covariance)).astype(np.float32))
        self._constant("expression_precision", np.linalg.inv(covariance + floor).astype(np.float32))
        self._constant("identity_variance", arrays["identity_variance"])

    def _constant(self, name: str, value: np.ndarray | Tensor) -> None:
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
        self.register_buffer(name, tensor, persistent=False)

    @classmethod
    def load(cls, path: str | Path | None = None, level: int = 1, part: str = "face") -> MorphableModel:
        """Load a face model.

        Args:
            path: a face-model .npz; None or "" means the one shipped with the package.
            level: subdivision level, 1 or 2; the same coefficients drive both. A fixed mesh is the same at
                both, and is both face and head.
            part: `face` (ear to ear, hairline to chin) or `head` (also neck, ears, scalp, whole eyes).

        Raises:
            FaceFileError: the file is missing, damaged or of another kind.
            ValueError: unknown level or part.
        """
        return cls(read_model_file(Path(path) if path else DEFAULT_MODEL), level, part)

    def vertices(self, identity: Tensor, expression: Tensor, at: Tensor | None = None) -> Tensor:
        """Return vertices [*L, N, 3] mm from identity [*L, 80] and expression [*L, 64].

        Args:
            identity: coefficients.
            expression: coefficients.
            at: [K] ids of the vertices that are wanted; None means all.

        Raises:
            ValueError: a number of coefficients is another than the basis has.
        """
        _expect_coefficients("identity", identity, self.identity_basis)
        _expect_coefficients("expression", expression, self.expression_basis)
        mean, bases = self.mean_shape, (self.identity_basis, self.expression_basis)
        if at is not None:
            mean, bases = mean[at], (bases[0][:, at], bases[1][:, at])
        offsets = identity @ bases[0].flatten(1) + expression @ bases[1].flatten(1)
        return mean + offsets.unflatten(-1, (-1, 3))

    def albedo(self, coefficients: Tensor) -> Tensor:
        """Return linear albedo [*L, N, 3] from coefficients [*L, 80].

        Values are cut to [0, 1]: where the linear model leaves that range, the gradient is zero.

        Raises:
            ValueError: the number of coefficients is another than the basis has.
        """
        _expect_coefficients("albedo", coefficients, self.albedo_basis)
        offsets = (coefficients @ self.albedo_basis.flatten(1)).unflatten(-1, (-1, 3))
        return (self.mean_albedo + offsets).clamp(0, 1)


def _expect_coefficients(name: str, coefficients: Tensor, basis: Tensor) -> None:
    if coefficients.ndim == 0 or coefficients.shape[-1] != len(basis):
        raise ValueError(f"{name}: expected [*L, {len(basis)}] coefficients, got {list(coefficients.shape)}")


def base_mesh(arrays: dict[str, np.ndarray]) -> BaseMesh:
    """Return the coarse mesh of a face-model file, indices widened."""
    return BaseMesh(
        arrays["quads"].astype(np.int64),
        arrays["quad_parts"].astype(np.int64),
        arrays["mirror"].astype(np.int64),
        arrays["face_field"].astype(np.float64),
    )


def _basis(arrays: dict[str, np.ndarray], kind: str) -> np.ndarray:
    """Return a stored basis [P, N, 3] as float32."""
    return arrays[f"{kind}_basis"] * arrays[f"{kind}_scale"][:, None, None].astype(np.float32)


def _at_level(matrix: csr_matrix, basis: np.ndarray) -> np.ndarray:
    """Return a basis [P, N0, 3] carried to the rows of `matrix` [N, N0] as [P, N, 3] float32."""
    return np.stack([matrix @ mode for mode in basis])


def _albedo_at(base: BaseMesh, level: int, albedo: np.ndarray) -> np.ndarray:
    """Carry albedo stored at level 1, [N1, 3] or [P, N1, 3], to a level of the whole head."""
    n_level_1 = subdivide(base, 1).matrix.shape[0]
    if albedo.shape[-2] != n_level_1:
        raise FaceFileError(f"albedo: expected {n_level_1} vertices (level 1), got {albedo.shape[-2]}")
    if level == 1:
        return albedo
    from dfmvr.morphable.subdivision import catmull_clark

    coarse = subdivide(base, 1)
    matrix = catmull_clark(coarse.quads, n_level_1, coarse.mirror).matrix.astype(np.float32)
    return _at_level(matrix, albedo.reshape(-1, n_level_1, 3)).reshape(*albedo.shape[:-2], -1, 3)


def _landmarks_in(head_ids: np.ndarray, part_ids: np.ndarray, name: str) -> np.ndarray:
    """Return where the head's vertices `head_ids` stand in a part that has the vertices `part_ids`."""
    places = np.searchsorted(part_ids, head_ids).clip(0, len(part_ids) - 1)
    if (part_ids[places] != head_ids).any():
        outside = np.flatnonzero(part_ids[places] != head_ids).tolist()
        raise FaceFileError(f"{name}: expected every landmark on the face, got {outside} outside it")
    return places
