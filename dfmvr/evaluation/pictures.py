"""Pictures of faces for the report: clay, albedo and error maps from any side, and overlays on photographs.

All pictures are uint8 arrays [H, W, 3 or 4], sRGB, with straight alpha where there is a fourth channel.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dfmvr.evaluation.distance import Floats, Ints
from dfmvr.geometry.camera import SUBJECT_DISTANCE, to_camera
from dfmvr.geometry.mesh import vertex_normals
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.render.zbuffer import ZBufferRenderer

Picture = NDArray[np.uint8]

ERROR_SCALE = (
    (0.00, (38, 54, 121)),
    (0.15, (41, 112, 173)),
    (0.30, (52, 166, 165)),
    (0.45, (126, 201, 120)),
    (0.60, (228, 221, 105)),
    (0.80, (232, 132, 61)),
    (1.00, (165, 24, 47)),
)
"""Colours (sRGB 0-255) of errors from none to the top of the scale."""
CLAY = (0.82, 0.79, 0.76)
"""Colour (sRGB) of a surface without one."""
OUTSIDE = (0.55, 0.56, 0.58)
"""Colour (sRGB) of what is not measured."""

_SUPERSAMPLING = 2
_KEY_LIGHT, _FILL_LIGHT = (-0.42, 0.50, 0.76), (0.75, 0.05, 0.66)


def draw_turntable(
    vertices: Floats,
    triangles: Ints,
    yaws_degrees: Sequence[float],
    *,
    centre: Floats,
    colours: Floats | None = None,
    size: int = 210,
    span_mm: float = 235.0,
    relief: float = 1.0,
) -> Picture:
    """Draw a mesh under studio light from several sides, on a transparent ground.

    Args:
        vertices: [N, 3] mm, model axes.
        triangles: [F, 3].
        yaws_degrees: turns of the mesh, as in geometry.rotation; one picture each, side by side.
        centre: [3] mm: what the camera looks at and the mesh turns about.
        colours: [N, 3] sRGB in [0, 1]; None is clay.
        size: side of a picture in pixels.
        span_mm: what a picture shows at the centre's distance.
        relief: 1 shades fully, 0 shows flat colours.

    Returns:
        [size, len(yaws_degrees) * size, 4].
    """
    pixels = size * _SUPERSAMPLING
    shape = torch.as_tensor(vertices - centre, dtype=torch.float32)
    faces = torch.as_tensor(triangles)
    angles = torch.zeros(len(yaws_degrees), 3)
    angles[:, 1] = torch.deg2rad(torch.as_tensor(yaws_degrees, dtype=torch.float32))
    rotations = euler_to_matrix(angles)
    normals = vertex_normals(shape, faces) @ rotations.mT
    paint = torch.tensor(CLAY).expand_as(shape) if colours is None else torch.as_tensor(colours).float()
    focal = pixels * SUBJECT_DISTANCE / span_mm
    intrinsics = torch.tensor([[focal, 0, pixels / 2], [0, focal, pixels / 2], [0, 0, 1]])
    drawn = ZBufferRenderer()(
        to_camera(shape, rotations, torch.zeros(3)),
        faces,
        torch.cat([normals, paint.expand_as(normals)], dim=-1),
        intrinsics,
        pixels,
    )
    light = 1 - relief + relief * _studio_light(drawn.attributes[..., :3])
    colour = (drawn.attributes[..., 3:] * light.unsqueeze(-1)).clamp(0, 1)
    return np.concatenate(list(_smaller(colour, drawn.mask)), axis=1)


def error_colours(distances: Floats, vertex_ids: Ints, n_vertices: int, top_mm: float) -> NDArray[np.float64]:
    """Return [n_vertices, 3] sRGB colours of errors; vertices that were not measured are grey.

    Args:
        distances: [M] mm.
        vertex_ids: [M] the vertices that they belong to.
        n_vertices: of the scan.
        top_mm: the error at the end of the scale.
    """
    places = [place for place, _ in ERROR_SCALE]
    colours = np.array([colour for _, colour in ERROR_SCALE]) / 255
    result = np.tile(np.array(OUTSIDE), (n_vertices, 1))
    shares = np.clip(distances / top_mm, 0, 1)
    result[vertex_ids] = np.stack([np.interp(shares, places, colours[:, c]) for c in range(3)], axis=1)
    return result


def enlarge(photo: Picture, size: int) -> Picture:
    """Return a square photograph at another size."""
    return np.asarray(cv2.resize(photo, (size, size), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def overlay(photo: Picture, render: Floats, mask: NDArray[np.bool_], strength: float = 0.85) -> Picture:
    """Lay a rendered face over a photograph.

    Args:
        photo: [H, W, 3].
        render: [H, W, 3] sRGB in [0, 1].
        mask: [H, W], where the face was drawn.
        strength: opacity of the face.
    """
    soft = strength * cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.8)[..., None] * mask[..., None]
    mixed = photo * (1 - soft) + 255 * np.clip(render, 0, 1) * soft
    return mixed.round().astype(np.uint8)


def mark_landmarks(photo: Picture, given: Floats, weights: Floats, predicted: Floats) -> Picture:
    """Mark given landmarks as green dots and predicted ones as magenta rings.

    Args:
        photo: [H, W, 3].
        given: [68, 2] pixels of this picture.
        weights: [68]; landmarks of weight 0 are not drawn.
        predicted: [68, 2] pixels.
    """
    canvas = photo.copy()
    sub_pixel = 4  # cv2's fixed-point bits
    for points, colour, radius, thickness in (
        (predicted, (236, 64, 192), 2.6, 1),
        (given[weights > 0], (64, 226, 120), 1.2, -1),
    ):
        for point in points:
            # a pixel's centre is at +0.5 here and at 0 in OpenCV
            x, y = (round(float(value - 0.5) * 2**sub_pixel) for value in point)
            cv2.circle(
                canvas,
                (x, y),
                round(radius * 2**sub_pixel),
                colour,
                thickness,
                lineType=cv2.LINE_AA,
                shift=sub_pixel,
            )
    return canvas


def data_uri(picture: Picture, quality: int = 86) -> str:
    """Return a picture as a `data:` address that a page can hold."""
    code = cv2.COLOR_RGBA2BGRA if picture.shape[2] == 4 else cv2.COLOR_RGB2BGR
    encoded = cv2.imencode(".webp", cv2.cvtColor(picture, code), [cv2.IMWRITE_WEBP_QUALITY, quality])[1]
    return "data:image/webp;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def _studio_light(normals: torch.Tensor) -> torch.Tensor:
    """Return the brightness [*L] of normals [*L, 3] in view-aligned model axes."""
    unit = torch.nn.functional.normalize(normals, dim=-1)
    key = (unit @ _unit(_KEY_LIGHT)).clamp_min(0)
    fill = (unit @ _unit(_FILL_LIGHT)).clamp_min(0)
    sky = 0.5 + 0.5 * unit[..., 1]
    rim = (1 - unit[..., 2].clamp(0, 1)) ** 3
    return 0.16 + 0.16 * sky + 0.66 * key + 0.17 * fill + 0.10 * rim


def _unit(direction: Sequence[float]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(direction, dtype=torch.float32), dim=0)


def _smaller(colour: torch.Tensor, mask: torch.Tensor) -> Picture:
    """Average supersampled pixels [K, H, W, 3]; alpha is the share of them that the mesh covers."""
    alpha = mask.unsqueeze(-1).float()
    channels = torch.cat([colour * alpha, alpha], dim=-1).movedim(-1, 1)
    mean = torch.nn.functional.avg_pool2d(channels, _SUPERSAMPLING).movedim(1, -1)
    straight = mean[..., :3] / mean[..., 3:].clamp_min(1e-6)
    result = torch.cat([straight, mean[..., 3:]], dim=-1)
    return (255 * result).round().to(torch.uint8).numpy()
