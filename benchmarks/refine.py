"""What is refinement worth? python -m benchmarks.refine [--model DIR] [--people 40]

New synthetic people with the noisy 68 landmarks that a detector would find: three views with parsed masks,
three without, and the front view alone. The error is that of benchmarks.inputs, before and after
Predictor.refine, which takes `seconds`. Without landmarks refine leaves the network's answer as it is, so
there is nothing to measure.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.common import report
from benchmarks.inputs import SEED, dense_error, shape
from dfmvr.data.datasets.synthetic import SyntheticSettings, render_sample
from dfmvr.data.sample import Sample
from dfmvr.morphable.model import MorphableModel
from dfmvr.predictor import Photo, Predictor
from dfmvr.types import VIEW_NAMES

HARM_MM = 0.1
"""A sample whose error grows by more was harmed."""
CASES = {"": (VIEW_NAMES, True), "without_masks_": (VIEW_NAMES, False), "front_view_": (("front",), False)}
"""Prefix of the figures' names -> which views are given, and whether masks are."""


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="folder of a trained model (default: the one shipped)")
    parser.add_argument("--people", type=int, default=40, help="number of people")
    parser.add_argument("--seed", type=int, default=SEED, help="whom to draw; tune with another one")
    options = parser.parse_args()
    predictor = Predictor.load(options.model)
    model = MorphableModel.load(level=1)
    settings = SyntheticSettings(
        n_subjects=options.people, split_shares=(0.0, 0.0, 1.0), image_size=predictor.image_size
    )
    errors: dict[str, list[tuple[float, float]]] = {prefix: [] for prefix in CASES}
    seconds: list[float] = []
    for person in range(options.people):
        sample = render_sample(settings, options.seed, person, person % settings.expressions_per_subject)
        for prefix, (names, with_masks) in CASES.items():
            views = predictor.prepare(photos(sample, names, with_masks))
            params = predictor.predict_params(views.batch)
            start = time.perf_counter()
            refined = predictor.refine(views, params).params
            seconds.append(time.perf_counter() - start)
            after = model.vertices(refined.identity, refined.expression)
            errors[prefix].append((dense_error(shape(model, params), sample), dense_error(after, sample)))
    metrics = {
        f"{prefix}{name}": value for prefix in CASES for name, value in summary(errors[prefix]).items()
    }
    report("refine", metrics | {"seconds": statistics.median(seconds)}, people=options.people)


def photos(sample: Sample, names: Sequence[str], with_masks: bool) -> dict[str, Photo]:
    """Return some views of a sample as photographs with 68 landmarks."""
    found = {}
    for v, name in enumerate(sample.view_names):
        if name in names:
            mask = sample.masks[v] if with_masks else None
            found[name] = Photo(sample.images[v], sample.landmarks_2d[v], mask)
    return found


def summary(errors: list[tuple[float, float]]) -> dict[str, float]:
    """Return the figures of (before, after) pairs in mm."""
    before, after = np.array(errors).T
    return {
        "network_rmse_mm": float(before.mean()),
        "refined_rmse_mm": float(after.mean()),
        "gain": float(1 - after.mean() / before.mean()),
        "worst_harm_mm": float((after - before).max()),
        "harmed_share": float((after - before > HARM_MM).mean()),
    }


if __name__ == "__main__":
    main()
