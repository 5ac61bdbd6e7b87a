"""Meshes as files that other programs open: glTF binary (GLB), OBJ and PLY.

Conventions of each format, kept here so that no caller has to know them:
    GLB: metres (glTF's unit), y up, face towards +z; COLOR_0 in linear RGB, as glTF 2.0 asks for.
    OBJ: millimetres; colours as `v x y z r g b`, sRGB in [0, 1] (an extension that most viewers read).
    PLY: millimetres, binary; colours as 8-bit sRGB.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from dfmvr.files import write_atomic
from dfmvr.lighting import linear_to_srgb
from dfmvr.types import Mesh

METRES_PER_MILLIMETRE = 1e-3

MESH_FORMATS = ("glb", "obj", "ply")
"""File name endings that `export_mesh` writes."""


def export_mesh(
    mesh: Mesh, path: str | Path, name: str = "face", extras: Mapping[str, str] | None = None
) -> Path:
    """Write a mesh; the ending of `path` decides the format. The file appears complete or not at all.

    Args:
        mesh: vertices [N, 3] mm, triangles [F, 3], optional linear colours [N, 3].
        path: a file name ending in .glb, .obj or .ply; its folder is made when it does not exist.
        name: the mesh's name inside the file (GLB and OBJ).
        extras: plain facts to keep in the file (units and model hash, say): glTF's `asset.extras` or
            comments.

    Returns:
        The path written.

    Raises:
        ValueError: the ending is unknown, or the mesh has wrong shapes, indices outside its vertices, or
            non-finite vertices.
    """
    path = Path(path)
    check_mesh_path(path)
    write_atomic(path, encode_mesh(mesh, _ending(path), name, extras))
    return path


def encode_mesh(mesh: Mesh, kind: str, name: str = "face", extras: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a mesh file.

    Args:
        mesh: as `export_mesh` takes it.
        kind: one of MESH_FORMATS.
        name: as `export_mesh` takes it.
        extras: as `export_mesh` takes it.

    Raises:
        ValueError: as `export_mesh`.
    """
    check_mesh(mesh)
    match kind:
        case "glb":
            return _glb(mesh, name, dict(extras or {}))
        case "obj":
            return _obj(mesh, name, dict(extras or {}))
        case "ply":
            return _ply(mesh)
        case _:
            raise ValueError(f"kind: expected one of {', '.join(MESH_FORMATS)}, got {kind!r}")


def check_mesh_path(path: Path) -> None:
    """Check that a file name's ending is one of MESH_FORMATS.

    Raises:
        ValueError: it is not.
    """
    if _ending(path) not in MESH_FORMATS:
        endings = ", ".join("." + ending for ending in MESH_FORMATS)
        raise ValueError(f"{path}: expected a name that ends in one of {endings}")


def check_mesh(mesh: Mesh) -> None:
    """Check that a mesh can be written.

    Raises:
        ValueError: with the field's name, what was expected and what came.
    """
    vertices, triangles, colours = mesh.vertices, mesh.triangles, mesh.colours
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise ValueError(f"mesh.vertices: expected [N, 3] (one mesh, no batch), got {list(vertices.shape)}")
    if triangles.ndim != 2 or triangles.shape[1] != 3:
        raise ValueError(f"mesh.triangles: expected [F, 3], got {list(triangles.shape)}")
    if not bool(torch.isfinite(vertices).all()):
        raise ValueError("mesh.vertices: expected finite numbers, got NaN or infinity")
    if triangles.numel() and not 0 <= int(triangles.min()) <= int(triangles.max()) < len(vertices):
        raise ValueError(
            f"mesh.triangles: expected indices 0 to {len(vertices) - 1}, "
            f"got {int(triangles.min())} to {int(triangles.max())}"
        )
    if colours is not None and colours.shape != vertices.shape:
        raise ValueError(f"mesh.colours: expected {list(vertices.shape)}, got {list(colours.shape)}")


def _ending(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


def _glb(mesh: Mesh, name: str, extras: dict[str, str]) -> bytes:
    import trimesh
    from trimesh.exchange.gltf import export_glb
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    vertices, triangles, colours = _arrays(mesh)
    # Without a material, glTF means bare metal, which most viewers show almost black.
    material = PBRMaterial(name="skin", metallicFactor=0.0, roughnessFactor=0.7)
    uvs = np.zeros((len(vertices), 2)) if mesh.uvs is None else mesh.uvs.detach().cpu().numpy()
    visual = TextureVisuals(uv=uvs, material=material)
    if colours is not None:
        visual.vertex_attributes["color"] = _bytes(colours)
    body = trimesh.Trimesh(
        vertices * METRES_PER_MILLIMETRE, triangles, visual=visual, process=False, metadata=extras
    )
    scene = trimesh.Scene()
    scene.add_geometry(body, geom_name=name, node_name=name)
    return bytes(export_glb(scene, include_normals=True))


def _obj(mesh: Mesh, name: str, extras: dict[str, str]) -> bytes:
    import trimesh
    from trimesh.exchange.obj import export_obj

    vertices, triangles, colours = _arrays(mesh)
    body = trimesh.Trimesh(vertices, triangles, vertex_colors=_srgb_bytes(colours), process=False)
    text = export_obj(body, include_normals=False, include_color=colours is not None, digits=4, header=None)
    facts = {"units": "millimetres", **extras}
    comments = "".join(f"# {key}: {value}\n" for key, value in facts.items())
    return f"{comments}o {name}\n{text}".encode()


def _ply(mesh: Mesh) -> bytes:
    import trimesh
    from trimesh.exchange.ply import export_ply

    vertices, triangles, colours = _arrays(mesh)
    body = trimesh.Trimesh(vertices, triangles, vertex_colors=_srgb_bytes(colours), process=False)
    return bytes(export_ply(body))


def _arrays(mesh: Mesh) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return vertices [N, 3] float64 mm, triangles [F, 3], linear colours [N, 3] in [0, 1] or None."""
    colours = None if mesh.colours is None else mesh.colours.detach().float().clamp(0, 1).cpu().numpy()
    return mesh.vertices.detach().double().cpu().numpy(), mesh.triangles.cpu().numpy(), colours


def _srgb_bytes(linear: np.ndarray | None) -> np.ndarray | None:
    return None if linear is None else _bytes(linear_to_srgb(torch.from_numpy(linear)).numpy())


def _bytes(colours: np.ndarray) -> np.ndarray:
    """Round colours in [0, 1] to 8 bits and add an opaque alpha: [N, 4] uint8."""
    opaque = np.ones((len(colours), 1))
    return np.round(np.concatenate([colours, opaque], 1) * 255).clip(0, 255).astype(np.uint8)
