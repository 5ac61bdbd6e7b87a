"""Fusion of views without pictures: python -m benchmarks.anyview_fusion

What the networks do with the landmarks' places once they are found, by itself: the reader of any number of
views (networks/set_reader.py) and the one of three (networks/landmark_maps.py), each with its heads, learn
shape and pose from the data set's own 2D landmarks, with their noise and outliers. A minute of one core in
place of an hour; it needs the set of `python -m ray_jobs.make_dataset --config configs/beyond/anyview.yaml`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from benchmarks.anyview import CONFIG, ORDER, UNTOLD, Errors, draw, figures
from benchmarks.common import report
from dfmvr.config import Settings, load_settings
from dfmvr.data.augment import step_generator
from dfmvr.geometry.camera import default_intrinsics, project, to_camera
from dfmvr.losses.landmark import landmark_2d_loss, landmark_3d_loss
from dfmvr.losses.regularisation import expression_prior, normal_prior, range_penalty
from dfmvr.morphable.model import MorphableModel
from dfmvr.networks.face_network import PLACE_FEATURES
from dfmvr.networks.heads import FaceHeads
from dfmvr.networks.landmark_maps import PlaceReader
from dfmvr.networks.set_fusion import YAW_FEATURES, PresentViews, yaw_features
from dfmvr.networks.set_network import SetHeads
from dfmvr.networks.set_reader import SetReader
from dfmvr.threads import use_threads
from dfmvr.training.optim import build_optimiser, clip_gradients, learning_rate_at, set_learning_rate
from dfmvr.training.validation import rigid_distance
from dfmvr.types import NINE_VIEWS, VIEW_NAMES, FaceParams

THREE = [NINE_VIEWS.index(name) for name in VIEW_NAMES]
STEP_ORDER = [NINE_VIEWS.index(name) for name in ORDER]


@dataclass(frozen=True)
class Landmarks:
    """The landmarks of N samples."""

    places: Tensor
    """[N, 9, 68, 2] shares of the picture."""
    weights: Tensor
    """[N, 9, 68]"""
    landmarks_3d: Tensor
    """[N, 101, 3] mm."""
    dense: Tensor | None
    """[N, M, 3] mm: the true vertices; None of training samples."""


class AnyViews(nn.Module):
    """Places [B, V, 68, 2] and yaws [B, V] of any number of views -> faces."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = SetReader(PLACE_FEATURES)
        self.heads = SetHeads(PLACE_FEATURES, PLACE_FEATURES + YAW_FEATURES)

    def forward(self, places: Tensor, yaws: Tensor) -> FaceParams:
        """Return the faces' parameters."""
        which = PresentViews(torch.ones(yaws.shape, dtype=torch.bool))
        told = yaw_features(yaws).flatten(0, 1)
        read, together = self.reader(places.flatten(0, 1), told, which)
        return cast(FaceParams, self.heads(together, torch.cat([read, told], 1), which))


class ThreeViews(nn.Module):
    """The same of the views left, front and right."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = PlaceReader(len(THREE), PLACE_FEATURES)
        self.heads = FaceHeads(PLACE_FEATURES, len(THREE))

    def forward(self, places: Tensor, yaws: Tensor) -> FaceParams:
        """Return the faces' parameters; the yaws are not looked at."""
        return cast(FaceParams, self.heads(self.reader(places)))


def main() -> None:
    """Parse, train, measure, draw, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=960, help="training steps of 16 samples (%(default)d)")
    parser.add_argument("--out", default="docs/results", metavar="DIR", help="default: docs/results")
    options = parser.parse_args()
    use_threads(1)
    settings = load_settings(CONFIG)
    truths = [load(settings, split) for split in ("validation", "test")]
    model = MorphableModel.load(settings.face_model.path or None, level=1)
    any_views, three = AnyViews(), ThreeViews()
    for network, choose in ((any_views, some_views), (three, three_views)):
        train(network, choose, load(settings, "train"), model, settings, options.steps)
    parts = [errors(any_views, three, truth, model, settings) for truth in truths]
    found = Errors(
        np.concatenate([part.by_views for part in parts]),
        np.concatenate([part.unknown_yaws for part in parts]),
        {"three": np.concatenate([part.of_three["three"] for part in parts])},
        np.concatenate([part.mean_face for part in parts]),
    )
    draw(Path(options.out) / "anyview_fusion.png", found, "distance of corresponding points, mm")
    report("anyview_fusion", figures(found, "dense_mm"), samples=len(found.mean_face), steps=options.steps)


def load(settings: Settings, split: str) -> Landmarks:
    """Read a split's landmarks."""
    shapes = {"landmarks_2d": (9, 68, 2), "landmarks_2d_weights": (9, 68), "landmarks_3d": (101, 3)}
    if split != "train":
        shapes["dense_vertices"] = (-1, 3)
    files = sorted((Path(settings.data.uri) / split).glob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file, columns=list(shapes)).to_pylist()]
    arrays = [
        torch.from_numpy(np.stack([np.frombuffer(row[name], "<f4").reshape(shape) for row in rows]))
        for name, shape in shapes.items()
    ]
    arrays[0] = arrays[0] / settings.data.image_size
    return Landmarks(*arrays) if split != "train" else Landmarks(*arrays, dense=None)


