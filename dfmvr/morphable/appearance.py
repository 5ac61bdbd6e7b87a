"""The procedural albedo painter: skin, lips, brows, beard, eyes and teeth, drawn per vertex in CIE Lab.

Painting needs only the fields of `appearance.npz` (one value per vertex of the level-1 head: where the lips
are, how far a vertex lies from the hair line, ...), which `dfmvr.morphable.anny.appearance` measures once on
the average head. Scalp hair is no part of a face's albedo: it is not painted, but `Paint` says how it looks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfmvr.morphable.io import FaceFileError, read_npz
from dfmvr.morphable.topology import PART_NAMES

FIELDS_PATH = Path(__file__).with_name("appearance.npz")
FIELDS_VERSION = 1

Floats = NDArray[np.float32]
Colour = tuple[float, float, float]

_MELANIN_OF_RACE = np.array([0.78, 0.30, 0.20])
"""Average place on the melanin axis of the three phenotypes (african, asian, caucasian)."""
_MELANIN_KNOTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_SKIN_LAB = ((73.0, 67.0, 58.0, 46.0, 33.0), (11.0, 11.5, 13.5, 14.0, 10.0), (14.5, 18.5, 21.5, 19.0, 12.0))
"""Skin colour in Lab (L, a, b) at the knots of the melanin axis."""
_HAIR_KNOTS = (0.0, 0.35, 0.7, 1.0)
_HAIR_LAB = ((60.0, 38.0, 24.0, 13.0), (7.0, 10.0, 7.0, 2.0), (28.0, 20.0, 11.0, 2.0))
"""Hair colour in Lab from blond to black."""
_IRIS_LAB = ((22, 8, 14), (32, 8, 18), (42, 3, 16), (45, -3, 6), (50, -4, -12), (40, -2, -8))
"""Dark brown, brown, hazel, green, blue, grey."""
_IRIS_SHARE = (0.4, 0.2, 0.12, 0.08, 0.12, 0.08)
_LAB_WHITE = np.array([0.95047, 1.0, 1.08883], dtype=np.float32)
_XYZ_TO_RGB = np.array(
    [
        [3.2404542, -1.5371385, -0.4985314],
        [-0.9692660, 1.8760108, 0.0415560],
        [0.0556434, -0.2040259, 1.0572252],
    ],
    dtype=np.float32,
)
DARKEST, BRIGHTEST = 0.004, 0.95
"""Limits of a painted linear albedo."""


@dataclass(frozen=True)
class Paint:
    """One painted head, and the hair that goes with it."""

    albedo: Floats
    """[N, 3] linear albedo of the level-1 head, without scalp hair."""
    hair_colour: Floats
    """[3] linear albedo of the scalp hair."""
    bald: bool
    beard: float
    """Density of the beard, 0 (shaved) to 1."""
    melanin: float
    """Place on the melanin axis, 0 (lightest) to 1 (darkest)."""


def lab_to_linear(lab: Floats) -> Floats:
    """CIE Lab (D65) to linear sRGB primaries, not clamped.

    Args:
        lab: [*L, 3], L in 0..100.

    Returns:
        [*L, 3] linear RGB.
    """
    fy = (lab[..., 0] + np.float32(16.0)) / np.float32(116.0)
    f = np.stack([fy + lab[..., 1] / np.float32(500.0), fy, fy - lab[..., 2] / np.float32(200.0)], axis=-1)
    low = (f - np.float32(16.0 / 116.0)) * np.float32(3 * (6.0 / 29.0) ** 2)
    xyz = np.where(f > 6.0 / 29.0, f * f * f, low) * _LAB_WHITE
    return (xyz @ _XYZ_TO_RGB.T).astype(np.float32)


class _Canvas:
    """Lab colours of N vertices that layers are mixed into."""

    def __init__(self, n: int, base: Colour) -> None:
        self.lab = np.empty((3, n), dtype=np.float32)
        self.lab[:] = np.asarray(base, dtype=np.float32)[:, None]

    def shift(self, weight: Floats, lightness: float = 0.0, a: float = 0.0, b: float = 0.0) -> None:
        """Add a colour offset times `weight` [N]."""
        for channel, amount in enumerate((lightness, a, b)):
            if amount != 0.0:
                self.lab[channel] += np.float32(amount) * weight

    def mix(self, weight: Floats, colour: Colour) -> None:
        """Blend towards `colour` by `weight` [N] in 0..1."""
        weight = np.clip(weight, 0.0, 1.0)
        for channel, target in enumerate(colour):
            self.lab[channel] += weight * (np.float32(target) - self.lab[channel])


@dataclass(frozen=True)
class _Person:
    """What the layers of one paint share."""

    female: bool
    years: float
    melanin: float
    skin: Colour
    hair: Colour


class AlbedoPainter:
    """Paints heads; see the module.

    Attributes:
        fields: name -> array over the N vertices of the level-1 head, float32 (`part` is uint8).
    """

    def __init__(self, fields: dict[str, NDArray[np.generic]]) -> None:
        self.fields = {name: np.asarray(value) for name, value in fields.items()}
        self._part_masks = {name: self.fields["part"] == i for i, name in enumerate(PART_NAMES)}
        rank = np.arange(self["smooth"].shape[1], dtype=np.float32)
        falloff = 1.0 / np.sqrt(rank + 4.0)
        self._smooth_falloff = (falloff / np.linalg.norm(falloff)).astype(np.float32)

    @classmethod
    def load(cls, path: str | Path | None = None) -> AlbedoPainter:
        """Load the shipped fields, or those at `path`.

        Raises:
            ValueError: the file is not a file of appearance fields of this version.
        """
        return cls(load_fields(FIELDS_PATH if path is None else Path(path)))

    def __getitem__(self, name: str) -> Floats:
        """Field `name` over the vertices."""
        return self.fields[name]

    @property
    def n_vertices(self) -> int:
        """Number of vertices N of the level-1 head."""
        return len(self.fields["part"])

    def paint(
        self,
        rng: np.random.Generator,
        female: bool,
        years: float,
        race: NDArray[np.floating] | tuple[float, ...],
    ) -> Paint:
        """Paint one person.

        Args:
            rng: the only source of chance.
            female: of the person.
            years: age.
            race: [3] weights of the phenotypes (african, asian, caucasian), summing to 1.

        Returns:
            The paint: albedo [N, 3] linear, and the hair's attributes.
        """
        race = np.asarray(race, dtype=float)
        if race.shape != (3,):
            raise ValueError(f"race: expected 3 weights (african, asian, caucasian), got shape {race.shape}")
        melanin = float(np.clip(race @ _MELANIN_OF_RACE + rng.normal(0, 0.10), 0, 1))
        person = _Person(
            female, years, melanin, _skin_colour(rng, melanin), _hair_colour(rng, years, melanin, race)
        )
        canvas = _Canvas(self.n_vertices, person.skin)
        self._mottle(canvas, rng)
        self._blush(canvas, rng, person)
        beard = self._beard(canvas, rng, person)
        self._lips(canvas, rng, person)
        self._brows(canvas, rng, person)
        self._lids(canvas, rng, person)
        canvas.mix(0.85 * self["nostrils"], (14, 10, 8))
        canvas.mix(0.9 * self["cavity"], (24, 17, 9))
        self._mouth(canvas, rng)
        self._eyes(canvas, rng, person)
        albedo = np.clip(lab_to_linear(canvas.lab.T), DARKEST, BRIGHTEST)
        hair = np.clip(lab_to_linear(np.asarray(person.hair, dtype=np.float32)), DARKEST, BRIGHTEST)
        bald = (not female) and rng.random() < np.interp(years, [25, 70], [0.03, 0.25])
        return Paint(np.ascontiguousarray(albedo), hair, bool(bald), beard, melanin)

    def _mottle(self, canvas: _Canvas, rng: np.random.Generator) -> None:
        """Uneven pigment: broad (Laplacian eigenfunctions) and fine (vertex noise)."""
        spread = self._smooth_falloff[:, None] * np.array([1.6, 0.9, 0.9])
        weights = rng.normal(size=spread.shape) * spread
        canvas.lab += (self["smooth"] @ weights.astype(np.float32)).T
        fine = rng.normal(0, 0.45, size=(self["noise"].shape[1],))
        canvas.lab[0] += self["noise"] @ fine.astype(np.float32)

    def _blush(self, canvas: _Canvas, rng: np.random.Generator, person: _Person) -> None:
        """Blood and shade: cheeks, nose, ears, under the eyes, folds that deepen with age, freckles."""
        cheek, nose = abs(rng.normal(0, 2.2)) * (1 - 0.5 * person.melanin), abs(rng.normal(0, 2.2))
        canvas.shift(self["cheek"], lightness=-0.5 * cheek, a=cheek)
        canvas.shift(self["nose_tip"], lightness=-0.4 * nose, a=nose)
        canvas.shift(self["ears"], a=rng.uniform(0, 3))
        under = abs(rng.normal(0, 3.0))
        canvas.shift(self["under_eye"], lightness=-under, a=0.25 * under)
        canvas.shift(self["upper_lid"], lightness=-abs(rng.normal(0, 2.0)), a=rng.uniform(0, 1.5))
        folds = rng.uniform(1.0, 3.0 + 3.0 * max(0.0, person.years - 30) / 45)
        canvas.shift(np.clip(self["concavity"], 0, None), lightness=-folds)
        canvas.shift(np.clip(-self["concavity"], 0, 1), lightness=rng.uniform(0, 1.2))
        if rng.random() < 0.15 * (1 - person.melanin):
            dots = np.clip(self["noise"][:, rng.integers(self["noise"].shape[1])] - 0.8, 0, 2)
            dots = dots * np.clip(self["cheek"] + self["nose_tip"], 0, 1)
            canvas.shift(dots, lightness=-rng.uniform(2, 6), b=2.0)

    def _beard(self, canvas: _Canvas, rng: np.random.Generator, person: _Person) -> float:
        """Beard shadow; returns its density."""
        if person.female:
            return 0.0
        kind = rng.choice(3, p=[0.5, 0.3, 0.2])
        density = float((rng.uniform(0, 0.12), rng.uniform(0.1, 0.35), rng.uniform(0.4, 0.85))[kind])
        lightness, a, b = person.hair
        texture = np.clip(1 + 0.25 * self["noise"][:, 1], 0.4, 1.4)
        bluish = 0.0 if density > 0.4 else 2.0
        canvas.mix(density * texture * self["beard"], (0.9 * lightness + 3, 0.6 * a + 1, 0.6 * b - bluish))
        return density

    def _lips(self, canvas: _Canvas, rng: np.random.Generator, person: _Person) -> None:
        lightness, a, b = person.skin
        lightness -= rng.uniform(5, 13) + (4 if person.melanin > 0.6 else 0)
        a += rng.uniform(5, 12) * (1 - 0.4 * person.melanin)
        b -= rng.uniform(1, 6)
        if person.female and rng.random() < 0.4:
            lightness, a, b = lightness - rng.uniform(0, 10), a + rng.uniform(4, 22), b + rng.uniform(-6, 4)
        canvas.mix(rng.uniform(0.75, 1) * self["lips"], (lightness, a, b))

    def _brows(self, canvas: _Canvas, rng: np.random.Generator, person: _Person) -> None:
        """Brows around their own line, moved, arched and tilted."""
        thickness = rng.uniform(0.7, 1.25) * (0.9 if person.female else 1.1)
        along = self["brow_along"] - rng.normal(0, 0.02)
        across = self["brow_across"] - rng.normal(0, 1.2)
        centred = 2 * along - 1
        across = across - rng.normal(0, 0.8) * (1 - centred**2) - rng.normal(0, 0.8) * centred
        half = thickness * np.interp(
            along, [-0.06, 0, 0.1, 0.35, 0.65, 0.9, 1, 1.06], [0, 2.6, 4, 4.3, 3.7, 2.4, 1.2, 0]
        )
        inside = np.asarray(1 / (1 + np.exp(np.clip((np.abs(across) - half) / 0.7, -20, 20))))
        inside *= (half > 0.05) * np.clip(1 + 0.2 * self["noise"][:, 2], 0.5, 1.3) * rng.uniform(0.55, 0.95)
        lightness, a, b = person.hair
        canvas.mix(inside.astype(np.float32), (0.8 * lightness + 2, 0.8 * a, 0.8 * b))

    def _lids(self, canvas: _Canvas, rng: np.random.Generator, person: _Person) -> None:
        """Eye shadow, pink lid rims and the dark lines of the lashes."""
        lightness, a, b = person.skin
        upper, lower = self["upper_lash"], self["lower_lash"]
        if person.female and rng.random() < 0.35:
            tint = (lightness - rng.uniform(5, 25), a + rng.normal(0, 5), b + rng.normal(0, 6))
            canvas.mix(rng.uniform(0.1, 0.5) * self["lids"], tint)
        rim = 0.6 * self["socket"] * ((upper > 1.3) & (lower > 1.0))
        canvas.mix(rim, (lightness - 8, a + 10, b - 4))
        lash = rng.uniform(0.35, 0.85) * self._part_masks["skin"].astype(np.float32)
        canvas.mix(lash * np.exp(-((upper / 1.1) ** 2)), (12, 2, 2))
        canvas.mix(0.35 * lash * np.exp(-((lower / 0.8) ** 2)), (20, 5, 4))

    def _mouth(self, canvas: _Canvas, rng: np.random.Generator) -> None:
        teeth = (self._part_masks["upper_teeth"] | self._part_masks["lower_teeth"]).astype(np.float32)
        canvas.mix(teeth, (rng.uniform(72, 88), 1 + rng.uniform(-1, 1.5), rng.uniform(5, 16)))
        canvas.lab[0] *= 1 - teeth * (1 - self["tooth_light"])
        canvas.mix(self._part_masks["tongue"].astype(np.float32), (42 + rng.normal(0, 3), 26, 13))

    def _eyes(self, canvas: _Canvas, rng: np.random.Generator, person: _Person) -> None:
        """White, iris with its dark ring, and pupil, by the distance from the eye's axis."""
        eyes = (self._part_masks["left_eye"] | self._part_masks["right_eye"]).astype(np.float32)
        radius = self["eye_radius"]
        iris = _IRIS_LAB[rng.choice(len(_IRIS_LAB), p=_IRIS_SHARE)]
        if person.melanin > 0.42:
            iris = (18, 7, 9)
        limbus, pupil = rng.uniform(5.4, 6.2), rng.uniform(1.5, 2.6)
        canvas.mix(eyes, (rng.uniform(78, 90), rng.uniform(0, 4), rng.uniform(2, 9)))
        canvas.mix(eyes / (1 + np.exp(np.clip((radius - limbus) / 0.25, -20, 20))), iris)
        canvas.mix(0.5 * eyes * np.exp(-(((radius - limbus + 0.3) / 0.6) ** 2)), (8, iris[1], iris[2]))
        canvas.mix(eyes / (1 + np.exp(np.clip((radius - pupil) / 0.2, -20, 20))), (5, 0, 0))


