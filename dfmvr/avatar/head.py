"""The rig: the whole head, ARKit's 52 expression units and a place in the texture for every vertex."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dfmvr.avatar.atlas import Atlas, build_atlas
from dfmvr.morphable.io import DEFAULT_MODEL, FIXED_MODEL_FORMAT, FaceFileError, read_model_file
from dfmvr.morphable.model import MorphableModel, base_mesh
from dfmvr.morphable.population import FacePopulation
from dfmvr.morphable.topology import part_topology, subdivide

LEVEL = 1
"""Subdivision level of an avatar: 19 k vertices."""

TONGUE_OUT = "tongueOut"
"""The one unit that the face model leaves out; the population, from the same source, has it."""

ARKIT_UNITS = (
    *("browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight"),
    *("cheekPuff", "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight"),
    *("eyeLookDownLeft", "eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft"),
    *("eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight", "eyeSquintLeft", "eyeSquintRight"),
    *("eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight", "mouthClose"),
    *("mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel"),
    *("mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight"),
    *("mouthPucker", "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower"),
    *("mouthShrugUpper", "mouthSmileLeft", "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight"),
    *("mouthUpperUpLeft", "mouthUpperUpRight", "noseSneerLeft", "noseSneerRight", TONGUE_OUT),
)
"""Apple's names of the 52 blend shape locations (ARFaceAnchor.BlendShapeLocation); left is the subject's."""


def has_head(model: MorphableModel) -> bool:
    """Say whether a face model has what `load_head` needs: the units tell, an imported model has others."""
    return {*ARKIT_UNITS} - {TONGUE_OUT} <= {*model.expression_names}


@dataclass(frozen=True, eq=False)
class Head:
    """What all avatars of one face model share."""

    model: MorphableModel
    """The whole head, N vertices."""
    atlas: Atlas
    units: Tensor
    """[52, N, 3] mm: what full activation of each of ARKIT_UNITS adds."""


def load_head(path: str | Path | None = None) -> Head:
    """Load the head of a face model.

    Args:
        path: a face-model .npz; None or "" means the one shipped with the package.

    Raises:
        FaceFileError: the file cannot be read, or has no whole head with ARKit's units.
    """
    file = Path(path) if path else DEFAULT_MODEL
    arrays = read_model_file(file)
    if str(arrays["format"]) == FIXED_MODEL_FORMAT:
        raise FaceFileError(
            f"{file}: expected a face model with a whole head and ARKit's units, got {arrays['format']}"
        )
    model = MorphableModel(arrays, LEVEL, "head")
    base = base_mesh(arrays)
    topology = part_topology(base, LEVEL, "head")
    atlas = build_atlas(
        model.mean_shape.numpy(),
        subdivide(base, LEVEL).quads,
        topology.pieces,
        topology.mirror,
        model.labels.numpy(),
    )
    population = FacePopulation.load(model_path=file)
    alone = np.array([name == TONGUE_OUT for name in population.unit_names], np.float32)
    tongue_out = topology.matrix @ population.expression_offsets(alone)
    places = [model.expression_names.index(name) for name in ARKIT_UNITS if name != TONGUE_OUT]
    units = torch.cat([model.expression_basis[places], torch.from_numpy(tongue_out)[None]])
    return Head(model, atlas, units)
