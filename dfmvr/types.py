"""The records that pass between rooms, and the legend of axis letters.

Axis letters, used in every shape of this project:
    B batch, V view, N vertex, F face (triangle), K landmark, H W image, C channel, P parameter;
    `*L` stands for any leading batch dimensions.

Units and coordinates (see docs/conventions.md): millimetres, radians, pixels with the origin at the top-left
pixel's top-left corner (a pixel's centre is at +0.5), RGB in [0, 1], albedo linear in [0, 1]. Model space: x
to the subject's left, y up, z out of the face. Camera space: x right, y down, z forward (OpenCV).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

REGION_NAMES = (
    "background",
    "skin",
    "right_brow",
    "left_brow",
    "right_eye",
    "left_eye",
    "nose",
    "mouth",
    "upper_lip",
    "lower_lip",
)
"""Region labels 0-9 of masks and vertices; right and left are the subject's."""

N_LANDMARKS = 68
"""Landmarks of a picture, in iBUG's order."""

VIEW_NAMES = ("left", "front", "right")
"""The usual views, in their order: `left` shows the subject's left side (yaw < 0)."""

NINE_VIEWS = (
    *("left_75", "left_60", "left", "left_20", "front", "right_20", "right", "right_60", "right_75"),
)
"""Nine views from side to side, the usual three among them; the numbers are nominal degrees of yaw."""

FRONT = "front"
"""The view that stands in for those that are missing."""


class _Movable:
    """A record of tensors that moves between devices as one."""

    def to(self, device: torch.device | str) -> Self:
        """Return a copy with every tensor on `device`, those of records within it too."""
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, field.name)
            if isinstance(value, Tensor | _Movable):
                changes[field.name] = value.to(device)
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


@dataclass(frozen=True)
class ViewBatch(_Movable):
    """B samples of one face each, seen from V views."""

    images: Tensor
    """[B, V, 3, H, W] float32, RGB in [0, 1]."""
    masks: Tensor
    """[B, V, H, W] int64 region labels 0-9."""
    weight_maps: Tensor
    """[B, V, H, W] float32 photo-loss weights in [0, 1] (paper 4.1)."""
    landmarks_2d: Tensor
    """[B, V, 68, 2] float32 pixels, iBUG order."""
    landmarks_2d_weights: Tensor
    """[B, V, 68] float32 confidences in [0, 1]; 0 where a landmark is unknown."""
    landmarks_3d: Tensor
    """[B, 101, 3] float32 mm, in any rigid frame; zeros where unknown."""
    landmarks_3d_valid: Tensor
    """[B] bool: the sample has 3D landmarks."""
    intrinsics: Tensor
    """[B, V, 3, 3] float32 pinhole matrices in pixels."""
    view_yaws: Tensor
    """[B, V] float32 radians: the rough yaw stored with the sample; NaN where unknown."""
    sample_ids: tuple[str, ...] = ()
    view_present: Tensor | None = None
    """[B, V] bool: the picture exists; what is stored for other views means nothing. None: all of them do."""
    views_of_sample: int = 1
    """This many samples in a row are views of one face, in their order (split_views)."""

    @property
    def n_views(self) -> int:
        """Number of views V."""
        return self.images.shape[1]

    @staticmethod
    def concatenate(batches: Sequence[ViewBatch]) -> ViewBatch:
        """Return one batch of the samples of several, which have the same views and picture size."""
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(ViewBatch):
            values = [getattr(batch, field.name) for batch in batches]
            if isinstance(values[0], Tensor):
                changes[field.name] = torch.cat(values)
        ids = tuple(name for batch in batches for name in batch.sample_ids)
        return dataclasses.replace(batches[0], **changes, sample_ids=ids)

    def side_by_side(self, values: Tensor) -> Tensor:
        """Undo split_views for [B, V, ...] of any kind: [B / S, S x V, ...], S = views_of_sample."""
        return values.reshape(-1, self.views_of_sample * values.shape[1], *values.shape[2:])

    def split_views(self) -> ViewBatch:
        """Return [B x V] samples of one view each, those of a sample side by side.

        A view that does not exist becomes a sample without 3D landmarks; a sample's only view always exists.
        """
        views = self.n_views
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                of_views = field.name not in ("landmarks_3d", "landmarks_3d_valid")
                flat = value.flatten(0, 1).unsqueeze(1) if of_views else value.repeat_interleave(views, 0)
                changes[field.name] = flat
        if self.view_present is not None:
            changes["landmarks_3d_valid"] &= changes["view_present"].squeeze(1)
            changes["view_present"] = None
        ids = tuple(name for name in self.sample_ids for _ in range(views))
        together = views * self.views_of_sample
        return dataclasses.replace(self, **changes, sample_ids=ids, views_of_sample=together)


