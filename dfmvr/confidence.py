"""How far off a reconstruction probably is, in mm, for each region of the face.

Errors are those of the dense correspondence after the best similarity: where the head is, how it is turned
and how large it is do not count. What is left is linear in the coefficients' errors, so their covariance
gives the expected squared error of every vertex. Where a face was fitted to landmarks (refine.py), that
covariance is the inverse of the objective's curvature (Laplace's approximation); what the curvature does not
know (wrong spreads, what the coefficients cannot say) comes in by one scale and one floor. The network's own
answer errs as it did on average. Both are measured on validation people, for each kind of input, and stored
beside the weights.

Axis letters: N vertex, P coefficient (identity, then expression), R region.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dfmvr.morphable.model import MorphableModel
from dfmvr.types import REGION_NAMES

WHOLE_FACE = "face"
"""Name of all vertices together."""
HIDDEN_REGIONS = ("background", "mouth")
"""Regions that are no part of the face's surface: the mouth's is the inside."""
CALIBRATION_FILE = "confidence.json"
"""Beside a model's weights; `python -m benchmarks.confidence --write` makes it."""


class ErrorModel:
    """What an uncertainty of coefficients means in mm; constants of one face model.

    Args:
        face_model: at any level. A similarity is removed at its mean shape.
    """

    def __init__(self, face_model: MorphableModel) -> None:
        self._face_model = face_model
        basis = self._basis()
        labels = face_model.labels
        places = {WHOLE_FACE: torch.arange(len(labels), device=labels.device)}
        for label, name in enumerate(REGION_NAMES):
            if name not in HIDDEN_REGIONS and (labels == label).any():
                places[name] = torch.where(labels == label)[0]
        self.places: Mapping[str, Tensor] = places
        """By region, ids of its vertices."""
        grams = [_gram(basis[:, ids]) / len(ids) for ids in places.values()]
        self.grams = torch.stack(grams)
        """[R, P, P] mm²: mean squares of a region's errors are quadratic in the coefficients' errors."""

    def regions(self, covariance: Tensor) -> Tensor:
        """Return [R] mm, the root mean square error of each region, from the coefficients' [P, P]."""
        return torch.einsum("rpq,qp->r", self.grams, covariance.to(self.grams)).clamp_min(0).sqrt()

    def vertices(self, covariance: Tensor) -> Tensor:
        """Return [N] mm, the root mean square error of each vertex, from the coefficients' [P, P]."""
        basis = self._basis()
        spread_basis = (covariance.to(basis) @ basis.flatten(1)).view_as(basis)
        squares = (spread_basis * basis).sum((0, 2))
        return squares.clamp_min(0).sqrt()

    def measured(self, gaps: Tensor) -> Tensor:
        """Return [R] mm, the root mean squares of known errors [N, 3]."""
        squares = gaps.square().sum(-1)
        return torch.stack([squares[ids].mean().sqrt() for ids in self.places.values()])

    def _basis(self) -> Tensor:
        """Return [P, N, 3] mm: how each coefficient's error shows after the best similarity."""
        bases = torch.cat([self._face_model.identity_basis, self._face_model.expression_basis])
        return _without_similarity(bases, self._face_model.mean_shape)


@dataclass(frozen=True)
class Case:
    """How answers err that come from one kind of input."""

    network_mm: Mapping[str, float]
    """By region, the root mean square error of the network's own answer."""
    scale: float
    floor_mm: float
    """Of a refined answer: expected squares are (scale x what the curvature says)^2 + floor^2."""

    def calibrated(self, raw: Tensor) -> Tensor:
        """Return a refined answer's expected errors (mm), of any shape, from the curvature's."""
        return ((self.scale * raw).square() + self.floor_mm**2).sqrt()


@dataclass(frozen=True)
class Calibration:
    """The cases of one trained network."""

    weights_hash: str
    cases: Mapping[str, Case]
    """By `case_name`."""

    def case(self, n_views: int, with_masks: bool) -> Case | None:
        """Return the case of such inputs, or the nearest that was given less; None: there is none."""
        names = [case_name(views, masks) for views in range(n_views, 0, -1) for masks in (with_masks, False)]
        return next((self.cases[name] for name in names if name in self.cases), None)

    def save(self, directory: str | Path) -> Path:
        """Write it beside the weights that it belongs to."""
        path = Path(directory) / CALIBRATION_FILE
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")
        return path

    @staticmethod
    def load(directory: str | Path, weights_hash: str) -> Calibration | None:
        """Read the calibration of a model folder; None where there is none, or it is of other weights.

        Raises:
            ValueError: the file is damaged.
        """
        path = Path(directory) / CALIBRATION_FILE
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text())
            calibration = Calibration(
                content["weights_hash"], {name: Case(**case) for name, case in content["cases"].items()}
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: not a calibration: {error}") from error
        return calibration if calibration.weights_hash == weights_hash else None


def case_name(n_views: int, with_masks: bool) -> str:
    """Return the name of the case of so many photographs."""
    return f"{n_views}_views{'_with_masks' if with_masks else ''}"


def fit_scale_and_floor(raw: Tensor, true: Tensor) -> tuple[float, float]:
    """Return the scale and the floor (mm) that make true errors most likely.

    Squared errors are taken to scatter around what is expected in proportion to it (as those of normal errors
    do): the sum of log(e^2) + t^2 / e^2 becomes least, where e is expected and t true.

    Args:
        raw: [L] mm, expected from covariances alone.
        true: [L] mm, what the errors were.
    """
    raw, true = raw.double().square(), true.double().square()
    logs = torch.stack([(true.mean() / raw.mean() / 2).log(), (true.mean() / 2).log()]).requires_grad_()
    search = torch.optim.LBFGS([logs], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        expected = logs[0].exp() * raw + logs[1].exp()
        total = (expected.log() + true / expected).mean()
        total.backward()
        return total

    search.step(loss)
    scale, floor = (logs.detach() / 2).exp().tolist()
    return scale, floor


def _without_similarity(bases: Tensor, points: Tensor) -> Tensor:
    """Return bases [P, N, 3] less what shifting, turning or scaling points [N, 3] explains of each."""
    centred = (points - points.mean(0)).double()
    axes = torch.eye(3).to(centred)
    motions = [axis.expand_as(centred) for axis in axes]
    motions += [torch.linalg.cross(axis.expand_as(centred), centred) for axis in axes]
    motions.append(centred)
    frame = torch.linalg.qr(torch.stack(motions).flatten(1).mT)[0].to(bases)
    flat = bases.flatten(1)
    return (flat - (flat @ frame) @ frame.mT).view_as(bases)


def _gram(basis: Tensor) -> Tensor:
    """Return the [P, P] inner products of a basis [P, K, 3]."""
    flat = basis.flatten(1)
    return flat @ flat.mT
