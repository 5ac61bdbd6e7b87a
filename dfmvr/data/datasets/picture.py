"""Draws one view of a scene: the picture, its region labels and what is visible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dfmvr.data.datasets import backdrop, degrade
from dfmvr.data.datasets import surfaces as columns
from dfmvr.data.datasets.glasses import Glasses, curves, draw_glasses
from dfmvr.data.datasets.light import Light, shade_points
from dfmvr.data.datasets.surfaces import Surfaces
from dfmvr.geometry.camera import to_camera
from dfmvr.render.zbuffer import ZBufferRenderer

Array = NDArray[Any]
_RENDERER = ZBufferRenderer()
_STREAKS = 0.28
"""How uneven hair is: the deviation of the logarithm of its brightness."""
_VISIBLE_WITHIN = 8.0
"""mm that a landmark may lie behind the drawn surface (a beard, say) and still count as visible."""


@dataclass(frozen=True, eq=False)
class Camera:
    """Pose of the head before one camera, as types.FaceParams has it, and the pinhole matrix."""

    rotation: Array
    """[3, 3] float32."""
    translation: Array
    """[3] float32 mm."""
    intrinsics: Array
    """[3, 3] float32 pixels at the picture's size."""

    def to_camera(self, points: Array) -> Array:
        """[K, 3] camera space mm."""
        arrays = (points.astype(np.float32), self.rotation, self.translation)
        result: Array = to_camera(*(torch.from_numpy(x) for x in arrays)).numpy()
        return result

    def project(self, points: Array) -> Array:
        """[K, 3]: pixels x, y, and depth in mm."""
        seen = self.to_camera(points)
        pixels = seen[:, :2] / seen[:, 2:] * np.diag(self.intrinsics)[:2] + self.intrinsics[:2, 2]
        return np.concatenate([pixels, seen[:, 2:]], axis=1)

    def enlarged(self, factor: int) -> Camera:
        """The same camera with `factor` times as many pixels a side."""
        scale = np.array([[factor], [factor], [1]], dtype=np.float32)
        return Camera(self.rotation, self.translation, self.intrinsics * scale)


@dataclass(frozen=True, eq=False)
class View:
    """One finished view."""

    image: Array
    """[S, S, 3] uint8 sRGB."""
    labels: Array
    """[S, S] uint8, true region labels; hair, clothes and occluders are background."""
    depth: Array
    """[S, S] mm, 0 where there is no surface."""
    occluded: Array
    """[S, S] bool: something lies before the head."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What the views of a sample share besides the scene."""

    light: Light
    palette: Array
    """[4, 3] of the backgrounds."""
    glasses: Glasses | None


def draw_view(
    rng: np.random.Generator,
    scene: Surfaces,
    setting: Setting,
    camera: Camera,
    size: int,
    *,
    supersample: int,
    occluder: bool,
    degradation: float,
) -> View:
    """Draw a view.

    Args:
        rng: chance of this view.
        scene: surfaces.
        setting: light, background, glasses.
        camera: pose and pinhole matrix for `size`.
        size: pixels a side.
        supersample: samples a pixel and axis.
        occluder: a hand or a thing lies before the face.
        degradation: strength of the camera's errors.
    """
    labels, depth = _draw_labels(scene, camera, size)
    fine = size * supersample
    image, fine_depth, skin = _draw_surface(rng, scene, setting.light, camera.enlarged(supersample), fine)
    background = backdrop.draw_background(rng, setting.palette, size)
    background = cv2.resize(background, (fine, fine), interpolation=cv2.INTER_LINEAR)
    drawn = fine_depth > 0
    image[~drawn] = background[~drawn]
    hidden = np.zeros((size, size), dtype=bool)
    if setting.glasses is not None:
        big = camera.enlarged(supersample)
        lines = [big.project(curve) for curve in curves(setting.glasses)]
        over, _ = draw_glasses(setting.glasses, image, fine_depth, lines, float(big.intrinsics[0, 0]))
        hidden |= _shrink(over.astype(np.float32), size) > 0.5
    image = _shrink(image, size)
    if occluder:
        cover, colour = backdrop.draw_occluder(rng, size)
        image = image + cover[..., None] * (colour - image)
        hidden |= cover > 0.5
    labels[hidden] = 0
    image = degrade.expose(rng, image, _shrink(skin, size))
    return View(degrade.take_picture(rng, image, degradation), labels, depth, hidden)


