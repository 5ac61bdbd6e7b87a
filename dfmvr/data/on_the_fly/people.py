"""The population of synthetic people in torch: shapes from every slider, by one matrix product.

The same people as `morphable.population` draws one by one, with the same distributions; only the expressions
come out of a bank, as each is made by rules.

Axis letters: B sample, N0 vertex of the coarse head, U slider, E expression unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dfmvr.geometry.align import nearest_rotation
from dfmvr.morphable.expressions import ExpressionSampler
from dfmvr.morphable.io import (
    DEFAULT_MODEL,
    DEFAULT_POPULATION,
    MODEL_FORMAT,
    POPULATION_FORMAT,
    read_face_file,
)
from dfmvr.morphable.population import (
    AGE_RANGE,
    ONE_SIDED,
    ONE_SIDED_GAIN,
    ONE_SIDED_SHARE,
    SIDE_DEVIATION,
    SIZE_DEVIATION,
)

N_EXPRESSIONS = 2048
"""Expressions in the bank."""
_TOKENS = (
    *("child", "young", "old", "male", "female", "minmuscle", "averagemuscle", "maxmuscle"),
    *("minweight", "averageweight", "maxweight", "idealproportions", "uncommonproportions"),
    *("african", "asian", "caucasian"),
)
"""Anchors of the phenotype, in the order in which `_anchors` returns their weights."""


@dataclass(frozen=True)
class Traits:
    """B people's shapes, as slider values (see population.Subject)."""

    gender: Tensor
    """[B] 0 male ... 1 female."""
    years: Tensor
    """[B]."""
    race: Tensor
    """[B, 3] weights of african, asian and caucasian shape, summing to one."""
    muscle: Tensor
    """[B]."""
    weight: Tensor
    """[B]."""
    proportions: Tensor
    """[B]."""
    size: Tensor
    """[B] scale of the whole head."""
    sliders: Tensor
    """[B, U] in [-1, 1]."""


class Population(nn.Module):
    """Draws people and expressions, and gives their vertices; all constants are buffers.

    Args:
        toothy_share: share of the expressions that are a photograph's smile with bared teeth.
        seed: of the bank of expressions.
    """

    def __init__(self, toothy_share: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        arrays = read_face_file(DEFAULT_POPULATION, POPULATION_FORMAT)
        model = read_face_file(DEFAULT_MODEL, MODEL_FORMAT)
        weights = model["alignment_weights"] / model["alignment_weights"].sum()
        groups = arrays["slider_groups"].astype(np.int64)
        one_sided = arrays["slider_kinds"] == ONE_SIDED
        targets = _dense_rows(arrays, "target")
        positive, negative = arrays["slider_targets"].astype(np.int64).T
        tokens = {str(token): k for k, token in enumerate(arrays["macro_tokens"])}
        macro = arrays["macro_basis"] * arrays["macro_scale"][:, None].astype(np.float32)
        units = tuple(str(name) for name in arrays["unit_names"])
        self._constant("neutral", arrays["neutral"])
        self._constant("reference", model["mean_shape"])
        self._constant("alignment", weights.astype(np.float32))
        self._constant("groups", groups)
        self._constant("one_sided", one_sided)
        self._constant("own_share", SIDE_DEVIATION * ((np.bincount(groups)[groups] > 1) & ~one_sided))
        self._constant("means", arrays["slider_means"])
        self._constant("deviations", arrays["slider_deviations"])
        self._constant("token_places", np.array([tokens[name] for name in _TOKENS]))
        self._constant("macro_factors", arrays["macro_factors"].astype(np.int64))
        self._constant("macro_basis", arrays["macro_mix"] @ macro)
        self._constant("raising", targets[positive])
        self._constant("lowering", targets[negative] * (negative >= 0)[:, None])
        self._constant("units", _dense_rows(arrays, "unit"))
        self._constant("expressions", _expression_bank(units, toothy_share, seed))
        self.n_tokens, self.n_groups = len(tokens), int(groups.max()) + 1

    def _constant(self, name: str, value: NDArray[Any]) -> None:
        if value.dtype == np.float64:
            value = value.astype(np.float32)
        self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(value)), persistent=False)

    def sample_traits(self, count: int, generator: torch.Generator) -> Traits:
        """Draw people: half women, 20 to 75 years, any mixture of ancestry, every slider."""
        device = self.neutral.device

        def normal(*shape: int) -> Tensor:
            return torch.randn(count, *shape, generator=generator, device=device)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(count, *shape, generator=generator, device=device)

        gender = 0.12 + 0.76 * (uniform() < 0.5) + 0.12 * normal()
        squares = normal(3).square()  # normalised, they are Dirichlet(1/2, 1/2, 1/2)
        return Traits(
            gender=gender.clamp(0, 1),
            years=AGE_RANGE[0] + (AGE_RANGE[1] - AGE_RANGE[0]) * uniform(),
            race=squares / squares.sum(-1, keepdim=True),
            muscle=(0.5 + 0.22 * normal()).clamp(0, 1),
            weight=(0.5 + 0.22 * normal()).clamp(0, 1),
            proportions=(0.5 + 0.2 * normal()).clamp(0, 1),
            size=(SIZE_DEVIATION * normal()).exp(),
            sliders=self._sliders(normal(self.n_groups), uniform(self.n_groups), normal(len(self.groups))),
        )

    def sample_expressions(self, count: int, nearly_neutral: float, generator: torch.Generator) -> Tensor:
        """Draw activations [B, E] in [0, 1].

        Args:
            count: B.
            nearly_neutral: share of the samples that show at most a quarter of their expression.
            generator: on the population's device.
        """
        device = self.neutral.device
        which = torch.randint(len(self.expressions), (count,), generator=generator, device=device)
        draws = torch.rand(2, count, generator=generator, device=device)
        strength = torch.where(draws[0] < nearly_neutral, 0.25 * draws[1], torch.ones_like(draws[1]))
        return self.expressions.index_select(0, which) * strength.unsqueeze(-1)

    def vertices(self, traits: Traits, activations: Tensor) -> Tensor:
        """Return coarse heads [B, N0, 3] mm, aligned at rest to the face model's mean without scale.

        Args:
            traits: B people.
            activations: [B, E].
        """
        tokens = self.neutral.new_ones(len(traits.years), self.n_tokens)
        tokens = tokens.index_copy(1, self.token_places, _anchors(traits))
        macro = tokens[:, self.macro_factors].prod(-1) @ self.macro_basis
        sliders = traits.sliders
        local = sliders.clamp_min(0) @ self.raising + (-sliders).clamp_min(0) @ self.lowering
        size = traits.size[:, None, None]
        rest = size * (self.neutral + (macro + local).unflatten(-1, (-1, 3)))
        moved = rest + size * (activations @ self.units).unflatten(-1, (-1, 3))
        centre = self.alignment @ rest
        covariance = ((rest - centre.unsqueeze(1)) * self.alignment.unsqueeze(-1)).mT @ self.reference
        return (moved - centre.unsqueeze(1)) @ nearest_rotation(covariance)

    def _sliders(self, of_groups: Tensor, present: Tensor, own: Tensor) -> Tensor:
        shared = of_groups[:, self.groups]
        bipolar = self.means + self.deviations * (shared + self.own_share * own)
        shown = (present < ONE_SIDED_SHARE)[:, self.groups]
        one_sided = shared.abs() * self.deviations * ONE_SIDED_GAIN * shown
        return torch.where(self.one_sided, one_sided, bipolar).clamp(-1, 1)

    neutral: Tensor
    reference: Tensor
    alignment: Tensor
    groups: Tensor
    one_sided: Tensor
    own_share: Tensor
    means: Tensor
    deviations: Tensor
    token_places: Tensor
    macro_factors: Tensor
    macro_basis: Tensor
    raising: Tensor
    lowering: Tensor
    units: Tensor
    expressions: Tensor


