"""Avatars as files: GLB with everything, OBJ with its material and texture beside it, PLY with colours."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dfmvr.avatar.build import Avatar, image_at
from dfmvr.avatar.fine import displaced
from dfmvr.avatar.gltf import encode_glb
from dfmvr.avatar.head import Head
from dfmvr.export import check_mesh_path, encode_mesh
from dfmvr.files import write_atomic
from dfmvr.lighting import srgb_to_linear
from dfmvr.types import Mesh


def facts_of(head: Head, weights_hash: str) -> dict[str, str]:
    """Return the facts that an avatar's file keeps: what it was made with, and whose work that is."""
    return {
        "face_model": head.model.hash,
        "weights": weights_hash,
        "licence": head.model.licence,
        "credits": head.model.credits,
    }


def write_avatar(avatar: Avatar, path: Path, extras: Mapping[str, str] | None = None) -> list[Path]:
    """Write an avatar; the ending of `path` decides the format. Only GLB holds expressions.

    A relief is a normal map in GLB; in OBJ and PLY it is shape, with four times the vertices.

    Args:
        avatar: the head.
        path: a name that ends in .glb (metres), .obj (millimetres; NAME.mtl and NAME.png come beside it) or
            .ply (millimetres, one colour a vertex).
        extras: plain facts to keep in the file (hashes, licence).

    Returns:
        The files written.

    Raises:
        ValueError: the ending is unknown.
    """
    check_mesh_path(path)
    match path.suffix.lower():
        case ".glb":
            files = {path: encode_glb(avatar, path.stem, extras)}
        case ".obj":
            material, texture = path.with_suffix(".mtl"), path.with_suffix(".png")
            files = {
                texture: _png(avatar),
                material: _mtl(avatar, texture.name),
                path: _obj(displaced(avatar), material.name, extras or {}),
            }
        case _:
            files = {path: encode_mesh(_coloured(displaced(avatar)), "ply")}
    for file, data in files.items():
        write_atomic(file, data)
    return list(files)


def _png(avatar: Avatar) -> bytes:
    file = io.BytesIO()
    Image.fromarray(avatar.texture).save(file, "PNG")
    return file.getvalue()


def _mtl(avatar: Avatar, texture: str) -> bytes:
    """Return a material a part, all with the one texture."""
    return "".join(
        f"newmtl {part}\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {texture}\n\n" for part in avatar.parts
    ).encode()


def _obj(avatar: Avatar, material: str, extras: Mapping[str, str]) -> bytes:
    lines = [f"# {key}: {value}" for key, value in {"units": "millimetres", **extras}.items()]
    lines.append(f"mtllib {material}")
    for mark, rows in (("v", avatar.vertices), ("vt", avatar.uvs), ("vn", avatar.normals)):
        lines += [f"{mark} {' '.join(f'{value:.5f}' for value in row)}" for row in rows.tolist()]
    for part, triangles in avatar.parts.items():
        lines += [f"o {part}", f"usemtl {part}"]
        lines += ["f " + " ".join(f"{i}/{i}/{i}" for i in row) for row in (triangles + 1).tolist()]
    return ("\n".join(lines) + "\n").encode()


def _coloured(avatar: Avatar) -> Mesh:
    """Return the whole head with the texture's colours at its vertices."""
    colours = srgb_to_linear(torch.from_numpy(image_at(avatar.texture, avatar.uvs)) / 255)
    triangles = np.concatenate(list(avatar.parts.values()))
    return Mesh(torch.from_numpy(avatar.vertices), torch.from_numpy(triangles), colours)
