"""Region labels: drawn from landmarks, by our network, and by exported networks of two layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dfmvr.data.preprocess.parse import (
    CELEBAMASK_19,
    ExportedParser,
    NetworkParser,
    build_parser,
    draw_regions,
    resolve_parser,
)
from dfmvr.data.preprocess.settings import PreprocessSettings
from dfmvr.networks.bisenet import BiSeNet, ParserNetworkSettings
from dfmvr.networks.parser import FaceParser
from dfmvr.types import REGION_NAMES

ProjectMean = Callable[[float, int], np.ndarray]
SIZE = 96
LABEL = {name: label for label, name in enumerate(REGION_NAMES)}


class Painter(nn.Module):
    """Scores that give the picture's left half one class and its right half another."""

    def __init__(self, classes: int, left: int, right: int) -> None:
        super().__init__()
        scores = torch.zeros(1, classes, 2, 4)
        scores[0, left, :, :2] = 1
        scores[0, right, :, 2:] = 1
        self.register_buffer("scores", scores)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.scores + 0 * image.mean()


def export(path: Path, classes: int, left: int, right: int) -> str:
    program = torch.export.export(Painter(classes, left, right), (torch.zeros(1, 3, 512, 512),))
    torch.export.save(program, path)
    return str(path)


@pytest.mark.parametrize("yaw", [-35.0, 0.0, 35.0])
def test_regions_lie_where_the_landmarks_are(project_mean: ProjectMean, yaw: float) -> None:
    points = project_mean(yaw, SIZE)
    (labels,) = draw_regions(np.zeros((1, SIZE, SIZE, 3), np.uint8), points[None])

    def centre(name: str) -> np.ndarray:
        rows, columns = np.nonzero(labels == LABEL[name])
        return np.array([columns.mean(), rows.mean()]) + 0.5

    for name, ids in (
        ("right_eye", range(36, 42)),
        ("left_eye", range(42, 48)),
        ("right_brow", range(17, 22)),
        ("left_brow", range(22, 27)),
        ("upper_lip", [49, 50, 51, 52, 53, 61, 62, 63]),
        ("lower_lip", [55, 56, 57, 58, 59, 65, 66, 67]),
    ):
        np.testing.assert_allclose(centre(name), points[list(ids)].mean(0), atol=2.5)
    assert labels[0, 0] == LABEL["background"]
    assert (labels == LABEL["skin"]).mean() > 0.15
    x, y = points[30].astype(int)
    assert (labels[y - 6 : y, x - 1 : x + 2] == LABEL["nose"]).any()


def test_an_open_mouth_has_an_inside_and_a_closed_one_has_none(project_mean: ProjectMean) -> None:
    points = project_mean(0, SIZE)
    closed = points.copy()
    closed[[61, 62, 63]] = closed[[67, 66, 65]]
    opened = closed.copy()
    opened[[55, 56, 57, 58, 59, 65, 66, 67], 1] += 10
    shut, wide = draw_regions(np.zeros((2, SIZE, SIZE, 3), np.uint8), np.stack([closed, opened]))
    assert not (shut == LABEL["mouth"]).any()
    assert (wide == LABEL["mouth"]).sum() > 60


def test_our_network_sees_the_pictures_as_it_was_trained() -> None:
    torch.manual_seed(0)
    network = FaceParser(BiSeNet(ParserNetworkSettings(width=1 / 64, image_size=32)), 32)
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8)
    labels = NetworkParser(network, "cpu")(images, np.zeros((2, 68, 2)))
    expected = network(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected.numpy())


def test_classes_of_celebamask_become_our_regions(tmp_path: Path, project_mean: ProjectMean) -> None:
    images = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    points = project_mean(0, SIZE)[None]
    assert len(CELEBAMASK_19) == 19
    nose_and_hair = ExportedParser(export(tmp_path / "a.pt2", 19, 10, 17), "cpu")(images, points)[0]
    assert (nose_and_hair[:, :40] == LABEL["nose"]).all()
    assert (nose_and_hair[:, 56:] == 0).all()
    # Whatever the network calls left, the subject's right eye is the one on the picture's left.
    for left, right in ((4, 5), (5, 4)):
        eyes = ExportedParser(export(tmp_path / "b.pt2", 19, left, right), "cpu")(images, points)[0]
        assert (eyes[:, :40] == LABEL["right_eye"]).all()
        assert (eyes[:, 56:] == LABEL["left_eye"]).all()
    ours = build_parser(PreprocessSettings(parser_weights=export(tmp_path / "c.pt2", 10, 7, 1)), "cpu")
    assert (ours(images, points)[0, :, :40] == LABEL["mouth"]).all()


def test_wrong_weights_are_refused(tmp_path: Path, project_mean: ProjectMean) -> None:
    with pytest.raises(ValueError, match=r"none\.pt2: expected a network saved by torch.export.save"):
        build_parser(PreprocessSettings(parser_weights=str(tmp_path / "none.pt2")), "cpu")
    twelve = ExportedParser(export(tmp_path / "d.pt2", 12, 0, 1), "cpu")
    with pytest.raises(ValueError, match=r"d\.pt2: expected scores of 10 or 19 classes, got 12"):
        twelve(np.zeros((1, SIZE, SIZE, 3), np.uint8), project_mean(0, SIZE)[None])
    with pytest.raises(ValueError, match=r"model\.json: no such file"):
        build_parser(PreprocessSettings(parser="bisenet", parser_weights=str(tmp_path)))


def test_auto_takes_the_network_where_weights_are_named() -> None:
    assert resolve_parser(PreprocessSettings()) == "landmarks"
    assert resolve_parser(PreprocessSettings(parser_weights="weights")) == "bisenet"
    assert resolve_parser(PreprocessSettings(parser="bisenet")) == "bisenet"
