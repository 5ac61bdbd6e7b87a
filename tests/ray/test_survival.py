"""What workers do about trouble, without a cluster."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from dfmvr.config import Settings
from dfmvr.training.dry_run import made_up_batch
from dfmvr.training.step import TrainingSettings
from dfmvr.types import ViewBatch
from ray_jobs.monitor import Event
from ray_jobs.progress import Progress
from ray_jobs.runs import Run
from ray_jobs.scaling import PreflightError, preflight, scaling_config
from ray_jobs.survival import is_timeout, keep_batches, suspects
from ray_jobs.train import Silence


def batch(ids: Sequence[str]) -> ViewBatch:
    return dataclasses.replace(made_up_batch(len(ids), 3, 32), sample_ids=tuple(ids))


def test_a_process_that_is_not_heard_of_ends_and_says_where_it_was() -> None:
    code = (
        "import time\nfrom ray_jobs.survival import Alarm\n"
        "with Alarm(0.5) as alarm:\n"
        "    for _ in range(4):\n        time.sleep(0.3)\n        alarm.rewind()\n"
        "time.sleep(0.8)\nprint('still here', flush=True)\n"
        "def stuck():\n    time.sleep(20)\n"
        "with Alarm(0.5):\n    stuck()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.stdout == "still here\n"
    assert ended.returncode == 1
    assert "in stuck" in ended.stderr


def test_samples_with_numbers_that_are_not_finite_are_suspects() -> None:
    first, second = batch(["a", "b"]), batch(["c", "d"])
    assert suspects([first, second]) == ["a", "b", "c", "d"]
    second.landmarks_2d[1, 2, 5, 0] = torch.nan
    assert suspects([first, second]) == ["d"]


def test_kept_batches_can_be_read_without_pickle(tmp_path: Path) -> None:
    uri = keep_batches(str(tmp_path), "bad", [batch(["a", "b"]), batch(["c"])])
    with safe_open(uri, "pt") as file:
        assert file.get_tensor("1/images").shape == (1, 3, 3, 32, 32)
        assert file.metadata()["0/sample_ids"] == "a\nb"


@pytest.mark.parametrize(
    ("text", "expected"), [("Timed out waiting 6000ms", True), ("Connection closed by peer", False)]
)
def test_timeouts_are_told_from_lost_peers(text: str, expected: bool) -> None:
    assert is_timeout(RuntimeError(text)) == expected


def test_silence_is_told_once_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    silence = Silence(10)
    told = []
    for now, events in ((5, []), (9, [Event("step", 3, 0)]), (18, []), (20, []), (21, []), (31, [])):  # noqa: B007
        told.append(silence.notice(events))
    assert [bool(words) for words in told] == [False, False, False, True, False, True]
    assert told[3] == "nothing heard of training for 10 s since step 3: does it wait for nodes?"


@pytest.mark.parametrize(
    ("workers", "accumulate", "world", "expected"),
    [(2, 1, 2, 1), (2, 1, 1, 2), (8, 2, 4, 4), (3, 1, 2, 2), (2, 1, 4, 1)],
)
def test_a_step_stays_of_as_many_samples(workers: int, accumulate: int, world: int, expected: int) -> None:
    assert TrainingSettings(workers=workers, accumulate=accumulate).batches_per_step(world) == expected


def test_an_elastic_run_needs_only_its_fewest_workers() -> None:
    training = TrainingSettings(workers=4, min_workers=1, cpus_per_worker=2)
    preflight(training, {"CPU": 3.0})
    assert scaling_config(training, {"CPU": 3.0}).num_workers == (1, 4)
    with pytest.raises(PreflightError, match=r"1 training workers of 2 CPUs.*at least 3 CPUs, got 2"):
        preflight(training, {"CPU": 2.0})
    assert scaling_config(dataclasses.replace(training, min_workers=4), {"CPU": 9.0}).num_workers == 4


def test_more_fewest_workers_than_workers_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"training\.min_workers: expected 0 to training\.workers \(2\), got 3"
    ):
        TrainingSettings(workers=2, min_workers=3)


def test_logs_that_cannot_be_written_do_not_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run("mine", str(tmp_path / "mine"), Settings())
    step = Event("step", 1, 0, {"loss": 1.0, "samples_per_second": 2.0})
    with Progress(run, 10, 0) as progress:

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(progress._writer, "add_scalar", full)
        progress.show([step, step])
        monkeypatch.setattr("ray_jobs.progress.LOG_PAUSE_S", 0.0)
        monkeypatch.setattr(progress, "_broken_until", 0.0)
        progress.show([dataclasses.replace(step, step=2)])
    told = capsys.readouterr().out
    assert told.count("No space left on device") == 1
    assert list((tmp_path / "mine" / "logs").glob("events*"))
