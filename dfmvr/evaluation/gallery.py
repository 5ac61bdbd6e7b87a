"""What the report shows of a sample: its views, the face laid over them, and the surfaces from all sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from dfmvr.data.sample import Sample
from dfmvr.evaluation.distance import Floats
from dfmvr.evaluation.evaluator import METHODS, Coefficients, Evaluator
from dfmvr.evaluation.pictures import (
    data_uri,
    draw_turntable,
    enlarge,
    error_colours,
    mark_landmarks,
    overlay,
)
from dfmvr.evaluation.protocol import Measurement
from dfmvr.lighting import linear_to_srgb
from dfmvr.reconstructor import Reconstructor
from dfmvr.render.zbuffer import ZBufferRenderer
from dfmvr.types import FaceParams

TURNS = tuple(range(-60, 61, 20))
"""Yaws (degrees) of a turntable's pictures; the middle one is frontal."""
VIEW_PIXELS = 256
"""Side of the views' pictures in the report."""
PARAMETERS = ("identity", "expression", "albedo", "light", "rotation", "translation")
"""Fields of FaceParams that a row of results carries."""


@dataclass(frozen=True)
class ViewPicture:
    """One input view; pictures are `data:` addresses."""

    name: str
    photo: str
    """With given and predicted landmarks."""
    overlay: str
    """The predicted face drawn over the photograph."""


@dataclass(frozen=True)
class GalleryItem:
    """One sample of the report; pictures are `data:` addresses."""

    sample_id: str
    rmse_mm: dict[str, float]
    views: tuple[ViewPicture, ...]
    turntables: dict[str, str]
    """Title -> the pictures of TURNS side by side."""
    textured: str
    """The predicted face with its albedo, from TURNS, side by side."""


def picture_sample(
    evaluator: Evaluator, sample: Sample, row: Mapping[str, Any], top_mm: float
) -> GalleryItem:
    """Draw a sample.

    Args:
        evaluator: that made the row.
        sample: with its scan.
        row: of results, with the fields PARAMETERS of the network's prediction.
        top_mm: the error at the end of the colour scale.
    """
    params = FaceParams(
        **{name: torch.as_tensor(np.asarray(row[name]), dtype=torch.float32) for name in PARAMETERS}
    )
    network = Coefficients(np.asarray(row["identity"]), np.asarray(row["expression"]))
    return GalleryItem(
        sample_id=sample.sample_id,
        rmse_mm={method: float(row[f"{method}_rmse_mm"]) for method in METHODS},
        views=_views(evaluator, sample, params),
        turntables=_turntables(evaluator, sample, network, top_mm),
        textured=_textured(evaluator, params),
    )


def _views(evaluator: Evaluator, sample: Sample, params: FaceParams) -> tuple[ViewPicture, ...]:
    """Draw the face into every view, at the report's size."""
    scale = VIEW_PIXELS / sample.images.shape[1]
    zoom = torch.diag(torch.tensor([scale, scale, 1.0]))
    intrinsics = zoom @ torch.as_tensor(sample.intrinsics, dtype=torch.float32)
    drawing = Reconstructor(nn.Identity(), evaluator.model, ZBufferRenderer())
    batched = FaceParams(**{name: getattr(params, name).unsqueeze(0) for name in PARAMETERS})
    with torch.no_grad():
        prediction = drawing.draw(batched, intrinsics.unsqueeze(0), VIEW_PIXELS)
    views = []
    for index, name in enumerate(sample.view_names):
        photo = enlarge(sample.images[index], VIEW_PIXELS)
        marked = mark_landmarks(
            photo,
            sample.landmarks_2d[index] * scale,
            sample.landmarks_2d_weights[index],
            prediction.landmarks_2d[0, index].numpy(),
        )
        face = overlay(photo, prediction.image[0, index].numpy(), prediction.mask[0, index].numpy())
        views.append(ViewPicture(name, data_uri(marked), data_uri(face)))
    return tuple(views)


def _turntables(evaluator: Evaluator, sample: Sample, network: Coefficients, top_mm: float) -> dict[str, str]:
    """Draw truth, prediction and error maps in the scan's frame, all about the same point."""
    truth = evaluator.truth(sample)
    vertices, triangles = np.asarray(sample.scan_vertices), np.asarray(sample.scan_triangles)
    centre = _middle(vertices)

    def error_map(measured: Measurement) -> str:
        colours = error_colours(measured.distances, truth.vertex_ids, len(vertices), top_mm)
        return data_uri(
            draw_turntable(vertices, triangles, TURNS, centre=centre, colours=colours, relief=0.45)
        )

    measured = evaluator.measure(truth, network)
    predicted = measured.transform.apply(evaluator.vertices(network))
    faces = evaluator.model.triangles.numpy()
    return {
        "prediction": data_uri(draw_turntable(predicted, faces, TURNS, centre=centre)),
        "truth": data_uri(draw_turntable(vertices, triangles, TURNS, centre=centre)),
        "error of the network": error_map(measured),
        "error of the mean face": error_map(evaluator.measure(truth, evaluator.mean_coefficients)),
    }


def _textured(evaluator: Evaluator, params: FaceParams) -> str:
    vertices = evaluator.vertices(Coefficients(params.identity.numpy(), params.expression.numpy()))
    colours = linear_to_srgb(evaluator.model.albedo(params.albedo)).numpy()
    triangles = evaluator.model.triangles.numpy()
    centre = _middle(vertices)

    return data_uri(draw_turntable(vertices, triangles, TURNS, centre=centre, colours=colours, relief=0.7))


def _middle(vertices: Floats) -> Floats:
    """Return the middle [3] of the box around vertices [N, 3]."""
    return (vertices.min(axis=0) + vertices.max(axis=0)) / 2
