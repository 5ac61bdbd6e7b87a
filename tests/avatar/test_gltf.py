"""The GLB, read back by hand, by pygltflib and by Khronos' validator."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dfmvr.avatar.build import Avatar
from dfmvr.avatar.gltf import STILL, encode_glb
from dfmvr.avatar.head import ARKIT_UNITS, Head

VALIDATE = """
require("gltf-validator").validateBytes(new Uint8Array(require("fs").readFileSync(0)))
    .then(report => console.log(JSON.stringify(report)))
"""
TYPES = {5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


class Glb:
    """A GLB taken apart as the specification says."""

    def __init__(self, data: bytes) -> None:
        magic, version, length = struct.unpack_from("<4sII", data)
        assert (magic, version, length) == (b"glTF", 2, len(data))
        size, kind = struct.unpack_from("<I4s", data, 12)
        assert (kind, size % 4) == (b"JSON", 0)
        self.document: dict[str, Any] = json.loads(data[20 : 20 + size])
        rest = data[20 + size :]
        size, kind = struct.unpack_from("<I4s", rest)
        assert (kind, size % 4, size) == (b"BIN\0", 0, len(rest) - 8)
        self.binary = rest[8:]

    def view(self, index: int) -> bytes:
        view = self.document["bufferViews"][index]
        assert view["byteOffset"] % 4 == 0
        return self.binary[view["byteOffset"] :][: view["byteLength"]]

    def array(self, index: int) -> np.ndarray:
        accessor = self.document["accessors"][index]
        kind, width = TYPES[accessor["componentType"]], WIDTHS[accessor["type"]]
        values = np.zeros((accessor["count"], width), kind)
        if "bufferView" in accessor:
            values = np.frombuffer(self.view(accessor["bufferView"]), kind).reshape(-1, width)
        if "sparse" in accessor:
            sparse = accessor["sparse"]
            at = np.frombuffer(
                self.view(sparse["indices"]["bufferView"]), TYPES[sparse["indices"]["componentType"]]
            )
            assert (np.diff(at.astype(int)) > 0).all()
            assert len(at) == sparse["count"]
            values[at] = np.frombuffer(self.view(sparse["values"]["bufferView"]), kind).reshape(-1, width)
        assert len(values) == accessor["count"]
        if "min" in accessor:
            np.testing.assert_array_equal(values.min(0), np.float32(accessor["min"]))
            np.testing.assert_array_equal(values.max(0), np.float32(accessor["max"]))
        return values


@pytest.fixture(scope="module")
def data(avatar: Avatar) -> bytes:
    return encode_glb(avatar, "somebody", {"licence": "CC0-1.0"})


@pytest.fixture(scope="module")
def glb(data: bytes) -> Glb:
    return Glb(data)


def ids_of(avatar: Avatar, part: str) -> np.ndarray:
    return np.unique(avatar.parts[part])


def test_it_names_arkits_units_and_its_parts(glb: Glb, data: bytes) -> None:
    (mesh,) = glb.document["meshes"]
    assert mesh["extras"]["targetNames"] == list(ARKIT_UNITS)
    assert mesh["weights"] == [0] * 52
    materials = [glb.document["materials"][p["material"]]["name"] for p in mesh["primitives"]]
    assert materials == ["skin", "eyes", "teeth", "tongue"]
    assert all(len(primitive["targets"]) == 52 for primitive in mesh["primitives"])
    assert glb.document["asset"]["extras"] == {"units": "metres", "licence": "CC0-1.0"}
    assert len(data) < 6e6


def test_at_rest_it_is_the_face_models_head_in_metres(
    glb: Glb, avatar: Avatar, head: Head, identity: torch.Tensor
) -> None:
    rest = head.model.vertices(identity, torch.zeros(64)).numpy()[head.atlas.source] / 1000
    seen = np.zeros(len(rest), bool)
    for primitive, part in zip(glb.document["meshes"][0]["primitives"], avatar.parts, strict=True):
        ids = ids_of(avatar, part)
        attributes = primitive["attributes"]
        np.testing.assert_allclose(glb.array(attributes["POSITION"]), rest[ids], atol=1e-6)
        seen[ids] = True
        corners = ids[glb.array(primitive["indices"]).reshape(-1, 3).astype(int)]
        np.testing.assert_array_equal(corners, avatar.parts[part])
        lengths = np.linalg.norm(glb.array(attributes["NORMAL"]), axis=1)
        np.testing.assert_allclose(lengths, 1, atol=1e-5)
    assert seen.all()
    positions = glb.array(glb.document["meshes"][0]["primitives"][0]["attributes"]["POSITION"])
    assert positions[:, 1].max() > 0.1  # y up
    assert positions[:, 2].max() < 0.1 < -positions[:, 2].min()  # the face towards +z, the nape behind


def test_its_targets_are_the_face_models_expressions(glb: Glb, avatar: Avatar, head: Head) -> None:
    for primitive, part in zip(glb.document["meshes"][0]["primitives"], avatar.parts, strict=True):
        source = head.atlas.source[ids_of(avatar, part)]
        for unit, target in zip(head.units.numpy(), primitive["targets"], strict=True):
            difference = np.linalg.norm(glb.array(target["POSITION"]) * 1000 - unit[source], axis=1)
            assert difference.max() < STILL + 1e-4


def test_the_texture_comes_back_at_the_same_places(glb: Glb, avatar: Avatar) -> None:
    image = glb.document["images"][0]
    assert image["mimeType"] == "image/jpeg"
    picture = np.asarray(Image.open(io.BytesIO(glb.view(image["bufferView"]))))
    assert picture.shape == (1024, 1024, 3)
    skin = glb.document["meshes"][0]["primitives"][0]
    uvs = glb.array(skin["attributes"]["TEXCOORD_0"])
    columns, rows = (uvs * 1023).round().astype(int).T
    expected = avatar.uvs[ids_of(avatar, "skin")] * (255, -255) + (0, 255)
    np.testing.assert_allclose(picture[rows, columns, :2], expected, atol=6)


def test_a_relief_is_the_skins_normal_texture(wrinkled: Avatar) -> None:
    data = encode_glb(wrinkled)
    glb = Glb(data)
    assert len(data) < 6e6
    assert [m.get("normalTexture") for m in glb.document["materials"]] == [{"index": 1}, None, None, None]
    image = glb.document["images"][glb.document["textures"][1]["source"]]
    assert image["mimeType"] == "image/png"
    picture = np.asarray(Image.open(io.BytesIO(glb.view(image["bufferView"]))))
    np.testing.assert_array_equal(picture, wrinkled.normal_map)
    skin, *others = (primitive["attributes"] for primitive in glb.document["meshes"][0]["primitives"])
    assert all("TANGENT" not in attributes for attributes in others)
    tangents, normals = glb.array(skin["TANGENT"]), glb.array(skin["NORMAL"])
    np.testing.assert_array_equal(tangents[:, 3], 1)
    np.testing.assert_allclose(np.linalg.norm(tangents[:, :3], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose((tangents[:, :3] * normals).sum(1), 0, atol=1e-5)


def test_without_a_relief_there_is_no_normal_texture(glb: Glb) -> None:
    assert len(glb.document["images"]) == len(glb.document["textures"]) == 1
    assert "normalTexture" not in json.dumps(glb.document["materials"])
    assert "TANGENT" not in json.dumps(glb.document["meshes"])


def test_pygltflib_reads_it(data: bytes) -> None:
    from pygltflib import GLTF2

    gltf = GLTF2.load_from_bytes(data)
    assert gltf.meshes[0].extras["targetNames"][0] == "browDownLeft"
    assert len(gltf.binary_blob()) == gltf.buffers[0].byteLength


@pytest.mark.parametrize("with_relief", [False, True])
def test_khronos_validator_finds_nothing(
    with_relief: bool, data: bytes, wrinkled: Avatar, node_package: Callable[[str], Path]
) -> None:
    validator = node_package("gltf-validator")
    answer = subprocess.run(
        ["node", "-e", VALIDATE],
        input=encode_glb(wrinkled) if with_relief else data,
        capture_output=True,
        check=True,
        timeout=60,
        env={**os.environ, "NODE_PATH": str(validator.parent)},
    )
    issues = json.loads(answer.stdout)["issues"]
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"]
