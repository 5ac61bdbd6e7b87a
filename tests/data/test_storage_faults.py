from __future__ import annotations

import contextlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch

from dfmvr.config import Settings, dump_settings
from dfmvr.data import storage
from dfmvr.data.settings import DataSettings
from dfmvr.networks.settings import NetworkSettings
from dfmvr.training.checkpoint import CheckpointError, TrainingState, read_state, save_checkpoint
from dfmvr.training.optim import OptimiserSettings, build_optimiser
from dfmvr.training.step import TrainingSettings
from ray_jobs import make_dataset, train
from ray_jobs.runs import (
    Run,
    checkpoint_names,
    checkpoint_state,
    fetch_checkpoint,
    newest_intact_checkpoint,
    store_checkpoint,
)
from ray_jobs.train_worker import Worker
from tests.faults import DENIED, TRANSIENT, faulty

SHARE = 0.2
TIME_BOUND = 30.0
"""Seconds within which a store that stays away must be told."""
SIZES = (0, 10, 70_000, 700_000)

pytestmark = pytest.mark.usefixtures("s3_server")


@pytest.fixture
def folder(s3_server: str, tmp_path: Path) -> str:
    return f"{s3_server}/{tmp_path.name}-{os.getpid()}"


def use(folder: str, rounds: int) -> None:
    """Write, look up, list, read and delete files, and compare everything with what it must be."""
    rng = random.Random(0)
    for index in range(rounds):
        file = storage.join(folder, f"file-{index}")
        assert not storage.exists(file)
        for size in SIZES:
            data = rng.randbytes(size)
            storage.write_bytes(file, data)
            assert storage.read_bytes(file) == data
        assert storage.exists(file)
        assert storage.list_files(folder) == [file]
        storage.delete(file)


@pytest.mark.parametrize("kind", TRANSIENT)
def test_a_fault_that_passes_is_not_seen(kind: str, folder: str) -> None:
    with faulty(0.3, [kind], delay=0.05) as store:
        use(folder, rounds=2)
    assert store.counts[kind] >= 1
    assert store.counts["passed"] > store.counts[kind]


def test_faults_of_all_kinds_are_not_seen(folder: str) -> None:
    with faulty(SHARE, seed=1, delay=0.05) as store:
        use(folder, rounds=6)
    assert store.faults >= 10
    assert len(store.counts) >= 6


def test_a_lost_answer_does_not_make_a_deleted_file_missing(folder: str) -> None:
    file = storage.join(folder, "file")
    storage.write_bytes(file, b"x")
    with faulty(1.0, ["lost"], only=lambda method, path: method == "DELETE") as store:
        storage.delete(file)
        assert store.counts["lost"] >= 1
        with pytest.raises(FileNotFoundError, match=f"cannot delete {file}: no such file"):
            storage.delete(file)


def test_a_file_is_read_with_one_request_for_its_content(folder: str) -> None:
    storage.write_bytes(storage.join(folder, "file"), bytes(3 * 2**20))
    with faulty(0.0) as store:
        storage.read_bytes(storage.join(folder, "file"))
        assert store.counts.total() == 2  # its size, and its bytes


