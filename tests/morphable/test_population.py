import dataclasses
import time

import numpy as np
import pytest

from dfmvr.morphable.io import (
    DEFAULT_MODEL,
    DEFAULT_POPULATION,
    MODEL_FORMAT,
    POPULATION_FORMAT,
    FaceFileError,
    read_face_file,
    write_face_file,
)
from dfmvr.morphable.model import MorphableModel
from dfmvr.morphable.population import FacePopulation, macro_token_values


@pytest.fixture(scope="module")
def population():
    return FacePopulation.load()


@pytest.fixture(scope="module")
def face():
    return MorphableModel.load(level=1)


@pytest.fixture(scope="module")
def subjects(population):
    rng = np.random.default_rng(7)
    return [population.sample_subject(rng) for _ in range(150)]


def rest(population):
    return np.zeros(len(population.unit_names), np.float32)


@pytest.mark.parametrize("part", ["face", "head"])
def test_same_mesh_as_the_model(population, subjects, part):
    model = MorphableModel.load(level=1, part=part)
    topology = population.topology(1, part)
    np.testing.assert_array_equal(topology.triangles, model.triangles)
    np.testing.assert_array_equal(topology.head_ids, model.head_ids)
    vertices = population.vertices(subjects[0], rest(population), 1, part)
    assert vertices.shape == model.mean_shape.shape
    assert vertices.dtype == np.float32


def test_mean_and_spread_are_the_models(population, subjects, face):
    """The sample's mean is the model's mean, and its coefficients in the model are N(0, 1)."""
    shapes = np.stack([population.vertices(s, rest(population), 1, "face") for s in subjects])
    assert np.linalg.norm(shapes.mean(0) - face.mean_shape.numpy(), axis=1).mean() < 0.8
    basis = face.identity_basis.numpy()[:, ::5].reshape(80, -1)
    offsets = (shapes - face.mean_shape.numpy())[:, ::5].reshape(len(shapes), -1)
    coefficients = np.linalg.lstsq(basis.T, offsets.T, rcond=None)[0]
    assert np.abs(coefficients[:10].mean(1)).max() < 0.35
    assert coefficients[:10].std(1) == pytest.approx(1, abs=0.25)


def test_truth_lies_outside_the_model(population, subjects, face):
    """The best fit of the 80 modes leaves some tenths of a millimetre, far less than the mean leaves."""
    basis = face.identity_basis.numpy().reshape(80, -1)
    shapes = np.stack([population.vertices(s, rest(population), 1, "face") for s in subjects[:60]])
    offsets = (shapes - face.mean_shape.numpy()).reshape(60, -1)
    residual = offsets - np.linalg.lstsq(basis.T, offsets.T, rcond=None)[0].T @ basis
    rms = np.sqrt((residual**2).sum(1) / face.mean_shape.shape[0])
    total = np.sqrt((offsets**2).sum(1) / face.mean_shape.shape[0])
    assert 0.2 < rms.mean() < 0.8
    assert total.mean() > 3


def test_anthropometry(population, subjects, face):
    """Means within 1.5 published deviations of what calipers find (mm)."""
    shapes = np.stack([population.vertices(s, rest(population), 1, "face") for s in subjects])
    points = shapes[:, face.landmarks_68.numpy()]

    def distance(a, b):
        return np.linalg.norm(points[:, a] - points[:, b], axis=1)

    pupils = shapes[:, face.landmarks_101.numpy()[[69, 72]]]
    measures = {
        "interpupillary": (np.linalg.norm(pupils[:, 0] - pupils[:, 1], axis=1), 63.0, 3.5),
        "outer canthi": (distance(36, 45), 89.5, 3.1),
        "mouth width": (distance(48, 54), 52.3, 3.2),
        "nasion-gnathion": (distance(27, 8), 118.0, 5.2),
    }
    for name, (values, mean, deviation) in measures.items():
        assert abs(values.mean() - mean) < 1.5 * deviation, name
        assert 0.4 < values.std() / deviation < 2, name


def test_sampling_is_deterministic_and_plausible(population):
    first, second = (population.sample_subject(np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first.sliders, second.sliders)
    assert first.years == second.years
    rng = np.random.default_rng(0)
    activations = np.stack([population.sample_expression(rng) for _ in range(300)])
    assert activations.shape == (300, 86)
    assert activations.min() >= 0
    assert activations.max() <= 1
    assert 1 < (activations > 0.05).sum(1).mean() < 15
    subjects = [population.sample_subject(rng) for _ in range(200)]
    assert 0.35 < np.mean([s.female for s in subjects]) < 0.65
    used = np.stack([s.sliders for s in subjects]).std(0) > 0
    assert used.all()


def test_every_unit_is_used(population):
    rng = np.random.default_rng(1)
    total = sum(population.sample_expression(rng) for _ in range(3000))
    unused = {name for name, value in zip(population.unit_names, total, strict=True) if value == 0}
    assert unused <= {"tongueOut", "mouthClose", "neck-platysma"}


def test_macro_weights_of_a_phenotype_sum_to_one(population, subjects):
    for subject in subjects[:20]:
        values = macro_token_values(subject)
        for tokens in (
            ("male", "female"),
            ("child", "young", "old"),
            ("minweight", "averageweight", "maxweight"),
            ("african", "asian", "caucasian"),
        ):
            assert sum(values[t] for t in tokens) == pytest.approx(1)


def test_fast_enough(population, subjects):
    activations = population.sample_expression(np.random.default_rng(0))
    population.vertices(subjects[0], activations, 1, "head")
    start = time.thread_time()
    for subject in subjects[:20]:
        population.vertices(subject, activations, 1, "head")
    assert (time.thread_time() - start) / 20 < 0.02


def test_wrong_activations(population, subjects):
    with pytest.raises(ValueError, match=r"activations: expected shape \(86,\), got \(64,\)"):
        population.base_vertices(subjects[0], np.zeros(64, np.float32))


def test_a_population_belongs_to_its_model(tmp_path):
    population = FacePopulation(read_face_file(DEFAULT_POPULATION, POPULATION_FORMAT))
    subject = population.sample_subject(np.random.default_rng(0))
    with pytest.raises(RuntimeError, match="expected set_frame"):
        population.base_vertices(subject, rest(population))
    model = read_face_file(DEFAULT_MODEL, MODEL_FORMAT)
    header = {"recipe": {}, "licence": "", "credits": ""}
    write_face_file(tmp_path / "m.npz", MODEL_FORMAT, model, **header)
    with pytest.raises(FaceFileError, match="expected the face model"):
        FacePopulation.load(model_path=tmp_path / "m.npz")


def test_size_scales_the_head(population, subjects):
    small, large = (dataclasses.replace(subjects[0], size=size) for size in (0.9, 1.1))
    a, b = (population.base_vertices(s, rest(population)) for s in (small, large))
    assert np.ptp(b, axis=0) / np.ptp(a, axis=0) == pytest.approx(1.1 / 0.9, rel=1e-3)
