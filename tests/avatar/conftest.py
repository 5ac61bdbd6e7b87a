from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dfmvr.avatar.build import Avatar, pose_head
from dfmvr.avatar.head import Head, load_head
from dfmvr.avatar.texels import Texels, find_texels, in_regions


@pytest.fixture(scope="session")
def head() -> Head:
    return load_head()


@pytest.fixture(scope="session")
def identity() -> torch.Tensor:
    return torch.randn(80, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="session")
def avatar(head: Head, identity: torch.Tensor) -> Avatar:
    """Somebody, with a texture whose columns and rows can be told apart, of a photograph's size in bytes."""
    ramp = np.linspace(0, 255, 1024)
    noise = np.random.default_rng(0).normal(0, 4, (1024, 1024))
    texture = np.stack([np.tile(ramp, (1024, 1)), np.tile(ramp[:, None], (1, 1024)), 128 + noise], -1)
    return pose_head(head, identity, texture.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def texels(head: Head) -> Texels:
    """Of the relief's size."""
    return find_texels(head, 256)


@pytest.fixture(scope="session")
def relief(texels: Texels) -> np.ndarray:
    """Waves over the cheeks, 11 mm from crest to crest, [256, 256] mm."""
    size = len(texels.covered)
    rows, columns = np.mgrid[:size, :size] / size
    fade = sum(np.exp(-(((rows - 0.66) / 0.05) ** 2) - ((columns - u) / 0.05) ** 2) for u in (0.3, 0.7))
    waves = 0.4 * fade * np.sin(2 * np.pi * 21 * (rows + columns))
    return np.where(in_regions(texels, ("skin",)) & (fade > 0.02), waves, 0).astype(np.float32)


@pytest.fixture(scope="session")
def wrinkled(head: Head, identity: torch.Tensor, relief: np.ndarray) -> Avatar:
    """The same person, grey, with a relief."""
    return pose_head(head, identity, np.full((8, 8, 3), 128, np.uint8), relief)


@pytest.fixture(scope="session")
def node_package() -> Callable[[str], Path]:
    """Where a package of npm is: DFMVR_NODE_MODULES names the folder that `npm install NAME` filled; else the
    project's own node_modules. Without it, the test is skipped."""
    folder = Path(os.environ.get("DFMVR_NODE_MODULES", Path(__file__).parents[2] / "node_modules"))

    def find(name: str) -> Path:
        if shutil.which("node") is None or not (folder / name).is_dir():
            pytest.skip(f"expected node, and {name} in {folder} (DFMVR_NODE_MODULES names another folder)")
        return folder / name

    return find
