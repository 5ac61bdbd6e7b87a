"""A moving picture of an avatar for people who only look: the head turns and smiles."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dfmvr.avatar.build import Avatar, image_at
from dfmvr.avatar.normal_map import vertex_tangents
from dfmvr.files import write_atomic
from dfmvr.geometry.camera import default_intrinsics, to_camera
from dfmvr.geometry.mesh import vertex_normals
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.lighting import linear_to_srgb, sh_basis, srgb_to_linear
from dfmvr.render.zbuffer import ZBufferRenderer

TURNTABLE_FORMATS = ("webp", "gif", "mp4")
SMILE = {
    "mouthSmileLeft": 0.8, "mouthSmileRight": 0.8, "cheekSquintLeft": 0.5, "cheekSquintRight": 0.5,
    "mouthUpperUpLeft": 0.5, "mouthUpperUpRight": 0.5, "eyeSquintLeft": 0.3, "eyeSquintRight": 0.3,
    "jawOpen": 0.08,
}  # fmt: skip
"""Activations of a smile that shows the teeth."""

_FRAMES = 48
_FRAMES_PER_SECOND = 16
_TURN = np.radians(55.0)
_SUPERSAMPLING = 2
_ZOOM = 0.62
"""Focal length as a share of the default camera's, so that the whole head is in the picture."""
LIGHT = ((0.95, 0.95, 0.97), (0.2, 0.2, 0.2), (0.34, 0.33, 0.32), (0.1, 0.09, 0.08))
"""Bands 1, y, z, x: from all sides, above, before, and a little from the viewer's right."""
_GLINT_TOWARDS = (0.3, 0.45, 0.84)
"""Where the lamp stands that highlights mirror, in view-aligned axes."""
_GLOSS = {"skin": (0.05, 12.0), "eyes": (0.8, 150.0), "teeth": (0.25, 40.0), "tongue": (0.15, 25.0)}
"""Strength and sharpness of each part's highlight."""
_BACKDROP = 0.93


def check_turntable_path(path: Path) -> None:
    """Check that a file name's ending is one of TURNTABLE_FORMATS.

    Raises:
        ValueError: it is not.
    """
    if path.suffix.lower().removeprefix(".") not in TURNTABLE_FORMATS:
        endings = ", ".join("." + ending for ending in TURNTABLE_FORMATS)
        raise ValueError(f"{path}: expected a name that ends in one of {endings}")


def write_turntable(avatar: Avatar, path: Path, image_size: int = 384) -> None:
    """Draw a turn of the head to both sides and a smile; the ending of `path` decides the format.

    Raises:
        ValueError: the ending is unknown.
    """
    check_turntable_path(path)
    frames = []
    for moment in np.arange(_FRAMES) / _FRAMES:
        yaw = _TURN * np.sin(2 * np.pi * moment)
        smile = np.sin(np.pi * moment) ** 2
        frames.append(draw_avatar(avatar, float(yaw), {u: smile * a for u, a in SMILE.items()}, image_size))
    write_atomic(path, _film(frames, path.suffix.lower()))


def draw_avatar(
    avatar: Avatar,
    yaw: float,
    activations: Mapping[str, float],
    image_size: int,
    light: Sequence[Sequence[float]] = LIGHT,
) -> NDArray[np.uint8]:
    """Draw the head as the turntable shows it.

    Args:
        avatar: the head.
        yaw: radians; negative: the nose points to the image's left.
        activations: of expression units, by name.
        image_size: pixels a side.
        light: the first bands [1 to 9, 3] (lighting.py) of its colours.

    Returns:
        [H, W, 3] sRGB.
    """
    fine = image_size * _SUPERSAMPLING
    vertices = avatar.vertices.copy()
    for unit, activation in activations.items():
        vertices += np.float32(activation) * avatar.targets[unit]
    triangles = np.concatenate(list(avatar.parts.values()))
    rotation = euler_to_matrix(torch.tensor([0.0, yaw, 0.0]))
    camera = to_camera(torch.from_numpy(vertices), rotation, torch.tensor([0.0, 4.0, 0.0]))
    intrinsics = default_intrinsics(fine)
    intrinsics[[0, 1], [0, 1]] *= _ZOOM
    normals = _normals(avatar, vertices)
    tangents = torch.from_numpy(vertex_tangents(vertices, normals.numpy(), avatar.uvs, triangles)).float()
    turned = torch.cat([normals @ rotation.T, tangents @ rotation.T], -1)
    attributes = torch.cat([torch.from_numpy(avatar.uvs), _gloss(avatar), turned], -1)
    drawn = ZBufferRenderer()(camera, torch.from_numpy(triangles), attributes, intrinsics, fine)
    picture = torch.full((fine, fine, 3), _BACKDROP)
    shaded = _shaded(avatar, drawn.attributes[drawn.mask], light)
    picture[drawn.mask] = linear_to_srgb(shaded.clamp(0, 1))
    small = cv2.resize(picture.numpy(), (image_size, image_size), interpolation=cv2.INTER_AREA)
    return np.round(small * 255).astype(np.uint8)


