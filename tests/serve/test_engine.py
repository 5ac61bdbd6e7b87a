"""Where a replica's model comes from, and how the application is laid out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dfmvr.data import storage
from dfmvr.morphable.model import MorphableModel
from dfmvr.networks import NetworkSettings, build_network
from dfmvr.networks.weights import CARD_FILE, WEIGHTS_FILE, ModelCard, WeightsError, save_model
from dfmvr.predictor import SHIPPED_MODEL, Photo
from dfmvr.types import NINE_VIEWS
from serve.app import build
from serve.engine import Engine
from serve.settings import ServeSettings


@pytest.fixture(scope="module")
def bucket_model(s3_server: str) -> str:
    uri = f"{s3_server}/served/model"
    for name in (CARD_FILE, WEIGHTS_FILE):
        storage.write_bytes(storage.join(uri, name), (SHIPPED_MODEL / name).read_bytes())
    return uri


def test_the_model_comes_from_a_bucket(bucket_model: str, engine: Engine):
    served = Engine(
        ServeSettings(model=bucket_model, landmarks="none", model_hash=engine.predictor.weights_hash)
    )
    assert served.predictor.weights_hash == engine.predictor.weights_hash
    served.check()


def test_another_model_than_the_named_one_is_refused(bucket_model: str):
    with pytest.raises(
        WeightsError, match=f"expected weights of SHA-256 {'0' * 64}, got [0-9a-f]{{64}} in s3://"
    ):
        Engine(ServeSettings(model=bucket_model, landmarks="none", model_hash="0" * 64))


def test_changed_weights_are_refused(tmp_path: Path):
    for name in (CARD_FILE, WEIGHTS_FILE):
        (tmp_path / name).write_bytes((SHIPPED_MODEL / name).read_bytes())
    weights = bytearray((tmp_path / WEIGHTS_FILE).read_bytes())
    weights[-1] ^= 1
    (tmp_path / WEIGHTS_FILE).write_bytes(weights)
    with pytest.raises(WeightsError):
        Engine(ServeSettings(model=str(tmp_path), landmarks="none"))


def test_a_model_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(WeightsError, match=f"{tmp_path}.*no such file"):
        Engine(ServeSettings(model=str(tmp_path), landmarks="none"))


def test_faces_of_one_to_three_views_are_computed_together(tmp_path: Path):
    settings = NetworkSettings("set_rednet", width=1 / 16, n_views=9, view_flags=True)
    face_model = MorphableModel.load(level=1).hash
    card = ModelCard(settings, 64, NINE_VIEWS, face_model, 1, "test", 0, "", "CC0-1.0")
    torch.manual_seed(0)
    save_model(tmp_path, build_network(settings), card)
    engine = Engine(ServeSettings(model=str(tmp_path), landmarks="none"))
    noise = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), np.uint8)
    given = [("front",), ("left", "front", "right"), ("front",)]
    views = [engine.prepare({name: Photo(noise[k]) for name in names}) for k, names in enumerate(given)]
    together = engine.predict(views)
    for face, alone in zip(together, [engine.predict([item])[0] for item in views], strict=True):
        torch.testing.assert_close(face.params.identity, alone.params.identity, rtol=0, atol=1e-4)
        assert face.landmarks_2d.shape == alone.landmarks_2d.shape


def deployment_options(**settings: Any) -> Any:
    return build(settings)._bound_deployment


def test_settings_reach_the_deployment():
    fixed = deployment_options(min_replicas=2, max_replicas=2, cpus=0.5, queue=10)
    assert fixed.num_replicas == 2
    assert fixed.ray_actor_options["num_cpus"] == 0.5
    assert fixed.max_ongoing_requests > 10
    scaled = deployment_options(
        max_replicas=3, target_ongoing_requests=2
    )._deployment_config.autoscaling_config
    assert (scaled.min_replicas, scaled.max_replicas, scaled.target_ongoing_requests) == (1, 3, 2)


def test_a_misspelt_setting_stops_the_start():
    with pytest.raises(ValueError, match="did you mean 'max_batch_size'"):
        build({"max_batchsize": 4})
