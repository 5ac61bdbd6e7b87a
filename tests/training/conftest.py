from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from dfmvr.data.collate import collate
from dfmvr.data.sample import Sample
from dfmvr.data.settings import DataSettings
from dfmvr.morphable.model import FaceModelSettings
from dfmvr.networks.settings import NetworkSettings
from dfmvr.reconstructor import Reconstructor, build_reconstructor
from dfmvr.types import ViewBatch

NETWORK = NetworkSettings(width=1 / 16)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors are small here: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def reconstructor() -> Reconstructor:
    torch.manual_seed(0)
    return build_reconstructor(NETWORK, FaceModelSettings()).train()


@pytest.fixture(scope="session")
def batch(make_sample: Callable[..., Sample]) -> ViewBatch:
    return collate([make_sample(0), make_sample(1)], DataSettings(image_size=32))
