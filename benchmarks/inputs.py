"""What is each input worth? python -m benchmarks.inputs [--model DIR] [--people 40]

New synthetic people are reconstructed from ever less: three views with parsed masks as in training; three
views with five points each (crop and mask come from the points); the front view alone. The error is that of
the dense correspondence after a similarity alignment, root mean square in mm; the mean face is measured too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.common import report
from dfmvr.data.collate import collate
from dfmvr.data.datasets.synthetic import SyntheticSettings, render_sample
from dfmvr.data.preprocess.crop import five_points
from dfmvr.data.sample import Sample
from dfmvr.data.settings import DataSettings
from dfmvr.geometry.align import umeyama
from dfmvr.morphable.model import MorphableModel
from dfmvr.predictor import Photo, Predictor
from dfmvr.types import FaceParams, ViewBatch

SEED = 987_654
"""Of people that no training set holds."""

Case = Callable[[Sample], ViewBatch]


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="folder of a trained model (default: the one shipped)")
    parser.add_argument("--people", type=int, default=40, help="number of people")
    options = parser.parse_args()
    predictor = Predictor.load(options.model)
    model = MorphableModel.load(level=1)
    cases: dict[str, Case] = {
        "three_views_parsed": lambda sample: collate([sample], DataSettings()),
        "three_views_five_points": lambda sample: predictor.prepare(photos(sample, sample.view_names)).batch,
        "front_view_five_points": lambda sample: predictor.prepare(photos(sample, ("front",))).batch,
    }
    errors: dict[str, list[float]] = {name: [] for name in ("mean_face", *cases)}
    settings = SyntheticSettings(
        n_subjects=options.people, split_shares=(0.0, 0.0, 1.0), image_size=predictor.image_size
    )
    for person in range(options.people):
        sample = render_sample(settings, SEED, person, person % settings.expressions_per_subject)
        errors["mean_face"].append(dense_error(model.mean_shape, sample))
        for name, case in cases.items():
            params = predictor.predict_params(case(sample))
            errors[name].append(dense_error(shape(model, params), sample))
    report("inputs", {f"{name}_rmse_mm": float(np.mean(values)) for name, values in errors.items()})


def photos(sample: Sample, names: tuple[str, ...]) -> dict[str, Photo]:
    """Return some views of a sample as photographs with five points, as a detector would find them."""
    found = {}
    for v, name in enumerate(sample.view_names):
        if name in names:
            points = five_points(torch.from_numpy(sample.landmarks_2d[v])).numpy()
            found[name] = Photo(sample.images[v], points)
    return found


def shape(model: MorphableModel, params: FaceParams) -> torch.Tensor:
    """Return the first face's vertices [N, 3] mm."""
    return model.vertices(params.identity[0], params.expression[0])


def dense_error(vertices: torch.Tensor, sample: Sample) -> float:
    """Return the root mean square distance of corresponding vertices in mm, after the best similarity."""
    truth = torch.from_numpy(sample.dense_vertices).double()
    moved = umeyama(vertices.double(), truth).apply(vertices.double())
    return float((moved - truth).square().sum(-1).mean().sqrt())


if __name__ == "__main__":
    main()
