"""The relief of a head with a known one; and what becomes of it: normal map and shape."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from dfmvr.avatar.build import Avatar, image_at
from dfmvr.avatar.detail import BOUND, find_detail, fit_light
from dfmvr.avatar.fine import displaced
from dfmvr.avatar.head import Head
from dfmvr.avatar.normal_map import vertex_tangents
from dfmvr.avatar.relief import bent_normals
from dfmvr.avatar.shots import SHOT_SIZE, Shot
from dfmvr.avatar.sight import Sight, shading, skin_normals
from dfmvr.avatar.texels import Texels, in_regions, look_up
from dfmvr.geometry.camera import default_intrinsics, to_camera
from dfmvr.geometry.mesh import vertex_normals
from dfmvr.lighting import linear_to_srgb, sh_basis
from dfmvr.render.zbuffer import ZBufferRenderer

LIGHT = torch.tensor([[0.7], [0.15], [0.3], [-0.35], [0], [0], [0], [0], [0]]).expand(9, 3).contiguous()


def photograph(head: Head, vertices: torch.Tensor, normals: np.ndarray, albedo: torch.Tensor) -> Shot:
    """Draw a head with normals [S, S, 3] of the texture's layout."""
    rotation, translation = torch.eye(3), torch.zeros(3)
    atlas, intrinsics = head.atlas, default_intrinsics(SHOT_SIZE)
    camera = to_camera(vertices, rotation, translation)[atlas.source]
    attributes = torch.cat([torch.from_numpy(atlas.uvs), albedo[atlas.source]], 1)
    drawn = ZBufferRenderer()(camera, torch.from_numpy(atlas.triangles), attributes, intrinsics, SHOT_SIZE)
    at = np.stack(
        [drawn.attributes[..., 0] * len(normals) - 0.5, (1 - drawn.attributes[..., 1]) * len(normals) - 0.5],
        -1,
    )
    normal = torch.nn.functional.normalize(torch.from_numpy(look_up(normals, at)), dim=-1)
    radiance = drawn.attributes[..., 2:] * (sh_basis(normal) @ LIGHT)
    image = linear_to_srgb(radiance.clamp(0, 1)).numpy() * drawn.mask.unsqueeze(-1).numpy()
    picture = np.round(image * 255).astype(np.uint8)
    return Shot(picture, drawn.mask.numpy(), intrinsics, rotation, translation, torch.zeros(9, 3) + 0.1)


def test_the_relief_of_a_photographed_head_is_found(
    head: Head, identity: torch.Tensor, texels: Texels, relief: np.ndarray
) -> None:
    """From one picture, whose light nobody knows; what is smooth stays so."""
    vertices = head.model.vertices(identity, torch.zeros(64))
    albedo = head.model.albedo(torch.zeros(80))
    normals = bent_normals(texels.spread(vertices), skin_normals(head, texels, vertices), relief)
    shot = photograph(head, vertices, normals, albedo)
    found = find_detail(head, vertices, albedo, [shot], len(relief))
    assert found.dtype == np.float32
    assert np.abs(found).max() < BOUND
    there = relief != 0
    assert np.corrcoef(found[there], relief[there])[0, 1] > 0.75
    error = np.sqrt(((found - relief)[there] ** 2).mean())
    assert error < 0.75 * np.sqrt((relief[there] ** 2).mean())
    assert np.abs(found[~in_regions(texels, ("skin", "nose"))]).max() == 0
    plain = photograph(head, vertices, skin_normals(head, texels, vertices), albedo)
    smooth = find_detail(head, vertices, albedo, [plain], len(relief))
    assert np.abs(smooth[there]).mean() < 0.2 * np.abs(found[there]).mean()


def test_without_photographs_there_is_none(head: Head, identity: torch.Tensor) -> None:
    vertices = head.model.vertices(identity, torch.zeros(64))
    assert not find_detail(head, vertices, head.model.albedo(torch.zeros(80)), [], 64).any()


def test_a_light_is_found_again() -> None:
    """Within the ridge; from texels that weigh 0, nothing is taken."""
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(64, 64, 3)).astype(np.float32)
    normals[..., 2] = np.abs(normals[..., 2])
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    albedo = rng.uniform(0.3, 0.6, (64, 64, 3)).astype(np.float32)
    light = LIGHT + 0.05 * torch.arange(3)
    weights = np.ones((64, 64), np.float32)
    weights[:8] = 0
    radiance = albedo * (sh_basis(torch.from_numpy(normals)) @ light).numpy()
    radiance[:8] = 5
    found = fit_light(Sight(radiance, normals, albedo, weights), albedo, weights, torch.zeros(9, 3))
    expected = shading(normals, light)
    np.testing.assert_allclose(shading(normals, found)[8:].mean(), expected[8:].mean(), rtol=0.03)
    assert np.abs(shading(normals, found) - expected)[8:].mean() < 0.05


