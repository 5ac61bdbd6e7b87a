"""Does the error fall with every view? python -m benchmarks.anyview [--training]

The network for any number of views (configs/beyond/anyview.yaml) on one to nine views of people whom it has
not seen, beside two networks for the views left, front and right, trained on those of the same rows as often:
one of the same parts (configs/beyond/anyview_three.yaml), and the paper's (configs/beyond/anyview_v6.yaml).
All are measured on the same pictures. `--training` trains what is not there yet, on the set that
`python -m ray_jobs.make_dataset --config configs/beyond/anyview.yaml` makes.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import report
from benchmarks.tables.measuring import coefficients
from dfmvr.config import Settings, load_settings
from dfmvr.data.collate import collate
from dfmvr.data.datasets.synthetic import render_sample, split_of
from dfmvr.data.sample import Sample, decode_row, encode_sample
from dfmvr.evaluation.evaluator import Evaluator
from dfmvr.evaluation.summary import share_below
from dfmvr.morphable.model import MorphableModel
from dfmvr.predictor import Predictor
from dfmvr.threads import use_threads
from dfmvr.types import VIEW_NAMES

CONFIG, RUN = "configs/beyond/anyview.yaml", "anyview-s0"
THREE_VIEWS = {"three": "configs/beyond/anyview_three.yaml", "v6": "configs/beyond/anyview_v6.yaml"}
"""Configurations of the networks for three views; their runs are called anyview-NAME-s0."""
LABELS = {"three": "network of the same parts for left, front, right", "v6": "the paper's, likewise"}
COLOURS = {"three": "#c23b22", "v6": "#7a5195"}
ORDER = ("front", "left", "right", "right_75", "left_75", "left_20", "right_20", "right_60", "left_60")
"""Views in the order in which they are added: what is most unlike the others comes first."""
FURTHER_PEOPLE = 8000
"""Test people are taken from so many: who tests one set has trained none (synthetic.split_of)."""
UNTOLD = (1, 3, 9)
"""Numbers of views that are measured without their yaws as well."""
DRAWS = 2000
"""Resamplings of the people behind an interval."""


@dataclass(frozen=True)
class Errors:
    """Errors in mm of each test person."""

    by_views: NDArray[np.float64]
    """[people, 9] of the first one to nine of ORDER."""
    unknown_yaws: NDArray[np.float64]
    """[people, UNTOLD] the same when the yaws are not told."""
    of_three: Mapping[str, NDArray[np.float64]]
    """[people] of networks for three views, by name."""
    mean_face: NDArray[np.float64]
    """[people]"""


def main() -> None:
    """Parse, train, measure, draw, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--training", action="store_true", help="train what is not trained yet")
    parser.add_argument("--epochs", type=int, default=2, help="passes over the training split (%(default)d)")
    parser.add_argument("--people", type=int, help="measure on the first so many test people (default: all)")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="folder of the runs (default: runs)")
    parser.add_argument("--out", default="docs/results", metavar="DIR", help="default: docs/results")
    options = parser.parse_args()
    use_threads(1)
    runs, settings = Path(options.runs), load_settings(CONFIG)
    if options.training:
        train(runs, options.epochs, settings)
    errors = measure(runs, settings, options.people)
    draw(Path(options.out) / "anyview.png", errors)
    report("anyview", figures(errors), people=len(errors.mean_face), order=ORDER)


def train(runs: Path, epochs: int, settings: Settings) -> None:
    """Train the networks, or go on with what was stopped.

    Raises:
        SystemExit: training failed.
    """
    others = {f"anyview-{name}-s0": config for name, config in THREE_VIEWS.items()}
    for run_id, config in ({RUN: CONFIG} | others).items():
        new = ["--config", config, "--run-id", run_id, f"training.epochs={epochs}", "training.workers=1"]
        new += [f"data.uri={settings.data.uri}", f"training.runs={runs}"]
        stopped = ["--resume", run_id, f"training.runs={runs}"]
        which = stopped if (runs / run_id / "config.yaml").is_file() else new
        if status := subprocess.run([sys.executable, "-m", "ray_jobs.train", *which], check=False).returncode:
            raise SystemExit(status)


def measure(runs: Path, settings: Settings, people: int | None) -> Errors:
    """Measure the networks on the same pictures of test people."""
    any_views = Predictor.load(runs / RUN / "model")
    three_views = {name: Predictor.load(runs / f"anyview-{name}-s0" / "model") for name in THREE_VIEWS}
    whole, dense = (MorphableModel.load(settings.face_model.path or None, level=level) for level in (2, 1))
    evaluator = Evaluator(whole, dense, settings.evaluation)
    synthetic = dataclasses.replace(settings.synthetic, n_subjects=FURTHER_PEOPLE)
    tested = [k for k in range(FURTHER_PEOPLE) if split_of(synthetic, k) == "test"][:people]
    rows: list[list[Any]] = []
    for number, person in enumerate(tested):
        made = render_sample(synthetic, settings.seed, person, number % synthetic.expressions_per_subject)
        rows.append(_errors(_stored(made), any_views, three_views, settings, evaluator))
    by_views, unknown, of_three, mean_face = zip(*rows, strict=True)
    others = {name: np.array([row[name] for row in of_three]) for name in three_views}
    return Errors(np.array(by_views), np.array(unknown), others, np.array(mean_face))


