"""The floor: the closest that any coefficients of the face model come to the truth.

No network that predicts these coefficients can do better on the dense correspondences; what the floor leaves
is what the model cannot say.

Axis letters: N vertex, P parameter.
"""

from __future__ import annotations

import numpy as np

from dfmvr.evaluation.distance import Floats, Ints
from dfmvr.evaluation.registration import align_points
from dfmvr.geometry.mesh import vertex_areas
from dfmvr.morphable.model import MorphableModel

ROUNDS = 20
"""Most alternations of alignment and fit; three or four are usual."""
SETTLED = 1e-3
"""mm: the fit has settled when a round moves no vertex by more on the root mean square."""


class FloorFit:
    """Least-squares fit of identity and expression to known dense correspondences.

    Args:
        model: the face model whose vertices the truth is given for.
        vertex_ids: [K] the vertices that are fitted (those that the evaluation measures). Each counts with
            the area around it on the mean face.
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
        areas = vertex_areas(model.mean_shape, model.triangles).cpu().numpy()[vertex_ids]
        self.weights = areas / areas.mean()
        # The six small rigid motions are solved for as well: some of the basis looks like them, and taking
        # turns between alignment and fit alone would creep.
        columns = np.concatenate([self._basis, _rigid_motions(self._mean).astype(self._basis.dtype)])
        self._weighted = columns * np.repeat(self.weights, 3).astype(self._basis.dtype)
        normal_matrix = (self._weighted @ columns.T).astype(np.float64)
        penalised = np.arange(len(columns)) < len(self._basis)
        strength = ridge * np.diag(normal_matrix)[penalised].mean()
        self._factor = cho_factor(normal_matrix + strength * np.diag(penalised.astype(np.float64)))

    def __call__(self, dense_vertices: Floats) -> tuple[Floats, Floats]:
        """Return identity [80] and expression [64] that come closest to the true vertices [N, 3] (mm).

        The truth may stand anywhere: it is aligned rigidly to the fit and the fit renewed until both settle.
        """
        from scipy.linalg import cho_solve

        truth = dense_vertices[self.vertex_ids].astype(np.float64)
        coefficients, shape = np.zeros(len(self._basis)), self._mean
        for _ in range(ROUNDS):
            motion = align_points(truth, shape, with_scale=False, weights=self.weights)
            offsets = (motion.apply(truth) - self._mean).reshape(-1).astype(self._basis.dtype)
            solution = cho_solve(self._factor, (self._weighted @ offsets).astype(np.float64))
            coefficients = solution[: len(self._basis)]
            previous, shape = shape, self._mean + self._decode(coefficients)
            if np.sqrt(np.mean(np.sum((shape - previous) ** 2, axis=1))) < SETTLED:
                break
        return coefficients[: self.n_identity], coefficients[self.n_identity :]

    def _decode(self, coefficients: Floats) -> Floats:
        return (coefficients.astype(self._basis.dtype) @ self._basis).reshape(-1, 3).astype(np.float64)


def _rigid_motions(points: Floats) -> Floats:
    """Return [6, 3 N]: what small shifts along and turns about each axis do to points [N, 3]."""
    axes = np.eye(3)
    shifts = [np.broadcast_to(axis, points.shape).reshape(-1) for axis in axes]
    turns = [np.cross(axis, points).reshape(-1) for axis in axes]
    return np.stack(shifts + turns)