def test_the_normal_map_holds_the_reliefs_normals(
    wrinkled: Avatar, head: Head, identity: torch.Tensor, texels: Texels, relief: np.ndarray
) -> None:
    """Decoded as the specification says: n = x t + y (n x t) + z n."""
    assert wrinkled.normal_map is not None
    flat = np.abs(wrinkled.normal_map[(relief == 0)].astype(int) - (128, 128, 255)).max()
    assert flat <= 1
    vertices = head.model.vertices(identity, torch.zeros(64))
    smooth = skin_normals(head, texels, vertices)
    expected = bent_normals(texels.spread(vertices), smooth, relief)
    triangles = np.concatenate(list(wrinkled.parts.values()))
    tangents = vertex_tangents(wrinkled.vertices, wrinkled.normals, wrinkled.uvs, triangles)
    whole = torch.zeros(len(vertices), 3)
    whole[head.atlas.source] = torch.from_numpy(tangents).float()
    t = texels.spread(whole)
    x, y, z = np.moveaxis(wrinkled.normal_map / 127.5 - 1, -1, 0)[..., None]
    decoded = x * t + y * np.cross(smooth, t) + z * smooth
    there = np.abs(relief) > 0.05
    assert np.linalg.norm(expected - smooth, axis=-1)[there].max() > 0.15
    np.testing.assert_allclose(decoded[there], expected[there], atol=0.02)


def test_tangents_run_along_u(wrinkled: Avatar) -> None:
    """Up in the picture is n x t wherever the skin is seen: no triangle is mirrored."""
    triangles = wrinkled.parts["skin"]
    tangents = vertex_tangents(wrinkled.vertices, wrinkled.normals, wrinkled.uvs, triangles)
    np.testing.assert_allclose(np.linalg.norm(tangents, axis=1), 1, atol=1e-9)
    np.testing.assert_allclose((tangents * wrinkled.normals).sum(1), 0, atol=1e-5)
    a, b, c = wrinkled.vertices[triangles].transpose(1, 0, 2)
    uv_a, uv_b, uv_c = wrinkled.uvs[triangles].transpose(1, 0, 2)
    frame = np.stack([uv_b - uv_a, uv_c - uv_a], 1)  # [F, edge, uv]
    along_u, along_v = np.moveaxis(np.linalg.solve(frame, np.stack([b - a, c - a], 1)), 1, 0)
    mean = tangents[triangles].mean(1)
    assert ((mean * along_u).sum(1) > 0).mean() > 0.99
    up = np.cross(wrinkled.normals[triangles].mean(1), mean)
    assert ((up * along_v).sum(1) > 0).mean() > 0.99


def test_the_finer_head_is_the_face_models_next_level(
    wrinkled: Avatar, head: Head, identity: torch.Tensor, relief: np.ndarray
) -> None:
    from dfmvr.morphable.subdivision import catmull_clark

    smooth = displaced(dataclasses.replace(wrinkled, relief=np.zeros_like(relief)))
    assert sum(map(len, smooth.parts.values())) == 4 * sum(map(len, wrinkled.parts.values()))
    assert not smooth.targets
    assert smooth.normal_map is None
    kept, corners = np.unique(head.atlas.source[head.atlas.triangles], return_inverse=True)
    level_1 = head.model.vertices(identity, torch.zeros(64)).numpy()[kept]
    pairs = corners.reshape(-1, 6)
    finer = catmull_clark(pairs[:, [0, 1, 2, 5]], len(level_1), np.arange(len(level_1))).matrix @ level_1
    place = np.sort(
        np.round(smooth.vertices[np.unique(smooth.source, return_index=True)[1]] @ (1, 1e3, 1e6), 2)
    )
    np.testing.assert_allclose(place, np.sort(finer @ (1, 1e3, 1e6)), rtol=1e-4)
    # Both sides of the cut are one, and the texture's places are those of the coarse triangles.
    whole = np.zeros((smooth.source.max() + 1, 3), np.float32)
    whole[smooth.source] = smooth.vertices
    np.testing.assert_array_equal(whole[smooth.source], smooth.vertices)
    np.testing.assert_array_equal(smooth.uvs[: len(wrinkled.uvs)], wrinkled.uvs)
    assert longest_side(smooth) < 0.7 * longest_side(wrinkled)


def longest_side(avatar: Avatar) -> float:
    """Of the skin's triangles in the texture."""
    corners = avatar.uvs[avatar.parts["skin"]]
    return float(np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=-1).max())


def test_the_skin_is_displaced_along_its_normals(wrinkled: Avatar, relief: np.ndarray) -> None:
    smooth = displaced(dataclasses.replace(wrinkled, relief=np.zeros_like(relief)))
    moved = displaced(wrinkled)
    height = ((moved.vertices - smooth.vertices) * smooth.normals).sum(1)
    np.testing.assert_allclose(height, image_at(relief[..., None], smooth.uvs)[:, 0], atol=1e-3)
    assert height.max() > 0.2
    corners = torch.from_numpy(np.concatenate([moved.source[p] for p in moved.parts.values()]))
    whole = torch.zeros(int(moved.source.max()) + 1, 3)
    whole[moved.source] = torch.from_numpy(moved.vertices)
    expected = vertex_normals(whole, corners)[moved.source].numpy()
    np.testing.assert_allclose(moved.normals, expected, atol=1e-4)


def test_a_smooth_avatar_stays_as_it_is(avatar: Avatar) -> None:
    assert displaced(avatar) is avatar
    assert avatar.normal_map is None
