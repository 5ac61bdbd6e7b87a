"""Plausible facial expressions: which units move together, and how far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

HORIZONTAL_GAZE_DEVIATION = 0.25
VERTICAL_GAZE_DEVIATION = 0.12
"""Spread of the gaze in full activations; looking down lowers the lid, so the vertical one is small."""

BLINK_SHARE = 0.12
"""Share of pictures with closed or closing eyes."""

EXTRA_BROW_SHARE = 0.25
EXTRA_UNIT_SHARE = 0.2
"""Shares of pictures with an added movement of the brows, or one added unit from outside the ARKit set."""

SPEECH_UNITS = (
    "mouthStretch",
    "mouthLowerDown",
    "mouthUpperUp",
    "mouthRollLower",
    "mouthRollUpper",
    "mouthShrugUpper",
    "mouthShrugLower",
    "mouthDimple",
    "mouthFunnel",
    "mouthPucker",
)


@dataclass
class _Face:
    """Activations in the making."""

    index: dict[str, int]
    rng: np.random.Generator
    activations: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.activations = np.zeros(len(self.index), np.float32)

    def add(self, unit: str, value: float) -> None:
        """Add to a unit, or to its left and right twin by slightly different amounts."""
        if unit in self.index:
            self._add_one(unit, value)
        else:
            for side in ("Left", "Right"):
                self._add_one(unit + side, value * self.rng.uniform(0.8, 1.15))

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def one_of(self, *units: str) -> str:
        return units[self.rng.integers(len(units))]

    def _add_one(self, unit: str, value: float) -> None:
        place = self.index[unit]
        self.activations[place] = np.clip(self.activations[place] + value, 0, 1)


def _rest(face: _Face) -> None:
    del face


def _smile(face: _Face) -> None:
    strength = face.between(0.2, 1)
    face.add("mouthSmile", strength)
    face.add("cheekSquint", strength * face.between(0.2, 0.7))
    face.add("eyeSquint", strength * face.between(0, 0.4))
    face.add("mouthUpperUp", strength * face.between(0, 0.5))
    face.add("mouthDimple", face.between(0, 0.3))
    if face.rng.random() < 0.6:
        face.add("jawOpen", face.between(0, 0.3))


def _surprise(face: _Face) -> None:
    strength = face.between(0.3, 1)
    face.add("browInnerUp", strength)
    face.add("browOuterUp", strength * face.between(0.5, 1))
    face.add("eyeWide", strength * face.between(0.3, 1))
    face.add("jawOpen", strength * face.between(0.2, 0.9))


def _anger(face: _Face) -> None:
    strength = face.between(0.3, 1)
    face.add("browDown", strength)
    face.add("noseSneer", strength * face.between(0, 0.8))
    face.add("eyeSquint", strength * face.between(0, 0.5))
    face.add("mouthPress", face.between(0, 0.7))
    face.add("mouthFrown", face.between(0, 0.5))


def _sadness(face: _Face) -> None:
    strength = face.between(0.3, 1)
    face.add("browInnerUp", strength)
    face.add("mouthFrown", strength * face.between(0.4, 1))
    face.add("mouthShrugLower", face.between(0, 0.6))


def _rounded_lips(face: _Face) -> None:
    face.add(face.one_of("mouthPucker", "mouthFunnel"), face.between(0.3, 1))
    face.add("jawOpen", face.between(0, 0.25))


def _speech(face: _Face) -> None:
    face.add("jawOpen", face.between(0, 0.6))
    for place in face.rng.choice(len(SPEECH_UNITS), 2, replace=False):
        face.add(SPEECH_UNITS[place], face.between(0, 0.6))


def _sideways(face: _Face) -> None:
    face.add(face.one_of("jawLeft", "jawRight", "mouthLeft", "mouthRight"), face.between(0.2, 1))


def _cheeks_or_jaw(face: _Face) -> None:
    face.add(face.one_of("cheekPuff", "jawForward"), face.between(0.2, 1))


MOODS: tuple[tuple[float, Callable[[_Face], None]], ...] = (
    (0.15, _rest),
    (0.20, _smile),
    (0.10, _surprise),
    (0.10, _anger),
    (0.10, _sadness),
    (0.10, _rounded_lips),
    (0.15, _speech),
    (0.05, _sideways),
    (0.05, _cheeks_or_jaw),
)
"""Shares of the moods, and what each does."""


class ExpressionSampler:
    """Draws activations of expression units."""

    def __init__(self, unit_names: Sequence[str]) -> None:
        self.index = {name: i for i, name in enumerate(unit_names)}
        self.extra_units = [
            name for name in unit_names if "-" in name and "closure" not in name and "neck" not in name
        ]
        """Units from outside the ARKit set: their names have hyphens."""

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Draw activations [units] float32 in [0, 1]."""
        face = _Face(self.index, rng)
        shares = [share for share, _ in MOODS]
        MOODS[rng.choice(len(MOODS), p=shares)][1](face)
        self._lids_and_gaze(face)
        if rng.random() < EXTRA_BROW_SHARE:
            face.add(face.one_of("browDown", "browInnerUp", "browOuterUp"), face.between(0, 0.7))
        if rng.random() < EXTRA_UNIT_SHARE:
            face.add(face.one_of(*self.extra_units), face.between(0, 0.6))
        return face.activations

    def sample_toothy_smile(self, rng: np.random.Generator) -> np.ndarray:
        """Draw activations [units] float32 in [0, 1] of the smile that people put on for a photograph."""
        face = _Face(self.index, rng)
        strength = face.between(0.6, 1)
        face.add("mouthSmile", strength)
        face.add("mouthUpperUp", face.between(0.7, 1))
        face.add("mouthLowerDown", face.between(0.5, 1))
        face.add("cheekSquint", strength * face.between(0.3, 0.9))
        face.add("eyeSquint", strength * face.between(0, 0.5))
        face.add("jawOpen", face.between(0, 0.25))
        self._lids_and_gaze(face)
        return face.activations

    def _lids_and_gaze(self, face: _Face) -> None:
        rng = face.rng
        if rng.random() < BLINK_SHARE:
            if rng.random() < 0.5:
                closing = face.between(0.4, 1)
                face.add("eye-left-closure", closing)
                face.add("eye-right-closure", closing)
            else:
                face.add("eyeBlink", face.between(0.2, 0.9))
        across = float(np.clip(rng.normal(0, HORIZONTAL_GAZE_DEVIATION), -0.9, 0.9))
        up = float(np.clip(rng.normal(0, VERTICAL_GAZE_DEVIATION), -0.9, 0.9))
        face.add("eyeLookOutLeft" if across > 0 else "eyeLookInLeft", abs(across))
        face.add("eyeLookInRight" if across > 0 else "eyeLookOutRight", abs(across))
        face.add("eyeLookUp" if up > 0 else "eyeLookDown", abs(up))
