"""Exported meshes, read back by programs other than the writer (pygltflib, Open3D)."""

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from dfmvr.export import export_mesh
from dfmvr.lighting import linear_to_srgb
from dfmvr.types import Mesh


@pytest.fixture
def tetrahedron() -> Mesh:
    """A tetrahedron with 100 mm edges along the axes, in four dark to bright linear colours."""
    return Mesh(
        vertices=torch.tensor([[0.0, 0, 0], [100, 0, 0], [0, 100, 0], [0, 0, 100]]),
        triangles=torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]),
        colours=torch.tensor([[0.02, 0.02, 0.02], [0.5, 0.25, 0.1], [0.2, 0.2, 0.2], [1.0, 1.0, 1.0]]),
        uvs=torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]]),
    )


def read_gltf(path: Path) -> tuple[object, dict[str, np.ndarray]]:
    """Read the only primitive's arrays with pygltflib."""
    from pygltflib import GLTF2

    gltf = GLTF2().load(str(path))
    blob = gltf.binary_blob()
    kinds = {5121: np.uint8, 5125: np.uint32, 5126: np.float32}
    widths = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}

    def array(index: int) -> np.ndarray:
        accessor = gltf.accessors[index]
        view = gltf.bufferViews[accessor.bufferView]
        start = (view.byteOffset or 0) + (accessor.byteOffset or 0)
        width = widths[accessor.type]
        values = np.frombuffer(blob, kinds[accessor.componentType], accessor.count * width, start)
        return values.reshape(-1, width)

    (mesh,) = gltf.meshes
    (primitive,) = mesh.primitives
    names = {name: index for name, index in vars(primitive.attributes).items() if index is not None}
    arrays = {name: array(index) for name, index in names.items()}
    arrays["indices"] = array(primitive.indices).reshape(-1, 3)
    return gltf, arrays


def test_glb_holds_metres_and_linear_colours(tetrahedron: Mesh, tmp_path: Path):
    path = export_mesh(tetrahedron, tmp_path / "face.glb", name="astronaut", extras={"weights": "abc"})
    gltf, arrays = read_gltf(path)
    np.testing.assert_allclose(arrays["POSITION"], tetrahedron.vertices.numpy() / 1000, atol=1e-7)
    np.testing.assert_array_equal(arrays["indices"], tetrahedron.triangles.numpy())
    np.testing.assert_allclose(arrays["COLOR_0"][:, :3] / 255, tetrahedron.colours.numpy(), atol=0.5 / 255)
    np.testing.assert_array_equal(arrays["COLOR_0"][:, 3], 255)
    assert gltf.asset.version == "2.0"
    assert gltf.meshes[0].name == "astronaut"
    assert gltf.meshes[0].extras["weights"] == "abc"


def test_glb_material_is_no_bare_metal_and_normals_point_outwards(tetrahedron: Mesh, tmp_path: Path):
    gltf, arrays = read_gltf(export_mesh(tetrahedron, tmp_path / "face.glb"))
    material = gltf.materials[gltf.meshes[0].primitives[0].material]
    assert material.pbrMetallicRoughness.metallicFactor == 0.0
    centred = arrays["POSITION"] - arrays["POSITION"].mean(0)
    assert ((centred * arrays["NORMAL"]).sum(1) > 0).all()
    np.testing.assert_allclose(np.linalg.norm(arrays["NORMAL"], axis=1), 1, atol=1e-5)


def test_glb_is_laid_out_as_the_standard_asks(tetrahedron: Mesh, tmp_path: Path):
    data = export_mesh(tetrahedron, tmp_path / "face.glb").read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    json_length, json_kind = struct.unpack_from("<I4s", data, 12)
    assert json_kind == b"JSON"
    assert json_length % 4 == 0
    accessors = json.load(io.BytesIO(data[20 : 20 + json_length]))["accessors"]
    positions = next(a for a in accessors if a["type"] == "VEC3" and "min" in a)
    assert positions["min"] == [0, 0, 0]


@pytest.mark.parametrize("ending", ["obj", "ply"])
def test_obj_and_ply_hold_millimetres_and_srgb_colours(tetrahedron: Mesh, tmp_path: Path, ending: str):
    import open3d

    path = export_mesh(tetrahedron, tmp_path / f"face.{ending}")
    read = open3d.io.read_triangle_mesh(str(path))
    # Open3D numbers an OBJ's vertices by first use: compare the triangles' corners.
    expected = torch.cat([tetrahedron.vertices, linear_to_srgb(tetrahedron.colours)], 1)
    corners = np.concatenate([read.vertices, read.vertex_colors], 1)[np.asarray(read.triangles)]
    wanted = expected[tetrahedron.triangles].numpy()
    np.testing.assert_allclose(corners[..., :3], wanted[..., :3], atol=1e-3)
    np.testing.assert_allclose(corners[..., 3:], wanted[..., 3:], atol=1.01 / 255)


@pytest.mark.parametrize("ending", ["glb", "obj", "ply"])
def test_a_mesh_without_colours_and_uvs_is_written(tetrahedron: Mesh, tmp_path: Path, ending: str):
    import open3d

    bare = Mesh(tetrahedron.vertices, tetrahedron.triangles)
    read = open3d.io.read_triangle_mesh(str(export_mesh(bare, tmp_path / f"bare.{ending}")))
    assert len(read.vertices) == 4
    assert not read.has_vertex_colors()


def test_obj_names_its_object_and_unit(tetrahedron: Mesh, tmp_path: Path):
    text = export_mesh(tetrahedron, tmp_path / "a" / "face.obj", name="me").read_text()
    assert "\no me\n" in text
    assert "# units: millimetres" in text


def test_export_leaves_the_mesh_as_it_was(tetrahedron: Mesh, tmp_path: Path):
    before = tetrahedron.vertices.clone(), tetrahedron.colours.clone()
    export_mesh(tetrahedron, tmp_path / "face.glb")
    assert torch.equal(tetrahedron.vertices, before[0])
    assert torch.equal(tetrahedron.colours, before[1])


def test_unknown_endings_are_refused(tetrahedron: Mesh, tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"face\.stl: expected a name that ends in one of \.glb, \.obj, \.ply"
    ):
        export_mesh(tetrahedron, tmp_path / "face.stl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vertices": torch.zeros(2, 4, 3)}, r"mesh\.vertices: expected \[N, 3\].*got \[2, 4, 3\]"),
        ({"vertices": torch.full((4, 3), float("nan"))}, "expected finite numbers"),
        ({"triangles": torch.tensor([[0, 1, 4]])}, "expected indices 0 to 3, got 0 to 4"),
        ({"triangles": torch.zeros(4, 4)}, r"mesh\.triangles: expected \[F, 3\], got \[4, 4\]"),
        ({"colours": torch.zeros(3, 3)}, r"mesh\.colours: expected \[4, 3\], got \[3, 3\]"),
    ],
)
def test_a_broken_mesh_is_refused(tetrahedron: Mesh, tmp_path: Path, change: dict, message: str):
    fields = {
        name: getattr(tetrahedron, name) for name in ("vertices", "triangles", "colours", "uvs")
    } | change
    with pytest.raises(ValueError, match=message):
        export_mesh(Mesh(**fields), tmp_path / "face.glb")
    assert not list(tmp_path.iterdir())
