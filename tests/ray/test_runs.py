from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dfmvr.config import Settings, SettingsError
from dfmvr.data import storage
from dfmvr.data.settings import DataSettings
from dfmvr.training.checkpoint import CheckpointError, TrainingState, read_state, save_checkpoint
from dfmvr.training.optim import OptimiserSettings, build_optimiser
from dfmvr.training.step import TrainingSettings
from ray_jobs.runs import (
    Run,
    RunError,
    best_checkpoint,
    checkpoint_names,
    checkpoint_state,
    fetch_checkpoint,
    new_run,
    newest_intact_checkpoint,
    newest_state,
    open_run,
    store_checkpoint,
    with_absolute_data,
    write_metrics,
    write_settings,
)


def settings_in(folder: Path | str) -> Settings:
    return Settings(name="tiny", training=TrainingSettings(runs=str(folder)))


def started_run(folder: Path | str, run_id: str | None = None) -> Run:
    run = new_run(settings_in(folder), run_id)
    write_settings(run)
    return run


def add_checkpoint(
    run: Run, folder: Path, epoch: int, val_loss: float | None = None, samples: int = 0
) -> str:
    history = () if val_loss is None else ({"epoch": float(epoch), "val_loss": val_loss},)
    state = TrainingState(run.id, step=epoch, epoch=epoch, samples_in_epoch=samples, history=history)
    network = torch.nn.Linear(2, 1)
    save_checkpoint(folder / state.name, network, build_optimiser(network, OptimiserSettings()), state)
    store_checkpoint(folder / state.name, run.checkpoints, state.name)
    return state.name


def test_every_new_run_has_its_own_folder_and_settings(tmp_path: Path) -> None:
    runs = [started_run(tmp_path) for _ in range(3)]
    assert len({run.uri for run in runs}) == 3
    assert all("-tiny-" in run.id for run in runs)
    assert open_run(runs[1].id, runs=str(tmp_path)) == runs[1]
    assert open_run(runs[1].uri) == runs[1]


def test_an_id_is_used_once(tmp_path: Path) -> None:
    started_run(tmp_path, "mine")
    with pytest.raises(RunError, match=r"this run exists; continue it with --resume mine"):
        new_run(settings_in(tmp_path), "mine")


def test_resuming_takes_overrides_and_keeps_them(tmp_path: Path) -> None:
    run = started_run(tmp_path, "mine")
    longer = open_run(run.uri, ["training.epochs=99"])
    write_settings(longer)
    assert longer.settings.training.epochs == 99
    assert open_run(run.uri).settings == longer.settings
    with pytest.raises(SettingsError, match=r"training\.epoch"):
        open_run(run.uri, ["training.epoch=1"])


def test_resuming_a_run_that_is_not_there_names_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=rf"there is no run 'gone': expected config.yaml in .*{tmp_path}/gone"):
        open_run("gone", runs=str(tmp_path))


def test_checkpoints_are_listed_in_order_and_unfinished_ones_are_not(tmp_path: Path) -> None:
    run = started_run(tmp_path, "mine")
    assert (checkpoint_names(run.checkpoints), newest_state(run.checkpoints)) == ([], None)
    names = [add_checkpoint(run, tmp_path, epoch) for epoch in (2, 10, 1)]
    unfinished = Path(run.checkpoints) / "epoch-00099-sample-000000000"
    unfinished.mkdir()
    (unfinished / "state.json").write_text("{}")
    assert checkpoint_names(run.checkpoints) == sorted(names)
    newest = newest_state(run.checkpoints)
    assert newest is not None
    assert newest.epoch == 10


def test_the_best_checkpoint_has_the_lowest_validation_loss(tmp_path: Path) -> None:
    run = started_run(tmp_path, "mine")
    assert best_checkpoint(run.checkpoints) is None
    only = add_checkpoint(run, tmp_path, 1, samples=8)
    assert best_checkpoint(run.checkpoints)[0] == only  # type: ignore[index]
    for epoch, loss in ((2, 0.5), (3, 0.25), (4, 0.75)):
        add_checkpoint(run, tmp_path, epoch, loss)
    name, state = best_checkpoint(run.checkpoints)  # type: ignore[misc]
    assert (state.epoch, state.validation["val_loss"]) == (3, 0.25)
    assert name == state.name


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    run = started_run(tmp_path, "mine")
    older, newer = add_checkpoint(run, tmp_path, 1), add_checkpoint(run, tmp_path, 2)
    (Path(run.checkpoints) / newer / "weights.safetensors").write_bytes(b"half")
    name, reasons = newest_intact_checkpoint(run.checkpoints)
    assert name == older
    assert len(reasons) == 1
    assert "weights.safetensors: damaged" in reasons[0]


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", None], ids=["cut", "a list", "bytes", "missing"])
def test_a_damaged_state_costs_its_checkpoint_only(tmp_path: Path, content: bytes | None) -> None:
    run = started_run(tmp_path, "mine")
    older, newer = add_checkpoint(run, tmp_path, 1, 0.5), add_checkpoint(run, tmp_path, 2, 0.25)
    state = Path(run.checkpoints) / newer / "state.json"
    state.unlink() if content is None else state.write_bytes(content)
    assert newest_intact_checkpoint(run.checkpoints)[0] == older
    assert newest_state(run.checkpoints).epoch == 1  # type: ignore[union-attr]
    assert best_checkpoint(run.checkpoints)[0] == older  # type: ignore[index]
    with pytest.raises(CheckpointError, match=rf"{newer}/state\.json: "):
        checkpoint_state(run.checkpoints, newer)


def test_a_validation_that_was_not_finite_is_never_the_best(tmp_path: Path) -> None:
    run = started_run(tmp_path, "mine")
    for epoch, loss in ((1, float("nan")), (2, 0.5), (3, float("inf"))):
        add_checkpoint(run, tmp_path, epoch, loss)
    assert best_checkpoint(run.checkpoints)[1].epoch == 2  # type: ignore[index]


def test_home_folders_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert new_run(settings_in("~/runs"), "mine").uri == f"{tmp_path}/runs/mine"
    settings = with_absolute_data(Settings(data=DataSettings(uri="~/faces")))
    assert settings.data.uri == f"{tmp_path}/faces"


def test_the_manifest_is_stored_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = started_run(tmp_path, "mine")
    written: list[str] = []
    monkeypatch.setattr(storage, "write_bytes", lambda uri, data: written.append(uri.rpartition("/")[2]))
    add_checkpoint(run, tmp_path, 1)
    assert written[-1] == "manifest.json"
    assert len(written) == 4


def test_a_run_in_object_storage(s3_server: str, tmp_path: Path) -> None:
    run = started_run(f"{s3_server}/runs", "mine")
    name = add_checkpoint(run, tmp_path, 3)
    assert open_run(run.uri) == run
    assert checkpoint_names(run.checkpoints) == [name]
    fetch_checkpoint(run.checkpoints, name, tmp_path / "copy")
    assert read_state(tmp_path / "copy").epoch == 3


def test_training_metrics_stand_beside_those_of_other_jobs(tmp_path: Path) -> None:
    run = started_run(tmp_path, "mine")
    (tmp_path / "mine" / "metrics.json").write_text('{"rmse_mm": {"network": 1.0}, "training": {"step": 1}}')
    write_metrics(run, {"step": 2})
    content = json.loads((tmp_path / "mine" / "metrics.json").read_text())
    assert content == {"rmse_mm": {"network": 1.0}, "training": {"step": 2}}
