"""The report of an evaluation: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from dfmvr.evaluation.charts import (
    METHOD_TITLES,
    cumulative_curves,
    position_scale,
    region_bars,
    sample_histogram,
)
from dfmvr.evaluation.distance import Floats
from dfmvr.evaluation.evaluator import METHODS
from dfmvr.evaluation.gallery import TURNS, GalleryItem
from dfmvr.evaluation.pictures import ERROR_SCALE

PAGE = Path(__file__).with_name("report.html")
"""The page's outline, style and script."""
COLUMNS = (
    ("rmse_mm", "RMSE", "Root mean square of the distances from the scan's surface to the predicted surface"),
    ("mean_mm", "mean", "Mean distance"),
    ("median_mm", "median", "Median distance"),
    ("std_mm", "std", "Standard deviation of the distances within a sample"),
    ("metric_rmse_mm", "metric RMSE", "RMSE when the prediction keeps its size: only turned and shifted"),
    ("point_to_plane_rmse_mm", "point-to-plane", "RMSE of distances along the normal: the paper's metric"),
    (
        "legacy_df_mvr_mm",
        "legacy DF-MVR",
        "The number that the paper's released code prints as RMSE: a plain mean of distances over vertices",
    ),
    ("dense_mm", "dense", "RMSE between corresponding vertices, after the same registration"),
    (
        "dense_rigid_mm",
        "dense, rigid",
        "RMSE between corresponding vertices, after their best rigid alignment",
    ),
)
PROTOCOL = (
    "The scan is cropped to a ball around the face (centre and radius as in the NoW challenge), without "
    "what cannot be seen from outside: the inside of the mouth, the backs of the eyeballs.",
    "The prediction is aligned to the scan on seven landmarks, then registered by Gauss-Newton ICP on "
    "point-to-surface distances over scale, rotation and translation.",
    "Distances run from every vertex of the cropped scan to the closest point of the predicted surface. A "
    "vertex counts with the area around it.",
    "The mean face is the face model without a look at the pictures. The best 3DMM fit knows the truth: it "
    "is the closest that any coefficients of the model come to it, and no network of this model can pass it.",
)


@dataclass(frozen=True)
class ReportContent:
    """What the page shows."""

    title: str
    metrics: Mapping[str, Any]
    """Of `summary.summarise`."""
    areas: Mapping[str, Floats]
    """Method -> pooled area by distance."""
    rmse_mm: Mapping[str, Floats]
    """Method -> [samples] mm."""
    gallery: Sequence[GalleryItem]
    top_mm: float
    """The error at the end of the error maps' colour scale."""
    facts: Mapping[str, str]
    """What identifies the evaluation: hashes, data set, command, ..."""
    settings_yaml: str


def write_report(content: ReportContent) -> str:
    """Return the page as HTML."""
    metrics = content.metrics
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=escape(content.title),
        lead=_lead(metrics),
        cards=_cards(metrics),
        scale=position_scale(metrics["rmse_mm"]),
        table=_table(metrics),
        regions=region_bars(metrics["regions_mm"]),
        region_table=_region_table(metrics["regions_mm"]),
        cumulative=cumulative_curves(content.areas),
        histogram=sample_histogram(content.rmse_mm),
        gallery="".join(
            _sample(item, place, len(content.gallery), content.top_mm)
            for place, item in enumerate(content.gallery)
        ),
        protocol="<ol>" + "".join(f"<li>{escape(line)}</li>" for line in PROTOCOL) + "</ol>",
        facts="".join(
            f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in content.facts.items()
        ),
        settings=escape(content.settings_yaml),
    )


def _lead(metrics: Mapping[str, Any]) -> str:
    bad = metrics.get("n_bad_rows", 0)
    aside = f" Unreadable and set aside: {bad}." if bad else ""
    return escape(
        f"{metrics['n_samples']} samples of {metrics['n_subjects']} people that training never saw, "
        f"measured against their true surfaces.{aside}"
    )


