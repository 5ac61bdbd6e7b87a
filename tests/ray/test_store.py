"""Real jobs on an object store: with faults, and from the data set to the report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dfmvr.config import Settings, dump_settings
from dfmvr.data import storage
from dfmvr.data.datasets.synthetic import SyntheticSettings
from dfmvr.data.rejects import Rejects
from dfmvr.data.sample import Sample
from dfmvr.data.settings import DataSettings
from dfmvr.evaluation.settings import EvaluationSettings
from dfmvr.networks.settings import NetworkSettings
from dfmvr.training.step import TrainingSettings
from ray_jobs import evaluate, make_dataset, train
from ray_jobs.reading import iterate_batches, training_dataset
from tests.conftest import ROWS, write_small_dataset
from tests.faults import TRANSIENT, faulty

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture
def folder(s3_server: str, tmp_path: Path) -> str:
    return f"{s3_server}/{tmp_path.name}-{os.getpid()}"


@pytest.mark.parametrize(
    ("share", "kinds", "epochs"), [(0.2, TRANSIENT, 2), (0.5, ["internal"], 1)], ids=["all kinds", "many 500"]
)
def test_every_row_comes_once_through_faults(
    share: float, kinds: list[str], epochs: int, folder: str, make_sample: Callable[..., Sample]
) -> None:
    write_small_dataset(folder, make_sample)
    settings = DataSettings(uri=folder, image_size=32, batch_size=4, shuffle_rows=16)
    rejects = Rejects(0.0, ROWS["train"])
    with faulty(share, kinds, delay=0.1) as store:
        shard = training_dataset(settings, "train", seed=7).iterator()
        for epoch in range(epochs):
            batches = iterate_batches(shard, settings, epoch=epoch, seed=7, rejects=rejects)
            names = [name for batch in batches for name in batch.sample_ids]
            assert sorted(names) == [f"s{k:03d}-e00" for k in range(ROWS["train"])]
    assert store.faults >= 5


@pytest.mark.slow
def test_data_set_training_and_report_on_an_object_store(folder: str, tmp_path: Path) -> None:
    settings = Settings(
        name="tiny",
        data=DataSettings(uri=f"{folder}/faces", image_size=32, batch_size=2, shuffle_rows=16),
        synthetic=SyntheticSettings(n_subjects=12, image_size=32, split_shares=(0.6, 0.2, 0.2)),
        network=NetworkSettings(width=1 / 16, landmark_maps=True),
        evaluation=EvaluationSettings(batch_size=2, gallery=1, icp_points=300, bootstrap_draws=100),
        training=TrainingSettings(epochs=1, workers=1, cpus_per_worker=1, runs=f"{folder}/runs"),
    )
    (tmp_path / "config.yaml").write_text(dump_settings(settings))
    config = ["--config", str(tmp_path / "config.yaml")]
    assert make_dataset.main(config) == 0
    assert train.main([*config, "--run-id", "mine"]) == 0
    assert evaluate.main(["--run", f"{folder}/runs/mine"]) == 0
    metrics = json.loads(storage.read_bytes(f"{folder}/runs/mine/metrics.json"))
    assert metrics["training"]["epochs"] == 1
    assert metrics["rmse_mm"]["network"] > 0
    assert storage.exists(f"{folder}/runs/mine/report.html")
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
