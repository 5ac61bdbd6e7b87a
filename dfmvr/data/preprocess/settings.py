"""Settings of the way from photographs to samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dfmvr.types import VIEW_NAMES

LANDMARK_BACKENDS = ("auto", "dlib", "face_alignment", "given")
PARSERS = ("auto", "bisenet", "landmarks")


@dataclass(frozen=True)
class PreprocessSettings:
    """How photographs become samples."""

    image_size: int = 112
    """Pixels a side of the crops."""
    views: tuple[str, ...] = VIEW_NAMES
    """Views that every sample has; a record that lacks one is rejected."""
    landmarks: str = "auto"
    """Who finds the 68 landmarks: dlib, face_alignment, or given (by the record, or in a JSON file beside the
    picture). auto takes those that a record brings, and dlib for the others."""
    parser: str = "auto"
    """Who draws the regions: bisenet, or landmarks (polygons through the 68 points). auto takes bisenet where
    parser_weights names some: those of the package have learnt from renders, and are rough on photographs."""
    parser_weights: str = ""
    """Folder of bisenet's weights; empty means those that come with the package."""
    bystander_share: float = 0.5
    """Further faces in a picture are passers-by when smaller than this share of the largest one's side; any
    other makes the picture ambiguous."""
    min_sharpness: float = 5.0
    """Variance of the crop's Laplacian (grey levels 0-255, seen at 112 px) below which it is blurred."""
    max_disagreement_mm: float = 3.5
    """Largest root-mean-square distance of the views' landmarks from where one rigid face would put them.
    Those of one face reach 2 to 3: only gross mistakes are seen."""
    split_shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of the subjects in training, validation and test, where the data set does not fix them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", tuple(self.views))
        object.__setattr__(self, "split_shares", tuple(self.split_shares))
        _require(self.image_size >= 16, "image_size", "at least 16 pixels", self.image_size)
        known = all(name in VIEW_NAMES for name in self.views) and len(set(self.views)) == len(self.views)
        _require(
            bool(self.views) and known, "views", f"some of {', '.join(VIEW_NAMES)}, each once", self.views
        )
        for name, choices in (("landmarks", LANDMARK_BACKENDS), ("parser", PARSERS)):
            value = getattr(self, name)
            _require(value in choices, name, f"one of {', '.join(choices)}", value)
        _require(0 <= self.bystander_share <= 1, "bystander_share", "a share in [0, 1]", self.bystander_share)
        for name in ("min_sharpness", "max_disagreement_mm"):
            _require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        shares = self.split_shares
        whole = len(shares) == 3 and min(shares) >= 0 and math.isclose(sum(shares), 1, abs_tol=1e-6)
        _require(whole, "split_shares", "3 shares that sum to 1", shares)


def _require(condition: bool, field: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"preprocess.{field}: expected {expected}, got {got!r}")
