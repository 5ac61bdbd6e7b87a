"""The command line: its surface is frozen here, its errors are one line, its files can be read back."""

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dfmvr import __version__
from dfmvr.cli import UserError, build_parser, find_faces, main, parse_points, read_image
from dfmvr.data.contact_sheet import GAP, TILE
from dfmvr.data.manifest import Manifest, shard_uri, write_manifest
from dfmvr.data.sample import Sample, encode_sample, rows_to_parquet, samples_to_parquet
from dfmvr.data.storage import write_bytes
from dfmvr.morphable.model import MorphableModel
from dfmvr.networks.face_network import build_network
from dfmvr.networks.settings import NetworkSettings
from dfmvr.networks.weights import ModelCard, save_model
from dfmvr.predictor import NOT_REFINED, Photo, Predictor
from dfmvr.types import NINE_VIEWS, VIEW_NAMES

POINTS = "203,101,247,104,224,125,203,140,246,141"

SURFACE = {
    "": ["--help", "--version"],
    "avatar": [
        *["--detail", "--example", "--face-model", "--front", "--front-points", "--help", "--landmarks"],
        *["--left", "--left-points", "--model", "--no-detail", "--out", "--refine", "--right"],
        *["--right-points", "--turntable"],
    ],
    "evaluate": [
        *["--help", "--out", "--prediction-unit", "--predictions", "--protocol", "--scan-unit", "--scans"],
    ],
    "face-model": ["--help", "--path", "--sheet"],
    "face-model import": ["--help", "--out"],
    "inspect": ["--help", "--samples", "--sheet", "--split"],
    "import-checkpoint": ["--face-model", "--help", "--out"],
    "reconstruct": [
        *["--face-model", "--front", "--front-points", "--help", "--landmarks", "--left", "--left-points"],
        *["--model", "--out", "--overlay", "--refine", "--right", "--right-points"],
    ],
    "submit": ["--address", "--detach", "--help", "--requirements"],
}
"""Every command and its options; a change here is a change of the interface."""


def surface(parser: argparse.ArgumentParser, name: str = "") -> dict[str, list[str]]:
    """Collect the long options of each command and of the commands within it."""
    options = sorted(o for action in parser._actions for o in action.option_strings if o.startswith("--"))
    found = {name: options}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, command in action.choices.items():
                found |= surface(command, f"{name} {word}".strip())
    return found


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    settings = NetworkSettings(width=1 / 16)
    card = ModelCard(
        network=settings,
        image_size=64,
        view_names=VIEW_NAMES,
        face_model_hash=MorphableModel.load(level=1).hash,
        face_model_level=1,
        run_id="test",
        step=0,
        config_hash="",
        licence="CC0-1.0",
    )
    save_model(folder, build_network(settings), card)
    return folder


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from skimage.data import astronaut

    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    cv2.imwrite(str(path), astronaut()[..., ::-1])
    cv2.imwrite(str(path.with_name("sky.png")), np.full((200, 300, 3), 200, np.uint8))
    return path


def test_commands_and_options_are_those_frozen_here():
    assert surface(build_parser()) == SURFACE


