"""The evaluation job, from stored samples and an untrained network to metrics and page."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dfmvr.config import Settings, dump_settings, load_settings
from dfmvr.data.manifest import Manifest, shard_uri, write_manifest
from dfmvr.data.sample import Sample, encode_sample, rows_to_parquet
from dfmvr.data.storage import write_bytes
from dfmvr.evaluation.results import unpack_row
from dfmvr.geometry.camera import default_intrinsics
from dfmvr.morphable.model import MorphableModel
from dfmvr.morphable.population import FacePopulation
from dfmvr.networks.face_network import build_network
from dfmvr.networks.weights import ModelCard, save_model
from dfmvr.types import VIEW_NAMES, FaceParams, ViewBatch
from ray_jobs import evaluate
from ray_jobs.evaluate_worker import MeasureBatch, read_stored_row

IMAGE_SIZE = 32
OVERRIDES = [
    "name=tiny",
    f"data.image_size={IMAGE_SIZE}",
    "data.max_bad_share=0.5",
    "network.width=0.0625",
    "evaluation.batch_size=2",
    "evaluation.gallery=1",
    "evaluation.icp_points=300",
    "evaluation.bootstrap_draws=100",
]


def make_samples(count: int) -> list[Sample]:
    population, model = FacePopulation.load(), MorphableModel.load(level=2)
    rng = np.random.default_rng(5)
    samples = []
    for index in range(count):
        subject, expression = population.sample_subject(rng), population.sample_expression(rng)
        scan = population.vertices(subject, expression, level=2)
        coarse = rng.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
        samples.append(
            Sample(
                sample_id=f"s{index}",
                subject_id=f"p{index}",
                expression_id="e0",
                view_names=VIEW_NAMES,
                view_yaws=np.zeros(3, np.float32),
                images=np.stack([cv2.resize(image, (IMAGE_SIZE, IMAGE_SIZE)) for image in coarse]),
                masks=np.ones((3, IMAGE_SIZE, IMAGE_SIZE), np.uint8),
                landmarks_2d=np.full((3, 68, 2), 16, np.float32),
                landmarks_2d_weights=np.ones((3, 68), np.float32),
                intrinsics=np.tile(default_intrinsics(IMAGE_SIZE).numpy(), (3, 1, 1)),
                scan_vertices=scan,
                scan_triangles=model.triangles.numpy().astype(np.int32),
                scan_landmarks_7=scan[model.landmarks_7.numpy()],
                dense_vertices=population.vertices(subject, expression, level=1),
            )
        )
    return samples


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with settings and an untrained model; of its data set's 4 test rows, one is bad."""
    folder = tmp_path_factory.mktemp("evaluate")
    settings: Settings = load_settings(None, [*OVERRIDES, f"data.uri={folder}/data"])
    rows = [{"row": index, **encode_sample(sample)} for index, sample in enumerate(make_samples(4))]
    rows[2]["images"] = [b"no picture"] * 3
    uri = f"{folder}/data"
    write_bytes(shard_uri(uri, "test", 0), rows_to_parquet(rows))
    counts = {"train": 0, "validation": 0, "test": 4}
    write_manifest(uri, Manifest({}, "cafe" * 4, IMAGE_SIZE, list(VIEW_NAMES), counts, counts, counts))
    torch.manual_seed(0)
    card = ModelCard(
        network=settings.network,
        image_size=IMAGE_SIZE,
        view_names=VIEW_NAMES,
        face_model_hash=MorphableModel.load().hash,
        face_model_level=1,
        run_id="tiny",
        step=0,
        config_hash="0" * 16,
        licence="Apache-2.0",
    )
    save_model(folder / "run" / "model", build_network(settings.network), card)
    (folder / "run" / "config.yaml").write_text(dump_settings(settings))
    (folder / "run" / "metrics.json").write_text(json.dumps({"training": {"steps": 5}, "stale": 1}))
    return folder / "run"


