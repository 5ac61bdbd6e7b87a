"""The report of a sweep: best.yaml, metrics.json, a table for the terminal and an HTML page."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from dfmvr.config import dump_settings
from dfmvr.data import storage
from dfmvr.evaluation.report import PAGE as EVALUATION_PAGE
from ray_jobs.tune_charts import importance_bars, learning_curves, parallel_coordinates
from ray_jobs.tune_progress import describe, short
from ray_jobs.tune_results import Summary, TrialRow
from ray_jobs.tune_settings import OBJECTIVES
from ray_jobs.tune_sweep import Sweep

PAGE = Path(__file__).with_name("tune_report.html")
"""The page's outline; its style is that of the evaluation's report."""


def write_results(sweep: Sweep, summary: Summary) -> None:
    """Write metrics.json, report.html, and best.yaml where a trial has finished."""
    if summary.best is not None:
        storage.write_bytes(sweep.path("best.yaml"), best_settings(sweep, summary.best).encode())
    content = {
        "sweep_id": sweep.id,
        "objectives": list(summary.objectives),
        "best_trial": summary.best.id if summary.best else None,
        "front": sorted(summary.front),
        "epochs_done": summary.epochs_done,
        "epochs_full": summary.count * summary.epochs,
        "cpu_hours": summary.cpu_hours,
        "gpu_hours": summary.gpu_hours,
        "importance": summary.importance,
        "trials": [_without_nan(asdict(trial)) for trial in summary.trials],
    }
    storage.write_bytes(sweep.path("metrics.json"), (json.dumps(content, indent=2) + "\n").encode())
    storage.write_bytes(sweep.path("report.html"), write_page(sweep, summary).encode())


def best_settings(sweep: Sweep, best: TrialRow) -> str:
    """Return a trial's settings as a file for `ray_jobs.train --config`."""
    settings = sweep.settings_at(best.point)
    head = f"# Trial {best.number} of sweep {sweep.id}: {best.val_dense_mm:.4f} mm on the validation split.\n"
    return head + dump_settings(replace(settings, name=f"{settings.name}-{sweep.tune.name}"))


def terminal_table(sweep: Sweep, summary: Summary) -> str:
    """Return the trials, best first, as lines."""
    lines = [f"{'trial':>5}  {'mm':>7}  {'epochs':>6}  {'ms/step':>7}  {'status':<10}  settings"]
    for trial in _ordered(summary):
        figures = f"{_number(trial.val_dense_mm, 3):>7}  {trial.epochs:>6}  {_number(trial.step_ms, 0):>7}"
        lines.append(
            f"{trial.number:>5}  {figures}  {trial.status:<10}  {trial.reason or describe(trial.point)}"
        )
    return "\n".join([*lines, *(f"{name}: {value}" for name, value in cost(summary).items())])


def cost(summary: Summary) -> dict[str, str]:
    """Return what a sweep has cost, in words."""
    full = summary.count * summary.epochs
    startups = [t.startup_seconds for t in summary.trials if not math.isnan(t.startup_seconds)]
    return {
        "epochs": f"{summary.epochs_done} of {full} ({summary.epochs_done / full:.0%})",
        "CPU hours": f"{summary.cpu_hours:.2f}",
        **({"GPU hours": f"{summary.gpu_hours:.2f}"} if summary.gpu_hours else {}),
        **({"start of a trial": f"{np.median(startups):.0f} s (median)"} if startups else {}),
    }