def test_help_names_every_command_and_gives_examples(capsys: pytest.CaptureFixture[str]):
    for arguments in (["--help"], ["reconstruct", "--help"], ["face-model", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
    text = capsys.readouterr().out
    assert "face-model" in text
    assert "dfmvr reconstruct --front me.png --front-points" in text
    assert "python -m ray_jobs" in text


def test_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"dfmvr {__version__}\n"


def test_reconstruct_writes_every_file_and_warns_of_missing_views(
    model_dir: Path, photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from pygltflib import GLTF2

    out = [str(tmp_path / "out" / f"face.{ending}") for ending in ("glb", "obj", "ply")]
    overlay = tmp_path / "overlay.png"
    arguments = ["--front", str(photograph), "--front-points", POINTS, "--model", str(model_dir)]
    assert main(["reconstruct", *arguments, "--out", *out, "--overlay", str(overlay)]) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == [*out, str(overlay)]
    assert "warning: no left view: the front view stands in for it" in printed.err
    gltf = GLTF2().load(out[0])
    weights = json.loads((model_dir / "model.json").read_text())["weights_hash"]
    assert gltf.meshes[0].extras["weights"] == weights
    picture = cv2.imread(str(overlay))
    assert picture.shape == (336, 3 * 336, 3)
    plain = picture[:, 2 * 336 :]
    assert (plain[0, 0] == 255).all()
    assert plain[168, 168].max() < 250  # the face


def test_a_model_for_any_views_takes_as_many_photographs_as_there_are(tmp_path: Path):
    torch.manual_seed(0)
    network = NetworkSettings("set_rednet", width=1 / 16, n_views=9, view_flags=True)
    face_model = MorphableModel.load(level=1).hash
    card = ModelCard(network, 64, NINE_VIEWS, face_model, 1, "test", 0, "", "CC0-1.0")
    save_model(tmp_path / "model", build_network(network), card)
    crops = [tmp_path / f"{number}.png" for number in range(4)]
    for path in crops:
        cv2.imwrite(str(path), np.full((64, 64, 3), 120, np.uint8))
    mesh, overlay = tmp_path / "face.ply", tmp_path / "overlay.png"
    arguments = [*map(str, crops), "--model", str(tmp_path / "model"), "--out", str(mesh)]
    assert main(["reconstruct", *arguments, "--overlay", str(overlay)]) == 0
    assert mesh.is_file()
    assert cv2.imread(str(overlay)).shape == (4 * 336, 3 * 336, 3)


@pytest.mark.parametrize("count", [1, 3])
def test_reconstruct_finds_the_face_by_itself(
    count: int,
    model_dir: Path,
    photograph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert main(["reconstruct", *[str(photograph)] * count, "--model", str(model_dir)]) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == ["face.glb", "face.obj", "face_overlay.png"]
    assert len(printed.err.splitlines()) == {1: 2, 3: 0}[count]
    assert cv2.imread("face_overlay.png").shape == (count * 336, 3 * 336, 3)


def test_refine_fits_found_landmarks_and_says_when_there_are_too_few(
    photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    meshes = [tmp_path / f"{name}.ply" for name in ("found", "plain", "five")]
    five = ["--front", str(photograph), "--front-points", POINTS]
    assert main(["reconstruct", str(photograph), "--refine", "--out", str(meshes[0])]) == 0
    assert NOT_REFINED not in capsys.readouterr().err
    assert main(["reconstruct", str(photograph), "--out", str(meshes[1])]) == 0
    assert meshes[0].read_bytes() != meshes[1].read_bytes()
    assert main(["reconstruct", *five, "--refine", "--out", str(meshes[2])]) == 0
    assert f"warning: {NOT_REFINED}" in capsys.readouterr().err


def test_found_points_are_those_that_a_person_would_give(photograph: Path):
    photos = {"front": Photo(read_image(photograph)), "left": Photo(read_image(photograph), np.ones((5, 2)))}
    predictor = Predictor.load()
    found = find_faces(photos, predictor, "dlib")
    assert found["left"] is photos["left"]
    nose = parse_points(POINTS)[2]
    assert np.abs(found["front"].points[30] - nose).max() < 6
    crop = {"front": Photo(np.zeros((64, 64, 3), np.uint8))}
    assert find_faces(crop, predictor, "dlib") is crop


def test_without_a_backend_the_message_says_what_to_do(photograph: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(
        UserError,
        match=r"front view: expected points \(--front-points\), a crop of 64 x 64 px, .*photos-dlib",
    ):
        find_faces({"front": Photo(read_image(photograph))}, Predictor.load(), "auto")


@pytest.mark.slow
def test_a_photograph_takes_ten_seconds_with_the_shipped_weights(photograph: Path, tmp_path: Path):
    program = "import sys; from dfmvr.cli import main; sys.exit(main())"
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", program, "reconstruct", str(photograph)], cwd=tmp_path, check=True, timeout=60
    )
    assert time.perf_counter() - started < 10
    assert (tmp_path / "face.glb").is_file()


def test_inspect_says_what_is_there_and_draws_it(
    tmp_path: Path, make_sample: Callable[..., Sample], capsys: pytest.CaptureFixture[str]
):
    uri, sheet = str(tmp_path / "set"), tmp_path / "sheet.png"
    samples = [make_sample(k) for k in range(4)]
    samples[1] = dataclasses.replace(samples[1], landmarks_3d=None, masks=samples[1].masks * 0)
    write_bytes(shard_uri(uri, "train", 0), samples_to_parquet(samples))
    assert main(["inspect", uri, "--sheet", str(sheet), "--samples", "2"]) == 0
    text = capsys.readouterr().out
    assert "incomplete, dataset.json is missing" in text
    assert "first 2 samples: views left, front, right; sizes 32 x 32" in text
    assert "landmarks_3d in 1, scan_vertices in 2" in text
    assert "masks in 1" in text
    assert "validation  no files" in text
    drawn = cv2.imread(str(sheet))
    assert drawn.shape == (2 * (TILE + GAP), 3 * (3 * TILE + GAP), 3)
    maps = drawn[:TILE, 2 * TILE : 3 * TILE]
    assert np.unique(maps).tolist() == [32, 128, 254]


def test_inspect_tells_totals_rejects_and_bad_rows(
    tmp_path: Path, make_sample: Callable[..., Sample], capsys: pytest.CaptureFixture[str]
):
    uri = str(tmp_path)
    rows = [{"row": k, **encode_sample(make_sample(k))} for k in range(2)]
    rows[1]["images"] = [b"broken"] * 3
    write_bytes(shard_uri(uri, "test", 0), rows_to_parquet(rows))
    counts = {"train": 0, "validation": 0, "test": 2}
    write_manifest(
        uri, Manifest({"dataset": "folder"}, "0" * 16, 32, list(VIEW_NAMES), counts, counts, counts)
    )
    pq.write_table(pa.table({"reason": ["no face", "blurred", "no face"]}), tmp_path / "rejects.parquet")
    assert main(["inspect", uri]) == 0
    text = capsys.readouterr().out
    assert f"{uri}: folder, recipe {'0' * 16}" in text
    assert "test        2 samples of 2 subjects in 2 files" in text
    assert "row 1: images[left]: expected a JPEG" in text
    assert "without a sample: no face 2, blurred 1" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: expected a data set with train/, validation/, test/"),
        (["nowhere", "--split", "tests"], "expected --split out of train, validation, test"),
        (["nowhere", "--samples", "0"], "--samples of at least 1"),
    ],
)
def test_inspect_refuses_what_is_no_data_set(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["inspect", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_face_model_says_what_it_holds(capsys: pytest.CaptureFixture[str]):
    assert main(["face-model"]) == 0
    text = capsys.readouterr().out
    for word in ("hash", "licence", "level 1", "level 2", "identity 80", "expression 64", "jawOpen"):
        assert word in text


def test_a_missing_face_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["face-model", "--path", str(tmp_path / "none.npz")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert "none.npz" in errors[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "a.glb"], "expected at least one photograph: --left, --front, --right"),
        (["--front", "no.png", "--out", "a.glb"], "no.png: no such file"),
        (["--front", "{photo}", "--out", "a.stl"], "a.stl: expected a name that ends in one of .glb"),
        (["--left-points", POINTS, "--out", "a.glb"], "--left-points came without --left"),
        (["{photo}", "{photo}", "--out", "a.glb"], "expected one photograph (front) or three"),
        (["{photo}", "--left", "{photo}", "--out", "a.glb"], "got 1 and others with names"),
        (["{sky}", "--out", "a.glb"], "front view: expected one face, found none"),
        (["--front", "{photo}", "--out", "a.glb", "--model", "nowhere"], "model.json: no such file"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(
    arguments: list[str],
    message: str,
    model_dir: Path,
    photograph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    filled = [
        argument.format(photo=photograph, sky=photograph.with_name("sky.png")) for argument in arguments
    ]
    if "--model" not in filled:
        filled += ["--model", str(model_dir)]
    assert main(["reconstruct", *filled]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("dfmvr reconstruct: error: ")
    assert message in errors[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [("1,2,3", "expected 10 numbers x1,y1,...,x5,y5, got 3"), ("a,b", "expected numbers")],
)
def test_points_are_checked(text: str, message: str):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        parse_points(text)


def test_points_are_read_from_a_file(tmp_path: Path):
    path = tmp_path / "points.json"
    path.write_text(json.dumps(parse_points(POINTS).tolist()))
    np.testing.assert_array_equal(parse_points(str(path)), parse_points(POINTS))
    with pytest.raises(argparse.ArgumentTypeError, match=r"none\.json"):
        parse_points(str(tmp_path / "none.json"))


def test_points_are_pairs():
    np.testing.assert_array_equal(parse_points(POINTS)[[0, 4]], [[203, 101], [246, 141]])


def test_colours_are_read_as_rgb(tmp_path: Path):
    cv2.imwrite(str(tmp_path / "red.png"), np.full((2, 2, 3), (0, 0, 255), np.uint8))
    assert (read_image(tmp_path / "red.png") == (255, 0, 0)).all()
