"""What the tests of preprocessing share: a real photograph, and faces whose landmarks are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dfmvr.geometry.camera import default_intrinsics, project, to_camera
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.morphable.model import MorphableModel

ProjectMean = Callable[[float, int], np.ndarray]


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """A portrait [512, 512, 3] RGB; the face is at about x 224, y 120."""
    from skimage.data import astronaut

    return astronaut()


@pytest.fixture(scope="session")
def astronaut_file(astronaut: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    cv2.imwrite(str(path), astronaut[..., ::-1])
    return path


@pytest.fixture(scope="session")
def project_mean() -> ProjectMean:
    """Return `project_mean(yaw_degrees, size)`: the mean face's landmarks [68, 2] in a crop."""
    model = MorphableModel.load(level=1)
    mean = model.mean_shape[model.landmarks_68]

    def project_at(yaw: float, size: int) -> np.ndarray:
        rotation = euler_to_matrix(torch.deg2rad(torch.tensor([0.0, yaw, 0.0])))
        camera = to_camera(mean, rotation, torch.zeros(3))
        return project(camera, default_intrinsics(size)).double().numpy()

    return project_at