def write_page(sweep: Sweep, summary: Summary) -> str:
    """Return the report as one HTML page that needs nothing else."""
    outline = EVALUATION_PAGE.read_text(encoding="utf-8")
    style = outline[outline.index("<style>") + len("<style>") : outline.index("</style>")]
    best = summary.best
    finished = f"{len(summary.finished)} ran to their end" + ("" if summary.complete else "; interrupted")
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=escape(sweep.tune.name),
        style=style,
        lead=escape(f"{len(summary.trials)} of {summary.count} trials, {finished}. {sweep.id}"),
        cards=_cards(summary),
        parallel=parallel_coordinates(sweep.space.dimensions, summary.trials),
        curves=learning_curves(summary.trials, summary.epochs),
        importance=importance_bars(summary.importance),
        importance_epoch=summary.importance_epoch,
        objectives=escape("; ".join(OBJECTIVES[name] for name in summary.objectives)),
        table=_table(sweep, summary),
        choices=_choices_table(sweep, summary),
        cost="".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in cost(summary).items()),
        best=escape(best_settings(sweep, best)) if best else "no trial has finished",
    )


def _ordered(summary: Summary) -> list[TrialRow]:
    """Finished trials first, best first; then those that got furthest."""
    rest = [trial for trial in summary.trials if trial.status != "finished"]
    return [*summary.finished, *sorted(rest, key=lambda t: (t.status == "failed", -t.epochs, t.val_dense_mm))]


def _cards(summary: Summary) -> str:
    best, first = summary.best, summary.trials[0] if summary.trials else None
    cards = [("network", _number(best.val_dense_mm, 3), "mm", f"best: trial {best.number}")] if best else []
    if best and first and first.status == "finished":
        cards.append(("mean_face", _number(first.val_dense_mm, 3), "mm", "the first trial"))
    share = summary.epochs_done / (summary.count * summary.epochs)
    cards.append(("floor", f"{share:.0%}", "", f"of all epochs run: {summary.epochs_done}"))
    cards.append(("gain", f"{summary.cpu_hours:.1f}", "h", "of CPU, all trials"))
    return "".join(
        f'<div class="card {kind}"><b>{value} <small>{unit}</small></b><span>{escape(note)}</span></div>'
        for kind, value, unit, note in cards
    )


def _table(sweep: Sweep, summary: Summary) -> str:
    names = [dimension.name for dimension in sweep.space.dimensions]
    heads = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = []
    for trial in _ordered(summary):
        mark = " ◆" if trial.id in summary.front and len(summary.objectives) > 1 else ""
        cells = "".join(f"<td>{escape(short(trial.point.get(name, '–')))}</td>" for name in names)
        best = ' class="network"' if trial is summary.best else ""
        rows.append(
            f"<tr{best}><td>{trial.number}{mark}</td><td>{_number(trial.val_dense_mm, 4)}</td>"
            f"<td>{trial.epochs}</td><td>{_number(trial.step_ms, 0)}</td>"
            f"<td>{_number(trial.cpu_hours, 3)}</td>{cells}"
            f'<td title="{escape(trial.reason)}">{trial.status} {escape(trial.reason[:120])}</td></tr>'
        )
    return (
        "<table><tr><th>trial</th><th>mm</th><th>epochs</th><th>ms a step</th><th>CPU hours</th>"
        f"{heads}<th>status</th></tr>{''.join(rows)}</table>"
    )


def _choices_table(sweep: Sweep, summary: Summary) -> str:
    rows = []
    for dimension in sweep.space.dimensions:
        for choice in dimension.choices:
            mm = [t.val_dense_mm for t in summary.finished if t.point.get(dimension.name, ...) == choice]
            if mm:
                spread = f"{min(mm):.3f} to {max(mm):.3f}" if len(mm) > 1 else "–"
                rows.append(
                    f"<tr><td>{escape(f'{dimension.name} = {short(choice)}')}</td>"
                    f"<td>{np.mean(mm):.4f}</td><td>{spread}</td><td>{len(mm)}</td></tr>"
                )
    if not rows:
        return ""
    head = "<tr><th>choice</th><th>mean, mm</th><th>range</th><th>finished trials</th></tr>"
    return (
        '<section class="panel"><h2>By choice</h2><div class="scroll"><table>'
        f"{head}{''.join(rows)}</table></div></section>"
    )


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _without_nan(row: dict[str, object]) -> dict[str, object]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
