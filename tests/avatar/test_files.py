"""Avatars as OBJ and PLY, films, and the command that writes them."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh
from PIL import Image

from dfmvr.avatar import turntable
from dfmvr.avatar.build import Avatar, image_at
from dfmvr.avatar.files import write_avatar
from dfmvr.avatar.turntable import SMILE, draw_avatar, write_turntable
from dfmvr.cli import main


def test_obj_comes_with_its_material_and_texture(avatar: Avatar, tmp_path: Path) -> None:
    path = tmp_path / "out" / "head.obj"
    written = write_avatar(avatar, path, {"licence": "CC0-1.0"})
    assert {file.name for file in written} == {"head.obj", "head.mtl", "head.png"}
    assert path.read_text().startswith("# units: millimetres\n# licence: CC0-1.0\nmtllib head.mtl\n")
    scene = trimesh.load(path, process=False, group_material=False, split_object=True)
    parts = {part.visual.material.name: part for part in scene.geometry.values()}
    assert set(parts) == {"skin", "eyes", "teeth", "tongue"}
    for name, part in parts.items():
        triangles = avatar.parts[name]
        np.testing.assert_allclose(
            part.vertices[part.faces], avatar.vertices[triangles], atol=1e-4, err_msg=name
        )
        np.testing.assert_allclose(part.visual.uv[part.faces], avatar.uvs[triangles], atol=1e-4)
        np.testing.assert_array_equal(np.asarray(part.visual.material.image), avatar.texture)


def test_ply_has_the_textures_colours(avatar: Avatar, tmp_path: Path) -> None:
    path = tmp_path / "head.ply"
    assert write_avatar(avatar, path) == [path]
    mesh = trimesh.load(path, process=False)
    np.testing.assert_allclose(mesh.vertices, avatar.vertices, atol=1e-4)
    colours = avatar.uvs * (255, -255) + (0, 255)
    np.testing.assert_allclose(mesh.visual.vertex_colors[:, :2], colours, atol=2)


def test_the_texture_is_read_between_its_texels(avatar: Avatar) -> None:
    """A texel's colour belongs to its centre; the first row lies at the top, v = 1."""
    size = len(avatar.texture)
    at = np.array([[10.5 / size, 1 - 20.5 / size], [11.0 / size, 1 - 20.5 / size]])
    one, next_one = avatar.texture[20, 10:12].astype(float)
    np.testing.assert_allclose(image_at(avatar.texture, at), [one, (one + next_one) / 2], atol=1e-3)


def test_a_smile_widens_the_drawn_mouth_and_leaves_the_brow(avatar: Avatar) -> None:
    rest, smile = (draw_avatar(avatar, 0.0, units, 256).astype(int) for units in ({}, SMILE))
    changed = np.abs(smile - rest).max(-1)
    head = np.argwhere((rest != rest[0, 0]).any(-1))
    rows = np.linspace(head[:, 0].min(), head[:, 0].max(), 4).astype(int)
    assert changed[: rows[1]].max() < 12  # the skull
    assert (changed[rows[1] : rows[3]] > 30).sum() > 100


@pytest.mark.parametrize("ending", ["webp", "gif", "mp4"])
def test_the_turntable_turns(
    ending: str, avatar: Avatar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turntable, "_FRAMES", 4)
    path = tmp_path / f"head.{ending}"
    write_turntable(avatar, path, 96)
    if ending == "mp4":
        film = cv2.VideoCapture(str(path))
        frames = [film.read()[1][..., ::-1] for _ in range(4)]
        assert not film.read()[0]
    else:
        picture = Image.open(io.BytesIO(path.read_bytes()))
        assert picture.n_frames == 4
        frames = []
        for index in range(4):
            picture.seek(index)
            frames.append(np.asarray(picture.convert("RGB")))
    middles = []
    for frame in frames:
        assert frame.shape == (96, 96, 3)
        columns = np.flatnonzero((frame[40:60].min(-1) < 200).any(0))
        middles.append(columns.mean() - 48)
    # The nose to the picture's right, then to its left; the back of the head goes the other way.
    assert middles[3] - middles[1] > 10


def test_the_command_makes_a_head_of_its_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "head.glb"
    assert main(["avatar", "--example", "-o", str(path)]) == 0
    assert capsys.readouterr().out.split() == [str(path)]
    scene = trimesh.load(path)
    assert 0.25 < scene.extents[1] < 0.4  # metres
    assert path.stat().st_size < 6e6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["me.jpg", "-o", "head.stl"], "head.stl: expected a name that ends in one of .glb"),
        (["me.jpg", "--turntable", "head.avi"], "head.avi: expected a name that ends in one of .webp"),
        (["me.jpg", "--example"], "expected either --example or photographs, got both"),
        ([], "expected at least one photograph"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["avatar", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dfmvr avatar: error: ")
    assert message in line
    assert not list(tmp_path.iterdir())
