"""The training loss: every term by name, and their weighted sum.

Axis letters: B batch, V view, N vertex, K landmark, H W image.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dfmvr.losses.consistency import ConsistencyTerms, view_consistency
from dfmvr.losses.landmark import (
    ALIGNMENTS,
    HEAVY,
    landmark_2d_loss,
    landmark_3d_loss,
    landmark_map_loss,
    landmark_weights,
    seen_landmark_loss,
    yaw_of,
)
from dfmvr.losses.mask import drawn_regions, mask_loss
from dfmvr.losses.parser_mask import parser_mask_loss
from dfmvr.losses.photo import photo_loss
from dfmvr.losses.regularisation import (
    albedo_unevenness,
    expression_prior,
    light_colour,
    normal_prior,
    range_penalty,
)
from dfmvr.morphable.model import MorphableModel
from dfmvr.networks.landmark_maps import expected_places
from dfmvr.networks.parser import FaceParser
from dfmvr.types import REGION_NAMES, FaceParams, RenderOutput, ViewBatch

_SKIN = REGION_NAMES.index("skin")
_RENDERED = ("photo", "mask", "consistency_pixel", "consistency_depth")
"""Terms that look at the rendered face."""
COLOURS = ("albedo", "shaded")
"""Colours whose unevenness can be measured."""
MASK_SOURCES = ("regions", "parser")
"""Where the mask loss takes the drawn face's regions from."""


@dataclass(frozen=True)
class LossSettings:
    """The weight of each term; a term of weight 0 is left out, not computed.

    The defaults are the paper's and its released code's. They fit because the terms have the units that the
    paper's have: colours in [0, 1], pixels at 224 px, coefficients in standard deviations; and because the 3D
    landmarks are compared in mm.
    """

    photo: float = 24.0
    """Weighted mean colour difference in [0, 1]."""
    mask: float = 8.0
    """Difference between the region maps, 0 to 2. The paper's weight is 1 for a cross-entropy, which is about
    eight times this difference near the truth."""
    mask_source: str = "regions"
    """Where the drawn face's regions come from: the face model's own labels, drawn (`regions`), or what the
    face parser sees in the drawn picture (`parser`, the paper's form; parser.weights names it)."""
    landmarks_2d: float = 0.02
    """Squared distance in pixels at 224 px, some landmarks 20-fold."""
    landmark_weights: str = "paper"
    """Those of landmarks_2d that count 20-fold: nose and inner mouth (`paper`), or the nose's ridge, eyes and
    inner mouth, as in the paper's released code (`code`)."""
    seen_landmarks: float = 20.0
    """Distance in pixels at 224 px between the data's landmarks and where the network's heat maps see them;
    not for networks without such maps (network.landmark_maps). As strong as the other terms together, which
    also pull at the maps' places and would make something else than landmarks of them."""
    landmark_maps: float = 20.0
    """Cross-entropy of those heat maps."""
    landmarks_3d: float = 1.0
    """Squared distance in mm^2 after alignment, over the samples that have 3D landmarks."""
    landmarks_3d_with_scale: bool = True
    """Align the size of the 3D landmarks as well, as the paper does. Then nothing but the priors and
    perspective hold a face's size, and a network drifts off in size and distance together; where landmarks
    are in true mm, false ends that."""
    alignment: str = "umeyama"
    """How the 3D landmarks are aligned: by least squares (`umeyama`), or with the ratio of their RMS sizes as
    the scale (`rms`; a defect of the paper's released code, kept for comparison)."""
    identity_prior: float = 3e-4
    """Sum of squared standard deviations (paper: w_reg x w_alpha)."""
    expression_prior: float = 0.8 * 3e-4
    """Squared Mahalanobis distance (paper: w_reg x w_beta)."""
    expression_range: float = 1.0
    """Sum of squares of what leaves [0, 1]; not in the paper, whose basis has no range. As strong as the
    landmarks: an activation of -0.3 costs as much as 2 px at every ordinary landmark."""
    albedo_prior: float = 0.017 * 3e-4
    """Sum of squared standard deviations (paper: w_reg x w_gamma)."""
    light_colour: float = 10.0
    """Mean squared distance of the light from grey (not in the paper; its released code)."""
    albedo_unevenness: float = 5.0
    """Variance of the skin's albedo (not in the paper; its released code, there of shaded colour)."""
    unevenness_of: str = "albedo"
    """What albedo_unevenness sees: the `albedo`, or the `shaded` colour in every view, once faces are drawn
    (a defect of the paper's released code, kept for comparison: shadows cost what spots do)."""
    consistency_pixel: float = 0.0
    """How unlike neighbouring views look where the predicted faces say that they show the same point, 0 to 1
    (MGCNet; losses/consistency.py)."""
    consistency_depth: float = 0.0
    """Distance between the surfaces that those views predict there, 0 to 1 at 10 mm; nothing where all views
    share one face."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            weight = getattr(self, field.name)
            if field.type == "float" and not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"losses.{field.name}: expected a finite weight of at least 0, got {weight}")
        for name, choices in (
            ("landmark_weights", tuple(HEAVY)),
            ("mask_source", MASK_SOURCES),
            ("alignment", ALIGNMENTS),
            ("unevenness_of", COLOURS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"losses.{name}: expected one of {choices}, got {getattr(self, name)!r}")
        if self.alignment == "rms" and not self.landmarks_3d_with_scale:
            raise ValueError("losses.landmarks_3d_with_scale: expected true for alignment rms, got false")

    @property
    def needs_rendering(self) -> bool:
        """Whether a term looks at the rendered face."""
        return any(getattr(self, name) > 0 for name in self._rendered)

    @property
    def needs_parser(self) -> bool:
        """Whether a term looks through the face parser."""
        return self.mask > 0 and self.mask_source == "parser"

    def without_rendering(self) -> LossSettings:
        """Return the weights without the terms that look at the rendered face."""
        none: dict[str, Any] = dict.fromkeys(self._rendered, 0.0)
        return dataclasses.replace(self, **none)

    @property
    def _rendered(self) -> tuple[str, ...]:
        return (*_RENDERED, "albedo_unevenness") if self.unevenness_of == "shaded" else _RENDERED


class Prediction(Protocol):
    """What the losses look at (reconstructor.Prediction)."""

    @property
    def params(self) -> FaceParams:
        """Parameters with leading shape [B]."""

    @property
    def albedo(self) -> Tensor:
        """[B, N, 3] linear."""

    @property
    def landmarks_3d(self) -> Tensor:
        """[B, 101, 3] mm, model space."""

    @property
    def landmarks_2d(self) -> Tensor:
        """[B, V, 68, 2] pixels."""

    @property
    def image(self) -> Tensor:
        """[B, V, H, W, 3] sRGB."""

    @property
    def mask(self) -> Tensor:
        """[B, V, H, W] bool: the face was drawn."""

    @property
    def vertices_camera(self) -> Tensor:
        """[B, V, N, 3] mm, camera space."""

    @property
    def drawn(self) -> RenderOutput | None:
        """What was rendered, [B, V, ...]; None: nothing, as no term needs it."""

    @property
    def shaded(self) -> Tensor | None:
        """[B, V, N, 3] linear colour in each view's light; None like drawn."""


