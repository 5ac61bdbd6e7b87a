"""An avatar as glTF 2.0 binary (GLB): parts with materials, texture, normal map and sparse morph targets.

Written to the letter of the specification (Khronos, glTF 2.0): metres, y up, the face towards +z, texture
coordinates from the top left, every accessor aligned to 4 bytes, bounds on every position.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dfmvr import __version__
from dfmvr.avatar.build import Avatar
from dfmvr.avatar.normal_map import vertex_tangents
from dfmvr.export import METRES_PER_MILLIMETRE

Array = NDArray[Any]

STILL = 0.01
"""In mm: a vertex that a target moves by less is left out of it."""
ROUGHNESS = {"skin": 0.6, "eyes": 0.15, "teeth": 0.3, "tongue": 0.45}
JPEG_QUALITY = 92
_FLOAT, _UINT16, _UINT32 = 5126, 5123, 5125
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_GLB_MAGIC, _JSON_CHUNK, _BINARY_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942


def encode_glb(avatar: Avatar, name: str = "head", extras: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a GLB file.

    Args:
        avatar: the head.
        name: of the mesh and its node.
        extras: plain facts to keep in the file (hashes, licence): `asset.extras`.
    """
    body = _Body()
    primitives = [_primitive(body, avatar, material, part) for material, part in enumerate(avatar.parts)]
    images = [{"mimeType": "image/jpeg", "bufferView": body.add_view(_jpeg(avatar.texture))}]
    if avatar.normal_map is not None:
        images.append({"mimeType": "image/png", "bufferView": body.add_view(_png(avatar.normal_map))})
    document = {
        "asset": {
            "version": "2.0",
            "generator": f"dfmvr {__version__}",
            "extras": {"units": "metres", **(extras or {})},
        },
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": name, "mesh": 0}],
        "meshes": [
            {
                "name": name,
                "primitives": primitives,
                "weights": [0.0] * len(avatar.targets),
                "extras": {"targetNames": list(avatar.targets)},
            }
        ],
        "materials": [_material(part, len(images) > 1) for part in avatar.parts],
        "textures": [{"source": k, "sampler": 0} for k in range(len(images))],
        "samplers": [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}],
        "images": images,
        "accessors": body.accessors,
        "bufferViews": body.views,
        "buffers": [{"byteLength": len(body.data)}],
    }
    return _container(document, bytes(body.data))


@dataclass
class _Body:
    """The binary part of the file, growing, and what describes it."""

    data: bytearray = field(default_factory=bytearray)
    views: list[dict[str, Any]] = field(default_factory=list)
    accessors: list[dict[str, Any]] = field(default_factory=list)

    def add_view(self, content: bytes, target: int | None = None) -> int:
        """Append bytes; return the number of their buffer view."""
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(content)}
        self.views.append(view | ({"target": target} if target else {}))
        self.data += content + bytes(-len(content) % 4)
        return len(self.views) - 1

    def add_vectors(self, values: Array, bounds: bool = False) -> int:
        """Append a vertex attribute [K, 2 to 4]; return the number of its accessor."""
        values = values.astype("<f4")
        view = self.add_view(values.tobytes(), _ARRAY_BUFFER)
        return self._add_accessor(values, {"bufferView": view}, bounds)

    def add_indices(self, indices: Array) -> int:
        """Append vertex numbers; return the number of their accessor."""
        kind, stored = _as_unsigned(indices.ravel())
        view = self.add_view(stored.tobytes(), _ELEMENT_ARRAY_BUFFER)
        self.accessors.append(
            {"bufferView": view, "componentType": kind, "count": stored.size, "type": "SCALAR"}
        )
        return len(self.accessors) - 1

    def add_displacements(self, values: Array, moved: Array) -> int:
        """Append values [K, 3], zero but for the rows `moved`; return the number of their accessor."""
        values = values.astype("<f4")
        sparse: dict[str, Any] = {}
        if len(moved):
            kind, rows = _as_unsigned(moved)
            indices = {"bufferView": self.add_view(rows.tobytes()), "componentType": kind}
            stored = {"bufferView": self.add_view(values[moved].tobytes())}
            sparse = {"sparse": {"count": len(moved), "indices": indices, "values": stored}}
        kept = np.zeros_like(values)
        kept[moved] = values[moved]
        return self._add_accessor(kept, sparse, bounds=True)

    def _add_accessor(self, values: Array, source: dict[str, Any], bounds: bool) -> int:
        accessor = {**source, "componentType": _FLOAT, "count": len(values), "type": f"VEC{values.shape[1]}"}
        if bounds:
            accessor |= {"min": values.min(0).tolist(), "max": values.max(0).tolist()}
        self.accessors.append(accessor)
        return len(self.accessors) - 1


def _primitive(body: _Body, avatar: Avatar, material: int, part: str) -> dict[str, Any]:
    """Append one part: its own vertices, its triangles and what each target does to it."""
    ids, numbered = np.unique(avatar.parts[part], return_inverse=True)
    normals = avatar.normals[ids].astype(np.float64)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    attributes = {
        "POSITION": body.add_vectors(avatar.vertices[ids] * METRES_PER_MILLIMETRE, bounds=True),
        "NORMAL": body.add_vectors(normals),
        "TEXCOORD_0": body.add_vectors(avatar.uvs[ids] * (1, -1) + (0, 1)),
    }
    if avatar.normal_map is not None and part == "skin":
        tangents = vertex_tangents(avatar.vertices[ids], normals, avatar.uvs[ids], numbered.reshape(-1, 3))
        attributes["TANGENT"] = body.add_vectors(np.pad(tangents, ((0, 0), (0, 1)), constant_values=1.0))
    targets = []
    for displacement in avatar.targets.values():
        own = displacement[ids]
        moved = np.flatnonzero(np.linalg.norm(own, axis=1) > STILL)
        targets.append({"POSITION": body.add_displacements(own * METRES_PER_MILLIMETRE, moved)})
    indices = body.add_indices(numbered.reshape(-1, 3))
    return {"attributes": attributes, "indices": indices, "material": material, "targets": targets}


def _material(part: str, with_normal_map: bool) -> dict[str, Any]:
    """Describe a part's surface; the open neck shows the skin's inside."""
    surface = {
        "baseColorTexture": {"index": 0}, "metallicFactor": 0.0, "roughnessFactor": ROUGHNESS[part],
    }  # fmt: skip
    material = {"name": part, "pbrMetallicRoughness": surface, "doubleSided": part == "skin"}
    if with_normal_map and part == "skin":
        material["normalTexture"] = {"index": 1}
    return material


def _as_unsigned(values: Array) -> tuple[int, Array]:
    """Return the component type and the values in the fewest bytes; 65535 itself is no index in glTF."""
    if values.size and int(values.max()) >= 0xFFFF:
        return _UINT32, values.astype("<u4")
    return _UINT16, values.astype("<u2")


def _jpeg(texture: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(texture).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()


def _png(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    return file.getvalue()


def _container(document: dict[str, Any], binary: bytes) -> bytes:
    """Put the two chunks into one file."""
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = b"".join(
        struct.pack("<II", len(content), kind) + content
        for content, kind in ((text, _JSON_CHUNK), (binary, _BINARY_CHUNK))
    )
    return struct.pack("<III", _GLB_MAGIC, 2, 12 + len(chunks)) + chunks
