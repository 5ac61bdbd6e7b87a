"""People to learn from: identities from every slider, expressions from every unit.

The population is wider than the face model's 80 + 64 coefficients, so that no fit of the model reaches the
truth exactly. Everything is at the base level and in mm; `vertices` carries it to a level of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dfmvr.morphable.expressions import ExpressionSampler
from dfmvr.morphable.io import (
    DEFAULT_MODEL,
    DEFAULT_POPULATION,
    MODEL_FORMAT,
    POPULATION_FORMAT,
    FaceFileError,
    read_face_file,
)
from dfmvr.morphable.model import base_mesh
from dfmvr.morphable.topology import BaseMesh, PartTopology, part_topology

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

BIPOLAR, ONE_SIDED = 0, 1
"""Kinds of sliders: drawn from a normal distribution, or zero for most people and positive for the rest."""

ONE_SIDED_SHARE = 0.3
"""Share of people in whom a one-sided slider is not zero."""

ONE_SIDED_GAIN = 1.6
"""A one-sided slider's spread, in units of its deviation."""

SIDE_DEVIATION = 0.15
"""How far the left and the right twin of a slider differ, in units of its deviation."""

SIZE_DEVIATION = 0.02
"""Standard deviation of the logarithm of the whole head's size."""

AGE_RANGE = (20.0, 75.0)
"""Years."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One person's shape, as slider values."""

    gender: float
    """0 male ... 1 female."""
    years: float
    race: np.ndarray
    """[3] weights of african, asian and caucasian shape, summing to one."""
    muscle: float
    weight: float
    proportions: float
    size: float
    """Scale of the whole head."""
    sliders: np.ndarray
    """[U] in [-1, 1], in the order of `FacePopulation.slider_names`."""

    @property
    def female(self) -> bool:
        """Whether the subject counts as a woman when hair, beard and make-up are drawn."""
        return self.gender > 0.5


