"""The texture of a head whose albedo is known, from pictures of it in a known light."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from dfmvr.avatar.head import Head
from dfmvr.avatar.shots import SHOT_SIZE, Shot
from dfmvr.avatar.texels import Texels, find_texels, look_up
from dfmvr.avatar.texture import Texture, paint_texture
from dfmvr.geometry.camera import default_intrinsics, from_camera, to_camera
from dfmvr.geometry.mesh import vertex_normals
from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.lighting import linear_to_srgb, sh_basis
from dfmvr.render.zbuffer import ZBufferRenderer
from dfmvr.types import REGION_NAMES

SIZE = 512
WAVES = 64
"""Stripes across the texture: about 5 mm wide on the face."""
TONE = np.array([1.15, 1.0, 0.9], np.float32)
"""How the person's skin differs from the model's everywhere."""


@pytest.fixture(scope="module")
def vertices(head: Head, identity: torch.Tensor) -> torch.Tensor:
    smile = torch.zeros(64)
    smile[[head.model.expression_names.index(f"mouthSmile{side}") for side in ("Left", "Right")]] = 0.4
    return head.model.vertices(identity, smile)


@pytest.fixture(scope="module")
def albedo(head: Head) -> torch.Tensor:
    return head.model.albedo(torch.zeros(80))


@pytest.fixture(scope="module")
def texels(head: Head) -> Texels:
    return find_texels(head, SIZE)


@pytest.fixture(scope="module")
def truth(texels: Texels, albedo: torch.Tensor) -> np.ndarray:
    """The model's albedo in another tone, with diagonal stripes; not the same on both sides."""
    rows, columns = np.mgrid[:SIZE, :SIZE] / SIZE
    stripes = 0.05 * np.sin(2 * np.pi * WAVES * (rows + columns / 2))
    return (texels.spread(albedo) * TONE * (1 + stripes[..., None])).clip(0, 1).astype(np.float32)


def photograph(head: Head, vertices: torch.Tensor, texture: np.ndarray, yaw: float) -> Shot:
    """Draw the head with a texture, in a light from above and the right."""
    rotation, translation = euler_to_matrix(torch.tensor([0.05, yaw, 0.02])), torch.tensor([3.0, -2.0, 10.0])
    light = torch.zeros(9, 3)
    light[:4] = torch.tensor([[0.8, 0.75, 0.7], [0.15, 0.15, 0.15], [0.2, 0.2, 0.2], [0.1, 0.15, 0.2]])
    atlas, intrinsics = head.atlas, default_intrinsics(SHOT_SIZE)
    camera = to_camera(vertices, rotation, translation)[atlas.source]
    normals = (vertex_normals(vertices, head.model.triangles) @ rotation.T)[atlas.source]
    attributes = torch.cat([torch.from_numpy(atlas.uvs), normals], 1)
    drawn = ZBufferRenderer()(camera, torch.from_numpy(atlas.triangles), attributes, intrinsics, SHOT_SIZE)
    uvs, normal = drawn.attributes[..., :2].numpy(), drawn.attributes[..., 2:]
    at = np.stack([uvs[..., 0] * SIZE - 0.5, (1 - uvs[..., 1]) * SIZE - 0.5], -1)
    normal = torch.nn.functional.normalize(normal, dim=-1)
    radiance = torch.from_numpy(look_up(texture, at)) * (sh_basis(normal) @ light)
    image = linear_to_srgb(radiance.clamp(0, 1)).numpy() * drawn.mask.unsqueeze(-1).numpy()
    picture = np.round(image * 255).astype(np.uint8)
    return Shot(picture, drawn.mask.numpy(), intrinsics, rotation, translation, light)


@pytest.fixture(scope="module")
def shots(head: Head, vertices: torch.Tensor, truth: np.ndarray) -> list[Shot]:
    return [photograph(head, vertices, truth, yaw) for yaw in (-0.75, 0.0, 0.75)]


@pytest.fixture(scope="module")
def painted(head: Head, vertices: torch.Tensor, albedo: torch.Tensor, shots: list[Shot]) -> Texture:
    return paint_texture(head, vertices, albedo, shots, SIZE)


