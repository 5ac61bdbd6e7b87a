"""One sample in, one row of results out: the mean face, the network's face and the floor, measured alike."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dfmvr.data.sample import SCAN_COLUMNS, Sample
from dfmvr.evaluation.distance import Floats, Surface
from dfmvr.evaluation.floor import FloorFit
from dfmvr.evaluation.protocol import (
    Face,
    LabelledMesh,
    Measurement,
    Truth,
    area_by_distance,
    crop_truth,
    measure,
    rmse_by_region,
)
from dfmvr.evaluation.regions import UNMEASURED, face_regions, nearest_regions
from dfmvr.evaluation.settings import EvaluationSettings
from dfmvr.morphable.model import MorphableModel
from dfmvr.types import REGION_NAMES

METHODS = ("mean_face", "network", "floor")
"""The mean face (what one gets without looking), the network, and the best fit to the truth."""


@dataclass(frozen=True)
class Coefficients:
    """A face of the model."""

    identity: Floats
    """[80]."""
    expression: Floats
    """[64]."""


class Evaluator:
    """Measures predictions against test samples.

    Args:
        model: the face model at level 2: the predicted surface.
        dense_model: the same model at level 1: the correspondences that samples hold the truth of.
        settings: see EvaluationSettings.

    Raises:
        ValueError: the two models are of different files or of the wrong levels.
    """

    def __init__(
        self, model: MorphableModel, dense_model: MorphableModel, settings: EvaluationSettings
    ) -> None:
        if (model.level, dense_model.level) != (2, 1) or model.hash != dense_model.hash:
            raise ValueError(
                f"face models: expected one file at levels 2 and 1, got {model.hash} at level {model.level} "
                f"and {dense_model.hash} at level {dense_model.level}"
            )
        self.model, self.dense_model, self.settings = model, dense_model, settings
        self.regions: NDArray[np.int8] = face_regions(
            dense_model.mean_shape.numpy().astype(np.float64),
            dense_model.triangles.numpy(),
            dense_model.labels.numpy(),
            dense_model.landmarks_68.numpy(),
        )
        measured = np.flatnonzero(self.regions != UNMEASURED)
        hidden = np.isin(
            model.labels.numpy(), [REGION_NAMES.index("background"), REGION_NAMES.index("mouth")]
        )
        triangles = model.triangles.numpy()
        self._outer_triangles = triangles[~hidden[triangles].all(axis=1)]
        self._fit_floor = FloorFit(dense_model, measured, settings.floor_ridge)
        n_identity, n_expression = len(model.identity_basis), len(model.expression_basis)
        self.mean_coefficients = Coefficients(np.zeros(n_identity), np.zeros(n_expression))
        self._mean_face = self.face(self.mean_coefficients)

    @property
    def backend(self) -> str:
        """What the distances are measured with: `open3d` or `kdtree`."""
        return self._mean_face.surface.backend

    def face(self, coefficients: Coefficients) -> Face:
        """Return the face of some coefficients, ready to be measured, without the inside of its mouth."""
        vertices = self.vertices(coefficients)
        return Face(
            surface=Surface(vertices, self._outer_triangles, self.settings.distance_backend),
            landmarks_7=vertices[self.model.landmarks_7.numpy()],
            dense=_decode(self.dense_model, coefficients),
        )

    def vertices(self, coefficients: Coefficients) -> Floats:
        """Return the level-2 vertices [N, 3] mm of some coefficients, in model space."""
        return _decode(self.model, coefficients)

    def truth(self, sample: Sample) -> Truth:
        """Return the measured part of a sample's scan.

        Raises:
            ValueError: the sample has no scan, or one of another face model.
        """
        for name in SCAN_COLUMNS:
            if getattr(sample, name) is None:
                raise ValueError(f"sample {sample.sample_id!r}: expected {name} to measure against, got none")
        assert sample.scan_vertices is not None
        assert sample.dense_vertices is not None
        assert sample.scan_landmarks_7 is not None
        if len(sample.dense_vertices) != len(self.regions):
            raise ValueError(
                f"sample {sample.sample_id!r}: expected {len(self.regions)} dense_vertices (the face model's "
                f"level 1), got {len(sample.dense_vertices)}"
            )
        assert sample.scan_triangles is not None
        regions = nearest_regions(sample.scan_vertices, sample.dense_vertices, self.regions)
        scan = LabelledMesh(sample.scan_vertices, sample.scan_triangles, regions)
        dense = LabelledMesh(sample.dense_vertices, self.dense_model.triangles.numpy(), self.regions)
        return crop_truth(scan, dense, sample.scan_landmarks_7, self.settings)

    def floor(self, sample: Sample) -> Coefficients:
        """Return the coefficients that come closest to the sample's true dense correspondences."""
        assert sample.dense_vertices is not None
        return Coefficients(*self._fit_floor(sample.dense_vertices))

    def measure(self, truth: Truth, coefficients: Coefficients) -> Measurement:
        """Measure one face against a truth."""
        return measure(self.face(coefficients), truth, self.settings)

    def __call__(self, sample: Sample, network: Coefficients) -> dict[str, Any]:
        """Measure all METHODS on a sample.

        Args:
            sample: a test sample, with its scan.
            network: what the network predicts for it.

        Returns:
            A row of scalars and small arrays: ids; `{method}_{name}_mm` for each value of
            `protocol.measure`; `{method}_regions_mm` [6]; `{method}_areas` (`protocol.area_by_distance`);
            `{method}_converged`; the network's and the floor's coefficients; `seconds`.

        Raises:
            ValueError: as `truth`, or the prediction is not finite.
        """
        started = time.perf_counter()
        truth = self.truth(sample)
        floor = self.floor(sample)
        row: dict[str, Any] = {
            "sample_id": sample.sample_id,
            "subject_id": sample.subject_id,
            "expression_id": sample.expression_id,
            "identity": network.identity.astype(np.float32),
            "expression": network.expression.astype(np.float32),
            "floor_identity": floor.identity.astype(np.float32),
            "floor_expression": floor.expression.astype(np.float32),
        }
        faces = {"mean_face": self._mean_face, "network": self.face(network), "floor": self.face(floor)}
        for method in METHODS:
            result = measure(faces[method], truth, self.settings)
            row |= {f"{method}_{name}_mm": value for name, value in result.values.items()}
            row[f"{method}_regions_mm"] = rmse_by_region(result.distances, truth.areas, truth.regions)
            row[f"{method}_areas"] = area_by_distance(result.distances, truth.areas)
            row[f"{method}_converged"] = result.converged
        row["seconds"] = time.perf_counter() - started
        return row


def _decode(model: MorphableModel, coefficients: Coefficients) -> Floats:
    identity = torch.as_tensor(coefficients.identity, dtype=torch.float32)
    expression = torch.as_tensor(coefficients.expression, dtype=torch.float32)
    return model.vertices(identity, expression).numpy().astype(np.float64)
