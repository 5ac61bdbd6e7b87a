"""The parser's network, its folder, and that nothing can wake it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from dfmvr.networks.bisenet import BiSeNet, ParserNetworkSettings
from dfmvr.networks.face_network import build_network
from dfmvr.networks.parser import SHIPPED_FOLDER, FaceParser, ParserCard, read_parser_card, save_parser
from dfmvr.networks.settings import NetworkSettings
from dfmvr.networks.weights import ModelCard, WeightsError, save_model

SMALL = ParserNetworkSettings(width=1 / 16, stride=2, image_size=32)
CARD = ParserCard(SMALL, "data/x", "r", 3, "c", "Apache-2.0", {"mean": 0.5})


def small_parser(seed: int = 0) -> FaceParser:
    torch.manual_seed(seed)
    return FaceParser(BiSeNet(SMALL), SMALL.image_size)


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_the_fused_features_have_the_stride_and_the_scores_the_pictures_size(stride: int) -> None:
    network = BiSeNet(ParserNetworkSettings(width=1 / 16, stride=stride, image_size=64)).eval()
    cells: list[torch.Size] = []
    network.fusion.register_forward_hook(lambda module, inputs, output: cells.append(output.shape))
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 10, 64, 64)
    assert cells == [(2, 16, 64 // stride, 64 // stride)]


def test_full_width_is_the_papers_context_path() -> None:
    """ResNet-18 without its classifier: 11,176,512 parameters (torchvision's count, checked by hand)."""
    with torch.device("meta"):
        context = BiSeNet(ParserNetworkSettings(width=1.0, stride=8, image_size=512)).context
    trunk = sum(p.numel() for part in (context.stem, context.stages) for p in part.parameters())
    assert trunk == 11_176_512


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 0.3}, r"parser\.network\.width: expected a multiple of 1/64 above 0, got 0\.3"),
        ({"stride": 3}, r"parser\.network\.stride: expected one of \(2, 4, 8\), got 3"),
        ({"image_size": 60}, r"parser\.network\.image_size: expected a multiple of 8, .*, got 60"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(ParserNetworkSettings(), **change)  # type: ignore[arg-type]


def test_pictures_of_any_size_and_leading_shape_are_labelled() -> None:
    parser = small_parser()
    labels = parser(torch.rand(2, 3, 3, 40, 48))
    assert labels.shape == (2, 3, 40, 48)
    assert labels.dtype == torch.int64
    assert parser.probabilities(torch.rand(3, 50, 20)).sum(-3) == pytest.approx(torch.ones(50, 20), abs=1e-5)
    with pytest.raises(ValueError, match=r"images: expected shape \[\*L, 3, H, W\], got \(2, 4, 8, 8\)"):
        parser(torch.rand(2, 4, 8, 8))


def test_gradients_reach_the_picture_and_nothing_else() -> None:
    torch.manual_seed(0)
    network = BiSeNet(SMALL)
    parser = FaceParser(network, SMALL.image_size)
    picture = torch.rand(1, 3, 32, 32, requires_grad=True)
    parser.probabilities(picture)[:, 1].sum().backward()
    assert picture.grad is not None
    assert float(picture.grad.abs().max()) > 0
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())


def test_a_parent_that_trains_does_not_wake_the_parser() -> None:
    """The released code's defect: its parser was a submodule, so that train() moved its statistics."""
    parent = nn.Linear(1, 1)
    parent.parser = small_parser()  # type: ignore[assignment]
    parent.train()
    images = torch.rand(2, 3, 32, 32)
    before = parent.parser.probabilities(images)
    parent.parser(torch.rand(4, 3, 32, 32))
    assert torch.equal(parent.parser.probabilities(images), before)
    assert not any(name.startswith("parser") for name in parent.state_dict())


def test_a_saved_parser_comes_back_the_same(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = BiSeNet(SMALL)
    card = save_parser(tmp_path, network, CARD)
    images = torch.rand(2, 3, 32, 32)
    expected = FaceParser(network, SMALL.image_size).probabilities(images)
    assert torch.equal(FaceParser.load(tmp_path).probabilities(images), expected)
    assert read_parser_card(tmp_path) == card


def test_other_folders_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"nothing/model\.json: no such file; expected a parser's folder, as ray_jobs"
    ):
        FaceParser.load(tmp_path / "nothing")
    settings = NetworkSettings(width=1 / 16)
    save_model(
        tmp_path / "face", build_network(settings),
        ModelCard(settings, 32, ("left", "front", "right"), "f", 1, "r", 3, "c", "Apache-2.0"),
    )  # fmt: skip
    with pytest.raises(WeightsError, match="expected a face parser of format 1, got other model, 1"):
        FaceParser.load(tmp_path / "face")
    save_parser(tmp_path / "parser", BiSeNet(SMALL), CARD)
    content = json.loads((tmp_path / "parser" / "model.json").read_text())
    content["network"]["stride"] = 5
    (tmp_path / "parser" / "model.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=r"not a parser's card: parser\.network\.stride"):
        FaceParser.load(tmp_path / "parser")


@pytest.mark.skipif(not SHIPPED_FOLDER.is_dir(), reason="no trained parser is shipped yet")
def test_the_shipped_parser_loads_and_is_small() -> None:
    card = read_parser_card(SHIPPED_FOLDER)
    assert sum(file.stat().st_size for file in SHIPPED_FOLDER.iterdir()) < 15e6
    assert card.metrics["mean"] > 0.5
    FaceParser.load("shipped")
