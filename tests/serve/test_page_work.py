"""Heads for the page: expressions, paints and the error map, without Gradio."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from dfmvr.predictor import Photo, PreparedViews
from dfmvr.reconstructor import Reconstructor
from dfmvr.types import FaceParams
from serve.engine import Engine, Face
from serve.page_work import Kept, draw_head, keep, photo_errors, read_kept, sliders_for
from serve.problems import Problem
from tests.serve.conftest import Fields

FaceAndViews = tuple[Face, PreparedViews]


@pytest.fixture(scope="module")
def face(engine: Engine, triple: Fields) -> FaceAndViews:
    """A face and its views, whose pictures are what the face's render looks like: no error anywhere."""
    pictures = {
        name: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        for name, (_, data, _) in triple.items()
    }
    views = engine.prepare({name: Photo(picture) for name, picture in pictures.items()})
    face = engine.predict([views])[0]
    predictor = engine.predictor
    model = Reconstructor(torch.nn.Identity(), predictor.face_model, predictor.renderer)
    params = FaceParams(
        *(
            getattr(face.params, name)[None]
            for name in ("identity", "expression", "albedo", "light", "rotation", "translation")
        )
    )
    drawn = model.draw(params, face.intrinsics[None], predictor.image_size)
    batch = dataclasses.replace(views.batch, images=drawn.image.movedim(-1, -3).clamp(0, 1))
    return face, dataclasses.replace(views, batch=batch)


@pytest.fixture(scope="module")
def kept(engine: Engine, face: FaceAndViews) -> Kept:
    return read_kept(keep(engine.answer(*face, {}), *face).model_dump_json())


def brighter(face: FaceAndViews, by: float, views: list[int]) -> PreparedViews:
    images = face[1].batch.images.clone()
    images[:, views] += by
    return dataclasses.replace(face[1], batch=dataclasses.replace(face[1].batch, images=images))


def test_a_picture_that_is_the_render_has_no_error(face: FaceAndViews) -> None:
    errors = photo_errors(*face)
    seen = np.isfinite(errors)
    assert 0.7 < seen.mean() < 1
    assert np.median(errors[seen]) < 0.01
    assert np.quantile(errors[seen], 0.95) < 0.13, "what is seen obliquely mixes with the ground"


def test_a_brighter_picture_has_that_error_where_it_shows_the_face(face: FaceAndViews) -> None:
    all_views = photo_errors(face[0], brighter(face, 0.1, [0, 1, 2])) - photo_errors(*face)
    assert np.nanmedian(all_views) == pytest.approx(0.1, abs=0.01)
    left_view = photo_errors(face[0], brighter(face, 0.1, [0])) - photo_errors(*face)
    x, _, z = face[0].mesh.vertices.T.numpy()
    cheek = (z < 0) & (np.abs(x) > 50)
    assert np.nanmedian(left_view[cheek & (x > 0)]) == pytest.approx(0.05, abs=0.01), "the front shows it too"
    assert np.nanmax(np.abs(left_view[cheek & (x < 0)])) < 1e-6, "the left view does not show the right cheek"


def test_a_view_that_is_not_there_has_no_error(face: FaceAndViews) -> None:
    views = brighter(face, 0.3, [0])
    present = torch.tensor([[False, True, True]])
    batch = dataclasses.replace(views.batch, view_present=present)
    errors = photo_errors(face[0], dataclasses.replace(views, batch=batch))
    assert np.nanmedian(errors) < 0.01


def test_the_head_at_rest_is_the_reconstruction(engine: Engine, face: FaceAndViews, kept: Kept) -> None:
    model = engine.predictor.face_model
    mesh = draw_head(model, kept, "texture", True, [0] * len(sliders_for(model)))
    assert (mesh.vertices - face[0].mesh.vertices).abs().max() < 0.02
    assert mesh.colours is not None
    assert face[0].mesh.colours is not None
    assert (mesh.colours - face[0].mesh.colours).abs().max() < 1e-3


def test_sliders_move_the_face_from_photographed_or_neutral(
    engine: Engine, face: FaceAndViews, kept: Kept
) -> None:
    model = engine.predictor.face_model
    at_rest = [0.0] * len(sliders_for(model))
    neutral = draw_head(model, kept, "shape", False, at_rest)
    expected = model.vertices(face[0].params.identity, torch.zeros(64))
    assert (neutral.vertices - expected).abs().max() < 0.02
    opened = draw_head(model, kept, "shape", False, [1.0, *at_rest[1:]])
    jaw = model.expression_basis[model.expression_names.index("jawOpen")]
    assert torch.allclose(opened.vertices - neutral.vertices, jaw, atol=1e-3)


def test_paints(engine: Engine, kept: Kept) -> None:
    model = engine.predictor.face_model
    at_rest = [0.0] * len(sliders_for(model))
    colours = {p: draw_head(model, kept, p, True, at_rest).colours for p in ("texture", "shape", "error")}
    assert len(colours["shape"].unique(dim=0)) == 1
    assert 10 < len(colours["error"].unique(dim=0)) < 256
    blue = colours["error"][:, 2] > colours["error"][:, 0]
    assert blue.float().mean() > 0.5, "little error is blue"


def test_what_no_page_of_this_model_kept_is_refused(engine: Engine, kept: Kept) -> None:
    model = engine.predictor.face_model
    at_rest = [0.0] * len(sliders_for(model))
    with pytest.raises(Problem, match="expected a head that this page made, got something else"):
        read_kept('{"answer": 1}')
    stranger = kept.model_copy(update={"answer": kept.answer.model_copy(update={"face_model_hash": "0"})})
    with pytest.raises(Problem, match="got that of another model"):
        draw_head(model, stranger, "shape", True, at_rest)
    coefficients = kept.answer.coefficients.model_copy(update={"identity": [0.0]})
    short = kept.model_copy(update={"answer": kept.answer.model_copy(update={"coefficients": coefficients})})
    for damaged, paint in ((short, "shape"), (kept.model_copy(update={"errors": "AAAA"}), "error")):
        with pytest.raises(Problem, match="got a damaged one"):
            draw_head(model, damaged, paint, True, at_rest)


def test_sliders_are_those_of_the_face_model(engine: Engine) -> None:
    model = engine.predictor.face_model
    assert list(sliders_for(model)) == [
        *("Open mouth", "Smile", "Pucker", "Close eyes", "Raise brows", "Lower brows")
    ]

    class Other:
        expression_names = ("mouthSmileLeft", "jawOpen")

    assert list(sliders_for(Other())) == ["Open mouth"]  # type: ignore[arg-type]
