import torch

from dfmvr.types import FaceParams, Mesh, Reconstruction


def test_a_record_moves_with_all_that_is_in_it():
    params = FaceParams(*(torch.zeros(1) for _ in range(6)))
    mesh = Mesh(torch.zeros(3, 3), torch.zeros(1, 3, dtype=torch.int64))
    face = Reconstruction(mesh, params, torch.zeros(68, 3), torch.zeros(1, 68, 2), torch.eye(3), ("small",))
    moved = face.to("meta")
    tensors = (moved.landmarks_3d, moved.intrinsics, moved.mesh.vertices, moved.mesh.triangles)
    assert {tensor.device.type for tensor in (*tensors, moved.params.identity)} == {"meta"}
    assert moved.mesh.colours is None
    assert moved.warnings == ("small",)
    assert face.mesh.vertices.device.type == "cpu"