class FacePopulation:
    """Samples subjects and expressions, and gives their vertices."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        """Build from the arrays of a checked population file."""
        self.neutral = arrays["neutral"].astype(np.float32)
        self.hash = str(arrays["hash"])
        self.model_hash = str(arrays["model_hash"])
        self.slider_names = tuple(str(name) for name in arrays["slider_names"])
        self.unit_names = tuple(str(name) for name in arrays["unit_names"])
        self.expressions = ExpressionSampler(self.unit_names)
        self._tokens = {str(token): i for i, token in enumerate(arrays["macro_tokens"])}
        self._macro_factors = arrays["macro_factors"].astype(np.int64)
        self._macro_mix = arrays["macro_mix"].astype(np.float32)
        self._macro_basis = arrays["macro_basis"] * arrays["macro_scale"][:, None].astype(np.float32)
        self._groups = arrays["slider_groups"].astype(np.int64)
        self._one_sided = arrays["slider_kinds"] == ONE_SIDED
        self._paired = np.bincount(self._groups)[self._groups] > 1
        self._means, self._deviations = arrays["slider_means"], arrays["slider_deviations"]
        self._slider_targets = arrays["slider_targets"].astype(np.int64)
        self._targets = self._sparse_rows(arrays, "target")
        self._units = self._sparse_rows(arrays, "unit")
        self._base: BaseMesh | None = None
        self._reference: np.ndarray | None = None
        self._weights: np.ndarray | None = None

    @classmethod
    def load(cls, path: str | Path | None = None, model_path: str | Path | None = None) -> FacePopulation:
        """Load a population and the face model whose mesh and frame it shares.

        Args:
            path: a population .npz; None means the one shipped with the package.
            model_path: the face-model .npz that belongs to it; None means the one shipped.

        Raises:
            FaceFileError: a file is missing, damaged, or the two do not belong together.
        """
        population = cls(read_face_file(Path(path) if path else DEFAULT_POPULATION, POPULATION_FORMAT))
        model_file = Path(model_path) if model_path else DEFAULT_MODEL
        model = read_face_file(model_file, MODEL_FORMAT)
        if population.model_hash != str(model["hash"]):
            raise FaceFileError(
                f"{model_file}: expected the face model {population.model_hash} that the population was made "
                f"with, got {model['hash']}"
            )
        population.set_frame(base_mesh(model), model["mean_shape"], model["alignment_weights"])
        return population

    def set_frame(self, base: BaseMesh, reference: np.ndarray, weights: np.ndarray) -> None:
        """Set the mesh, and the shape [N0, 3] and weights [N0] to which subjects are aligned."""
        self._base = base
        self._reference = reference.astype(np.float32)
        self._weights = (weights / weights.sum()).astype(np.float32)

    # ------------------------------------------------------------------------------------------- sampling

    def sample_subject(self, rng: np.random.Generator) -> Subject:
        """Draw a person: half women, 20 to 75 years, any mixture of ancestry, every slider."""
        female = rng.random() < 0.5
        gender = float(np.clip((0.88 if female else 0.12) + rng.normal(0, 0.12), 0, 1))
        years = float(rng.uniform(*AGE_RANGE))
        race = rng.dirichlet((0.5, 0.5, 0.5))
        muscle, weight = np.clip(rng.normal(0.5, 0.22, 2), 0, 1)
        proportions = np.clip(rng.normal(0.5, 0.2), 0, 1)
        size = float(np.exp(rng.normal(0, SIZE_DEVIATION)))
        sliders = self._sample_sliders(rng)
        return Subject(gender, years, race, float(muscle), float(weight), float(proportions), size, sliders)

    def sample_expression(self, rng: np.random.Generator) -> np.ndarray:
        """Draw plausible activations [86] float32 in [0, 1], in the order of `unit_names`."""
        return self.expressions.sample(rng)

    def _sample_sliders(self, rng: np.random.Generator) -> np.ndarray:
        n_groups = int(self._groups.max()) + 1
        shared = rng.normal(size=n_groups)[self._groups]
        present = (rng.random(n_groups) < ONE_SIDED_SHARE)[self._groups]
        own = rng.normal(size=len(self._groups)) * SIDE_DEVIATION * (self._paired & ~self._one_sided)
        bipolar = self._means + self._deviations * (shared + own)
        one_sided = np.abs(shared) * self._deviations * ONE_SIDED_GAIN * present
        return np.clip(np.where(self._one_sided, one_sided, bipolar), -1, 1).astype(np.float32)

    # ------------------------------------------------------------------------------------------- geometry

    def neutral_vertices(self, subjects: Sequence[Subject]) -> np.ndarray:
        """Return the subjects' heads at rest [S, N0, 3] mm, not aligned: in the axes of the source mesh."""
        macro = np.stack([self._macro_weights(subject) for subject in subjects])
        local = np.stack([self._target_weights(subject) for subject in subjects])
        offsets = macro @ self._macro_basis + (self._targets.T @ local.T).T
        shapes = self.neutral + offsets.reshape(len(subjects), -1, 3)
        return shapes * np.array([subject.size for subject in subjects], np.float32)[:, None, None]

    def expression_offsets(self, activations: np.ndarray) -> np.ndarray:
        """Return what activations [86] add to a head of size one: [N0, 3] mm."""
        if activations.shape != (len(self.unit_names),):
            raise ValueError(
                f"activations: expected shape ({len(self.unit_names)},), got {activations.shape}"
            )
        return (self._units.T @ activations.astype(np.float32)).reshape(-1, 3)

    def base_vertices(self, subject: Subject, activations: np.ndarray) -> np.ndarray:
        """Return the subject's head with an expression at the base level: [N0, 3] float32 mm.

        The head at rest is aligned rigidly, without scale, to the model's mean on the skin of the face.
        """
        reference, weights = self._frame()
        shape = self.neutral_vertices([subject])[0]
        centre = weights @ shape
        rotation = rigid_rotation(shape - centre, reference, weights)
        moved = shape + self.expression_offsets(activations) * np.float32(subject.size)
        return ((moved - centre) @ rotation).astype(np.float32)

    def vertices(
        self, subject: Subject, activations: np.ndarray, level: int = 1, part: str = "face"
    ) -> np.ndarray:
        """Return vertices [N, 3] float32 mm of the mesh of `MorphableModel.load(level=level, part=part)`."""
        return self.topology(level, part).matrix @ self.base_vertices(subject, activations)

    def topology(self, level: int, part: str) -> PartTopology:
        """Return the mesh of a part at a level; made once."""
        self._frame()
        assert self._base is not None
        return _topology(self._base, level, part)

    def _frame(self) -> tuple[np.ndarray, np.ndarray]:
        if self._reference is None or self._weights is None:
            raise RuntimeError("population: expected set_frame() or load() before asking for vertices")
        return self._reference, self._weights

    def _macro_weights(self, subject: Subject) -> np.ndarray:
        values = np.ones(len(self._tokens))
        for token, value in macro_token_values(subject).items():
            values[self._tokens[token]] = value
        return values[self._macro_factors].prod(axis=1).astype(np.float32) @ self._macro_mix

    def _target_weights(self, subject: Subject) -> np.ndarray:
        weights = np.zeros(self._targets.shape[0], np.float32)
        positive, negative = self._slider_targets.T
        weights[positive] = np.maximum(subject.sliders, 0)
        two_sided = negative >= 0
        weights[negative[two_sided]] = np.maximum(-subject.sliders[two_sided], 0)
        return weights

    def _sparse_rows(self, arrays: dict[str, np.ndarray], kind: str) -> csr_matrix:
        """Return stored sparse deltas as float32 [rows, 3 N0]."""
        from scipy.sparse import csr_matrix

        starts = arrays[f"{kind}_starts"].astype(np.int64)
        scale = np.repeat(arrays[f"{kind}_scale"].astype(np.float32), np.diff(starts))
        values = arrays[f"{kind}_values"] * scale
        columns = arrays[f"{kind}_columns"].astype(np.int32)
        return csr_matrix((values, columns, starts), (len(starts) - 1, 3 * len(self.neutral)))