def figures(errors: Errors, measure: str = "rmse_mm") -> dict[str, float]:
    """Return what the benchmark reports of errors that are called `measure`."""
    means, unknown = errors.by_views.mean(0), zip(UNTOLD, errors.unknown_yaws.mean(0), strict=True)
    named = [str(k) for k in range(len(errors.mean_face))]
    better = {
        f"at_3_views_below_{name}_{key}": float(value)
        for name, other in errors.of_three.items()
        for key, value in share_below(errors.by_views[:, 2], other, named, DRAWS).items()
    }
    return {
        **{f"{measure}_{k}_views": float(mean) for k, mean in enumerate(means, 1)},
        **{f"{measure}_{k}_views_yaws_unknown": float(mean) for k, mean in unknown},
        **{f"{measure}_of_{name}": float(other.mean()) for name, other in errors.of_three.items()},
        f"{measure}_mean_face": float(errors.mean_face.mean()),
        **better,
        "steps_that_fall": float((np.diff(means) < 0).sum()),
    }


def draw(path: Path, errors: Errors, measure: str = "RMSE to the true surface, mm") -> None:
    """Draw the errors over the number of views, with 95 % intervals over the people."""
    from matplotlib.figure import Figure

    counts = np.arange(1, len(ORDER) + 1)
    figure = Figure(figsize=(7, 4.2), dpi=130, layout="tight")
    axes = figure.subplots()
    low, high = _intervals(errors.by_views)
    axes.fill_between(counts, low, high, color="#1f6fb4", alpha=0.12, linewidth=0)
    axes.plot(counts, errors.by_views.mean(0), marker="o", color="#1f6fb4", label="any number of views")
    axes.plot(UNTOLD, errors.unknown_yaws.mean(0), "x", color="black", label="the same, yaws unknown")
    for name, other in errors.of_three.items():
        axes.plot(3, other.mean(), "D", color=COLOURS[name], label=LABELS[name])
    axes.axhline(errors.mean_face.mean(), color="grey", linestyle=":", label="mean face")
    added = [f"+{name}" if number else name for number, name in enumerate(ORDER)]
    axes.set_xticks(counts, [f"{k}\n{name}" for k, name in zip(counts, added, strict=True)], fontsize=7)
    axes.set_xlabel("views")
    axes.set_ylabel(measure)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _stored(sample: Sample) -> Sample:
    """Return a sample as the data set would have it, compressed pictures and all."""
    return decode_row(encode_sample(sample), sample.sample_id, 0)


def _errors(
    sample: Sample,
    any_views: Predictor,
    three_views: Mapping[str, Predictor],
    settings: Settings,
    evaluator: Evaluator,
) -> list[Any]:
    """Return the errors of one person, in the order of Errors' fields."""
    truth = evaluator.truth(sample)

    def rmse(predictor: Predictor, names: Sequence[str], told: bool = True) -> float:
        batch = collate([_with_views(sample, names)], settings.data)
        if not told:
            batch = dataclasses.replace(batch, view_yaws=torch.full_like(batch.view_yaws, torch.nan))
        return evaluator.measure(truth, coefficients(predictor.predict_params(batch))).values["rmse"]

    counts = range(1, len(ORDER) + 1)
    return [
        [rmse(any_views, ORDER[:count]) for count in counts],
        [rmse(any_views, ORDER[:count], told=False) for count in UNTOLD],
        {name: rmse(predictor, VIEW_NAMES) for name, predictor in three_views.items()},
        evaluator.measure(truth, evaluator.mean_coefficients).values["rmse"],
    ]


def _with_views(sample: Sample, names: Sequence[str]) -> Sample:
    order = [sample.view_names.index(name) for name in names]
    of_views = ("view_yaws", "images", "masks", "landmarks_2d", "landmarks_2d_weights", "intrinsics")
    changes: dict[str, Any] = {name: getattr(sample, name)[order] for name in of_views}
    return dataclasses.replace(sample, view_names=tuple(names), **changes)


def _intervals(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return 95 % bounds [9] of the means of [people, 9] over resampled people."""
    picks = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.quantile(values[picks].mean(1), [0.025, 0.975], axis=0)
    return low, high


if __name__ == "__main__":
    main()
