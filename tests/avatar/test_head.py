"""The rig and its atlas: ARKit's units, and a sheet without folds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dfmvr.avatar.atlas import PARTS
from dfmvr.avatar.head import ARKIT_UNITS, Head, load_head
from dfmvr.morphable.io import FaceFileError


def areas(corners: np.ndarray) -> np.ndarray:
    """Signed areas of triangles [F, 3, 2]."""
    (x0, y0), (x1, y1), (x2, y2) = corners.astype(float).transpose(1, 2, 0)
    return ((x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)) / 2


def test_the_units_are_arkits(head: Head) -> None:
    assert len(ARKIT_UNITS) == len(set(ARKIT_UNITS)) == 52
    names, basis = head.model.expression_names, head.model.expression_basis
    for unit, displacement in zip(ARKIT_UNITS[:-1], head.units, strict=False):
        assert (displacement == basis[names.index(unit)]).all(), unit
    out = head.units[ARKIT_UNITS.index("tongueOut")]
    moved = out.norm(dim=1) > 0.01
    tongue = head.atlas.parts == PARTS.index("tongue")
    assert set(np.flatnonzero(moved)) <= set(head.atlas.source[head.atlas.triangles[tongue]].ravel())
    assert out[moved, 2].max() > 20  # mm, forwards


def test_left_is_the_subjects(head: Head) -> None:
    """x grows to the subject's left."""
    for name, unit in zip(ARKIT_UNITS, head.units, strict=True):
        side = {"Left": 1, "ight": -1}.get(name[-4:], 0)
        if side and name.startswith(("brow", "eye", "cheek", "nose", "mouthSmile", "mouthFrown")):
            centre = (head.model.mean_shape[:, 0] * unit.norm(dim=1)).sum() / unit.norm(dim=1).sum()
            assert centre * side > 5, name


def test_the_skin_is_one_sheet_without_folds(head: Head) -> None:
    atlas = head.atlas
    skin = atlas.parts == PARTS.index("skin")
    assert (areas(atlas.uvs[atlas.triangles[skin]]) > 0).all()
    assert 0 <= atlas.uvs.min() <= atlas.uvs.max() <= 1
    others = atlas.uvs[np.unique(atlas.triangles[~skin])]
    assert others[:, 1].min() > atlas.uvs[np.unique(atlas.triangles[skin]), 1].max()


def test_the_face_gets_two_texels_a_millimetre(head: Head) -> None:
    atlas, model = head.atlas, head.model
    labels = model.labels.numpy()[atlas.source[atlas.triangles]]
    face = (atlas.parts == 0) & (labels > 0).all(1) & (labels != 7).all(1)
    a, b, c = model.mean_shape.numpy()[atlas.source[atlas.triangles[face]]].transpose(1, 0, 2)
    space = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2
    texels = areas(atlas.uvs[atlas.triangles[face]]) * 1024**2
    assert np.percentile(np.sqrt(texels / space), 2) > 2


def test_the_sheets_mirror_image_is_the_heads(head: Head) -> None:
    atlas, mirror = head.atlas, head.model.mirror.numpy()
    cut = np.unique(atlas.source[np.bincount(atlas.source)[atlas.source] > 1])
    on_skin = np.setdiff1d(atlas.source[atlas.triangles[atlas.parts == 0]], cut)
    places = np.zeros((len(mirror), 2))
    places[atlas.source] = atlas.uvs
    np.testing.assert_allclose(places[on_skin], places[mirror[on_skin]] * (-1, 1) + (1, 0), atol=1e-4)


def test_only_the_cut_divides_vertices(head: Head) -> None:
    atlas, triangles = head.atlas, head.model.triangles.numpy()
    kept = {tuple(triangle) for triangle in atlas.source[atlas.triangles]}
    assert len(kept) == len(atlas.triangles)
    assert kept < {tuple(triangle) for triangle in triangles}
    copies = head.model.mean_shape[np.flatnonzero(np.bincount(atlas.source) > 1)]
    assert copies[:, 0].abs().max() < 1e-3
    assert copies[:, 2].max() < 0  # behind


def test_the_neck_ends_in_one_line_and_shoulders_are_left_out(head: Head) -> None:
    corners = head.atlas.source[head.atlas.triangles]
    sides = np.sort(np.stack([corners, np.roll(corners, -1, 1)], -1).reshape(-1, 2), 1)
    edges, sharing = np.unique(sides, axis=0, return_counts=True)
    border = head.model.mean_shape.numpy()[np.unique(edges[sharing == 1])]
    on_neck = border[border[:, 1] < -60]
    around = np.sort(np.arctan2(on_neck[:, 0], on_neck[:, 2] - on_neck[:, 2].mean()))
    assert np.diff(around).max() < 0.2
    assert np.abs(on_neck[:, 0]).max() < 75
    # Near a plane through it: no jagged rim.
    centred = on_neck - on_neck.mean(0)
    assert np.linalg.svd(centred)[1][2] / np.sqrt(len(centred)) < 7


def test_pockets_are_cavity_and_sockets(head: Head) -> None:
    atlas, model = head.atlas, head.model
    labels = model.labels.numpy()[atlas.source]
    skin = np.isin(np.arange(len(labels)), atlas.triangles[atlas.parts == 0])
    assert (atlas.pockets[skin] >= (labels[skin] == 7)).all()
    sockets = model.mean_shape.numpy()[atlas.source[atlas.pockets & (labels == 0)]]
    eyes = [model.mean_shape[model.landmarks_68[k : k + 6]].mean(0).numpy() for k in (36, 42)]
    near = np.linalg.norm(sockets[:, None] - eyes, axis=-1)
    assert near.min(1).max() < 40
    assert np.bincount(near.argmin(1)).min() > 200


def test_a_face_without_a_head_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dfmvr.avatar import head as module

    monkeypatch.setattr(module, "read_model_file", lambda _: {"format": module.FIXED_MODEL_FORMAT})
    with pytest.raises(FaceFileError, match=r"bfm\.npz: expected a face model with a whole head"):
        load_head(tmp_path / "bfm.npz")
