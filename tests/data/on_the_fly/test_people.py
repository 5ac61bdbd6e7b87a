from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from dfmvr.data.on_the_fly.people import Population, Traits
from dfmvr.morphable.population import FacePopulation


@pytest.fixture(scope="module")
def population() -> Population:
    return Population(toothy_share=0.3)


def test_shapes_are_those_of_the_population_that_is_sampled_one_by_one(population: Population) -> None:
    oracle, rng = FacePopulation.load(), np.random.default_rng(3)
    subjects = [oracle.sample_subject(rng) for _ in range(6)]
    activations = np.stack([oracle.sample_expression(rng) for _ in subjects])
    columns = {
        field.name: np.array([getattr(subject, field.name) for subject in subjects], dtype=np.float32)
        for field in dataclasses.fields(Traits)
    }
    traits = Traits(**{name: torch.from_numpy(values) for name, values in columns.items()})
    found = population.vertices(traits, torch.from_numpy(activations))
    expected = [oracle.base_vertices(s, a) for s, a in zip(subjects, activations, strict=True)]
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=2e-3)


def test_people_are_spread_as_those_that_are_sampled_one_by_one(population: Population) -> None:
    oracle, rng = FacePopulation.load(), np.random.default_rng(4)
    subjects = [oracle.sample_subject(rng) for _ in range(1500)]
    traits = population.sample_traits(1500, torch.Generator().manual_seed(0))
    for field in dataclasses.fields(Traits):
        found = getattr(traits, field.name).numpy()
        expected = np.array([getattr(subject, field.name) for subject in subjects])
        scale = expected.std(0)
        # five standard errors of a mean; a deviation's error is of the same size for such distributions
        np.testing.assert_array_less(np.abs(found.mean(0) - expected.mean(0)), 0.2 * scale + 1e-6)
        np.testing.assert_allclose(found.std(0), scale, rtol=0.35, atol=1e-6, err_msg=field.name)
    paired = int(population.own_share.nonzero()[0])
    twins = (population.groups == population.groups[paired]).nonzero().flatten()
    assert len(twins) == 2
    assert np.corrcoef(traits.sliders[:, twins].numpy().T)[0, 1] > 0.9


def test_expressions_are_plausible_and_partly_neutral(population: Population) -> None:
    generator = torch.Generator().manual_seed(0)
    activations = population.sample_expressions(1000, 0.5, generator)
    assert activations.min() >= 0
    assert activations.max() <= 1
    assert 0.4 < (activations.amax(1) <= 0.25).float().mean() < 0.7
    rest = population.sample_expressions(1000, 1.0, generator)
    assert rest.max() <= 0.25
