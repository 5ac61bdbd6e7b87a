"""Rows of results to the numbers of `metrics.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dfmvr.evaluation.distance import Floats
from dfmvr.evaluation.evaluator import METHODS
from dfmvr.evaluation.protocol import BIN_MM
from dfmvr.evaluation.regions import REGIONS

Rows = Sequence[Mapping[str, Any]]

AVERAGED = (
    "rmse",
    "mean",
    "median",
    "std",
    "metric_rmse",
    "point_to_plane_rmse",
    "legacy_df_mvr",
    "dense",
    "dense_rigid",
)
"""Values of `protocol.measure` whose mean over the samples is reported as `{name}_mm`."""


def summarise(rows: Rows, bootstrap_draws: int, seed: int = 0) -> dict[str, Any]:
    """Return the metrics of an evaluation.

    Every `{name}_mm` maps each method to the *mean over samples* of that value, as the paper's tables do;
    `rmse_std_mm` is its spread over samples. `pooled` holds statistics over the surface of all samples at
    once, as the NoW challenge does. `regions_mm` maps each region to its methods.

    Args:
        rows: of `Evaluator`.
        bootstrap_draws: resamplings behind the confidence interval.
        seed: of the resampling.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("evaluation: expected at least one measured sample, got none")
    metrics: dict[str, Any] = {
        f"{name}_mm": {method: _column(rows, f"{method}_{name}_mm").mean().item() for method in METHODS}
        for name in AVERAGED
    }
    metrics["rmse_std_mm"] = {method: _column(rows, f"{method}_rmse_mm").std().item() for method in METHODS}
    by_region = {method: _column(rows, f"{method}_regions_mm") for method in METHODS}
    metrics["regions_mm"] = {
        region: {method: _mean_or_none(by_region[method][:, index]) for method in METHODS}
        for index, region in enumerate(REGIONS)
    }
    metrics["pooled"] = {method: pooled_statistics(pooled_areas(rows, method)) for method in METHODS}
    metrics["improvement_over_mean_face"] = improvement(rows, bootstrap_draws, seed)
    metrics["n_samples"] = len(rows)
    metrics["n_subjects"] = len({row["subject_id"] for row in rows})
    metrics["n_unconverged"] = {
        method: int((~_column(rows, f"{method}_converged").astype(bool)).sum()) for method in METHODS
    }
    return metrics


def pooled_areas(rows: Rows, method: str) -> Floats:
    """Return how much area of all samples lies in each bin of distances (protocol.area_by_distance)."""
    return _column(rows, f"{method}_areas").astype(np.float64).sum(axis=0)


def pooled_statistics(areas: Floats) -> dict[str, float]:
    """Return rmse, mean, std, median and the 90th percentile (mm) of binned distances.

    A bin's distances are taken to lie evenly in it, which is within a hundredth of a millimetre.
    """
    total = areas.sum()
    centres = (np.arange(len(areas)) + 0.5) * BIN_MM
    mean = float((areas * centres).sum() / total)
    square = float((areas * (centres**2 + BIN_MM**2 / 12)).sum() / total)
    return {
        "rmse_mm": square**0.5,
        "mean_mm": mean,
        "std_mm": (square - mean**2) ** 0.5,
        "median_mm": percentile(areas, 0.5),
        "p90_mm": percentile(areas, 0.9),
    }


def percentile(areas: Floats, share: float) -> float:
    """Return the distance (mm) that a share of the binned distances does not exceed."""
    cumulative = np.concatenate([[0.0], np.cumsum(areas)])
    wanted = share * cumulative[-1]
    bin_ = int(np.searchsorted(cumulative[1:], wanted))
    within = (wanted - cumulative[bin_]) / areas[bin_] if areas[bin_] > 0 else 0.0
    return float((bin_ + within) * BIN_MM)


def improvement(rows: Rows, draws: int, seed: int = 0) -> dict[str, float]:
    """Return the share by which the network's mean RMSE lies below the mean face's (see share_below)."""
    subjects = [str(row["subject_id"]) for row in rows]
    return share_below(
        _column(rows, "network_rmse_mm"), _column(rows, "mean_face_rmse_mm"), subjects, draws, seed
    )


def share_below(
    values: Floats, reference: Floats, subjects: Sequence[str], draws: int, seed: int = 0
) -> dict[str, float]:
    """Return the `share` by which the mean of values lies below a reference's, with 95 % bounds.

    Subjects are drawn with replacement, each with all of its samples: samples of one person are not
    independent.

    Args:
        values: [N] of N samples.
        reference: [N] of the same samples.
        subjects: [N] whom each sample shows.
        draws: resamplings of the subjects.
        seed: of the resampling.
    """
    _, subject = np.unique(subjects, return_inverse=True)
    sums = np.stack([np.bincount(subject, numbers) for numbers in (values, reference)])
    picks = np.random.default_rng(seed).integers(sums.shape[1], size=(draws, sums.shape[1]))
    drawn = sums[:, picks].sum(axis=2)
    low, high = np.quantile(1 - drawn[0] / drawn[1], [0.025, 0.975])
    return {
        "share": float(1 - values.sum() / reference.sum()),
        "ci_low": float(low),
        "ci_high": float(high),
    }


def gallery_rows(rows: Rows, count: int) -> list[Mapping[str, Any]]:
    """Return `count` rows spread evenly from the network's lowest RMSE to its highest."""
    ordered = sorted(rows, key=lambda row: (row["network_rmse_mm"], row["sample_id"]))
    places = np.unique(np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int))
    return [ordered[place] for place in places]


def terminal_table(metrics: Mapping[str, Any]) -> str:
    """Return the final table that the command prints."""
    names = {"mean_face": "mean face", "network": "network", "floor": "floor (best 3DMM fit)"}
    lines = [f"{'mm':<24}{'RMSE':>8}{'mean':>8}{'median':>8}{'metric':>9}{'dense':>8}"]
    lines.append("-" * len(lines[0]))
    for method in METHODS:
        cells = [metrics[key][method] for key in ("rmse_mm", "mean_mm", "median_mm")]
        wide = f"{metrics['metric_rmse_mm'][method]:9.3f}{metrics['dense_mm'][method]:8.3f}"
        lines.append(f"{names[method]:<24}" + "".join(f"{cell:8.3f}" for cell in cells) + wide)
    gain = metrics["improvement_over_mean_face"]
    lines.append(
        f"network below mean face by {gain['share']:.1%} RMSE "
        f"(95 % interval {gain['ci_low']:.1%} to {gain['ci_high']:.1%}; "
        f"{metrics['n_samples']} samples of {metrics['n_subjects']} subjects)"
    )
    return "\n".join(lines)


def _column(rows: Rows, name: str) -> Any:
    return np.asarray([row[name] for row in rows])


def _mean_or_none(values: Floats) -> float | None:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else None
