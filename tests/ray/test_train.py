from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from dfmvr.config import Settings, config_hash, dump_settings
from dfmvr.data import storage
from dfmvr.data.manifest import read_manifest
from dfmvr.data.settings import DataSettings
from dfmvr.networks.settings import NetworkSettings
from dfmvr.networks.weights import load_model
from dfmvr.training.optim import OptimiserSettings
from dfmvr.training.step import TrainingSettings
from ray_jobs.monitor import Event
from ray_jobs.runs import Run, checkpoint_names, checkpoint_state, new_run, open_run
from ray_jobs.train import (
    STOPPED,
    Outcome,
    TrainingFailedError,
    check_data,
    finish,
    is_finished,
    main,
    parse,
    train,
)

CHECKPOINT_EVERY = 3
STEPS_PER_EPOCH = 12
Watched = tuple[Run, Outcome, list[Event]]


def tiny_settings(dataset: Path, runs: Path | str) -> Settings:
    return Settings(
        name="tiny",
        data=DataSettings(uri=str(dataset), image_size=32, batch_size=2, shuffle_rows=16),
        network=NetworkSettings(width=1 / 16, landmark_maps=True),
        optimiser=OptimiserSettings(learning_rate=1e-3, warmup_steps=2),
        training=TrainingSettings(
            epochs=3,
            workers=2,
            cpus_per_worker=0.5,
            runs=str(runs),
            checkpoint_every_steps=CHECKPOINT_EVERY,
            render_from=0.5,
        ),
    )


def again(run: Run, runs: Path, run_id: str) -> Run:
    """A new run of the same settings."""
    training = dataclasses.replace(run.settings.training, runs=str(runs))
    return new_run(dataclasses.replace(run.settings, training=training), run_id)


def train_and_watch(
    run: Run, react: Callable[[Event], None] = lambda event: None, stop: threading.Event | None = None
) -> Watched:
    events: list[Event] = []

    def watch(event: Event) -> None:
        events.append(event)
        react(event)

    train(run, read_manifest(run.settings.data.uri), stop, watch)
    return run, finish(run), events


def losses_by_step(events: list[Event]) -> dict[int, float]:
    return {event.step: event.values["loss"] for event in events if event.kind == "step"}


@pytest.fixture(scope="module")
def finished(ray_cluster: None, s3_server: str, small_dataset: Path) -> Watched:
    """A run that nothing has disturbed, kept in object storage."""
    return train_and_watch(new_run(tiny_settings(small_dataset, f"{s3_server}/train"), "finished"))


