"""The floor: the closest that any coefficients of the face model come to the truth.

No network that predicts these coefficients can do better on the dense correspondences; what the floor leaves
is what the model cannot say.

Axis letters: N vertex, P parameter.
"""

from __future__ import annotations

import numpy as np

from dfmvr.evaluation.distance import Floats, Ints
from dfmvr.evaluation.registration import align_points
from dfmvr.morphable.model import MorphableModel

ROUNDS = 30
"""Most alternations of alignment and fit."""
SETTLED = 1e-3
"""mm: the fit has settled when a round moves no vertex by more on the root mean square."""


class FloorFit:
    """Least-squares fit of identity and expression to known dense correspondences.

    Args:
        model: the face model whose vertices the truth is given for.
        vertex_ids: [K] the vertices that are fitted (those that the evaluation measures).
        ridge: weight on the coefficients, relative to the mean diagonal of the normal matrix; a tiny one
            keeps directions that the chosen vertices do not show from running away.
    """

    def __init__(self, model: MorphableModel, vertex_ids: Ints, ridge: float) -> None:
        from scipy.linalg import cho_factor

        self.vertex_ids = vertex_ids
        bases = [model.identity_basis, model.expression_basis]
        self.n_identity = len(bases[0])
        self._mean = model.mean_shape.cpu().numpy().astype(np.float64)[vertex_ids]
        self._basis = np.concatenate([b.cpu().numpy()[:, vertex_ids].reshape(len(b), -1) for b in bases])
        normal_matrix = (self._basis @ self._basis.T).astype(np.float64)
        self._factor = cho_factor(
            normal_matrix + ridge * np.diag(normal_matrix).mean() * np.eye(len(normal_matrix))
        )

    def __call__(self, dense_vertices: Floats) -> tuple[Floats, Floats]:
        """Return identity [80] and expression [64] that come closest to the true vertices [N, 3] (mm).

        The truth may stand anywhere: it is aligned rigidly to the fit and the fit renewed until both settle.
        """
        from scipy.linalg import cho_solve

        truth = dense_vertices[self.vertex_ids].astype(np.float64)
        coefficients = np.zeros(len(self._basis))
        shape = self._mean
        for _ in range(ROUNDS):
            target = align_points(truth, shape, with_scale=False).apply(truth)
            offsets = (target - self._mean).reshape(-1).astype(self._basis.dtype)
            coefficients = cho_solve(self._factor, (self._basis @ offsets).astype(np.float64))
            previous, shape = shape, self._mean + self._decode(coefficients)
            if np.sqrt(np.mean(np.sum((shape - previous) ** 2, axis=1))) < SETTLED:
                break
        return coefficients[: self.n_identity], coefficients[self.n_identity :]

    def _decode(self, coefficients: Floats) -> Floats:
        return (coefficients.astype(self._basis.dtype) @ self._basis).reshape(-1, 3).astype(np.float64)
