"""The parser form of the mask loss, on the real face model and renderer, and what a parser is trained by."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from dfmvr.geometry.camera import default_intrinsics
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.lighting import AMBIENT
from dfmvr.losses.parser_mask import parser_mask_loss
from dfmvr.losses.parsing import parsing_loss
from dfmvr.losses.total import LossSettings, loss_terms, total_loss
from dfmvr.morphable.model import MorphableModel
from dfmvr.networks.bisenet import BiSeNet, ParserNetworkSettings
from dfmvr.networks.parser import FaceParser
from dfmvr.reconstructor import Prediction, Reconstructor
from dfmvr.render.zbuffer import ZBufferRenderer
from dfmvr.training.dry_run import made_up_batch
from dfmvr.types import FaceParams, ViewBatch

SIZE = 32
SMALL = ParserNetworkSettings(width=1 / 16, stride=2, image_size=SIZE)
THROUGH_PARSER = LossSettings(mask_source="parser")


@pytest.fixture(scope="module")
def parser() -> FaceParser:
    torch.manual_seed(0)
    return FaceParser(BiSeNet(SMALL), SIZE)


@pytest.fixture(scope="module")
def reconstructor() -> Reconstructor:
    return Reconstructor(nn.Identity(), MorphableModel.load(), ZBufferRenderer())


@pytest.fixture(scope="module")
def batch() -> ViewBatch:
    return made_up_batch(1, 1, SIZE)


def draw(reconstructor: Reconstructor, **leaves: Tensor) -> Prediction:
    light = torch.zeros(1, 1, 9, 3)
    light[:, :, 0] = AMBIENT
    params: dict[str, Tensor] = {
        "identity": torch.zeros(1, 80),
        "expression": torch.zeros(1, 64),
        "albedo": torch.zeros(1, 80),
        "light": light,
        "rotation": euler_to_matrix(torch.zeros(1, 1, 3)),
        "translation": torch.zeros(1, 1, 3),
    }
    intrinsics = default_intrinsics(SIZE).expand(1, 1, 3, 3)
    return reconstructor.draw(FaceParams(**{**params, **leaves}), intrinsics, SIZE)


@pytest.mark.parametrize("group", ["identity", "expression", "albedo", "light", "translation"])
def test_gradients_pass_through_the_render(
    reconstructor: Reconstructor, batch: ViewBatch, parser: FaceParser, group: str
) -> None:
    torch.manual_seed(0)
    shape = {"identity": 80, "expression": 64, "albedo": 80}
    start = {"light": (1, 1, 9, 3), "translation": (1, 1, 3)}.get(group, (1, shape.get(group, 1)))
    leaf = (0.1 * torch.randn(start) + (1.0 if group == "light" else 0.0)).requires_grad_()
    prediction = draw(reconstructor, **{group: leaf})
    loss_terms(prediction, batch, reconstructor.face_model, THROUGH_PARSER, parser)["mask"].backward()
    assert leaf.grad is not None
    assert float(leaf.grad.norm()) > 1e-7


def test_only_the_drawn_pixels_feel_it(parser: FaceParser) -> None:
    torch.manual_seed(0)
    drawn = torch.rand(2, 3, SIZE, SIZE, requires_grad=True)
    pictures = torch.rand(2, 3, SIZE, SIZE, requires_grad=True)
    covered = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    covered[:, 8:24, 8:24] = True
    labels = torch.randint(1, 10, (2, SIZE, SIZE))
    parser_mask_loss(parser, drawn, pictures, covered, labels).sum().backward()
    assert drawn.grad is not None
    assert pictures.grad is not None
    inside = covered.unsqueeze(1).expand_as(drawn)
    assert float(drawn.grad[inside].abs().max()) > 0
    assert float(drawn.grad[~inside].abs().max()) == 0
    assert float(pictures.grad[inside].abs().max()) == 0, "the picture shows only around the drawn face"
    assert float(pictures.grad[~inside].abs().max()) > 0, "the parser looks at the surroundings"


def test_it_is_the_difference_of_what_is_seen_and_of_the_mask(parser: FaceParser) -> None:
    """0 where nothing is compared; far less for the labels that the parser sees than for others."""
    torch.manual_seed(0)
    drawn = torch.rand(1, 3, SIZE, SIZE)
    covered = torch.ones(1, SIZE, SIZE, dtype=torch.bool)
    seen = parser(drawn)
    alike = parser_mask_loss(parser, drawn, drawn, covered, seen.clamp_min(1))
    other = parser_mask_loss(parser, drawn, drawn, covered, seen % 9 + 1)
    assert float(alike) < float(other) <= 2
    assert float(parser_mask_loss(parser, drawn, drawn, covered, torch.zeros_like(seen))) == 0
    assert float(parser_mask_loss(parser, drawn, drawn, ~covered, seen)) == 0


def test_the_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    parser = FaceParser(BiSeNet(SMALL).double(), SIZE)
    drawn, direction = torch.rand(2, 1, 3, SIZE, SIZE, dtype=torch.float64)
    covered = torch.rand(1, SIZE, SIZE) < 0.7
    labels = torch.randint(0, 10, (1, SIZE, SIZE))

    def loss(colours: Tensor) -> Tensor:
        return parser_mask_loss(parser, colours, drawn, covered, labels).sum()

    leaf = drawn.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(leaf), leaf)
    step = 1e-6 * direction
    difference = (loss(drawn + step) - loss(drawn - step)) / 2e-6
    assert float((slope * direction).sum()) == pytest.approx(float(difference), rel=1e-4)


def test_the_switch(reconstructor: Reconstructor, batch: ViewBatch, parser: FaceParser) -> None:
    with torch.no_grad():
        prediction = draw(reconstructor)
    model = reconstructor.face_model
    drawn_form = loss_terms(prediction, batch, model, LossSettings())["mask"]
    assert loss_terms(prediction, batch, model, LossSettings(), parser)["mask"] == drawn_form
    assert loss_terms(prediction, batch, model, THROUGH_PARSER, parser)["mask"] != drawn_form
    off = dataclasses.replace(THROUGH_PARSER, mask=0.0)
    assert THROUGH_PARSER.needs_parser
    assert not off.needs_parser
    assert not LossSettings().needs_parser
    _, terms = total_loss(prediction, batch, model, off)
    assert "mask" not in terms
    with pytest.raises(ValueError, match=r"losses\.mask_source: expected `regions` where no face parser"):
        total_loss(prediction, batch, model, THROUGH_PARSER)
    with pytest.raises(ValueError, match=r"losses\.mask_source: expected one of .*, got 'network'"):
        LossSettings(mask_source="network")


def test_the_loss_of_training_gives_small_regions_their_weight() -> None:
    """Sure and right: 0. Blind to a region of one pixel among 64: half of the overlaps are gone."""
    labels = torch.ones(1, 8, 8, dtype=torch.int64)
    labels[0, 0, 0] = 3
    right = 50.0 * nn.functional.one_hot(labels, 10).movedim(-1, 1)
    assert float(parsing_loss(right, labels)) == pytest.approx(0, abs=1e-5)
    blind = 50.0 * nn.functional.one_hot(torch.ones_like(labels), 10).movedim(-1, 1)
    overlap = (2 * 63 / 127 + 0) / 2
    assert float(parsing_loss(blind, labels)) == pytest.approx(50 / 64 + 1 - overlap, abs=1e-5)