def total_loss(
    prediction: Prediction,
    batch: ViewBatch,
    face_model: MorphableModel,
    settings: LossSettings,
    parser: FaceParser | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss, and the weighted terms that it is the sum of (detached, by name).

    Raises:
        ValueError: there is no parser, and a term needs one.
    """
    terms = loss_terms(prediction, batch, face_model, settings, parser)
    weighted = {name: getattr(settings, name) * term for name, term in terms.items()}
    # Distributed training asks for a gradient of every parameter, also where no term looks at its group.
    groups = [getattr(prediction.params, field.name) for field in dataclasses.fields(prediction.params)]
    nothing = 0.0 * torch.stack([group.sum() for group in groups if group is not None]).sum()
    loss = nothing + sum(weighted.values())
    return loss, {name: term.detach() for name, term in weighted.items()}


def loss_terms(
    prediction: Prediction,
    batch: ViewBatch,
    face_model: MorphableModel,
    settings: LossSettings,
    parser: FaceParser | None = None,
) -> dict[str, Tensor]:
    """Return every term of non-zero weight, unweighted: the mean over the samples and views, by name.

    Raises:
        ValueError: there is no parser, and a term needs one.
    """
    params = prediction.params
    shared = prediction.mask & (batch.masks > 0)
    consistency = functools.cache(lambda: _consistency(prediction, batch, face_model))
    terms: dict[str, Callable[[], Tensor]] = {
        "photo": lambda: photo_loss(
            prediction.image, batch.images.movedim(2, -1), batch.weight_maps, shared
        ).mean(),
        "mask": lambda: _mask(prediction, batch, face_model, settings.mask_source, parser).mean(),
        "landmarks_2d": lambda: _landmarks_2d(prediction, batch, settings.landmark_weights),
        "seen_landmarks": lambda: _seen_landmarks(params.landmark_scores, batch),
        "landmark_maps": lambda: _landmark_maps(params.landmark_scores, batch),
        "landmarks_3d": lambda: _landmarks_3d(prediction, batch, face_model, settings),
        "identity_prior": lambda: normal_prior(params.identity).mean(),
        "expression_prior": lambda: expression_prior(
            params.expression, face_model.expression_mean, face_model.expression_precision
        ).mean(),
        "expression_range": lambda: range_penalty(params.expression).mean(),
        "albedo_prior": lambda: normal_prior(params.albedo).mean(),
        "light_colour": lambda: light_colour(params.light).mean(),
        "albedo_unevenness": lambda: _unevenness(prediction, face_model, settings.unevenness_of),
        "consistency_pixel": lambda: consistency().pixel.mean(),
        "consistency_depth": lambda: consistency().depth.mean(),
    }
    if params.landmark_scores is None:
        del terms["seen_landmarks"], terms["landmark_maps"]
    return {name: term() for name, term in terms.items() if getattr(settings, name) > 0}


def _consistency(prediction: Prediction, batch: ViewBatch, face_model: MorphableModel) -> ConsistencyTerms:
    """Compare the views of each face, whether they are views of one sample or samples side by side."""
    drawn = prediction.drawn
    assert drawn is not None  # needs_rendering
    together = batch.side_by_side
    return view_consistency(
        together(batch.images),
        together(batch.masks),
        RenderOutput(*(together(getattr(drawn, field.name)) for field in dataclasses.fields(drawn))),
        together(prediction.vertices_camera),
        together(prediction.params.rotation),
        together(prediction.params.translation),
        together(batch.intrinsics),
        face_model.triangles,
    )


def _mask(
    prediction: Prediction,
    batch: ViewBatch,
    face_model: MorphableModel,
    source: str,
    parser: FaceParser | None,
) -> Tensor:
    if source == "regions":
        assert prediction.drawn is not None  # needs_rendering
        regions = drawn_regions(prediction.drawn, face_model.triangles, face_model.labels)
        return mask_loss(regions, batch.masks, prediction.mask & (batch.masks > 0))
    if parser is None:
        raise ValueError("losses.mask_source: expected `regions` where no face parser is given, got 'parser'")
    drawn = prediction.image.movedim(-1, 2)
    return parser_mask_loss(parser, drawn, batch.images, prediction.mask, batch.masks)


def _unevenness(prediction: Prediction, face_model: MorphableModel, of: str) -> Tensor:
    colours = prediction.albedo if of == "albedo" else prediction.shaded
    assert colours is not None  # needs_rendering
    return albedo_unevenness(colours, face_model.labels == _SKIN).mean()


def _seen_landmarks(scores: Tensor | None, batch: ViewBatch) -> Tensor:
    assert scores is not None  # the caller leaves this term out
    image_size = batch.images.shape[-1]
    seen = image_size * expected_places(scores)
    return seen_landmark_loss(seen, batch.landmarks_2d, batch.landmarks_2d_weights, image_size).mean()


def _landmark_maps(scores: Tensor | None, batch: ViewBatch) -> Tensor:
    assert scores is not None  # the caller leaves this term out
    image_size = batch.images.shape[-1]
    return landmark_map_loss(scores, batch.landmarks_2d, batch.landmarks_2d_weights, image_size).mean()


def _landmarks_2d(prediction: Prediction, batch: ViewBatch, heavy: str) -> Tensor:
    """Weigh the landmarks by the stored yaw of each view, or the predicted one where it is unknown."""
    predicted_yaws = yaw_of(prediction.params.rotation).detach()
    yaws = torch.where(batch.view_yaws.isnan(), predicted_yaws, batch.view_yaws)
    weights = landmark_weights(yaws, heavy) * batch.landmarks_2d_weights
    image_size = batch.images.shape[-1]
    return landmark_2d_loss(prediction.landmarks_2d, batch.landmarks_2d, weights, image_size).mean()


def _landmarks_3d(
    prediction: Prediction, batch: ViewBatch, face_model: MorphableModel, settings: LossSettings
) -> Tensor:
    """Average over the samples that have 3D landmarks; the others are compared with themselves."""
    valid = batch.landmarks_3d_valid
    target = torch.where(valid[:, None, None], batch.landmarks_3d, prediction.landmarks_3d.detach())
    losses = landmark_3d_loss(
        prediction.landmarks_3d,
        target,
        face_model.align_7_in_101,
        settings.landmarks_3d_with_scale,
        settings.alignment,
    )
    return (losses * valid).sum() / valid.sum().clamp_min(1)
