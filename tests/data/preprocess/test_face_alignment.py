"""The package face_alignment with its own networks, whose weights are made here: what they find is known.

The detector fires at white squares. The landmark network puts the outline's landmarks at a red dot, those of
brows and nose at a green one, those of eyes and mouth at a blue one.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dfmvr.data.preprocess.detect import PackageMissing, PictureRejected
from dfmvr.data.preprocess.landmark import FaceAlignmentFinder, Landmarks, build_finder

pytest.importorskip("face_alignment", reason="dfmvr[photos] is not installed")

DETECTOR, LANDMARK_NETWORK = "s3fd-619a316812.pth", "3DFAN4-7835d9f11d.pth.tar"
SQUARE = 16
"""Side of a white square as the detector sees it: a cell of the head that fires; a box is 4 times as wide."""
PARTS = (slice(0, 17), slice(17, 36), slice(36, 68))
SCORES = (0.7, 1.0, 0.0)
"""Of the three parts' landmarks: the network's own (by the size of its dot), and what is cut to [0, 1]."""
DOTS = ((250, 100), (420, 60), (340, 170))


def blank(shapes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of zeros, ones for norms; broadcast, so that they take a few bytes on the disk."""

    def is_scale(name: str, ndim: int) -> bool:
        return name.endswith("running_var") or (name.endswith("weight") and ndim == 1)

    return {
        name: torch.tensor(float(is_scale(name, shape.ndim))).expand(shape.shape)
        for name, shape in shapes.items()
    }


def detector_weights() -> dict[str, Tensor]:
    """Return weights of S3FD with which every channel carries how white a place is up to the third head."""
    from face_alignment.detection.sfd.net_s3fd import s3fd

    with torch.device("meta"):
        shapes = s3fd().state_dict()
    weights = blank(shapes)
    centre = torch.zeros(3, 3)
    centre[1, 1] = 1
    for name, shape in shapes.items():
        if re.fullmatch(r"conv[1-5]_\d\.weight", name):  # the mean over the channels before
            weights[name] = (centre / shape.shape[1]).expand(shape.shape)
        elif name.endswith("conf.bias"):  # background (three times in the first head), and face
            weights[name] = torch.tensor([10.0] * (len(shape) - 1) + [-10.0])
    weights["conv1_1.bias"] = torch.tensor(-100.0).expand(64)  # white is 140 above the mean grey
    head = "conv5_3_norm_mbox_conf.weight"
    weights[head] = (torch.tensor([-1.0, 1.0])[:, None, None, None] * centre).expand(shapes[head].shape)
    return weights


def landmark_weights() -> dict[str, Tensor]:
    """Return weights of FAN with which three channels carry on where pure red, green and blue are."""
    from face_alignment.models import FAN

    with torch.device("meta"):
        shapes = FAN(4).state_dict()
    weights = blank(shapes)
    weights["conv1.weight"] = torch.zeros(64, 3, 7, 7)
    weights["conv1.weight"][:3, :, 3, 3] = 2 * torch.eye(3) - 1
    for name in ("conv2.downsample.2.weight", "conv4.downsample.2.weight", "conv_last3.weight"):
        weights[name] = torch.eye(*shapes[name].shape[:2])[..., None, None]
    weights["l3.weight"], weights["l3.bias"] = torch.zeros(68, 256, 1, 1), torch.zeros(68)
    for colour, (part, bias) in enumerate(zip(PARTS, (0.0, 5.0, -5.0), strict=True)):
        weights["l3.weight"][part, colour] = 0.3
        weights["l3.bias"][part] = bias
    return weights


def draw(width: int, height: int, squares: list[tuple[int, int]], side: int = SQUARE) -> np.ndarray:
    """Return a grey picture [height, width, 3] with white squares at (left, top)."""
    image = np.full((height, width, 3), 90, np.uint8)
    for left, top in squares:
        image[top : top + side, left : left + side] = 255
    return image


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TORCH_HOME with both weights."""
    folder = tmp_path_factory.mktemp("torch") / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(detector_weights(), folder / DETECTOR)
    torch.save(landmark_weights(), folder / LANDMARK_NETWORK)
    return folder.parent.parent


@pytest.fixture(scope="module")
def finder(home: Path) -> FaceAlignmentFinder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(home))
        finder = build_finder("face_alignment", 0.5, "cpu")
    assert isinstance(finder, FaceAlignmentFinder)
    return finder


def test_landmarks_are_found_in_full_pixels(finder: FaceAlignmentFinder) -> None:
    """The detector sees the picture shrunk by two, the landmark network as it is, in RGB."""
    image = draw(1280, 192, [(320, 96)], 2 * SQUARE)
    for colour, (x, y) in enumerate(DOTS):
        image[y - 4 : y + 4, x - 4 : x + 4] = 0
        image[y - 4 : y + 4, x - 4 : x + 4, colour] = 255
    (found,) = finder([image])
    assert isinstance(found, Landmarks)
    assert found.points.shape == (68, 2)
    for part, dot, score in zip(PARTS, DOTS, SCORES, strict=True):
        np.testing.assert_allclose(found.points[part], [dot] * len(found.points[part]), atol=4.1)  # a cell
        assert found.weights[part] == pytest.approx(score, abs=0.1)
    assert found.weights.dtype == np.float32


def test_no_face_and_several_are_refused(finder: FaceAlignmentFinder) -> None:
    none, two = finder([draw(160, 64, []), draw(256, 64, [(32, 16), (160, 16)])])
    assert isinstance(none, PictureRejected)
    assert str(none) == "no face: expected one face, found none"
    assert isinstance(two, PictureRejected)
    assert two.reason == "several faces"
    assert "found 2: 64 px at x=" in two.detail
    assert {"x=8", "x=136"} == set(re.findall("x=[0-9]+", two.detail))


@pytest.mark.parametrize("missing", [(DETECTOR, LANDMARK_NETWORK), (LANDMARK_NETWORK,)])
def test_weights_that_cannot_be_downloaded_are_named(
    missing: tuple[str, ...], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    for name in {DETECTOR, LANDMARK_NETWORK} - set(missing):
        (folder / name).symlink_to(home / "hub" / "checkpoints" / name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody answers: no download, at once
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(PackageMissing) as raised:
        build_finder("face_alignment", 0.5, "cpu")
    words = str(raised.value)
    assert f"expected the weights {' and '.join(missing)} in {folder}, got none" in words
    assert "Connection refused" in words
    assert "put https://www.adrianbulat.com/downloads/python-fan/NAME there" in words
