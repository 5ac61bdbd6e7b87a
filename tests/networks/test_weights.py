from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dfmvr.networks.face_network import build_network
from dfmvr.networks.settings import NetworkSettings
from dfmvr.networks.weights import ModelCard, WeightsError, load_model, load_weights, read_card, save_model

SETTINGS = NetworkSettings(width=1 / 16)
CARD = ModelCard(
    network=SETTINGS, image_size=32, view_names=("left", "front", "right"), face_model_hash="f" * 64,
    face_model_level=1, run_id="r", step=3, config_hash="c", licence="Apache-2.0", metrics={"val_loss": 1.0},
)  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(tmp_path / "model", build_network(SETTINGS), CARD)
    return tmp_path / "model"


def test_a_saved_model_comes_back_the_same(tmp_path: Path) -> None:
    network = build_network(SETTINGS).eval()
    written = save_model(tmp_path, network, CARD)
    again, card = load_model(tmp_path)
    assert card == written
    assert not again.training
    images, masks = torch.rand(1, 3, 3, 32, 32), torch.zeros(1, 3, 32, 32, dtype=torch.int64)
    with torch.no_grad():
        assert torch.equal(again(images, masks).identity, network(images, masks).identity)


def test_missing_files_are_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere/model\.json: no such file; expected a model folder"):
        load_model(tmp_path / "nowhere")
    (model / "weights.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"weights\.safetensors: no such weights file"):
        load_model(model)


def test_replaced_weights_are_refused(model: Path) -> None:
    tensors = load_file(model / "weights.safetensors")
    save_file({name: tensor * 0 for name, tensor in tensors.items()}, model / "weights.safetensors")
    with pytest.raises(WeightsError, match="damaged or replaced: expected sha256"):
        load_model(model)


def test_a_file_that_is_not_safetensors_is_refused(model: Path) -> None:
    (model / "weights.safetensors").write_bytes(b"not weights")
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_weights(build_network(SETTINGS), model / "weights.safetensors")


def test_weights_of_another_network_are_refused_and_change_nothing(model: Path) -> None:
    network = build_network(NetworkSettings(width=1 / 8))
    before = next(network.parameters()).clone()
    with pytest.raises(WeightsError, match=r"expected shape \(.*\), got \(.*\)"):
        load_weights(network, model / "weights.safetensors")
    assert torch.equal(next(network.parameters()), before)


def test_missing_and_unknown_tensors_are_named(model: Path) -> None:
    tensors = load_file(model / "weights.safetensors")
    first = sorted(tensors)[0]
    tensors["surplus"] = tensors.pop(first)
    save_file(tensors, model / "weights.safetensors")
    with pytest.raises(WeightsError, match=rf"missing \['{first}'\], unknown \['surplus'\]"):
        load_weights(build_network(SETTINGS), model / "weights.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 9}, "expected format 1, got 9"),
        ({"surprise": 1}, "not a model card: .*surprise"),
        ({"network": {"width": 0.3}}, r"not a model card: network\.width: expected"),
    ],
)
def test_a_wrong_card_is_refused(model: Path, change: dict[str, object], words: str) -> None:
    content = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps(content | change))
    with pytest.raises(WeightsError, match=words):
        read_card(model)
