"""Sweeps: what the parts decide, and whole sweeps of the smallest network."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from ray.tune.experiment import Trial
from torch import nn

from dfmvr.config import Settings, dump_settings, load_settings
from dfmvr.data import storage
from dfmvr.data.settings import DataSettings
from dfmvr.networks.settings import NetworkSettings
from dfmvr.training.checkpoint import TrainingState, save_checkpoint
from dfmvr.training.optim import OptimiserSettings, build_optimiser
from dfmvr.training.step import TrainingSettings
from ray_jobs.monitor import Event
from ray_jobs.runs import Run, newest_state
from ray_jobs.scaling import PreflightError
from ray_jobs.train import check_data
from ray_jobs.tune import build_scheduler, main, parse
from ray_jobs.tune_charts import parallel_coordinates, place
from ray_jobs.tune_progress import SweepProgress
from ray_jobs.tune_report import terminal_table, write_results
from ray_jobs.tune_results import Summary, TrialRow, comparable_figures, importance, merged_curve
from ray_jobs.tune_settings import TuneSettings
from ray_jobs.tune_space import Dimension
from ray_jobs.tune_sweep import Sweep, open_sweep
from ray_jobs.tune_trial import PACE_FILE, TRIAL_CPUS, Reports, TrialError, worker_cpus

EPOCHS = 8
PHOTO = Dimension("losses.photo", "log_uniform", 1.0, 100.0)


def sweep_of(folder: Path | str, **changes: Any) -> Sweep:
    space = {"losses.photo": {"log_uniform": [1, 100]}, "data.augment": {"choice": [True, False]}}
    tune = TuneSettings(**{"name": "mine", "space": space, "reduction": 2.0, **changes})
    base = Settings(name="tiny", training=TrainingSettings(epochs=EPOCHS, runs=str(folder)))
    return Sweep("s", f"{folder}/s", tune, {"base.yaml": base})


def row(number: int, *mm: float, status: str = "finished", **fields: Any) -> TrialRow:
    curve = tuple(enumerate(mm, start=1))
    point = {"losses.photo": float(number), "data.augment": number % 2 == 0}
    return TrialRow(f"t{number}", number, fields.pop("point", point), status, curve=curve, **fields)


# What the parts decide: without Ray


def test_an_epoch_that_the_scheduler_ended_before_its_checkpoint_is_kept():
    checkpointed = [{"epoch": 1, "val_dense_mm": 3.0}, {"epoch": 2, "train_loss": 1.0}]
    told = [
        {"epoch": 1, "val_dense_mm": 3.0},
        {"epoch": 2, "val_dense_mm": 2.5},
        {"epoch": 3, "val_dense_mm": math.nan},
    ]
    assert merged_curve(checkpointed, told) == ((1, 3.0), (2, 2.5))
    assert merged_curve([], told[:1]) == ((1, 3.0),)
    assert merged_curve([], []) == ()


def test_names_of_axes_do_not_meet():
    names = ["losses.photo", "losses.landmarks_2d", "losses.landmarks_3d"]
    dimensions = [Dimension(name, "log_uniform", 1.0, 100.0) for name in names]
    trial = row(1, 3.0, point=dict.fromkeys(names, 10.0))
    drawn = re.findall(
        r'class="strong" x="([0-9.]+)" y="([0-9.]+)"[^>]*>([^<]+)<', parallel_coordinates(dimensions, [trial])
    )
    assert [name for _, _, name in drawn] == ["photo", "landmarks_2d", "landmarks_3d", "mm"]
    assert drawn[0][1] != drawn[1][1]


@pytest.mark.parametrize(
    ("workers", "concurrent", "cluster", "expected"), [(1, 1, 2, 0.9), (1, 2, 2, 0.4), (2, 1, 3, 0.95)]
)
def test_trials_share_what_reading_leaves(
    workers: int, concurrent: int, cluster: int, expected: float
) -> None:
    each = worker_cpus(TrainingSettings(workers=workers), concurrent, {"CPU": float(cluster)})
    assert each == expected
    assert concurrent * (workers * each + TRIAL_CPUS) + 1 <= cluster + 1e-9


@pytest.mark.parametrize(
    ("training", "concurrent", "words"),
    [
        (TrainingSettings(cpus_per_worker=1.0), 1, "1 trials at a time, each of 2 .*more than 2 CPUs"),
        (TrainingSettings(workers=1), 10, "10 trials at a time, each of 1 workers"),
        (TrainingSettings(workers=1, use_gpu=True), 2, r"use_gpu: expected 2 GPUs.*got 1"),
    ],
)  # fmt: skip
def test_a_cluster_that_is_too_small_is_told(training: TrainingSettings, concurrent: int, words: str) -> None:
    with pytest.raises(PreflightError, match=words):
        worker_cpus(training, concurrent, {"CPU": 2.0, "GPU": 1.0})


def trial_run(folder: Path) -> Run:
    return Run("t1", str(folder), Settings())


def epoch_event(epoch: int, **values: float) -> Event:
    return Event("epoch", 12 * epoch, epoch, {"val_loss": 9.0, **values})


def test_validated_epochs_are_reported_with_pace_and_start(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    reports = Reports(trial_run(tmp_path), ("val_dense_mm", "step_ms"), told.append)
    reports(Event("start", 0, 0))
    reports(Event("step", 1, 0, {"step_ms": 5.0}))
    reports(Event("epoch", 12, 1, {"train_loss": 3.0}))
    reports(epoch_event(2, val_dense_mm=1.5))
    assert [(t["epoch"], t["val_dense_mm"], t["step_ms"]) for t in told] == [(2, 1.5, 5.0)]
    assert 0 <= told[0]["startup_seconds"] < 60
    assert not reports.stop.is_set()


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"val_dense_mm": math.nan}, r"val_dense_mm: expected a finite figure after epoch 1, got nan"),
        ({}, r"val_dense_mm: expected it among the validation's figures, got val_loss"),
    ],
)
def test_a_trial_without_a_finite_figure_ends_with_the_reason(
    tmp_path: Path, figures: dict[str, float], words: str
) -> None:
    reports = Reports(trial_run(tmp_path), ("val_dense_mm",), lambda figures: pytest.fail("reported"))
    reports(epoch_event(1, **figures))
    assert reports.stop.is_set()
    with pytest.raises(TrialError, match=words):
        raise cast(BaseException, reports.error)


def test_tunes_wish_to_stop_stops_training_and_nothing_more_is_reported(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []

    def stop(figures: dict[str, Any]) -> None:
        told.append(figures)
        raise SystemExit(0)

    reports = Reports(trial_run(tmp_path), ("val_dense_mm",), stop)
    for epoch in (1, 2):
        reports(epoch_event(epoch, val_dense_mm=1.0))
    assert len(told) == 1
    assert reports.stop.is_set()
    assert isinstance(reports.error, SystemExit)


def test_a_run_that_goes_on_tells_its_newest_epoch_again(tmp_path: Path) -> None:
    run, network = trial_run(tmp_path), nn.Linear(1, 1)
    figures = ({"epoch": 4.0, "val_loss": 9.0, "val_dense_mm": 1.25},)
    state = TrainingState("t1", epoch=4, history=figures)
    save_checkpoint(
        tmp_path / "checkpoints" / state.name, network, build_optimiser(network, OptimiserSettings()), state
    )
    storage.write_bytes(run.path(PACE_FILE), b'{"step_ms": 7.0, "startup_seconds": 30.0}')
    told: list[dict[str, Any]] = []
    Reports(run, ("val_dense_mm", "step_ms"), told.append).tell_newest()
    assert [(t["epoch"], t["val_dense_mm"], t["step_ms"]) for t in told] == [(4, 1.25, 7.0)]


@pytest.mark.parametrize(("name", "most"), [("asha", 0.5), ("median", 0.75), ("none", 1.0)])
def test_early_stopping_saves_epochs_and_keeps_the_best(tmp_path: Path, name: str, most: float) -> None:
    """Eight made-up trials, one after another, of eight epochs each; the first, the base, is a good one."""
    shares = []
    rng = np.random.default_rng(0)
    for _ in range(50):
        scheduler = build_scheduler(sweep_of(tmp_path, scheduler=name, reduction=3.0))
        controller: Any = SimpleNamespace(get_live_trials=list)
        ends = rng.uniform(1.0, 2.0, 8)
        ends[0] = rng.uniform(1.0, 1.3)
        done = []
        for index, end in enumerate(ends):
            trial: Any = FakeTrial(str(index))
            scheduler.on_trial_add(controller, trial)
            for epoch in range(1, EPOCHS + 1):
                result = {"epoch": epoch, "val_dense_mm": end + 1 / epoch}
                if scheduler.on_trial_result(controller, trial, result) == "STOP":
                    break
            scheduler.on_trial_complete(controller, trial, result)
            done.append(epoch)
        assert done[int(np.argmin(ends))] == EPOCHS
        shares.append(sum(done) / (8 * EPOCHS))
    assert most - 0.25 < np.quantile(shares, 0.9) <= most


class FakeTrial:
    def __init__(self, trial_id: str) -> None:
        self.trial_id, self.status = trial_id, "RUNNING"


def test_no_trial_is_judged_before_its_grace_is_over(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"grace_epochs: expected less than the trials' 8 epochs, got 8"):
        build_scheduler(sweep_of(tmp_path, grace_epochs=8))


def test_figures_are_compared_at_an_epoch_that_half_of_the_trials_reached() -> None:
    trials = [row(1, 3.0, 2.0, 1.0), row(2, 4.0, 2.5), row(3, 5.0, status="stopped"), row(4, status="failed")]
    values, epoch, comparable = comparable_figures(trials)
    assert (values, epoch, [trial.number for trial in comparable]) == ([2.0, 2.5], 2, [1, 2])
    assert comparable_figures([row(1)]) == ([], 0, [])


def test_importance_tells_what_orders_the_trials() -> None:
    rng = np.random.default_rng(0)
    photos = [float(value) for value in rng.uniform(1, 100, 40)]
    choice = Dimension("data.augment", "choice", choices=(True, False))
    points: list[Any] = [
        {"losses.photo": value, "data.augment": index % 2 == 0} for index, value in enumerate(photos)
    ]
    assert importance(PHOTO, points, [-(value**3) for value in photos]) == pytest.approx(1)
    assert importance(choice, points, photos) < 0.35
    assert (
        importance(choice, points, [10.0 * (index % 2) + value / 100 for index, value in enumerate(photos)])
        > 0.8
    )
    assert math.isnan(importance(PHOTO, points[:3], photos[:3]))
    assert math.isnan(importance(PHOTO, [{}] * 40, photos))


def test_the_best_is_a_finished_trial_and_the_front_trades_objectives() -> None:
    trials = (
        row(1, 2.0, 1.5, step_ms=9.0), row(2, 2.0, 1.2, step_ms=20.0), row(3, 0.5, status="stopped"),
        row(4, 2.0, 1.6, step_ms=9.0), row(5, status="failed", reason="NonFiniteLossError: x"),
    )  # fmt: skip
    summary = Summary(trials, count=5, epochs=2, objectives=("val_dense_mm", "step_ms"))
    assert summary.best is trials[1]
    assert summary.front == {"t1", "t2"}
    assert (summary.complete, summary.epochs_done) == (True, 7)
    assert not dataclasses.replace(summary, count=6).complete
    assert not dataclasses.replace(summary, trials=(row(1, status="unfinished"),), count=1).complete


def test_places_on_an_axis() -> None:
    assert place(PHOTO, 10.0) == pytest.approx(0.5)
    assert place(Dimension("a", "uniform", 2.0, 4.0), 2.5) == pytest.approx(0.25)
    assert place(Dimension("a", "choice", choices=("x", "y", "z")), "z") == 1


def test_the_report_has_settings_curves_cost_and_a_file_that_train_takes(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, trials=3)
    trials = (
        row(1, *[2.0] * EPOCHS, seconds=3600.0, cpus=2.0),
        row(2, *[2.0 - 0.1 * e for e in range(EPOCHS)], startup_seconds=30.0),
        row(3, 2.5, status="stopped", point={"losses.photo": 50.0, "data.augment": True}),
        row(4, status="failed", reason="TrainingFailedError: <no luck>"),
    )
    summary = Summary(trials, 4, EPOCHS, ("val_dense_mm",), {"losses.photo": 0.7}, 1)
    write_results(sweep, summary)
    best = load_settings(sweep.path("best.yaml"))
    assert best == dataclasses.replace(sweep.settings_at(trials[1].point), name="tiny-mine")
    assert best.losses.photo == 2.0
    metrics = json.loads(storage.read_bytes(sweep.path("metrics.json")))
    assert (metrics["best_trial"], metrics["epochs_done"], metrics["epochs_full"]) == ("t2", 17, 32)
    assert metrics["cpu_hours"] == pytest.approx(2)
    page = storage.read_bytes(sweep.path("report.html")).decode()
    assert page.count('<polyline class="trial finished"') == 2 * 2
    assert page.count('<polyline class="trial stopped"') == 2
    assert page.count('<circle class="end"') == 1
    assert "TrainingFailedError: &lt;no luck&gt;" in page
    assert "<no luck>" not in page
    assert "$" not in page
    assert "17 of 32 (53%)" in page
    table = terminal_table(sweep, summary).splitlines()
    assert [line.split()[0] for line in table[1:5]] == ["2", "1", "3", "4"]


def test_the_command_line_is_frozen(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = parse(["--config", "c.yaml", "trials=8", "--sweep-id", "mine"])
    assert vars(arguments) == {
        "config": "c.yaml", "resume": None, "sweep_id": "mine", "address": None, "overrides": ["trials=8"],
    }  # fmt: skip
    for wrong in ([], ["--config", "c", "--resume", "r"], ["--resume", "r", "trials=8"]):
        with pytest.raises(SystemExit):
            parse(wrong)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert "examples:" in capsys.readouterr().out


def test_a_misspelt_space_and_missing_data_are_told_before_ray_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_jobs.tune.init_ray", lambda address: pytest.fail("Ray was started"))
    (tmp_path / "base.yaml").write_text(
        f"training: {{runs: {tmp_path}/runs}}\ndata: {{uri: {tmp_path}/none}}\n"
    )
    (tmp_path / "s.yaml").write_text("base: base.yaml\nspace: {losses.foto: {uniform: [1, 2]}}\n")
    assert main(["--config", str(tmp_path / "s.yaml")]) == 1
    assert "did you mean 'losses.photo'" in capsys.readouterr().err
    (tmp_path / "s.yaml").write_text("base: base.yaml\nspace: {losses.photo: {uniform: [1, 200]}}\n")
    assert main(["--config", str(tmp_path / "s.yaml")]) == 1
    assert f"no complete data set at {tmp_path}/none" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_sweep_that_goes_on_keeps_the_order_of_its_trials(tmp_path: Path) -> None:
    """Ray Tune restores the callback as it was before the first trial started."""
    sweep = sweep_of(tmp_path)
    first = SweepProgress(sweep, 3)
    pickled = pickle.dumps(first)
    runs = {name: cast(Trial, SimpleNamespace(trial_id=name, config={})) for name in ("b", "a", "c")}
    first.setup()
    for name in ("b", "a"):
        first.on_trial_start(0, [], runs[name])
    again = pickle.loads(pickled)
    again.setup()
    for name in ("a", "c"):
        again.on_trial_start(0, [], runs[name])
    assert sweep.trial_order() == ["b", "a", "c"]


# Whole sweeps, on Ray


def write_sweep_file(folder: Path, dataset: Path, runs: str, text: str) -> str:
    base = Settings(
        name="tiny",
        data=DataSettings(uri=str(dataset), image_size=32, batch_size=4, shuffle_rows=16),
        network=NetworkSettings(width=1 / 16, regressor_width=1 / 8),
        optimiser=OptimiserSettings(learning_rate=1e-3, warmup_steps=2),
        training=TrainingSettings(epochs=3, workers=1, runs=runs, render_from=0.9),
    )
    (folder / "base.yaml").write_text(dump_settings(base))
    (folder / "sweep.yaml").write_text(f"name: mini\nbase: base.yaml\n{text}")
    return str(folder / "sweep.yaml")


@pytest.mark.ray
def test_a_sweep_goes_on_past_failures_and_leaves_the_best_settings(
    ray_cluster: None,
    s3_server: str,
    small_dataset: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A grid in object storage: a good trial, one of a deadly step length, one that does not fit the data."""
    text = (
        "searcher: grid\nscheduler: none\nspace:\n"
        "  data.image_size: {choice: [32, 64]}\n"
        "  optimiser.learning_rate: {choice: [1.0e+30, 1.0e-3], when: {data.image_size: 32}}\n"
    )
    path = write_sweep_file(tmp_path, small_dataset, f"{s3_server}/sweeps", text)
    assert main(["--config", path, "--sweep-id", "mini"]) == 0
    printed = capfd.readouterr().out
    sweep = open_sweep(f"{s3_server}/sweeps/mini")
    metrics = json.loads(storage.read_bytes(sweep.path("metrics.json")))
    assert [trial["status"] for trial in metrics["trials"]] == ["failed", "finished", "failed"]
    assert "NonFiniteLossError" in metrics["trials"][0]["reason"]
    assert "data.image_size: expected 32" in metrics["trials"][2]["reason"]
    good = metrics["trials"][1]
    assert metrics["best_trial"] == good["id"]
    assert [epoch for epoch, _ in good["curve"]] == [1, 2, 3]
    assert f"{good['id']} epoch 3: {good['curve'][-1][1]:.3f} mm" in printed
    (tmp_path / "best.yaml").write_bytes(storage.read_bytes(sweep.path("best.yaml")))
    best = load_settings(tmp_path / "best.yaml")
    assert best.optimiser.learning_rate == 1e-3
    assert check_data(best).rows["train"] == 48
    assert storage.exists(sweep.path("trials", good["id"], "model", "model.json"))
    assert "polyline" in storage.read_bytes(sweep.path("report.html")).decode()


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_sweep_goes_on_where_it_was(small_dataset: Path, tmp_path: Path) -> None:
    space = "space: {losses.landmarks_3d: {log_uniform: [0.5, 2]}}\n"
    text = f"searcher: random\nscheduler: none\ntrials: 3\n{space}"
    path = write_sweep_file(tmp_path, small_dataset, f"{tmp_path}/runs", text)
    command = [sys.executable, "-m", "ray_jobs.tune"]
    first = tmp_path / "first.log"
    with first.open("w") as log:
        process = subprocess.Popen(
            [*command, "--config", path, "--sweep-id", "mine", "settings.training.epochs=12"],
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 500
        while not re.search(r"trial 2 of 3 \((\w+)\)[^$]* \1 epoch 2:", first.read_text()):
            assert process.poll() is None, first.read_text()
            assert time.monotonic() < deadline, first.read_text()
            time.sleep(0.2)
        process.kill()
        process.wait()
    ids = re.findall(r"trial \d of 3 \((\w+)\)", first.read_text())
    run = f"{tmp_path}/runs/mine/trials"
    finished = newest_state(f"{run}/{ids[0]}/checkpoints")
    done = [int(epoch) for epoch in re.findall(rf"{ids[1]} epoch (\d+)", first.read_text())]
    second = subprocess.run(
        [*command, "--resume", f"{tmp_path}/runs/mine"],
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert second.returncode == 0, second.stdout + second.stderr
    assert newest_state(f"{run}/{ids[0]}/checkpoints") == finished, "it was run again"
    told = [int(epoch) for epoch in re.findall(rf"{ids[1]} epoch (\d+)", second.stdout)]
    assert told[0] >= done[-1], "it began anew"
    assert told[-1] == 12
    metrics = json.loads((tmp_path / "runs" / "mine" / "metrics.json").read_text())
    assert [trial["status"] for trial in metrics["trials"]] == ["finished"] * 3
    assert [trial["id"] for trial in metrics["trials"]][: len(ids)] == ids, "another order"
    for trial in metrics["trials"]:
        assert [epoch for epoch, _ in trial["curve"]] == list(range(1, 13))