@dataclass(frozen=True)
class FaceParams(_Movable):
    """What the network predicts: one face, and a pose and a light for each view."""

    identity: Tensor
    """[*L, 80] standard deviations."""
    expression: Tensor
    """[*L, 64] activations."""
    albedo: Tensor
    """[*L, 80] standard deviations."""
    light: Tensor
    """[*L, V, 9, 3] spherical-harmonic coefficients of RGB light (lighting.py)."""
    rotation: Tensor
    """[*L, V, 3, 3] model space -> view-aligned model space; identity = frontal."""
    translation: Tensor
    """[*L, V, 3] mm, in the view-aligned axes; zero: the origin lies on the optical axis at the subject's
    distance."""
    landmark_scores: Tensor | None = None
    """[*L, V, 68, h, w]: their softmax over the picture is where the network sees each landmark; None without
    such maps."""

    def sample(self, index: int) -> FaceParams:
        """Return one sample's parameters of a batch, without the scores."""
        kept = (self.identity, self.expression, self.albedo, self.light, self.rotation, self.translation)
        return FaceParams(*(values[index] for values in kept))


@dataclass(frozen=True)
class Mesh(_Movable):
    """A triangle mesh."""

    vertices: Tensor
    """[*L, N, 3] mm."""
    triangles: Tensor
    """[F, 3] int64, counter-clockwise seen from outside."""
    colours: Tensor | None = None
    """[*L, N, 3] linear RGB in [0, 1]."""
    uvs: Tensor | None = None
    """[N, 2], origin at the bottom left."""


@dataclass(frozen=True)
class RenderOutput(_Movable):
    """What a renderer returns; where no triangle is hit: zeros, and -1 in `triangle_ids`."""

    attributes: Tensor
    """[*L, H, W, C] interpolated vertex attributes."""
    mask: Tensor
    """[*L, H, W] bool: a triangle was hit."""
    triangle_ids: Tensor
    """[*L, H, W] int64."""
    barycentrics: Tensor
    """[*L, H, W, 3] perspective-correct weights of the triangle's corners."""
    depth: Tensor
    """[*L, H, W] mm along the optical axis."""


@dataclass(frozen=True)
class Reconstruction(_Movable):
    """A reconstructed face: what the Predictor returns for one sample (no batch dimension)."""

    mesh: Mesh
    """In model space, expression included, with linear albedo as colours."""
    params: FaceParams
    landmarks_3d: Tensor
    """[68, 3] mm, model space."""
    landmarks_2d: Tensor
    """[V, 68, 2] pixels of the network's input views."""
    intrinsics: Tensor
    """[V, 3, 3] pinhole matrices of those views."""
    warnings: tuple[str, ...] = ()
    """What makes this result less certain than usual: a missing view, a very small face."""
    expected_error_mm: Mapping[str, float] | None = None
    """How far off the shape probably is (confidence.py): by region, and for the whole `face`, the root mean
    square distance of corresponding vertices after the best similarity. None: the model is not calibrated."""
