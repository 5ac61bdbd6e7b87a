"""A run that makes its samples on the fly: no data set anywhere."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest

from dfmvr.config import Settings, load_settings
from dfmvr.data.settings import DataSettings
from dfmvr.networks.settings import NetworkSettings
from dfmvr.training.optim import OptimiserSettings
from dfmvr.training.step import TrainingSettings
from ray_jobs.monitor import Event
from ray_jobs.runs import Run, new_run, open_run
from ray_jobs.train import Outcome, check_data, finish, train

CONFIG = Path(__file__).parents[2] / "configs" / "beyond" / "on_the_fly.yaml"
# Enough steps that a request to stop arrives well before the last.
EPOCHS, STEPS = 2, 16


def tiny_settings(runs: Path) -> Settings:
    settings = load_settings(CONFIG)
    return dataclasses.replace(
        settings,
        data=DataSettings(uri=str(runs / "no-data"), on_the_fly=True, image_size=32, batch_size=2),
        synthetic=dataclasses.replace(
            settings.synthetic, n_subjects=12, split_shares=(0.7, 0.3, 0.0), expressions_per_subject=8
        ),
        network=NetworkSettings(width=1 / 16),
        optimiser=OptimiserSettings(learning_rate=1e-3, warmup_steps=2),
        training=TrainingSettings(
            epochs=EPOCHS, workers=2, cpus_per_worker=0.5, runs=str(runs), render_from=0.5
        ),
    )


def train_and_watch(run: Run, stop_at: int = 0) -> tuple[Outcome, dict[int, float]]:
    """Train to the end, or to a step; return also the losses by step."""
    stop, losses = threading.Event(), {}

    def watch(event: Event) -> None:
        if event.kind == "step":
            losses[event.step] = event.values["loss"]
            if event.step == stop_at:
                stop.set()

    train(run, check_data(run.settings), stop, watch)
    return finish(run), losses


def test_nothing_is_read_to_plan_a_run(tmp_path: Path) -> None:
    assert check_data(tiny_settings(tmp_path)).rows == {"train": 67, "validation": 29, "test": 0}


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_without_a_data_set_is_validated_and_goes_on_exactly(ray_cluster: None, tmp_path: Path) -> None:
    outcome, losses = train_and_watch(new_run(tiny_settings(tmp_path / "a"), "whole"))
    assert outcome.complete
    assert sorted(losses) == list(range(1, EPOCHS * STEPS + 1))
    figures = outcome.metrics["history"][-1]
    assert 1 < figures["val_mean_face_mm"] < 10
    assert 1 < figures["val_dense_mm"] < 10
    cut = new_run(tiny_settings(tmp_path / "b"), "cut")
    outcome, before = train_and_watch(cut, stop_at=2)
    assert not outcome.complete
    outcome, after = train_and_watch(open_run(cut.uri))
    assert outcome.complete
    assert before | after == pytest.approx(losses, rel=1e-4)
    again = outcome.metrics["history"][-1]["val_dense_mm"]
    assert again == pytest.approx(figures["val_dense_mm"], rel=1e-3)
    assert not (tmp_path / "a" / "no-data").exists()
