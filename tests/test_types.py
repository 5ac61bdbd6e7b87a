import dataclasses

import torch

from dfmvr.types import FaceParams, Mesh, Reconstruction, ViewBatch


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


def test_views_split_into_samples_keep_their_own_and_share_the_face():
    def numbered(*shape: int) -> torch.Tensor:
        return torch.arange(float(torch.Size(shape).numel())).reshape(shape)

    batch = ViewBatch(
        images=numbered(2, 3, 3, 4, 4),
        masks=numbered(2, 3, 4, 4).long(),
        weight_maps=numbered(2, 3, 4, 4),
        landmarks_2d=numbered(2, 3, 68, 2),
        landmarks_2d_weights=numbered(2, 3, 68),
        landmarks_3d=numbered(2, 101, 3),
        landmarks_3d_valid=torch.tensor([True, False]),
        intrinsics=numbered(2, 3, 3, 3),
        view_yaws=numbered(2, 3),
        sample_ids=("a", "b"),
    )
    split = batch.split_views()
    assert split.n_views == 1
    assert split.views_of_sample == split.split_views().views_of_sample == 3
    assert torch.equal(split.side_by_side(split.images), batch.images)
    assert torch.equal(batch.side_by_side(batch.images), batch.images)
    assert split.sample_ids == ("a", "a", "a", "b", "b", "b")
    for name in (
        "images",
        "masks",
        "weight_maps",
        "landmarks_2d",
        "landmarks_2d_weights",
        "intrinsics",
        "view_yaws",
    ):
        assert torch.equal(getattr(split, name)[4, 0], getattr(batch, name)[1, 1]), name
    assert torch.equal(split.landmarks_3d[2], batch.landmarks_3d[0])
    assert split.landmarks_3d_valid.tolist() == [True] * 3 + [False] * 3
    assert split.view_present is None
    lacking = dataclasses.replace(batch, view_present=torch.tensor([[False, True, True], [True] * 3]))
    split = lacking.split_views()
    assert split.view_present is None  # a sample without any view would mean nothing to a network
    assert split.landmarks_3d_valid.tolist() == [False, True, True, False, False, False]
