"""Charts of a sweep's report, as SVG that follows the page's colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from ray_jobs.tune_progress import describe, short
from ray_jobs.tune_results import TrialRow
from ray_jobs.tune_space import Dimension, Scalar

_WIDTH, _HEIGHT = 560, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 14, 14, 38


def parallel_coordinates(dimensions: Sequence[Dimension], trials: Sequence[TrialRow]) -> str:
    """Return one upright axis a searched setting, one for the error (mm), and a line through them a trial."""
    known = [trial for trial in trials if trial.curve]
    if not known:
        return "<p>no trial has been validated</p>"
    width, height, top, bottom = 1120, 316, 50, 278
    common = _common_prefix([dimension.name for dimension in dimensions])
    low, high = _span([trial.val_dense_mm for trial in known])
    gap = (width - 170) / len(dimensions)
    parts = []
    for index, dimension in enumerate(dimensions):
        x = 60 + index * gap
        ends = (
            [(place(dimension, choice), short(choice)) for choice in dimension.choices]
            if dimension.kind == "choice"
            else [(0.0, short(dimension.low)), (1.0, short(dimension.high))]
        )
        name = dimension.name.removeprefix(common)
        parts += _axis(x, top, bottom, name, ends, raised=bool(index % 2))
    right = 60 + len(dimensions) * gap
    parts += _axis(right, top, bottom, "mm", [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")])
    for trial in sorted(known, key=lambda trial: -trial.val_dense_mm):
        share = (trial.val_dense_mm - low) / (high - low)
        places = [
            (60 + index * gap, place(dimension, trial.point[dimension.name]))
            for index, dimension in enumerate(dimensions)
            if dimension.name in trial.point
        ]
        points = " ".join(f"{x:.1f},{bottom - (bottom - top) * y:.1f}" for x, y in [*places, (right, share)])
        parts.append(_line_of(trial, points, share))
    return _svg(parts, "Settings of each trial, and its error", width, height)


def learning_curves(trials: Sequence[TrialRow], epochs: int) -> str:
    """Return the validation error (mm) of each trial over its epochs; how it ended is marked."""
    known = [trial for trial in trials if trial.curve]
    if not known:
        return "<p>no trial has been validated</p>"
    low, high = _span([mm for trial in known for _, mm in trial.curve])
    best, worst = _span([trial.val_dense_mm for trial in known])
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y, mm = _y(share), low + share * (high - low)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{mm:.3g}</text>')
    for epoch in range(1, epochs + 1, math.ceil(epochs / 10)):
        parts.append(
            f'<text x="{_x(epoch, epochs):.1f}" y="{_y(0) + 17:.1f}" text-anchor="middle">{epoch}</text>'
        )
    parts.append(f'<text x="{_WIDTH / 2:.0f}" y="{_HEIGHT - 4}" text-anchor="middle">epoch</text>')
    for trial in known:
        places = [(_x(epoch, epochs), _y((mm - low) / (high - low))) for epoch, mm in trial.curve]
        share = (trial.val_dense_mm - best) / (worst - best)
        parts.append(_line_of(trial, " ".join(f"{x:.1f},{y:.1f}" for x, y in places), share))
        parts.append(_end(trial, *places[-1], share))
    return _svg(parts, "Validation error of each trial by epoch", _WIDTH, _HEIGHT)


def importance_bars(importance: Mapping[str, float]) -> str:
    """Return a bar a setting, 0 to 1, in the order given."""
    if not importance:
        return "<p>too few trials</p>"
    parts, height = [], 30 * len(importance) + 12
    for index, (name, value) in enumerate(importance.items()):
        y = 8 + 30 * index
        parts.append(f'<text x="196" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<rect class="fill network" x="204" y="{y + 2}" width="{300 * value:.1f}" height="18" rx="3"/>'
        )
        parts.append(f'<text x="{210 + 300 * value:.1f}" y="{y + 15}">{value:.2f}</text>')
    return _svg(parts, "Importance of each setting", _WIDTH, height)


def place(dimension: Dimension, value: Scalar) -> float:
    """Return where a value lies on its axis, 0 to 1."""
    if dimension.kind == "choice":
        return dimension.choices.index(value) / max(1, len(dimension.choices) - 1)
    number = float(value or 0)
    if dimension.kind == "log_uniform":
        return math.log(number / dimension.low) / math.log(dimension.high / dimension.low)
    return (number - dimension.low) / (dimension.high - dimension.low)


def _common_prefix(names: Sequence[str]) -> str:
    """Return the part up to a dot that all names begin with; empty if there is none, or one name only."""
    prefixes = {name.rpartition(".")[0] for name in names}
    return f"{prefixes.pop()}." if len(names) > 1 and len(prefixes) == 1 and "" not in prefixes else ""


def _axis(
    x: float, top: float, bottom: float, name: str, ends: Sequence[tuple[float, str]], raised: bool = False
) -> list[str]:
    """Draw an upright axis; every other one's name is raised, so that long names do not meet."""
    y = top - (32 if raised else 16)
    parts = [
        f'<line class="axis" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>',
        f'<text class="strong" x="{x:.1f}" y="{y}" text-anchor="middle">{escape(name)}</text>',
    ]
    for share, label in ends:
        y = bottom - (bottom - top) * share
        text = label.rpartition("/")[2].removesuffix(".yaml")
        parts.append(f'<text x="{x + 6:.1f}" y="{y + 4:.1f}">{escape(text)}</text>')
    return parts


def _line_of(trial: TrialRow, points: str, share: float) -> str:
    tip = f"trial {trial.number}, {trial.status}: {trial.val_dense_mm:.3f} mm; {describe(trial.point)}"
    return (
        f'<polyline class="trial {trial.status}" style="{_colour(trial, share)}" points="{points}">'
        f"<title>{escape(tip)}</title></polyline>"
    )


def _end(trial: TrialRow, x: float, y: float, share: float) -> str:
    if trial.status == "failed":
        return f'<path class="end failed" d="M{x - 4:.1f},{y - 4:.1f}l8,8m0,-8l-8,8"/>'
    if trial.status == "stopped":
        return f'<circle class="end" style="{_colour(trial, share)}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    return ""


def _colour(trial: TrialRow, share: float) -> str:
    """From the best (0) to the worst (1); failed trials have a colour of their own."""
    if trial.status == "failed":
        return ""
    return f"stroke:color-mix(in oklab, var(--good) {100 * (1 - share):.0f}%, var(--mean_face))"


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low, low + max(1e-6, abs(low)))


def _x(epoch: float, epochs: int) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (epoch - 1) / max(1, epochs - 1)


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * share


def _svg(parts: Sequence[str], title: str, width: int, height: int) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