def relative_error(texture: Texture, truth: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.abs(np.log(texture.albedo[where].clip(0.01)) - np.log(truth[where].clip(0.01)))


def test_seen_texels_show_the_true_albedo(painted: Texture, truth: np.ndarray, texels: Texels) -> None:
    """To 0.6 %; the model in the right tone, without the stripes, would be 3 % off, as it comes 9 %."""
    seen = painted.seen > 0.95
    face = texels.on_skin & (texels.labels > 0) & ~texels.pockets
    assert seen[face].mean() > 0.6
    assert relative_error(painted, truth, seen).mean() < 0.006


def test_what_no_photograph_shows_has_the_photographs_tone(
    painted: Texture, truth: np.ndarray, texels: Texels
) -> None:
    unseen = texels.on_skin & (painted.seen[:, ::-1] + painted.seen == 0)
    assert unseen.mean() > 0.2
    assert relative_error(painted, truth, unseen).mean() < 0.04


def test_without_photographs_it_is_the_models_albedo(
    head: Head, vertices: torch.Tensor, albedo: torch.Tensor, texels: Texels
) -> None:
    texture = paint_texture(head, vertices, albedo, [], SIZE)
    np.testing.assert_allclose(
        texture.albedo[texels.covered], texels.spread(albedo)[texels.covered], atol=1e-5
    )
    assert texture.seen.max() == 0
    assert (texture.albedo.max(-1) > 0.001).all()  # no texel is empty


def test_one_side_is_mirrored_to_the_other(
    head: Head, vertices: torch.Tensor, albedo: torch.Tensor, shots: list[Shot], texels: Texels
) -> None:
    texture = paint_texture(head, vertices, albedo, shots[:1], SIZE)
    mirrored = (texture.seen == 0) & (texture.seen[:, ::-1] == 1) & texels.on_skin
    assert mirrored.mean() > 0.03
    detail = np.log(texture.albedo.clip(0.01) / texels.spread(albedo).clip(0.01))
    np.testing.assert_allclose(detail[mirrored], detail[:, ::-1][mirrored], atol=0.02)


def test_no_texel_is_taken_through_the_nose(
    head: Head, vertices: torch.Tensor, albedo: torch.Tensor, truth: np.ndarray, texels: Texels
) -> None:
    """Straight lines from what a view shows to its camera meet nothing, not even a nose thrice as long."""
    import trimesh

    nose = head.model.labels == REGION_NAMES.index("nose")
    long_nosed = vertices.clone()
    long_nosed[nose, 2] += 2 * (vertices[nose, 2] - vertices[nose, 2].min())
    shot = photograph(head, long_nosed, truth, 0.5)
    seen = paint_texture(head, long_nosed, albedo, [shot], SIZE).seen > 0.5
    places = np.random.default_rng(0).permutation(texels.spread(long_nosed)[seen])[:600]
    camera = from_camera(torch.zeros(1, 3), shot.rotation, shot.translation)[0].numpy()
    ways = camera - places
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    mesh = trimesh.Trimesh(long_nosed.numpy(), head.model.triangles.numpy(), process=False)
    assert mesh.ray.intersects_any(places + 4 * ways, ways).mean() < 0.005  # 0.02 without a depth test


def test_hair_stays_out(
    head: Head, vertices: torch.Tensor, albedo: torch.Tensor, shots: list[Shot], truth: np.ndarray
) -> None:
    """A fringe that the parser takes for skin, and a strand that it does not."""
    front = shots[1]
    image, shown = front.image.copy(), front.shown.copy()
    image[:200] = (40, 25, 15)  # the upper half of the forehead
    image[:, 380:420] = (250, 230, 120)
    shown[:, 380:420] = False
    worn = dataclasses.replace(front, image=image, shown=shown)
    texture = paint_texture(head, vertices, albedo, [worn], SIZE)
    face = texture.seen > 0.3
    assert face.mean() > 0.05
    errors = relative_error(texture, truth, face).mean(-1)
    assert np.percentile(errors, 99) < 0.2


def test_the_photograph_is_moved_to_where_its_landmarks_are(
    head: Head, vertices: torch.Tensor, albedo: torch.Tensor, shots: list[Shot], painted: Texture
) -> None:
    points = np.random.default_rng(0).uniform(300, 700, (51, 2))
    moved = [
        dataclasses.replace(
            shot,
            image=np.roll(shot.image, (12, -9), (0, 1)),
            shown=np.roll(shot.shown, (12, -9), (0, 1)),
            expected=points,
            found=np.add(points, (-9, 12)),
        )
        for shot in shots
    ]
    texture = paint_texture(head, vertices, albedo, moved, SIZE)
    np.testing.assert_allclose(texture.albedo, painted.albedo, atol=0.03)
