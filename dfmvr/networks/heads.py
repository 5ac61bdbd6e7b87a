"""Linear heads: one feature vector -> FaceParams.

Each head's raw output is scaled so that one unit means about as much to the picture in every group, and one
learning rate suits them all. At the paper's camera (224 px, 1 m) one unit of pose moves points by about
    rotation     0.3 rad        25 px at the tip of the nose
    translation  30 mm across   30 px
                 100 mm along    9 px at the face's border
Shape and albedo coefficients are standard deviations already. An expression coefficient is an activation in
[0, 1] whose spread is a fraction of that range, so a unit is 0.25. A light coefficient's unit is 0.3, on the
scale on which the neutral light is 0.8.

Every output starts within a few hundredths of a unit of zero, which is the mean face with a neutral
expression, frontal, on the optical axis at the subject's distance, in neutral light. The weights are drawn
small rather than zero, so that the layers below receive gradients from the first step on.

Expression activations are left linear. A squashing that keeps them in [0, 1] (sigmoid, softplus) cannot be
neutral at its start and have a gradient there too, and a clamp kills the gradient of any unit that is pushed
below zero once. What leaves [0, 1] is the expression prior's business (losses/regularisation.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dfmvr.geometry.rotation import euler_to_matrix
from dfmvr.lighting import AMBIENT, SH_BANDS
from dfmvr.networks.precision import full_precision
from dfmvr.types import FaceParams

N_IDENTITY = 80
N_EXPRESSION = 64
N_ALBEDO = 80

EXPRESSION_UNIT = 0.25
ROTATION_UNIT = 0.3
TRANSLATION_UNIT = (30.0, 30.0, 100.0)
LIGHT_UNIT = 0.3

_START = 0.02
"""Standard deviation of the raw outputs at the start, for features of unit size."""


class Heads(nn.Module):
    """A linear layer for each group of parameters, and what its raw outputs mean.

    Args:
        of_face: length of the feature vector that identity, expression and albedo come from.
        of_view: length of the one that poses and lights come from.
        n_poses: poses that one such vector tells.
        n_lights: lights, likewise.
    """

    def __init__(self, of_face: int, of_view: int, n_poses: int, n_lights: int) -> None:
        super().__init__()
        self.identity = nn.Linear(of_face, N_IDENTITY)
        self.expression = nn.Linear(of_face, N_EXPRESSION)
        self.albedo = nn.Linear(of_face, N_ALBEDO)
        self.light = nn.Linear(of_view, n_lights * SH_BANDS * 3)
        self.pose = nn.Linear(of_view, n_poses * 6)
        for head in (self.identity, self.expression, self.albedo, self.light, self.pose):
            nn.init.normal_(head.weight, std=_START / head.in_features**0.5)
            nn.init.zeros_(head.bias)
        self.register_buffer("translation_unit", torch.tensor(TRANSLATION_UNIT), persistent=False)
        neutral = torch.zeros(SH_BANDS, 3)
        neutral[0] = AMBIENT
        self.register_buffer("neutral_light", neutral, persistent=False)
        self.translation_unit: Tensor
        self.neutral_light: Tensor

    def _params(self, faces: Tensor, poses: Tensor, lights: Tensor) -> FaceParams:
        """Return parameters for [B, of_face], and the raw poses [B, V, 6] and lights [B, V, SH_BANDS x 3]."""
        turn, shift = poses.unflatten(-1, (2, 3)).unbind(-2)
        return FaceParams(
            identity=self.identity(faces),
            expression=EXPRESSION_UNIT * self.expression(faces),
            albedo=self.albedo(faces),
            light=self.neutral_light + LIGHT_UNIT * lights.unflatten(-1, (SH_BANDS, 3)),
            rotation=euler_to_matrix(ROTATION_UNIT * turn),
            translation=self.translation_unit * shift,
        )


class FaceHeads(Heads):
    """Everything from one feature vector.

    Args:
        in_features: length of the feature vector.
        n_views: number of views V, each with its own pose.
        shared_light: one light for all views; else each has its own.
    """

    def __init__(self, in_features: int, n_views: int, shared_light: bool = False) -> None:
        n_lights = 1 if shared_light else n_views
        super().__init__(in_features, in_features, n_views, n_lights)
        self.n_views, self.n_lights = n_views, n_lights

    def forward(self, features: Tensor) -> FaceParams:
        """Return parameters with leading shape [B] for features [B, in_features]; never in bfloat16."""
        with full_precision(features) as wide:
            poses = self.pose(wide).unflatten(1, (self.n_views, -1))
            lights = self.light(wide).unflatten(1, (self.n_lights, -1)).expand(-1, self.n_views, -1)
            return self._params(wide, poses, lights)
