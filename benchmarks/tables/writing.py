"""The tables as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.tables.results import Measured

NOT_MEASURED = "–"


@dataclass(frozen=True)
class Row:
    """One line of a table: ours beside the paper's."""

    title: str
    cells: Sequence[Measured | None]
    """One a column of measurements; None where it has not been trained."""
    paper: str = ""
    """The paper's own figure, mm, on its own data."""
    note: str = ""
    key: str = ""
    """Name in the JSON; the title's first words if empty."""


@dataclass(frozen=True)
class Table:
    """A table of the paper, on the synthetic benchmark."""

    name: str
    title: str
    rows: Sequence[Row]
    columns: Sequence[str] = ("RMSE (95 % interval)",)
    """Of the measurements."""
    remarks: Sequence[str] = ()
    with_paper: bool = True


def to_markdown(table: Table) -> str:
    """Return a heading, the table and its remarks."""
    single = len(table.columns) == 1
    more = ("std", "point-to-plane", "dense", "seeds") if single else ()
    heads = ["system", *table.columns, *more, *(("paper",) if table.with_paper else ()), "remarks"]
    lines = [f"## {table.title}", "", _line(heads), _line(["---", *["---:"] * (len(heads) - 2), "---"])]
    for row in table.rows:
        cells = [_cell(measured, single) for measured in row.cells]
        details = _details(row.cells[0]) if single else []
        paper = [row.paper or NOT_MEASURED] if table.with_paper else []
        lines.append(_line([row.title, *cells, *details, *paper, row.note]))
    return "\n".join([*lines, "", *(remark + "\n" for remark in table.remarks)])


def to_json(table: Table) -> dict[str, Any]:
    """Return the table's numbers (mm)."""
    return {
        row.key or row.title: {
            column: _numbers(measured) for column, measured in zip(table.columns, row.cells, strict=True)
        }
        | ({"paper": row.paper} if row.paper else {})
        for row in table.rows
    }


def introduction(content: Mapping[str, Any], command: str) -> str:
    """Return what stands above the tables: how they were made, and the margin."""
    margin = content["margin"]
    lines = [
        "# The paper's tables on the synthetic benchmark",
        "",
        f"Made by `{command}`; numbers in [tables.json](tables.json). Every system has learnt from the same "
        f"samples in the same order ({content['samples']:,} of {content['image_size']} px, each seen "
        f"{content['epochs']} x) and is measured on {content['people']} people whom none has seen, one "
        "sample each. RMSE in mm after similarity registration (docs/training.md): mean over samples, with "
        "95 % intervals over resampled people. The paper's figures are of other data: compare orders only.",
    ]
    for system, prefix in (("v6", ""), ("ours", "ours_")):
        if f"{system}_below_best_baseline" not in margin:
            continue
        names = f"{system}_below_best_baseline", f"{prefix}ci_low", f"{prefix}ci_high"
        share, low, high = (f"{margin[name]:.1%}" for name in names)
        lines += [
            "",
            f"**{system} lies {share} below the best baseline** (`{margin['best_baseline']}`), 95 % interval "
            f"{low} to {high}; the paper's margin on Pixel-Face is 5.2 %.",
        ]
    pictures = [
        "![v1 to v6 on the same faces](variants.jpg)",
        "*v1 to v6 on the same faces: the surface, and the distance of the scan from it (red: 5 mm).*",
    ]
    return "\n".join([*lines, "", *pictures, ""])


def timing_table(times: Mapping[str, Mapping[str, float]], machine: Mapping[str, Any]) -> str:
    """Return what each training took."""
    lines = [
        "## What it took",
        "",
        _line(["run", "epochs", "steps", "minutes"]),
        _line(["---", *["---:"] * 3]),
    ]
    for run, taken in times.items():
        minutes = f"{taken['seconds'] / 60:.1f}"
        lines.append(_line([f"`{run}`", str(taken["epochs"]), str(taken["step"]), minutes]))
    where = f"{machine['cores']} cores of {machine['processor']}"
    pictures = ["![every system on one face](systems.jpg)", "*Every system on one face of the test split.*"]
    return "\n".join([*lines, "", f"On {where}, shared with other work: times are rough.", "", *pictures, ""])


def _cell(measured: Measured | None, with_interval: bool) -> str:
    if measured is None:
        return NOT_MEASURED
    low, high = measured.interval
    return f"{measured.mean:.3f}" + (f" ({low:.3f}–{high:.3f})" if with_interval else "")


def _details(measured: Measured | None) -> list[str]:
    if measured is None:
        return [NOT_MEASURED] * 4
    seeds = ", ".join(f"{value:.3f}" for value in measured.of_seeds) if len(measured.of_seeds) > 1 else "1"
    return [
        f"{measured.rmse_mm.std():.3f}",
        f"{measured.values['point_to_plane_rmse']:.3f}",
        f"{measured.values['dense']:.3f}",
        seeds,
    ]


def _numbers(measured: Measured | None) -> dict[str, Any] | None:
    if measured is None:
        return None
    low, high = measured.interval
    return {
        "rmse_mm": measured.mean,
        "ci_low": low,
        "ci_high": high,
        "std_mm": float(measured.rmse_mm.std()),
        "rmse_mm_of_seeds": list(measured.of_seeds),
        **{f"{name}_mm": value for name, value in measured.values.items() if name != "rmse"},
    }


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