def _cards(metrics: Mapping[str, Any]) -> str:
    notes = {
        "mean_face": "mean face, without looking",
        "network": "network",
        "floor": "best 3DMM fit to the truth",
    }
    cards = [
        f'<div class="card {method}"><b>{metrics["rmse_mm"][method]:.2f} <small>mm</small></b>'
        f"<span>{escape(notes[method])}</span></div>"
        for method in METHODS
    ]
    gain = metrics["improvement_over_mean_face"]
    cards.append(
        f'<div class="card gain"><b>{100 * gain["share"]:.1f} <small>%</small></b>'
        f"<span>below the mean face (95 % interval {100 * gain['ci_low']:.1f} to "
        f"{100 * gain['ci_high']:.1f} %)</span></div>"
    )
    return "".join(cards)


def _table(metrics: Mapping[str, Any]) -> str:
    heads = "".join(f'<th title="{escape(tip)}">{escape(name)}</th>' for _, name, tip in COLUMNS)
    rows = []
    for method in METHODS:
        cells = []
        for key, _, _ in COLUMNS:
            spread = f" <em>± {metrics['rmse_std_mm'][method]:.2f}</em>" if key == "rmse_mm" else ""
            cells.append(f"<td>{metrics[key][method]:.3f}{spread}</td>")
        rows.append(f'<tr class="{method}"><td>{_name(method)}</td>{"".join(cells)}</tr>')
    return f"<table><tr><th>mm</th>{heads}</tr>{''.join(rows)}</table>"


def _region_table(regions_mm: Mapping[str, Mapping[str, float | None]]) -> str:
    heads = "".join(f"<th>{_name(method)}</th>" for method in METHODS)
    rows = []
    for region, methods in regions_mm.items():
        cells = "".join(f"<td>{_number(methods[method])}</td>" for method in METHODS)
        rows.append(f"<tr><td>{escape(region.replace('_', ' / '))}</td>{cells}</tr>")
    return f"<table><tr><th>RMSE, mm</th>{heads}</tr>{''.join(rows)}</table>"


def _sample(item: GalleryItem, place: int, count: int, top_mm: float) -> str:
    views = "".join(
        f'<figure><img src="{view.photo}" alt="input view {escape(view.name)}">'
        f"<figcaption>{escape(view.name)}</figcaption></figure>"
        for view in item.views
    ) + "".join(
        f'<figure><img src="{view.overlay}" alt="prediction over {escape(view.name)}">'
        f"<figcaption>prediction, {escape(view.name)}</figcaption></figure>"
        for view in item.views
    )
    turns = "".join(
        f'<figure><div class="turn" role="img" aria-label="{escape(title)}, frontal" '
        f'style="--count:{len(TURNS)};--at:{(len(TURNS) - 1) // 2};background-image:url({picture})"></div>'
        f"<figcaption>{escape(title)}</figcaption></figure>"
        for title, picture in item.turntables.items()
    )
    chips = "".join(
        f'<span class="chip">{_name(method)} {item.rmse_mm[method]:.2f} mm</span>' for method in METHODS
    )
    return (
        f'<article class="panel sample"><header><h3>{escape(_standing(place, count))}</h3>'
        f'<span>{escape(item.sample_id)}</span><span class="push"></span>{chips}</header>'
        f'<div class="strip" style="--n:{2 * len(item.views)}">{views}</div>'
        f'<div class="turns" data-count="{len(TURNS)}">{turns}</div>{_colour_bar(top_mm)}'
        f'<img class="table-top" src="{item.textured}" alt="prediction with albedo from {len(TURNS)} sides">'
        "</article>"
    )


def _standing(place: int, count: int) -> str:
    if count == 1:
        return "Sample"
    if place in (0, count - 1):
        return "Best" if place == 0 else "Worst"
    return f"At {place / (count - 1):.0%} of the samples, by error"


def _colour_bar(top_mm: float) -> str:
    stops = ", ".join(f"rgb{colour} {share:.0%}" for share, colour in ERROR_SCALE)
    return (
        f'<div class="bar"><span>0 mm</span><i style="background:linear-gradient(90deg, {stops})"></i>'
        f"<span>{top_mm:g} mm and more · grey: not measured</span></div>"
    )


def _name(method: str) -> str:
    return f'<i class="dot {method}"></i>{escape(METHOD_TITLES[method])}'


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