def test_an_upload_cut_in_the_middle_leaves_the_old_file(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_PAUSES", ())
    file = storage.join(folder, "file")
    storage.write_bytes(file, b"old")
    data = bytes(25 * 2**20)  # three parts
    with faulty(1.0, ["cut"], only=lambda method, path: "partNumber=2" in path) as store:
        with pytest.raises(storage.StorageError, match=f"cannot write {file}: .*NETWORK_CONNECTION"):
            storage.write_bytes(file, data)
        assert store.counts["cut"] >= 1
        assert storage.read_bytes(file) == b"old"
    storage.write_bytes(file, data)
    assert storage.read_bytes(file) == data


def saved(folder: Path, epoch: int) -> TrainingState:
    """A local checkpoint of a small network, in `folder`."""
    state = TrainingState("run", step=epoch, epoch=epoch)
    network = torch.nn.Linear(300, 100)
    save_checkpoint(folder, network, build_optimiser(network, OptimiserSettings()), state)
    return state


def test_a_checkpoint_passes_through_faults(folder: str, tmp_path: Path) -> None:
    with faulty(SHARE, seed=2, delay=0.05) as store:
        for epoch in range(2):
            state = saved(tmp_path / "made", epoch)
            store_checkpoint(tmp_path / "made", folder, state.name)
            assert newest_intact_checkpoint(folder) == (state.name, [])
            fetch_checkpoint(folder, state.name, tmp_path / "copy")
            assert read_state(tmp_path / "copy").epoch == epoch
    assert store.faults >= 3


@pytest.mark.parametrize("file", ["weights.safetensors", "manifest.json"])
def test_a_checkpoint_that_is_not_whole_is_not_there(
    file: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_PAUSES", ())
    older, newer = saved(tmp_path / "older", 1), saved(tmp_path / "newer", 2)
    store_checkpoint(tmp_path / "older", folder, older.name)
    with (
        faulty(1.0, ["cut"], only=lambda method, path: method == "PUT" and file in path) as store,
        pytest.raises(storage.StorageError, match=f"cannot write .*{newer.name}/{file}"),
    ):
        store_checkpoint(tmp_path / "newer", folder, newer.name)
    assert store.counts["cut"] >= 1
    if file == "manifest.json":
        assert len(storage.list_files(storage.join(folder, newer.name))) == 3
    assert checkpoint_names(folder) == [older.name]
    assert newest_intact_checkpoint(folder) == (older.name, [])
    with pytest.raises(CheckpointError, match="unfinished checkpoint"):
        fetch_checkpoint(folder, newer.name, tmp_path / "copy")


def test_an_upload_that_fails_is_counted_and_the_next_is_stored(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_PAUSES", ())
    worker, told = object.__new__(Worker), []  # as it is between two steps
    worker.job = SimpleNamespace(run=Run("run", folder, Settings()))  # type: ignore[assignment]
    worker.network = torch.nn.Linear(3, 2)
    worker.optimiser = build_optimiser(worker.network, OptimiserSettings())
    worker.state = TrainingState("run")
    worker.tell = lambda kind, *_, message="", **__: told.append((kind, message))  # type: ignore[method-assign]
    with faulty(1.0, ["slow_down"], only=lambda method, path: method == "PUT"):
        assert not worker._store("first")
    assert worker.state.failed_checkpoints == 1
    assert worker._store("second")
    assert [kind for kind, _ in told] == ["warning", "checkpoint"]
    assert "checkpoint first not stored, training goes on: cannot write" in told[0][1]
    assert checkpoint_names(f"{folder}/checkpoints") == ["second"]
    assert checkpoint_state(f"{folder}/checkpoints", "second").failed_checkpoints == 1


@contextlib.contextmanager
def gone() -> Iterator[None]:
    yield


@contextlib.contextmanager
def refused() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        yield


@contextlib.contextmanager
def denied() -> Iterator[None]:
    with faulty(1.0, [DENIED]):
        yield


@contextlib.contextmanager
def silent() -> Iterator[None]:
    with faulty(1.0, ["slow"], delay=600):
        yield


REASONS = {
    gone: "no complete data set at s3://no-such-bucket/",
    refused: r"NETWORK_CONNECTION.*http://127\.0\.0\.1:1; the store does not answer: see AWS_ENDPOINT_URL",
    denied: "ACCESS.*the store refuses this: see AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY",
    silent: r"NETWORK_CONNECTION.*last 5 seconds.*the store does not answer: see AWS_ENDPOINT_URL",
}
Failing = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", fail)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    settings = Settings(
        data=DataSettings(image_size=32, batch_size=2),
        network=NetworkSettings(width=1 / 16),
        training=TrainingSettings(workers=1, runs=str(tmp_path / "runs")),
    )
    (tmp_path / "config.yaml").write_text(dump_settings(settings))
    return tmp_path / "config.yaml"


def told_in_time(
    main: Callable[[list[str]], int], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> str:
    """Return the one line that a job's failure is told in."""
    started = time.monotonic()
    assert main(arguments) == 1
    assert time.monotonic() - started < TIME_BOUND
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("failing", REASONS)
def test_training_tells_in_time_that_its_data_set_is_out_of_reach(
    failing: Failing, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = "no-such-bucket" if failing is gone else "dfmvr-test"
    with failing():
        line = told_in_time(train.main, ["--config", str(config), f"data.uri=s3://{bucket}/faces"], capsys)
    assert line.startswith("error: ")
    assert f"s3://{bucket}/faces/dataset.json" in line
    assert re.search(REASONS[failing], line)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("failing", [gone, refused, denied])
def test_training_tells_in_time_that_its_runs_are_out_of_reach(
    failing: Failing, config: Path, small_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = "no-such-bucket" if failing is gone else "dfmvr-test"
    arguments = ["--config", str(config), f"data.uri={small_dataset}", f"training.runs=s3://{bucket}/runs"]
    with failing():
        line = told_in_time(train.main, arguments, capsys)
    assert f"s3://{bucket}/runs/" in line
    reason = (
        r"cannot write s3://no-such-bucket/runs/\.writable.*NO_SUCH_BUCKET"
        if failing is gone
        else REASONS[failing]
    )
    assert re.search(reason, line)


@pytest.mark.usefixtures("no_ray")
def test_runs_that_can_be_read_but_not_written_are_told(
    config: Path, folder: str, small_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(config), f"data.uri={small_dataset}", f"training.runs={folder}/runs"]
    with faulty(1.0, [DENIED], only=lambda method, path: method == "PUT"):
        line = told_in_time(train.main, arguments, capsys)
    assert re.search(rf"error: cannot write {folder}/runs/\.writable.*INVALID_ACCESS_KEY_ID", line)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("failing", [gone, denied])
def test_making_a_data_set_tells_in_time_that_its_place_is_out_of_reach(
    failing: Failing, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = "no-such-bucket" if failing is gone else "dfmvr-test"
    with failing():
        line = told_in_time(
            make_dataset.main, ["--config", str(config), "--out", f"s3://{bucket}/set"], capsys
        )
    assert re.search("NO_SUCH_BUCKET" if failing is gone else REASONS[failing], line)
