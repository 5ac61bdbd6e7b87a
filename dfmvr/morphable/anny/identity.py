"""Identity targets of the source mesh as the arrays of a population file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dfmvr.morphable.anny import source
from dfmvr.morphable.anny.head import Head
from dfmvr.morphable.population import BIPOLAR, ONE_SIDED

GENDERS, AGES = ("male", "female"), ("child", "young", "old")
MUSCLES = ("minmuscle", "averagemuscle", "maxmuscle")
WEIGHTS = ("minweight", "averageweight", "maxweight")
PROPORTIONS = ("idealproportions", "uncommonproportions")
RACES = ("african", "asian", "caucasian")
TOKENS = ("one", *GENDERS, *AGES, *MUSCLES, *WEIGHTS, *PROPORTIONS, *RACES)

CATEGORIES = ("head", "forehead", "eyebrows", "eyes", "nose", "mouth", "chin", "cheek", "ears", "neck")

EXCLUDED = ("head-angle-in-out", "head-trans-backward-forward", "head-trans-down-up", "head-trans-in-out")
"""Sliders that move the head as a whole: that is pose, not identity."""

CATEGORY_DEVIATION = {
    "head": 0.17,
    "forehead": 0.17,
    "eyebrows": 0.22,
    "eyes": 0.22,
    "nose": 0.17,
    "mouth": 0.19,
    "chin": 0.20,
    "cheek": 0.20,
    "ears": 0.20,
    "neck": 0.12,
    "asym": 0.08,
}
"""Standard deviation of the sliders of a category."""

SLIDER_DEVIATION = {
    "head-scale-vert-decr-incr": 0.08,
    "head-scale-horiz-decr-incr": 0.08,
    "head-scale-depth-decr-incr": 0.15,
    "forehead-nubian-decr-incr": 0.05,
    "forehead-scale-vert-decr-incr": 0.08,
    "neck-scale-vert-decr-incr": 0.05,
    "measure-neck-height-decr-incr": 0.08,
    "mouth-trans-backward-forward": 0.10,
    "mouth-trans-in-out": 0.02,
    "nose-trans-in-out": 0.02,
    "neck-trans-in-out": 0.02,
    "asym-top-1": 0.03,
    "asym-top-2": 0.03,
    "asym-jaw-3": 0.04,
    "eye-trans-in-out": 0.17,
    "eye-scale-decr-incr": 0.22,
    "chin-height-decr-incr": 0.17,
}
"""Sliders whose full way is larger or smaller than their category's."""

SLIDER_MEAN = {
    "chin-height-decr-incr": 0.05,
    "eye-height2-decr-incr": 0.30,
    "eye-height3-decr-incr": 0.15,
    "mouth-scale-horiz-decr-incr": 0.08,
    "nose-scale-horiz-decr-incr": -0.15,
}
"""Sliders whose mean is moved so that the population's measures come near to published anthropometry."""

MACRO_RANK = 48
"""Modes kept of the macro targets."""


@dataclass(frozen=True)
class Macros:
    """Targets of the phenotype anchors; a target's weight is the product of its tokens' weights."""

    factors: np.ndarray
    """[M, 5] indices into TOKENS, padded with `one`."""
    offsets: np.ndarray
    """[M, N0, 3] mm."""


@dataclass(frozen=True)
class Sliders:
    """Local sliders and their targets."""

    names: list[str]
    groups: np.ndarray
    """[U]: the left and right twins of a slider share a group."""
    kinds: np.ndarray
    means: np.ndarray
    deviations: np.ndarray
    targets: np.ndarray
    """[U, 2] target of the positive and of the negative side; -1: none."""
    offsets: np.ndarray
    """[T, N0, 3] mm."""


def read_macros(head: Head) -> Macros:
    """Read the macro targets, at average height (height scales the whole head)."""
    folder = source.targets_folder() / "macrodetails"

    def read(name: str) -> np.ndarray:
        return head.carry(*source.read_target(folder / f"{name}.target.gz"))

    factors: list[tuple[str, ...]] = []
    offsets = []
    for body in itertools.product(GENDERS, AGES, MUSCLES, WEIGHTS):
        stem = "-".join(body)
        factors.append(body)
        heights = [read(f"height/{stem}-{height}") for height in ("minheight", "maxheight")]
        offsets.append(read(f"universal-{stem}") + sum(heights) / 2)
        for proportions in PROPORTIONS:
            factors.append((*body, proportions))
            offsets.append(read(f"proportions/{stem}-{proportions}"))
    for race, gender, age in itertools.product(RACES, GENDERS, AGES):
        factors.append((race, gender, age))
        offsets.append(read(f"{race}-{gender}-{age}"))
    width = max(map(len, factors))
    padded = [(*row, *("one",) * (width - len(row))) for row in factors]
    return Macros(np.array([[TOKENS.index(t) for t in row] for row in padded]), np.stack(offsets))


def read_sliders(head: Head) -> Sliders:
    """Read every slider of the face and neck, and the asymmetries."""
    stems: list[str] = []
    rows: list[tuple[str, str, int, float, float, tuple[int, int]]] = []
    for category, name, side, positive, negative in _slider_files():
        if name in EXCLUDED:
            continue
        pair = []
        for stem in (positive, negative):
            if stem:
                stems.append(stem)
            pair.append(len(stems) - 1 if stem else -1)
        kind = BIPOLAR if negative else ONE_SIDED
        deviation = SLIDER_DEVIATION.get(name, CATEGORY_DEVIATION[category])
        group = re.sub(r"^[lr]-", "", name)
        mean = SLIDER_MEAN.get(name, 0.0)
        rows.append((f"{name}{side}", group, kind, mean, deviation, (pair[0], pair[1])))
    group_names = list(dict.fromkeys(row[1] for row in rows))
    folder = source.targets_folder()
    return Sliders(
        names=[row[0] for row in rows],
        groups=np.array([group_names.index(row[1]) for row in rows]),
        kinds=np.array([row[2] for row in rows]),
        means=np.array([row[3] for row in rows]),
        deviations=np.array([row[4] for row in rows]),
        targets=np.array([row[5] for row in rows]),
        offsets=np.stack([head.carry(*source.read_target(folder / f"{s}.target.gz")) for s in stems]),
    )


def _slider_files() -> Iterator[tuple[str, str, str, str, str]]:
    """Yield category, name, side, and the files of the positive and the negative target of every slider."""
    table = source.target_table()
    for category in CATEGORIES:
        for entry in table[category]["categories"]:
            name = str(entry["name"])
            opposites = entry.get("opposites")
            if isinstance(opposites, dict):
                for side in ("left", "right", "unsided"):
                    positive, negative = opposites[f"positive-{side}"], opposites[f"negative-{side}"]
                    if positive and negative:
                        suffix = "" if side == "unsided" else f"-{side}"
                        yield category, name, suffix, f"{category}/{positive}", f"{category}/{negative}"
            else:
                for target in entry["targets"]:  # type: ignore[attr-defined]  # a list of names in the JSON
                    yield category, str(target), "", f"{category}/{target}", ""
    for path in sorted((source.targets_folder() / "asym").glob("asym-*-l.target.gz")):
        name = path.name.removesuffix("-l.target.gz")
        yield "asym", name, "", f"asym/{name}-l", f"asym/{name}-r"
