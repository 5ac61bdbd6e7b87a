"""Small analytic surfaces, and one sample of the real face model."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from dfmvr.data.sample import Sample
from dfmvr.evaluation.evaluator import Evaluator
from dfmvr.evaluation.settings import EvaluationSettings
from dfmvr.geometry.camera import default_intrinsics
from dfmvr.morphable.model import MorphableModel
from dfmvr.morphable.population import FacePopulation


@pytest.fixture(scope="session")
def sphere() -> trimesh.Trimesh:
    """A sphere of radius 50 mm, 2,562 vertices, whose triangles lie within 0.1 mm of it."""
    return trimesh.creation.icosphere(subdivisions=4, radius=50.0)


@pytest.fixture(scope="session")
def relief() -> trimesh.Trimesh:
    """A face-like relief of 160 x 200 mm: a dome with a nose, without any symmetry to slide along."""
    n = 61
    x, y = np.meshgrid(np.linspace(-80, 80, n), np.linspace(-100, 100, n))
    z = 60 - x**2 / 110 - y**2 / 210
    z += 22 * np.exp(-((x - 3) ** 2) / 160 - (y + 5) ** 2 / 500) - 7 * np.exp(
        -((x + 30) ** 2 + (y - 25) ** 2) / 200
    )
    ids = np.arange(n * n).reshape(n, n)
    a, b, c, d = (corner.ravel() for corner in (ids[:-1, :-1], ids[:-1, 1:], ids[1:, :-1], ids[1:, 1:]))
    triangles = np.concatenate([np.stack([a, b, d], 1), np.stack([a, d, c], 1)])
    return trimesh.Trimesh(np.stack([x, y, z], -1).reshape(-1, 3), triangles, process=False)


@pytest.fixture(scope="session")
def dense_model() -> MorphableModel:
    return MorphableModel.load(level=1)


@pytest.fixture(scope="session")
def evaluator(dense_model: MorphableModel) -> Evaluator:
    return Evaluator(MorphableModel.load(level=2), dense_model, EvaluationSettings(icp_points=400))


@pytest.fixture(scope="session")
def sample(evaluator: Evaluator) -> Sample:
    """A face from outside the model's span, on grey pictures."""
    population = FacePopulation.load()
    rng = np.random.default_rng(11)
    subject, expression = population.sample_subject(rng), population.sample_expression(rng)
    scan = population.vertices(subject, expression, level=2)
    return Sample(
        sample_id="s<1>",
        subject_id="p1",
        expression_id="e1",
        view_names=("left", "front", "right"),
        view_yaws=np.radians([-45, 0, 45]).astype(np.float32),
        images=np.full((3, 32, 32, 3), 120, np.uint8),
        masks=np.ones((3, 32, 32), np.uint8),
        landmarks_2d=np.full((3, 68, 2), 16, np.float32),
        landmarks_2d_weights=np.ones((3, 68), np.float32),
        intrinsics=np.tile(default_intrinsics(32).numpy(), (3, 1, 1)),
        scan_vertices=scan,
        scan_triangles=evaluator.model.triangles.numpy().astype(np.int32),
        scan_landmarks_7=scan[evaluator.model.landmarks_7.numpy()],
        dense_vertices=population.vertices(subject, expression, level=1),
    )