@lru_cache(maxsize=8)
def _topology(base: BaseMesh, level: int, part: str) -> PartTopology:
    return part_topology(base, level, part)


def rigid_rotation(points: np.ndarray, reference: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the rotation [3, 3] for which `points @ rotation` fits `reference` best.

    Args:
        points: [N, 3], centred with the weights.
        reference: [N, 3], centred with the weights.
        weights: [N].
    """
    left, _, right = np.linalg.svd((points * weights[:, None]).T @ reference)
    left[:, 2] *= np.sign(np.linalg.det(left @ right))
    return (left @ right).astype(np.float32)


def macro_token_values(subject: Subject) -> dict[str, float]:
    """Return the weight of each phenotype anchor; a macro target's weight is the product of its anchors'."""
    years = subject.years
    # Anchors of age: child 1/3, young (25 years) 2/3, old (90 years) 1; a youth of 20 is one fifth a child.
    age = 0.6 + (years - 20) / 75 if years < 25 else 2 / 3 + (years - 25) / 195
    values = dict(zip(("child", "young", "old"), _between(age, (1 / 3, 2 / 3, 1)), strict=True))
    values |= {"male": 1 - subject.gender, "female": subject.gender}
    for name, value in (("muscle", subject.muscle), ("weight", subject.weight)):
        names = (f"min{name}", f"average{name}", f"max{name}")
        values |= dict(zip(names, _between(value, (0, 0.5, 1)), strict=True))
    values |= {"idealproportions": 1 - subject.proportions, "uncommonproportions": subject.proportions}
    values |= dict(zip(("african", "asian", "caucasian"), map(float, subject.race), strict=True))
    return values


def _between(value: float, anchors: tuple[float, float, float]) -> tuple[float, float, float]:
    """Return the weights of three anchors that interpolate linearly at a value."""
    low, middle, high = anchors
    if value < middle:
        share = (max(value, low) - low) / (middle - low)
        return 1 - share, share, 0.0
    share = (min(value, high) - middle) / (high - middle)
    return 0.0, 1 - share, share