def _skin_colour(rng: np.random.Generator, melanin: float) -> Colour:
    lightness, a, b = (float(np.interp(melanin, _MELANIN_KNOTS, row)) for row in _SKIN_LAB)
    haemoglobin = rng.normal()
    return lightness - 1.5 * haemoglobin, a + 2.2 * haemoglobin, b + rng.normal(0, 1.2)


def _hair_colour(
    rng: np.random.Generator, years: float, melanin: float, race: NDArray[np.floating]
) -> Colour:
    grey = float(np.clip((years - 35) / 45 + rng.normal(0, 0.2), 0, 1))
    darkness = float(np.clip(1.15 * melanin + 0.25 + rng.normal(0, 0.25), 0, 1))
    if race[0] + race[1] > 0.6:
        darkness = max(darkness, 0.85)
    lightness, a, b = (float(np.interp(darkness, _HAIR_KNOTS, row)) for row in _HAIR_LAB)
    return lightness * (1 - 0.8 * grey) + 48 * grey, a * (1 - grey) + 1.5 * grey, b * (1 - grey) + 6 * grey


@cache
def _load_cached(path: Path) -> dict[str, NDArray[np.generic]]:
    stored = read_npz(path, "a file of appearance fields")
    version = stored.pop("version", None)
    if version is None or version.shape != () or int(version) != FIELDS_VERSION:
        raise FaceFileError(
            f"{path}: expected appearance fields of version {FIELDS_VERSION}, got version {version}"
        )
    fields: dict[str, NDArray[np.generic]] = {"part": stored.pop("part")}
    for name in [name for name in stored if not name.endswith("__scale")]:
        fields[name] = stored[name].astype(np.float32) * stored[f"{name}__scale"].astype(np.float32)
    return fields


def load_fields(path: Path) -> dict[str, NDArray[np.generic]]:
    """Read and dequantise a file of fields (value = stored integer x scale; one scale a column).

    Raises:
        FaceFileError: there is no such file, it is damaged, or it has another version or none.
    """
    return _load_cached(Path(path))
