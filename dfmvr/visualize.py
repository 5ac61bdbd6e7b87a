"""Pictures for people: the only module that imports matplotlib."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dfmvr.files import write_atomic
from dfmvr.geometry.camera import default_intrinsics, project, to_camera
from dfmvr.geometry.mesh import vertex_normals
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.lighting import linear_to_srgb, shade
from dfmvr.morphable.model import MorphableModel
from dfmvr.render.zbuffer import ZBufferRenderer
from dfmvr.types import REGION_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

REGION_COLOURS = (
    (0.25, 0.25, 0.28),
    (0.72, 0.52, 0.42),
    (0.35, 0.12, 0.06),
    (0.12, 0.35, 0.06),
    (0.85, 0.80, 0.20),
    (0.20, 0.80, 0.85),
    (0.25, 0.45, 0.85),
    (0.30, 0.03, 0.06),
    (0.85, 0.25, 0.32),
    (0.50, 0.15, 0.50),
)
"""Linear RGB of the region labels 0-9."""

VIEW_YAWS = {"left": -0.8, "front": 0.0, "right": 0.8}
"""Radians; the view `left` shows the subject's left side."""

SHEET_MODES = 6
"""Modes of identity and of albedo drawn on a face model's sheet."""

BACKDROP = 0.93
"""Grey of what no triangle covers."""


def draw_face(
    model: MorphableModel,
    vertices: Tensor,
    albedo: Tensor,
    yaw: float = 0.0,
    image_size: int = 224,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a face of the model, lit from above, as a camera at the usual distance sees it.

    Args:
        model: gives the triangles.
        vertices: [N, 3] mm, model space.
        albedo: [N, 3] linear RGB.
        yaw: turn of the head in radians; negative: the nose points to the image's left.
        image_size: pixels.

    Returns:
        the picture [H, W, 3] sRGB in [0, 1], and the vertices' pixels [N, 2].
    """
    rotation = euler_to_matrix(torch.tensor([0.0, yaw, 0.0]))
    camera = to_camera(vertices, rotation, torch.zeros(3))
    normals = vertex_normals(vertices, model.triangles) @ rotation.T
    light = torch.zeros(9, 3)
    light[:3] = torch.tensor([0.75, 0.20, 0.20])[:, None]  # from everywhere, from above, from the front
    intrinsics = default_intrinsics(image_size)
    output = ZBufferRenderer()(
        camera[None], model.triangles, shade(albedo, normals, light)[None], intrinsics[None], image_size
    )
    picture = linear_to_srgb(output.attributes[0].clamp(0, 1))
    picture = torch.where(output.mask[0, ..., None], picture, torch.tensor(BACKDROP))
    return picture.numpy(), project(camera, intrinsics).numpy()


def draw_face_model_sheet(path: Path, model_path: Path | None = None) -> None:
    """Draw what a face model holds on one sheet.

    The mean head and face, +-3 standard deviations of the first modes, every expression by name, and region
    labels with numbered landmarks in three views.

    Args:
        path: the picture to write; its suffix gives the format.
        model_path: a face-model .npz; None means the one shipped with the package.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    coarse = MorphableModel.load(model_path, level=1)
    fine = MorphableModel.load(model_path, level=2)
    head = MorphableModel.load(model_path, level=1, part="head")
    sheet = Figure(figsize=(20, 36.5), layout="constrained")
    FigureCanvasAgg(sheet)
    rows: np.ndarray = np.asarray(sheet.subfigures(5, 1, height_ratios=(3.9, 5.9, 12.3, 7.2, 7.2)))
    _draw_mean(rows[0], fine, head)
    _draw_modes(rows[1], coarse)
    _draw_expressions(rows[2], coarse)
    _draw_landmarks(rows[3], fine, fine.landmarks_68, "Region labels and the 68 landmarks")
    _draw_landmarks(rows[4], fine, fine.landmarks_101, "Region labels and the 101 landmarks")
    buffer = io.BytesIO()
    sheet.savefig(buffer, dpi=100, format=path.suffix.removeprefix(".") or "png")
    write_atomic(path, buffer.getvalue())


def _draw_mean(figure: SubFigure, face: MorphableModel, head: MorphableModel) -> None:
    figure.suptitle(
        f"Mean: head at level {head.level} ({len(head.mean_shape):,} vertices), "
        f"face at level {face.level} ({len(face.mean_shape):,} vertices)"
    )
    axes = figure.subplots(1, 6)
    for i, model in enumerate((head, face)):
        for j, (view, yaw) in enumerate(VIEW_YAWS.items()):
            picture, _ = draw_face(model, model.mean_shape, model.mean_albedo, yaw, 320)
            _show(axes[3 * i + j], picture, f"{model.part}, {view}")


def _draw_modes(figure: SubFigure, model: MorphableModel) -> None:
    figure.suptitle(
        f"-3 and +3 standard deviations of the first {SHEET_MODES} modes of identity and of albedo"
    )
    axes = figure.subplots(3, 2 * SHEET_MODES)
    for mode in range(SHEET_MODES):
        for side, sign in enumerate((-3.0, 3.0)):
            column = 2 * mode + side
            shape = model.mean_shape + sign * model.identity_basis[mode]
            for row, yaw in enumerate((0.0, -0.9)):
                picture, _ = draw_face(model, shape, model.mean_albedo, yaw, 200)
                _show(axes[row, column], picture, f"identity {mode + 1}: {sign:+.0f}" if row == 0 else "")
            colour = (model.mean_albedo + sign * model.albedo_basis[mode]).clamp(0, 1)
            _show(axes[2, column], draw_face(model, model.mean_shape, colour, 0.0, 200)[0],
                  f"albedo {mode + 1}: {sign:+.0f}")  # fmt: skip


def _draw_expressions(figure: SubFigure, model: MorphableModel) -> None:
    figure.suptitle("The expressions at full activation")
    axes = figure.subplots(6, 11)
    for axis in axes.flat:
        axis.set_axis_off()
    names = model.expression_names
    for k, name in enumerate(names):
        vertices = model.mean_shape + model.expression_basis[k]
        if name == "mouthClose":  # by ARKit's definition, it closes the lips of an open jaw
            vertices = vertices + model.expression_basis[names.index("jawOpen")]
            name = "mouthClose + jawOpen"
        _show(axes.flat[k], draw_face(model, vertices, model.mean_albedo, -0.3, 200)[0], name)


def _draw_landmarks(figure: SubFigure, model: MorphableModel, ids: Tensor, title: str) -> None:
    figure.suptitle(title)
    axes = figure.subplots(1, 3)
    colours = torch.tensor(REGION_COLOURS)[model.labels]
    for axis, (view, yaw) in zip(axes, VIEW_YAWS.items(), strict=True):
        picture, pixels = draw_face(model, model.mean_shape, colours, yaw, 640)
        _show(axis, picture, view)
        points = pixels[ids.numpy()]
        axis.scatter(points[:, 0] - 0.5, points[:, 1] - 0.5, s=6, c="lime", linewidths=0)
        for number, (x, y) in enumerate(points):
            axis.annotate(str(number), (x, y), (2, 2), textcoords="offset points", fontsize=6)
    if title.endswith("68 landmarks"):
        handles = [axes[0].scatter([], [], color=np.clip(c, 0, 1) ** 0.45) for c in REGION_COLOURS]
        axes[0].legend(handles, REGION_NAMES, fontsize=7, loc="lower left")


def _show(axis: Axes, picture: np.ndarray, title: str) -> None:
    axis.imshow(picture)
    axis.set_axis_off()
    axis.set_title(title, fontsize=8)
