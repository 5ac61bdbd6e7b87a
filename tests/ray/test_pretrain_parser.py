"""Training of the face parser on a real Ray cluster, tiny."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from dfmvr.config import Settings, dump_settings
from dfmvr.data.datasets.celebamask_hq import ANNOTATIONS, PICTURES
from dfmvr.data.settings import DataSettings
from dfmvr.networks.bisenet import ParserNetworkSettings
from dfmvr.networks.parser import FaceParser, ParserSettings, read_parser_card
from dfmvr.training.optim import OptimiserSettings
from dfmvr.training.step import TrainingSettings
from dfmvr.types import REGION_NAMES
from ray_jobs.monitor import Event
from ray_jobs.pretrain_parser import check_data, choose_run, finish, main, parse, train
from ray_jobs.runs import checkpoint_names, new_run, open_run

STEPS_PER_EPOCH = 12


def tiny_settings(dataset: Path, runs: Path) -> Settings:
    return Settings(
        name="tiny",
        data=DataSettings(uri=str(dataset), image_size=32, batch_size=2, shuffle_rows=16),
        parser=ParserSettings(ParserNetworkSettings(width=1 / 16, image_size=32)),
        optimiser=OptimiserSettings(learning_rate=1e-2, warmup_steps=2),
        training=TrainingSettings(epochs=3, workers=2, cpus_per_worker=0.5, runs=str(runs)),
    )


@pytest.mark.ray
@pytest.mark.slow
def test_a_stopped_run_is_finished_and_leaves_a_parser(
    ray_cluster: None, small_dataset: Path, tmp_path: Path
) -> None:
    run = new_run(tiny_settings(small_dataset, tmp_path), "mine")
    rows = check_data(run.settings)
    stop = threading.Event()
    train(run, rows, stop, lambda event: stop.set() if event.kind == "epoch" else None)
    stopped = finish(run, rows)
    assert stopped["epochs"] < 3
    assert FaceParser.load(run.path("model"))
    events: list[Event] = []
    again = open_run(run.uri)
    train(again, rows, None, events.append)
    assert events[0].step == stopped["step"] >= STEPS_PER_EPOCH
    metrics = finish(again, rows)
    assert metrics["step"] == 3 * STEPS_PER_EPOCH
    stored = json.loads((tmp_path / "mine" / "metrics.json").read_text())["training"]
    assert stored["miou"] == pytest.approx(sum(stored["iou"].values()) / len(stored["iou"]))
    assert set(stored["iou"]) <= set(REGION_NAMES)
    assert [epoch["epoch"] for epoch in stored["history"]] == [1, 2, 3]
    assert stored["history"][-1]["val_loss"] == pytest.approx(1 - stored["history"][-1]["val_iou_mean"])
    assert stored["history"][-1]["train_loss"] < 0.8 * stored["history"][0]["train_loss"], "it has learnt"
    card = read_parser_card(run.path("model"))
    assert card.weights_hash == stored["weights_hash"]
    assert card.metrics["mean"] == stored["miou"]
    assert len(checkpoint_names(run.checkpoints)) >= 1


@pytest.mark.ray
def test_it_reads_celebamask_hq_and_tells_of_bad_pictures(ray_cluster: None, tmp_path: Path) -> None:
    folder = tmp_path / "celeba"
    for number in (0, 50, 1, 51, *range(2, 14)):
        write_face(folder, number)
    broken = folder / ANNOTATIONS / "0" / "00005_skin.png"
    broken.write_bytes(b"no picture")
    settings = tiny_settings(Path("unused"), tmp_path / "runs")
    settings = dataclasses.replace(
        settings,
        parser=dataclasses.replace(settings.parser, celebamask_hq=str(folder)),
        data=dataclasses.replace(settings.data, max_bad_share=0.2),
        training=dataclasses.replace(settings.training, epochs=1),
    )
    (tmp_path / "c.yaml").write_text(dump_settings(settings))
    run = choose_run(parse(["--config", str(tmp_path / "c.yaml"), "--run-id", "celeba"]))
    rows = check_data(run.settings)
    assert rows == {"train": 12, "validation": 2, "test": 2}
    events: list[Event] = []
    train(run, rows, None, events.append)
    metrics = finish(run, rows)
    assert metrics["step"] == 3
    assert {"background", "skin"} <= set(metrics["iou"])
    warnings = [event.message for event in events if event.kind == "warning"]
    assert any("1 bad rows of the train split left out" in message for message in warnings)
    listed = "".join(path.read_text() for path in (tmp_path / "runs" / "celeba" / "logs").glob("rejects-*"))
    assert str(broken) in listed
    assert "expected a picture, got 10 bytes that do not decode" in listed


def write_face(folder: Path, number: int) -> None:
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    (folder / ANNOTATIONS / "0").mkdir(parents=True, exist_ok=True)
    picture = np.full((128, 128, 3), 40, np.uint8)
    picture[32:96, 32:96] = 200
    skin = np.zeros((512, 512), np.uint8)
    skin[128:384, 128:384] = 255
    cv2.imwrite(str(folder / PICTURES / f"{number}.jpg"), picture)
    cv2.imwrite(str(folder / ANNOTATIONS / "0" / f"{number:05d}_skin.png"), skin)


def test_wrong_settings_are_told_before_ray_starts(
    tmp_path: Path, small_dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ray_jobs.pretrain_parser.scaling.init_ray", lambda address: pytest.fail("Ray was started")
    )
    (tmp_path / "c.yaml").write_text(dump_settings(tiny_settings(small_dataset, tmp_path / "runs")))
    for override, words in (
        ("data.uri=nowhere", "no complete data set at nowhere"),
        ("data.image_size=64", "data.image_size: expected 32 as in"),
        (
            "data.missing_mask_share=0.5",
            "data.missing_mask_share: expected 0, masks are what a parser learns",
        ),
        ("training.workers=9", "expected at least one picture a worker, got {'test': 6, 'validation': 8}"),
        (f"parser.celebamask_hq={tmp_path}", "CelebA-HQ-img: expected CelebAMask-HQ's pictures"),
        ("parser.network.strid=4", "did you mean 'parser.network.stride'"),
    ):
        assert main(["--config", str(tmp_path / "c.yaml"), override]) == 1
        assert words in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_command_line_is_frozen(capsys: pytest.CaptureFixture[str]) -> None:
    assert vars(parse(["--config", "c.yaml", "a=1", "--run-id", "mine", "b=2"])) == {
        "config": "c.yaml", "resume": None, "run_id": "mine", "address": None, "overrides": ["a=1", "b=2"],
    }  # fmt: skip
    for wrong in (["--config", "c", "--resume", "r"], [], ["--resume", "r", "--run-id", "x"]):
        with pytest.raises(SystemExit):
            parse(wrong)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert "examples:" in capsys.readouterr().out
