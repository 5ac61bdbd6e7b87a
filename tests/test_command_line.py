"""The command line: its surface is frozen here, its errors are one line, its files can be read back."""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dfmvr import __version__
from dfmvr.cli import build_parser, main, parse_points, read_image
from dfmvr.morphable.model import MorphableModel
from dfmvr.networks.face_network import build_network
from dfmvr.networks.settings import NetworkSettings
from dfmvr.networks.weights import ModelCard, save_model
from dfmvr.types import VIEW_NAMES

POINTS = "203,101,247,104,224,125,203,140,246,141"

SURFACE = {
    "": ["--help", "--version"],
    "evaluate": [
        *["--help", "--out", "--prediction-unit", "--predictions", "--protocol", "--scan-unit", "--scans"],
    ],
    "face-model": ["--help", "--path", "--sheet"],
    "face-model import": ["--help", "--out"],
    "import-checkpoint": ["--face-model", "--help", "--out"],
    "reconstruct": [
        *["--front", "--front-points", "--help", "--left", "--left-points", "--model", "--out", "--overlay"],
        *["--right", "--right-points"],
    ],
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
        (["--front", "{photo}", "--out", "a.glb"], "front view: expected points"),
        (["--front", "{photo}", "--out", "a.glb", "--model", "nowhere"], "model.json: no such file"),
        (["--front", __file__, "--out", "a.glb"], "expected a picture"),
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
    filled = [argument.format(photo=photograph) for argument in arguments]
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


def test_points_are_pairs():
    np.testing.assert_array_equal(parse_points(POINTS)[[0, 4]], [[203, 101], [246, 141]])


def test_pictures_are_turned_as_their_camera_says(tmp_path: Path):
    from PIL import Image

    sideways = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by a quarter
    sideways.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (40, 20, 3)


def test_colours_are_read_as_rgb(tmp_path: Path):
    cv2.imwrite(str(tmp_path / "red.png"), np.full((2, 2, 3), (0, 0, 255), np.uint8))
    assert (read_image(tmp_path / "red.png") == (255, 0, 0)).all()
