"""Expression units of the source mesh, and the 64 of them that span the model's expressions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dfmvr.morphable.anny import anatomy, source
from dfmvr.morphable.anny.head import Head

MODEL_UNITS_BEYOND_ARKIT = (
    "mouth-compression",
    "mouth-corner-puller",
    "mouth-depression-retraction",
    "mouth-depression",
    "mouth-elevation",
    "mouth-eversion",
    "mouth-part-later",
    "mouth-protusion",
    "mouth-pursing",
    "mouth-retraction",
    "mouth-open",
    "eye-left-closure",
    "eye-right-closure",
)
"""Units that the first 51 do not span; the names are those of the files."""

LEFT_OUT = ("tongueOut",)
"""The one ARKit unit left out: the tongue is hidden otherwise, and 64 is the paper's number."""


@dataclass(frozen=True)
class Units:
    """Named expression offsets."""

    names: list[str]
    offsets: np.ndarray
    """[U, N0, 3] mm at full activation."""

    def offset(self, name: str) -> np.ndarray:
        """Return the offsets [N0, 3] mm of a unit."""
        return self.offsets[self.names.index(name)]

    def model_rows(self) -> list[int]:
        """Return the rows of the 64 units of the model: 51 of ARKit's names, then 13 more."""
        first = [name for name in self.names if "-" not in name and name not in LEFT_OUT]
        return [self.names.index(name) for name in (*first, *MODEL_UNITS_BEYOND_ARKIT)]


def read_units(head: Head) -> Units:
    """Read the 52 units with ARKit's names and the 34 of MPFB."""
    arkit = sorted((source.data_folder() / "faceunits01" / "targets" / "faceunits").glob("*.target"))
    mpfb = sorted((source.targets_folder() / "expression" / "units" / "caucasian").glob("*.target.gz"))
    files = [*arkit, *mpfb]
    names = [path.name.removesuffix(".gz").removesuffix(".target") for path in files]
    return Units(names, np.stack([head.carry(*source.read_target(path)) for path in files]))


def to_model_units(units: Units, weights: np.ndarray, activations: np.ndarray) -> np.ndarray:
    """Return activations of all units [S, U] as activations of the model's 64 in [0, 1], least squares.

    Args:
        units: all units.
        weights: [N0] share of each vertex in the fit.
        activations: [S, U].
    """
    rows = units.model_rows()
    scaled = (units.offsets * np.sqrt(weights)[:, None]).reshape(len(units.names), -1)
    basis = scaled[rows]
    gram = basis @ basis.T
    mix = np.linalg.solve(gram + 1e-4 * np.trace(gram) / len(rows) * np.eye(len(rows)), basis @ scaled.T).T
    mix[rows] = np.eye(len(rows))
    return np.clip(activations @ mix, 0, 1)


def lower_mouth(head: Head, units: Units) -> np.ndarray:
    """Return which vertices go with the lower jaw, as far as the mouth is concerned: [N0] bool.

    Height does not tell the lips apart where they curl inwards; the opening jaw does.
    """
    drop = -units.offset("jawOpen")[:, 1]
    lines = [head.contact_line(line) for line in (anatomy.UPPER_LIP_CONTACT, anatomy.LOWER_LIP_CONTACT)]
    x = head.neutral[:, 0]
    upper, lower = (np.interp(x, head.neutral[line, 0], drop[line]) for line in lines)
    return drop > (upper + lower) / 2