def _anchors(traits: Traits) -> Tensor:
    """Return the weights of _TOKENS, [B, 16] (population.macro_token_values has one person's)."""
    years = traits.years
    age = torch.where(years < 25, 0.6 + (years - 20) / 75, 2 / 3 + (years - 25) / 195)
    return torch.stack(
        (
            *_between(age, (1 / 3, 2 / 3, 1.0)),
            *(1 - traits.gender, traits.gender),
            *_between(traits.muscle, (0.0, 0.5, 1.0)),
            *_between(traits.weight, (0.0, 0.5, 1.0)),
            *(1 - traits.proportions, traits.proportions),
            *traits.race.unbind(-1),
        ),
        -1,
    )


def _between(value: Tensor, anchors: tuple[float, float, float]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights of three anchors that interpolate linearly at values."""
    low, middle, high = anchors
    first = ((value - low) / (middle - low)).clamp(0, 1)
    second = ((value - middle) / (high - middle)).clamp(0, 1)
    return 1 - first, first - second, second


def _dense_rows(arrays: dict[str, NDArray[Any]], kind: str) -> NDArray[np.float32]:
    """Return stored sparse deltas as [rows, 3 N0]."""
    starts = arrays[f"{kind}_starts"].astype(np.int64)
    rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    dense = np.zeros((len(starts) - 1, arrays["neutral"].size), np.float32)
    values = arrays[f"{kind}_values"] * arrays[f"{kind}_scale"].astype(np.float32)[rows]
    dense[rows, arrays[f"{kind}_columns"].astype(np.int64)] = values
    return dense


def _expression_bank(units: tuple[str, ...], toothy_share: float, seed: int) -> NDArray[np.float32]:
    sampler, rng = ExpressionSampler(units), np.random.default_rng(seed)
    toothy = rng.random(N_EXPRESSIONS) < toothy_share
    draw = (sampler.sample, sampler.sample_toothy_smile)
    return np.stack([draw[int(smile)](rng) for smile in toothy])