def visible(view: View, projected: Array) -> Array:
    """[K] bool: whether points [K, 3] (pixels, depth) are on the nearest surface and not occluded."""
    size = len(view.depth)
    column = np.clip(projected[:, 0].astype(int), 0, size - 1)
    row = np.clip(projected[:, 1].astype(int), 0, size - 1)
    # On an outline the pixel may show what lies just beside the point: the farthest neighbour decides.
    depth = np.where(view.depth > 0, view.depth, np.float32(np.inf))
    front = cv2.dilate(depth, np.ones((3, 3), np.uint8))[row, column]
    inside = (projected[:, :2] >= 0).all(1) & (projected[:, :2] < size).all(1)
    near = projected[:, 2] < front + _VISIBLE_WITHIN
    result: Array = inside & near & ~view.occluded[row, column]
    return result


def _render(scene: Surfaces, camera: Camera, channels: Array, size: int) -> tuple[Array, Array, Array, Array]:
    """Channels [S, S, C], triangle ids, barycentrics and depth [S, S]."""
    with torch.no_grad():
        output = _RENDERER(
            torch.from_numpy(camera.to_camera(scene.vertices)),
            torch.from_numpy(scene.triangles),
            torch.from_numpy(channels),
            torch.from_numpy(camera.intrinsics),
            size,
        )
    return (
        output.attributes.numpy(),
        output.triangle_ids.numpy(),
        output.barycentrics.numpy(),
        output.depth.numpy(),
    )


def _draw_labels(scene: Surfaces, camera: Camera, size: int) -> tuple[Array, Array]:
    """Labels [S, S] of the nearest vertex at each pixel's centre, and depth."""
    _, ids, weights, depth = _render(scene, camera, np.zeros((len(scene.vertices), 1), np.float32), size)
    corners = scene.triangles[np.maximum(ids, 0)]
    nearest = np.take_along_axis(corners, weights.argmax(-1)[..., None], axis=-1)[..., 0]
    return np.where(ids >= 0, scene.labels[nearest], 0).astype(np.uint8), depth


def _draw_surface(
    rng: np.random.Generator, scene: Surfaces, light: Light, camera: Camera, size: int
) -> tuple[Array, Array, Array]:
    """Linear radiance [S, S, 3], depth [S, S] and the share of bare surface [S, S]."""
    channels, _, _, depth = _render(scene, camera, scene.channels, size)
    drawn = depth > 0
    points = channels[drawn]
    normals = points[:, columns.NORMAL]
    normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)
    view = camera.rotation[2]
    # The inside of an open sheet of hair is dark; elsewhere only hidden surfaces face away.
    strands = points[:, columns.STRANDS]
    openness = points[:, columns.OPENNESS] * np.where((normals @ view < -0.1) & (strands > 0.5), 0.3, 1.0)
    albedo = points[:, columns.ALBEDO] * _strand_texture(rng, size)[drawn][:, None] ** strands[:, None]
    image = np.zeros((size, size, 3), dtype=np.float32)
    image[drawn] = shade_points(
        light, albedo, normals, view, openness, points[:, columns.GLOSS], points[:, columns.SHARPNESS]
    )
    bare = np.zeros((size, size), dtype=np.float32)
    bare[drawn] = 1 - np.clip(strands, 0, 1)
    return image, depth, bare


def _strand_texture(rng: np.random.Generator, size: int) -> Array:
    """[S, S] brightness factors streaked downwards."""
    noise: Array = rng.normal(size=(size, size)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), sigmaX=size / 400 + 0.3, sigmaY=size / 40)
    result: Array = np.exp(_STREAKS / max(float(noise.std()), 1e-6) * noise)
    return result


def _shrink(image: Array, size: int) -> Array:
    """Average blocks of pixels down to `size`."""
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