def some_views(count: int, generator: torch.Generator, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return views [B, v] by chance, and their yaws, as training on pictures has them (data/augment.py)."""
    number = int(torch.randint(1, len(NINE_VIEWS) + 1, (), generator=generator))
    views = torch.rand(count, len(NINE_VIEWS), generator=generator).argsort(1)[:, :number]
    untold = torch.rand(count, 1, generator=generator) < settings.data.untold_yaw_share
    return views, _yaws(settings)[views].masked_fill(untold, torch.nan)


def three_views(count: int, generator: torch.Generator, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return the views left, front and right, and their yaws."""
    views = torch.tensor(THREE).expand(count, -1)
    return views, _yaws(settings)[views]


def train(
    network: nn.Module,
    choose: Callable[[int, torch.Generator, Settings], tuple[Tensor, Tensor]],
    data: Landmarks,
    model: MorphableModel,
    settings: Settings,
    steps: int,
) -> None:
    """Train with the learning rate, clipping and weights of training on pictures."""
    torch.manual_seed(settings.seed)
    optimiser = build_optimiser(network.train(), settings.optimiser)
    generator, size = step_generator(settings.seed), settings.data.batch_size
    for step in range(steps):
        set_learning_rate(optimiser, learning_rate_at(step, steps, settings.optimiser))
        rows = torch.randint(len(data.places), (size,), generator=generator)
        views, yaws = choose(size, generator, settings)
        loss = _loss(network(data.places[rows[:, None], views], yaws), data, rows, views, model, settings)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_gradients(network, settings.optimiser.clip_norm)
        optimiser.step()
    network.eval()


@torch.no_grad()
def errors(
    any_views: nn.Module, three: nn.Module, data: Landmarks, model: MorphableModel, settings: Settings
) -> Errors:
    """Return mean distances of corresponding points after rigid alignment, of each sample."""
    assert data.dense is not None
    truth, count = data.dense, len(data.places)

    def distances(network: nn.Module, views: list[int], told: bool = True) -> Tensor:
        yaws = _yaws(settings)[views].expand(count, -1)
        params = network(data.places[:, views], yaws if told else torch.full_like(yaws, torch.nan))
        return rigid_distance(model.vertices(params.identity, params.expression), truth)

    by_views = [distances(any_views, STEP_ORDER[:k]) for k in range(1, len(STEP_ORDER) + 1)]
    untold = [distances(any_views, STEP_ORDER[:k], told=False) for k in UNTOLD]
    mean_face = rigid_distance(model.mean_shape.expand_as(truth), truth)
    return Errors(
        torch.stack(by_views, 1).double().numpy(),
        torch.stack(untold, 1).double().numpy(),
        {"three": distances(three, THREE).double().numpy()},
        mean_face.double().numpy(),
    )


def _loss(
    params: FaceParams,
    data: Landmarks,
    rows: Tensor,
    views: Tensor,
    model: MorphableModel,
    settings: Settings,
) -> Tensor:
    """Return the training loss (losses/total.py) as far as landmarks and priors go."""
    weights, size = settings.losses, settings.data.image_size
    ids = torch.cat([model.landmarks_101, model.landmarks_68])
    of_3d, of_2d = model.vertices(params.identity, params.expression, ids).split([101, 68], 1)
    camera = to_camera(of_2d.unsqueeze(1), params.rotation, params.translation)
    places, sure = size * data.places[rows[:, None], views], data.weights[rows[:, None], views]
    terms = {
        "landmarks_2d": landmark_2d_loss(project(camera, default_intrinsics(size)), places, sure, size),
        "landmarks_3d": landmark_3d_loss(
            of_3d, data.landmarks_3d[rows], model.align_7_in_101, weights.landmarks_3d_with_scale
        ),
        "identity_prior": normal_prior(params.identity),
        "expression_prior": expression_prior(
            params.expression, model.expression_mean, model.expression_precision
        ),
        "expression_range": range_penalty(params.expression),
    }
    return torch.stack([getattr(weights, name) * term.mean() for name, term in terms.items()]).sum()


def _yaws(settings: Settings) -> Tensor:
    return torch.deg2rad(torch.tensor(settings.synthetic.view_yaws))


if __name__ == "__main__":
    main()
