"""Expected errors: the oracle that they agree with, their calibration, and where they come out."""

import dataclasses
from pathlib import Path

import pytest
import torch

from dfmvr.confidence import (
    CALIBRATION_FILE,
    WHOLE_FACE,
    Calibration,
    Case,
    ErrorModel,
    fit_scale_and_floor,
)
from dfmvr.geometry.align import umeyama
from dfmvr.morphable.model import MorphableModel

CASE = Case({WHOLE_FACE: 2.0, "nose": 1.0}, scale=2.0, floor_mm=3.0)


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load(level=1)


@pytest.fixture(scope="module")
def errors(model: MorphableModel) -> ErrorModel:
    return ErrorModel(model)


def test_expected_errors_are_those_of_faces_drawn_and_aligned(model: MorphableModel, errors: ErrorModel):
    generator = torch.Generator().manual_seed(0)
    factor = 0.02 * torch.randn(144, 5, generator=generator).double()
    drawn = torch.randn(200, 5, generator=generator).double() @ factor.mT
    offsets = torch.einsum(
        "lp,pnc->lnc", drawn.float(), torch.cat([model.identity_basis, model.expression_basis])
    )
    shapes = (model.mean_shape + offsets).double()
    truth = model.mean_shape.double()
    gaps = umeyama(shapes, truth.expand_as(shapes)).apply(shapes) - truth
    true = torch.stack([errors.measured(one) for one in gaps]).square().mean(0).sqrt()
    covariance = drawn.mT @ drawn / len(drawn)
    torch.testing.assert_close(errors.regions(covariance).double(), true, rtol=0.03, atol=0)
    by_vertex = errors.vertices(covariance)
    lengths = gaps.square().sum(-1).mean(0).sqrt()
    torch.testing.assert_close(by_vertex.double(), lengths, rtol=0.1, atol=0.02)
    torch.testing.assert_close(errors.measured(by_vertex[:, None]), errors.regions(covariance))


def test_regions_are_the_face_and_the_parts_of_its_surface(errors: ErrorModel):
    assert next(iter(errors.places)) == WHOLE_FACE
    assert {"skin", "nose", "left_eye", "upper_lip"} < set(errors.places)
    assert not {"background", "mouth"} & set(errors.places)


def test_moving_turning_and_growing_are_no_errors(model: MorphableModel):
    shape = model.mean_shape
    turn = torch.linalg.cross(torch.tensor([0.2, -0.5, 0.1]).expand_as(shape), shape)
    motion = 0.1 * (turn + 0.3 * shape + torch.tensor([1.0, 2.0, 3.0]))
    moving = dataclasses.make_dataclass(
        "Moving", ["identity_basis", "expression_basis", "mean_shape", "labels"]
    )
    face = moving(motion[None], motion[None], shape, model.labels)
    assert float(ErrorModel(face).regions(torch.eye(2)).max()) < 1e-3


def test_scale_and_floor_are_found_again():
    generator = torch.Generator().manual_seed(0)
    raw = 0.2 + 2 * torch.rand(4000, generator=generator).double()
    expected = Case({}, scale=0.8, floor_mm=0.5).calibrated(raw)
    normal = torch.randn(4000, 6, generator=generator).double()
    true = expected * normal.square().mean(-1).sqrt()
    scale, floor = fit_scale_and_floor(raw, true)
    assert scale == pytest.approx(0.8, rel=0.05)
    assert floor == pytest.approx(0.5, rel=0.15)


def test_squares_of_curvature_and_floor_add_up():
    assert CASE.calibrated(torch.tensor([2.0])).tolist() == [5.0]


def test_a_calibration_belongs_to_its_weights(tmp_path: Path):
    calibration = Calibration("abc", {"1_views": CASE})
    calibration.save(tmp_path)
    assert Calibration.load(tmp_path, "abc") == calibration
    assert Calibration.load(tmp_path, "other") is None
    assert Calibration.load(tmp_path / "none", "abc") is None
    (tmp_path / CALIBRATION_FILE).write_text('{"cases": 3}')
    with pytest.raises(ValueError, match=r"confidence\.json: not a calibration"):
        Calibration.load(tmp_path, "abc")


def test_inputs_without_a_case_take_the_nearest_that_was_given_less():
    one, three = CASE, dataclasses.replace(CASE, scale=1.0)
    calibration = Calibration("", {"1_views": one, "3_views_with_masks": three})
    assert calibration.case(3, with_masks=True) is three
    assert calibration.case(9, with_masks=True) is three
    assert calibration.case(3, with_masks=False) is one
    assert calibration.case(2, with_masks=True) is one
    assert Calibration("", {}).case(1, with_masks=True) is None