def _shaded(avatar: Avatar, attributes: torch.Tensor, bands: Sequence[Sequence[float]]) -> torch.Tensor:
    """Return the linear colours [K, 3] of points with uv, gloss, normal and tangent [K, 10]."""
    uvs = attributes[:, :2].numpy()
    albedo = srgb_to_linear(torch.from_numpy(image_at(avatar.texture, uvs)) / 255)
    normal = torch.nn.functional.normalize(attributes[:, 4:7], dim=-1)
    if avatar.normal_map is not None:
        tangent = torch.nn.functional.normalize(attributes[:, 7:], dim=-1)
        frame = torch.stack([tangent, torch.linalg.cross(normal, tangent), normal], 1)
        local = torch.from_numpy(image_at(avatar.normal_map, uvs)) / 127.5 - 1
        normal = torch.nn.functional.normalize((local.unsqueeze(-1) * frame).sum(1), dim=-1)
    light = torch.zeros(9, 3)
    light[: len(bands)] = torch.tensor(bands)
    towards_eye = torch.tensor((0.0, 0.0, 1.0))
    halfway = torch.nn.functional.normalize(torch.tensor(_GLINT_TOWARDS) + towards_eye, dim=0)
    strength, sharpness = attributes[:, 2:4].unbind(-1)
    glint = strength * (normal @ halfway).clamp(0, 1) ** sharpness.clamp_min(1)
    return albedo * (sh_basis(normal) @ light) + glint.unsqueeze(-1)


def _normals(avatar: Avatar, vertices: NDArray[np.float32]) -> torch.Tensor:
    """Return the normals [M, 3] of a moved head [M, 3], the same on both sides of the texture's cut."""
    whole = np.zeros_like(vertices)
    whole[avatar.source] = vertices
    triangles = avatar.source[np.concatenate(list(avatar.parts.values()))]
    return vertex_normals(torch.from_numpy(whole), torch.from_numpy(triangles))[avatar.source]


def _gloss(avatar: Avatar) -> torch.Tensor:
    """Return strength and sharpness of the vertices' highlights [M, 2]."""
    gloss = torch.zeros(len(avatar.vertices), 2)
    for part, triangles in avatar.parts.items():
        gloss[triangles.ravel()] = torch.tensor(_GLOSS[part])
    return gloss


def _film(frames: list[NDArray[np.uint8]], kind: str) -> bytes:
    """Return the bytes of a film [H, W, 3] sRGB a frame."""
    if kind == ".mp4":
        return _mp4(frames)
    pictures = [Image.fromarray(frame) for frame in frames]
    options: dict[str, Any] = {"quality": 80} if kind == ".webp" else {}
    file = io.BytesIO()
    pictures[0].save(
        file,
        kind.removeprefix("."),
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 / _FRAMES_PER_SECOND),
        loop=0,
        **options,
    )
    return file.getvalue()


def _mp4(frames: list[NDArray[np.uint8]]) -> bytes:
    height, width = frames[0].shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"  # OpenCV writes films to files only
        film = cv2.VideoWriter(
            str(path), cv2.VideoWriter.fourcc(*"mp4v"), _FRAMES_PER_SECOND, (width, height)
        )
        for frame in frames:
            film.write(frame[..., ::-1])
        film.release()
        if not path.is_file():
            raise ValueError("mp4: expected an OpenCV that writes films, got one that does not; try .webp")
        return path.read_bytes()
