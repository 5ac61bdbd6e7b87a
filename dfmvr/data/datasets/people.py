"""Synthetic people: a shape from the population, a painted skin, and hair that goes with both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfmvr.morphable.appearance import AlbedoPainter, Paint
from dfmvr.morphable.io import DEFAULT_MODEL, MODEL_FORMAT, read_face_file
from dfmvr.morphable.landmarks import ALIGN_7_IN_68
from dfmvr.morphable.population import FacePopulation, Subject

Array = NDArray[Any]
LEVEL, SCAN_LEVEL = 1, 2
"""Subdivision levels of the heads that are drawn, and of the scans."""


@dataclass(frozen=True, eq=False)
class Assets:
    """What every sample shares."""

    population: FacePopulation
    painter: AlbedoPainter
    triangles: Array
    """[F, 3] int64, the level-1 head."""
    labels: Array
    """[N] uint8 region labels of the level-1 head; 0 outside the face."""
    landmarks_68: Array
    """[68] vertices of the head."""
    face_landmarks_68: Array
    """[68] vertices of the level-1 face, whose border is not where the head's vertices are."""
    face_landmarks_101: Array
    """[101] vertices of the level-1 face."""
    scan_landmarks_7: Array
    """[7] vertices of the level-2 face: iBUG 36, 39, 42, 45, 33, 48, 54."""


@cache
def load_assets() -> Assets:
    """Load the shipped population, face model and painter, once a process.

    Raises:
        ValueError: the painter's fields belong to another head.
    """
    population, painter = FacePopulation.load(), AlbedoPainter.load()
    head = population.topology(LEVEL, "head")
    n_vertices = head.matrix.shape[0]
    if painter.n_vertices != n_vertices:
        raise ValueError(f"appearance.npz: expected {n_vertices} vertices, got {painter.n_vertices}")
    arrays = read_face_file(DEFAULT_MODEL, MODEL_FORMAT)
    landmarks_68 = arrays["landmarks_68"].astype(np.int64)
    landmarks_101 = arrays["landmarks_101"].astype(np.int64)
    face_ids = population.topology(LEVEL, "face").head_ids
    scan_ids = population.topology(SCAN_LEVEL, "face").head_ids
    return Assets(
        population=population,
        painter=painter,
        triangles=head.triangles,
        labels=arrays["labels"][head.head_ids].astype(np.uint8),
        landmarks_68=landmarks_68,
        face_landmarks_68=np.searchsorted(face_ids, landmarks_68),
        face_landmarks_101=np.searchsorted(face_ids, landmarks_101),
        scan_landmarks_7=np.searchsorted(scan_ids, landmarks_68[list(ALIGN_7_IN_68)]),
    )


@dataclass(frozen=True)
class Hair:
    """How the hair of one person looks."""

    thickness: float
    """mm above the scalp."""
    density: float
    """0 (bald) to 1."""
    hairline: float
    """mm by which the hair line is lowered."""
    fringe: float
    """mm of the forehead that a fringe covers."""
    length: float
    """mm that long hair falls below the chin; 0 for short hair."""
    cover: float
    """mm that long hair comes forward past the ear's front; negative: it lies behind the ears."""
    beard: float
    """mm that the beard stands out."""


@dataclass(frozen=True, eq=False)
class Person:
    """One subject of the data set; the same in all its samples."""

    subject: Subject
    paint: Paint
    hair: Hair
    growth_seed: int
    """Of what grows on the person (curls, the exact hair line), which must not change between samples."""


def sample_person(assets: Assets, rng: np.random.Generator) -> Person:
    """Draw a person."""
    subject = assets.population.sample_subject(rng)
    paint = assets.painter.paint(rng, subject.female, subject.years, subject.race)
    return Person(subject, paint, _sample_hair(rng, subject, paint), int(rng.integers(2**32)))


def _sample_hair(rng: np.random.Generator, subject: Subject, paint: Paint) -> Hair:
    """Cropped, short, full or long; shares differ between women and men."""
    beard = rng.uniform(1, 7) if paint.beard > 0.4 else 0.0
    if paint.bald:
        return Hair(0.5, rng.uniform(0, 0.25), rng.normal(-4, 4), 0.0, 0.0, 0.0, beard)
    shares = (0.04, 0.12, 0.24, 0.6) if subject.female else (0.25, 0.42, 0.28, 0.05)
    kind = int(rng.choice(4, p=shares))
    thickness = float((rng.uniform(1, 4), rng.uniform(5, 13), rng.uniform(10, 24), rng.uniform(6, 18))[kind])
    fringe = rng.uniform(10, 32) if kind >= 1 and rng.random() < (0.3 if subject.female else 0.15) else 0.0
    length = rng.uniform(-30, 90) if kind == 3 else 0.0
    cover = rng.uniform(8, 24) if rng.random() < 0.6 else -rng.uniform(4, 10)
    density = rng.uniform(0.6, 0.9) if kind == 0 else rng.uniform(0.88, 0.98)
    recede = 0.0 if subject.female else max(0.0, subject.years - 35) / 40 * rng.uniform(0, 14)
    return Hair(thickness, density, rng.normal(0, 3) - recede, fringe, length, cover, beard)