@pytest.fixture(scope="module")
def output(run: Path, ray_cluster: None) -> str:
    """What the job prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert evaluate.main(["--run", str(run), "--workers", "1"]) == 0
    return printed.getvalue()


@pytest.mark.ray
def test_the_table_is_printed_last(output: str, run: Path) -> None:
    for words in ("mean face", "network", "floor (best 3DMM fit)", "3 samples of 3 subjects"):
        assert words in output
    assert output.rstrip().endswith(f"{run}/report.html")


@pytest.mark.ray
def test_metrics_have_the_agreed_names(output: str, run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics["rmse_mm"]) == set(metrics["dense_mm"]) == {"mean_face", "network", "floor"}
    assert set(metrics["regions_mm"]) == {"nose", "mouth", "eyes_brows", "cheeks", "forehead", "chin"}
    assert (metrics["n_samples"], metrics["n_bad_rows"]) == (3, 1)
    assert metrics["dataset_hash"] == "cafe" * 4
    assert metrics["weights_hash"] == json.loads((run / "model/model.json").read_text())["weights_hash"]
    assert len(metrics["config_hash"]) == 16
    assert metrics["training"] == {"steps": 5}
    assert "stale" not in metrics


@pytest.mark.ray
def test_an_untrained_network_is_the_mean_face_and_the_floor_is_below(output: str, run: Path) -> None:
    rmse = json.loads((run / "metrics.json").read_text())["rmse_mm"]
    assert rmse["network"] == pytest.approx(rmse["mean_face"], rel=0.05)
    assert rmse["floor"] < 0.4 * rmse["mean_face"]


@pytest.mark.ray
def test_the_bad_row_is_listed(output: str, run: Path) -> None:
    listed = json.loads((run / "logs/bad-test-rows.jsonl").read_text())
    assert listed["row"] == 2
    assert "images[left]: expected a JPEG" in listed["reason"]


@pytest.mark.ray
def test_the_samples_and_the_page_are_kept(output: str, run: Path) -> None:
    table = pq.read_table(run / "evaluation/samples.parquet")
    assert sorted(table.column("sample_id").to_pylist()) == ["s0", "s1", "s3"]
    page = (run / "report.html").read_text()
    assert "Unreadable and set aside: 1" in page
    assert page.count('class="panel sample"') == 1
    assert f"--run {run}" in page


@pytest.fixture(scope="module")
def worker(run: Path) -> MeasureBatch:
    settings = load_settings(run / "config.yaml")
    return MeasureBatch(settings, str(run / "model"))


def stored_rows(run: Path) -> pa.Table:
    path = f"{run.parent}/data/test/part-00000.parquet"
    table = pq.read_table(path)
    return table.append_column("path", pa.array([path] * table.num_rows))


def test_a_worker_gives_a_row_for_every_row(worker: MeasureBatch, run: Path) -> None:
    out = worker(stored_rows(run).slice(1, 2)).to_pylist()
    assert [row["index"] for row in out] == [1, 2]
    assert out[0]["reason"] == []
    assert out[1]["reason"][0] == "images[left]"
    row = unpack_row(out[0]["row"])
    assert row["sample_id"] == "s1"
    assert row["rotation"].shape == (3, 3, 3)
    assert row["backend"] in ("open3d", "kdtree")


def test_only_the_given_views_reach_the_network(
    worker: MeasureBatch, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(
        worker.settings, evaluation=dataclasses.replace(worker.settings.evaluation, given_views=("front",))
    )
    seen: list[ViewBatch] = []
    predict = worker.predictor.predict_params
    monkeypatch.setattr(worker, "settings", settings)
    monkeypatch.setattr(
        worker.predictor, "predict_params", lambda batch: (seen.append(batch), predict(batch))[1]
    )
    worker(stored_rows(run).slice(0, 1))
    images = seen[0].images[0]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[2], images[1])
    assert not torch.equal(images[1], torch.zeros_like(images[1]))


def test_a_row_without_a_scan_is_bad(worker: MeasureBatch, run: Path) -> None:
    table = stored_rows(run).slice(0, 1).drop_columns(["scan_vertices", "scan_triangles"])
    assert worker(table).to_pylist()[0]["reason"] == ["scan_vertices", "a scan to measure against", "null"]


def test_a_network_that_predicts_no_numbers_is_an_error(
    worker: MeasureBatch, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = worker.predictor.predict_params

    def broken(batch: ViewBatch) -> FaceParams:
        params = predict(batch)
        return dataclasses.replace(params, identity=params.identity * float("nan"))

    monkeypatch.setattr(worker.predictor, "predict_params", broken)
    with pytest.raises(ValueError, match=r"sample 's0': expected finite parameters .* got identity"):
        worker(stored_rows(run).slice(0, 1))


def test_a_stored_row_is_found_again(run: Path) -> None:
    data = load_settings(run / "config.yaml").data
    path = f"{data.uri}/test/part-00000.parquet"
    assert read_stored_row(data, path, 3).sample_id == "s3"
    with pytest.raises(ValueError, match="expected a row 9, found none"):
        read_stored_row(data, path, 9)


@pytest.mark.ray
def test_too_many_bad_rows_end_the_evaluation(
    run: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["--run", str(run), "--workers", "1", "--out", str(tmp_path), "data.max_bad_share=0"]
    assert evaluate.main(arguments) == 1
    assert "1 of 4 rows are bad" in capsys.readouterr().err
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "no-such-run"], "there is no run 'no-such-run'"),
        (["--model", "/nowhere", "--out", "out"], "model.json: no such file"),
    ],
)
def test_what_is_missing_is_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert evaluate.main(arguments) == 1
    assert message in capsys.readouterr().err


def test_a_data_set_of_another_image_size_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = run.parent / "other"
    counts = {"train": 0, "validation": 0, "test": 4}
    write_manifest(str(data), Manifest({}, "0" * 16, 64, list(VIEW_NAMES), counts, counts, counts))
    assert evaluate.main(["--run", str(run), f"data.uri={data}"]) == 1
    assert "expected images of 32 px, as the network was trained with, got 64 px" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments --run --model is required"),
        (["--model", "shipped"], "--model needs --out"),
        (["--run", "x", "--config", "y.yaml"], "--config goes with --model"),
    ],
)
def test_the_command_line_says_what_it_needs(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        evaluate.parse(arguments)
    assert message in capsys.readouterr().err
