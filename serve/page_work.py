"""What the page shows, without Gradio: heads of any expression, in three kinds of paint."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from torch import Tensor

from dfmvr.evaluation.pictures import CLAY, error_colours
from dfmvr.geometry.camera import project, to_camera
from dfmvr.geometry.mesh import vertex_normals
from dfmvr.lighting import linear_to_srgb, shade, srgb_to_linear
from dfmvr.morphable.model import MorphableModel
from dfmvr.predictor import PreparedViews
from dfmvr.render.zbuffer import ZBufferRenderer
from dfmvr.types import Mesh
from serve.engine import Face
from serve.problems import Problem
from serve.schemas import ReconstructionAnswer

PAINTS = ("texture", "shape", "error")
SLIDERS: Mapping[str, tuple[str, ...]] = {
    "Open mouth": ("jawOpen",),
    "Smile": ("mouthSmileLeft", "mouthSmileRight"),
    "Pucker": ("mouthPucker",),
    "Close eyes": ("eyeBlinkLeft", "eyeBlinkRight"),
    "Raise brows": ("browInnerUp", "browOuterUpLeft", "browOuterUpRight"),
    "Lower brows": ("browDownLeft", "browDownRight"),
}
"""Expressions of the face model that move together."""
TOP_ERROR = 0.5
"""Difference at the end of the error map's scale."""
_UNSEEN = 255
_MIN_FACING = 0.3
"""Least cosine between normal and view: a vertex seen more obliquely mixes with its surroundings."""
_DEPTH_SIZE = 256
_DEPTH_SLACK_MM = 4.0
"""A vertex this far behind the surface drawn at its pixel is hidden; less is the slope within the pixel."""


class Kept(BaseModel):
    """What the browser keeps of a reconstruction, so that any replica can go on with it."""

    answer: ReconstructionAnswer
    errors: str
    """Base64 of a byte a vertex: 0 to 254 are differences from 0 to TOP_ERROR, 255 is unseen."""


def keep(answer: ReconstructionAnswer, face: Face, views: PreparedViews) -> Kept:
    """Return what is kept of a reconstruction from these views."""
    errors = photo_errors(face, views)
    codes = np.full(len(errors), _UNSEEN, np.uint8)
    seen = np.isfinite(errors)
    codes[seen] = np.round(np.clip(errors[seen] / TOP_ERROR, 0, 1) * (_UNSEEN - 1))
    return Kept(answer=answer, errors=base64.b64encode(codes.tobytes()).decode())


def read_kept(text: str) -> Kept:
    """Read what a browser kept.

    Raises:
        Problem: it is something else.
    """
    try:
        return Kept.model_validate_json(text)
    except ValidationError as error:
        raise _not_kept("something else") from error


def sliders_for(face_model: MorphableModel) -> dict[str, tuple[str, ...]]:
    """Return those SLIDERS that a face model can move."""
    known = set(face_model.expression_names)
    return {label: names for label, names in SLIDERS.items() if known.issuperset(names)}


def draw_head(
    face_model: MorphableModel, kept: Kept, paint: str, as_photographed: bool, moves: Sequence[float]
) -> Mesh:
    """Return a kept head as a mesh.

    Args:
        face_model: that the coefficients belong to.
        kept: by `keep`.
        paint: texture (albedo), shape (plain) or error (difference between render and photographs).
        as_photographed: start from the expression that was found; False: from a neutral face.
        moves: activations to add, one for each of `sliders_for`, in its order.

    Raises:
        Problem: the kept head is none of this face model.
    """
    if kept.answer.face_model_hash != face_model.hash:
        raise _not_kept("that of another model")
    coefficients = kept.answer.coefficients
    expression = _vector(coefficients.expression, face_model) * float(as_photographed)
    for value, names in zip(moves, sliders_for(face_model).values(), strict=True):
        for name in names:
            expression[face_model.expression_names.index(name)] += value
    try:
        vertices = face_model.vertices(_vector(coefficients.identity, face_model), expression)
        colours = _paint(face_model, kept, paint)
    except ValueError as error:
        raise _not_kept("a damaged one") from error
    return Mesh(vertices, face_model.triangles, colours, face_model.uvs)


def _paint(face_model: MorphableModel, kept: Kept, paint: str) -> Tensor:
    """Return linear colours [N, 3].

    Raises:
        ValueError: what is kept does not fit.
    """
    n = len(face_model.mean_shape)
    match paint:
        case "texture":
            return face_model.albedo(_vector(kept.answer.coefficients.albedo, face_model))
        case "shape":
            return srgb_to_linear(face_model.mean_shape.new_tensor(CLAY)).expand(n, 3)
        case "error":
            codes = np.frombuffer(base64.b64decode(kept.errors, validate=True), np.uint8)
            if len(codes) != n:
                raise ValueError(f"errors: expected {n}, got {len(codes)}")
            seen = np.flatnonzero(codes != _UNSEEN)
            colours = error_colours(codes[seen] / (_UNSEEN - 1), seen, n, 1.0)
            return srgb_to_linear(face_model.mean_shape.new_tensor(colours))
        case _:
            raise ValueError(f"paint: expected one of {', '.join(PAINTS)}, got {paint!r}")


def photo_errors(face: Face, views: PreparedViews) -> NDArray[np.float32]:
    """Compare a face's render with its photographs at each vertex.

    Args:
        face: with albedo as colours.
        views: what it was reconstructed from.

    Returns:
        [N] mean over colours, and over the photographs that show the vertex, of |render - photograph|, sRGB
        in [0, 1]; NaN where none shows it.
    """
    mesh, params = face.mesh, face.params
    batch = views.batch.to(mesh.vertices.device)
    assert mesh.colours is not None
    assert batch.view_present is not None
    posed = vertex_normals(mesh.vertices, mesh.triangles) @ params.rotation.mT
    render = linear_to_srgb(shade(mesh.colours.expand_as(posed), posed, params.light)).clamp(0, 1)
    camera = to_camera(mesh.vertices, params.rotation, params.translation)
    size = batch.images.shape[-1]
    places = project(camera, face.intrinsics) / size
    photo = _sample(batch.images[0], places, "bilinear")
    scaled = face.intrinsics.clone()
    scaled[:, :2] *= _DEPTH_SIZE / size
    depth = ZBufferRenderer()(camera, mesh.triangles, camera[..., :1], scaled, _DEPTH_SIZE).depth
    in_front = camera[..., 2] < _sample(depth[:, None], places, "nearest")[..., 0] + _DEPTH_SLACK_MM
    given = batch.view_present[0][:, None]  # a picture that fills two views counts once
    seen = in_front & (posed[..., 2] > _MIN_FACING) & given
    total = ((render - photo).abs().mean(-1) * seen).sum(0)
    return (total / torch.where(seen.any(0), seen.sum(0), torch.nan)).cpu().float().numpy()


def _sample(pictures: Tensor, places: Tensor, mode: str) -> Tensor:
    """Return [V, N, C] of pictures [V, C, H, W] at places [V, N, 2] in [0, 1]; zeros outside."""
    grid = (2 * places - 1).unsqueeze(1)
    values = torch.nn.functional.grid_sample(pictures, grid, mode, "zeros", align_corners=False)
    return values.squeeze(2).mT


def _vector(values: Sequence[float], face_model: MorphableModel) -> Tensor:
    return face_model.mean_shape.new_tensor(values)


def _not_kept(came: str) -> Problem:
    return Problem(
        422, f"expected a head that this page made, got {came}; reconstruct it again", "head", "bad_head"
    )