@pytest.mark.ray
def test_a_run_leaves_what_the_other_jobs_need(finished: Watched, tmp_path: Path) -> None:
    run, outcome, events = finished
    assert outcome.complete
    assert is_finished(run)
    assert outcome.metrics["step"] == 3 * STEPS_PER_EPOCH
    assert [event.step for event in events if event.kind == "step"] == list(range(1, 3 * STEPS_PER_EPOCH + 1))
    rendered = [event.step for event in events if "loss/photo" in event.values]
    assert rendered == list(range(3 * STEPS_PER_EPOCH // 2 + 1, 3 * STEPS_PER_EPOCH + 1))
    assert open_run(run.uri) == run
    metrics = json.loads(storage.read_bytes(run.path("metrics.json")))["training"]
    assert [epoch["epoch"] for epoch in metrics["history"]] == [1, 2, 3]
    assert metrics["best"]["val_loss"] == min(epoch["val_loss"] for epoch in metrics["history"])
    assert any("events.out.tfevents." in uri for uri in storage.list_files(run.path("logs")))
    for uri in storage.list_files(run.path("model")):
        (tmp_path / uri.rpartition("/")[2]).write_bytes(storage.read_bytes(uri))
    _, card = load_model(tmp_path)
    assert card.weights_hash == metrics["weights_hash"]
    assert card.metrics["val_loss"] == metrics["best"]["val_loss"]
    assert metrics["config_hash"] == config_hash(run.settings), "the run's settings, wherever its data lie"
    assert metrics["history"][0]["val_loss"] > 1.03 * metrics["history"][-1]["val_loss"], "it has learnt"
    # Those kept for their validation loss, and perhaps the newest; those inside epochs are gone.
    assert len(checkpoint_names(run.checkpoints)) <= run.settings.training.keep + 1


@pytest.mark.ray
def test_a_killed_worker_costs_at_most_one_checkpoint_interval(finished: Watched, tmp_path: Path) -> None:
    undisturbed = finished[1].metrics["history"][-1]["val_loss"]
    run = again(finished[0], tmp_path, "killed")
    pids: list[int] = []
    killed_at: list[int] = []

    def kill(event: Event) -> None:
        if event.kind == "start":
            pids.append(int(event.values["pid"]))
        if event.kind == "step" and event.step > 3 * STEPS_PER_EPOCH // 2 + 1 and not killed_at:
            killed_at.append(event.step)
            os.kill(pids[0], signal.SIGKILL)

    _, outcome, events = train_and_watch(run, kill)
    starts = [event for event in events if event.kind == "start"]
    assert len(starts) == 2, "the kill came after the last step"
    assert starts[1].step >= killed_at[0] - CHECKPOINT_EVERY
    assert outcome.metrics["step"] == 3 * STEPS_PER_EPOCH
    assert outcome.metrics["history"][-1]["val_loss"] == pytest.approx(undisturbed, rel=0.01)
    expected = losses_by_step(finished[2])
    again_done = losses_by_step(events[events.index(starts[1]) :])
    assert len(again_done) >= STEPS_PER_EPOCH
    for step, loss in again_done.items():
        assert loss == pytest.approx(expected[step], rel=1e-5), f"step {step}"


@pytest.mark.slow
@pytest.mark.ray
def test_a_worker_that_hangs_is_named_and_replaced(finished: Watched, tmp_path: Path) -> None:
    settings = finished[0].settings
    training = dataclasses.replace(settings.training, runs=str(tmp_path), epochs=2, hang_timeout_s=25)
    run = new_run(dataclasses.replace(settings, training=training), "hung")
    pids: list[int] = []

    def hang(event: Event) -> None:
        if event.kind == "start":
            pids.append(int(event.values["pid"]))
        if event.kind == "step" and event.step == CHECKPOINT_EVERY + 1 and len(pids) == 1:
            os.kill(pids[0], signal.SIGSTOP)

    _, outcome, events = train_and_watch(run, hang)
    assert len(pids) == 2
    told = [event.message for event in events if event.kind == "warning" and "no answer" in event.message]
    assert len(told) == 1
    assert "no answer within 25 s" in told[0]
    assert "from rank 0" in told[0]
    assert outcome.metrics["step"] == 2 * STEPS_PER_EPOCH


@pytest.mark.ray
def test_steps_that_are_not_finite_name_rank_samples_and_term(finished: Watched, tmp_path: Path) -> None:
    settings = finished[0].settings
    run = new_run(
        dataclasses.replace(
            settings,
            optimiser=OptimiserSettings(learning_rate=1e30, warmup_steps=0, final_learning_rate=0.0),
            training=dataclasses.replace(settings.training, runs=str(tmp_path), max_skipped_in_a_row=4),
        ),
        "diverged",
    )
    events: list[Event] = []
    with pytest.raises(TrainingFailedError, match="4 steps in a row were not finite"):
        train(run, read_manifest(run.settings.data.uri), watch=events.append)
    told = [event.message for event in events if "skipped: rank" in event.message]
    assert any("rank 0, term" in text for text in told)
    assert all(re.search(r"samples s\d{3}-e00, s\d{3}-e00", text) for text in told)
    kept = sorted(Path(run.path("logs")).glob("not-finite-*-rank0.safetensors"))
    assert len(kept) == 3
    with safe_open(kept[0], "pt") as batch:
        assert batch.get_tensor("0/images").shape == (2, 3, 3, 32, 32)
        assert batch.metadata()["0/sample_ids"].count("\n") == 1


@pytest.mark.slow
@pytest.mark.ray
def test_a_stopped_run_goes_on_where_it_was(finished: Watched, tmp_path: Path) -> None:
    undisturbed = finished[1].metrics["history"][-1]["val_loss"]
    run = again(finished[0], tmp_path, "stopped")
    stop = threading.Event()
    _, outcome, _ = train_and_watch(run, lambda event: stop.set() if event.kind == "step" else None, stop)
    assert not outcome.complete
    assert not is_finished(run)
    stopped_at = outcome.metrics["step"]
    assert 1 <= stopped_at < 3 * STEPS_PER_EPOCH
    assert checkpoint_state(run.checkpoints, checkpoint_names(run.checkpoints)[-1]).step == stopped_at
    _, outcome, events = train_and_watch(open_run(run.uri))
    assert events[0].kind == "start"
    assert events[0].step == stopped_at
    assert outcome.metrics["step"] == 3 * STEPS_PER_EPOCH
    assert outcome.metrics["history"][-1]["val_loss"] == pytest.approx(undisturbed, rel=0.01)


@pytest.mark.slow
@pytest.mark.ray
def test_ctrl_c_leaves_a_checkpoint(small_dataset: Path, tmp_path: Path) -> None:
    settings = tiny_settings(small_dataset, tmp_path / "runs")
    training = dataclasses.replace(settings.training, epochs=1000, cpus_per_worker=0.0)
    (tmp_path / "c.yaml").write_text(dump_settings(dataclasses.replace(settings, training=training)))
    command = [
        sys.executable,
        "-m",
        "ray_jobs.train",
        "--config",
        str(tmp_path / "c.yaml"),
        "--run-id",
        "mine",
    ]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 300
        while "epoch 1:" not in (tmp_path / "log").read_text():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == STOPPED
    run = open_run(str(tmp_path / "runs" / "mine"))
    newest = checkpoint_state(run.checkpoints, checkpoint_names(run.checkpoints)[-1])
    assert (
        f"stopped; go on with --resume {run.uri}: {newest.epoch} epochs, {newest.step} steps"
        in (tmp_path / "log").read_text()
    )
    load_model(tmp_path / "runs" / "mine" / "model")


def test_wrong_settings_are_told_before_ray_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_jobs.train.scaling.init_ray", lambda address: pytest.fail("Ray was started"))
    config = tmp_path / "c.yaml"
    config.write_text(f"training: {{runs: {tmp_path}/runs}}\ndata: {{uri: {tmp_path}/nothing}}\n")
    assert main(["--config", str(config), "training.epoch=3"]) == 1
    assert "there is no setting 'training.epoch'; did you mean 'training.epochs'" in capsys.readouterr().err
    assert main(["--config", str(config)]) == 1
    assert f"no complete data set at {tmp_path}/nothing" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("complete", "status", "words"),
    [(True, 0, ""), (False, 1, "error: the end was reached but not stored")],
)
def test_an_end_that_could_not_be_stored_is_no_success(
    small_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    complete: bool,
    status: int,
    words: str,
) -> None:
    (tmp_path / "c.yaml").write_text(dump_settings(tiny_settings(small_dataset, tmp_path)))
    metrics = {"epochs": 3, "step": 36, "seconds": 9.0, "skipped_steps": 0, "failed_checkpoints": 1}
    outcome = Outcome({**metrics, "best_checkpoint": "e3", "best": {}}, "model", complete)
    monkeypatch.setattr("ray_jobs.train.scaling.init_ray", lambda address: None)
    monkeypatch.setattr("ray_jobs.train.train", lambda *arguments: None)
    monkeypatch.setattr("ray_jobs.train.finish", lambda run: outcome)
    monkeypatch.setattr("ray_jobs.train.stop_on_signals", lambda stop: None)
    assert main(["--config", str(tmp_path / "c.yaml")]) == status
    told = capsys.readouterr()
    assert words in told.err
    assert "failed checkpoints: 1" in told.out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": DataSettings(image_size=64)}, r"data\.image_size: expected 32 as in .*, got 64"),
        (
            {"network": NetworkSettings(n_views=2)},
            r"network\.n_views: expected 3, one for each of data\.views, got 2",
        ),
        (
            {"data": DataSettings(image_size=32, missing_view_share=0.3, tell_missing_views=True)},
            r"data\.tell_missing_views: expected false as network\.view_flags, got true",
        ),
        (
            {"data": DataSettings(image_size=32, fewest_views=1)},
            r"data\.fewest_views: expected 0 for a network whose views have their places, .*, got 1",
        ),
        ({"data": DataSettings(image_size=40)}, r"data\.image_size: expected a multiple of 16, .*, got 40"),
        ({"training": TrainingSettings(workers=9)}, r"expected at least one validation row a worker, got 8"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(
    small_dataset: Path, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    settings = dataclasses.replace(tiny_settings(small_dataset, tmp_path), **change)  # type: ignore[arg-type]
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, uri=str(small_dataset)))
    with pytest.raises(ValueError, match=words):
        check_data(settings)


def test_a_dry_run_tells_what_a_step_costs(
    tmp_path: Path, small_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(dump_settings(tiny_settings(tmp_path / "no-data", tmp_path)))
    assert main(["--config", str(tmp_path / "c.yaml"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for words in ("parameters, all", "GMAC", "step of 2 samples, cpu", "MiB", "GiB in bf16", "(estimate:"):
        assert words in printed
    assert not (tmp_path / "no-data").exists()


def test_the_command_line_is_frozen(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = parse(["--config", "c.yaml", "a=1", "--run-id", "mine", "b=2"])
    assert vars(arguments) == {
        "config": "c.yaml", "resume": None, "run_id": "mine", "dry_run": False, "address": None,
        "overrides": ["a=1", "b=2"],
    }  # fmt: skip
    for wrong in (
        ["--config", "c", "--resume", "r"],
        [],
        ["--resume", "r", "--run-id", "x"],
        ["--resume", "r", "--dry-run"],
    ):
        with pytest.raises(SystemExit):
            parse(wrong)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert "examples:" in capsys.readouterr().out
