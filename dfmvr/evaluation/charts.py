"""Charts of the report, as SVG that follows the page's colours (no plotting library, sharp at any zoom).

Colours are CSS classes (`mean_face`, `network`, `floor`), so that one drawing serves light and dark pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np

from dfmvr.evaluation.distance import Floats
from dfmvr.evaluation.evaluator import METHODS
from dfmvr.evaluation.protocol import BIN_MM

METHOD_TITLES = {"mean_face": "mean face", "network": "network", "floor": "best 3DMM fit"}

_WIDTH, _HEIGHT = 560, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 18, 38
_LABEL_WIDTH = 150


def region_bars(regions_mm: Mapping[str, Mapping[str, float | None]]) -> str:
    """Return grouped bars: RMSE of each method in each region (mm)."""
    values = [value for methods in regions_mm.values() for value in methods.values() if value is not None]
    top = nice_top(max(values, default=1.0))
    y = _linear(0, top, _HEIGHT - _BOTTOM, _TOP)
    parts = _horizontal_grid(top, y, "mm")
    group = (_WIDTH - _LEFT - _RIGHT) / max(len(regions_mm), 1)
    bar = min(22.0, 0.26 * group)
    for index, (region, methods) in enumerate(regions_mm.items()):
        middle = _LEFT + (index + 0.5) * group
        for place, method in enumerate(METHODS):
            value = methods.get(method)
            if value is None:
                continue
            x = middle + (place - 1.5) * bar
            tip = f"{region.replace('_', ' ')}, {METHOD_TITLES[method]}: {value:.2f} mm"
            parts.append(
                f'<rect class="fill {method}" x="{x + 1:.1f}" y="{y(value):.1f}" width="{bar - 2:.1f}" '
                f'height="{y(0) - y(value):.1f}" rx="2"><title>{escape(tip)}</title></rect>'
            )
        label = escape(region.replace("_", " / "))
        parts.append(
            f'<text x="{middle:.1f}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle">{label}</text>'
        )
    return _svg(parts, "RMSE by region and method, in mm")


def cumulative_curves(areas: Mapping[str, Floats]) -> str:
    """Return the share of the scans' surface that lies within a distance of each method's face.

    Args:
        areas: method -> area by distance (protocol.area_by_distance), summed over samples.
    """
    shares = {method: np.cumsum(areas[method]) / areas[method].sum() for method in METHODS}
    reach = max(int(np.searchsorted(curve, 0.99)) for curve in shares.values())
    top = nice_top((reach + 1) * BIN_MM)
    x = _linear(0, top, _LEFT, _WIDTH - _RIGHT)
    y = _linear(0, 1, _HEIGHT - _BOTTOM, _TOP)
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts += [_line(_LEFT, y(share), _WIDTH - _RIGHT, y(share), "grid")]
        parts.append(f'<text x="{_LEFT - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    parts += _x_ticks(top, x, "mm from the true surface")
    picks = np.unique(np.linspace(0, min(round(top / BIN_MM), len(areas["network"]) - 1), 160).astype(int))
    for method in METHODS:
        points = " ".join(f"{x((i + 1) * BIN_MM):.1f},{y(shares[method][i]):.1f}" for i in picks)
        parts.append(
            f'<polyline class="stroke {method}" points="{x(0):.1f},{y(0):.1f} {points}">'
            f"<title>{escape(METHOD_TITLES[method])}</title></polyline>"
        )
    return _svg(parts, "Share of the scan surface within a distance, by method")


def sample_histogram(rmse_mm: Mapping[str, Floats]) -> str:
    """Return how the samples' RMSE is spread, one translucent histogram a method.

    Args:
        rmse_mm: method -> [samples] mm.
    """
    top = nice_top(max(float(values.max()) for values in rmse_mm.values()))
    edges = np.linspace(0, top, 41)
    heights = {method: np.histogram(rmse_mm[method], edges)[0] for method in METHODS}
    # The floor's samples often share one bar: it is cut off rather than the others made flat.
    highest = nice_top(max(int(heights[method].max()) for method in METHODS if method != "floor"))
    x = _linear(0, top, _LEFT, _WIDTH - _RIGHT)
    y = _linear(0, highest, _HEIGHT - _BOTTOM, _TOP)
    parts = _horizontal_grid(highest, y, "samples")
    parts += _x_ticks(top, x, "RMSE of a sample, mm")
    for method in METHODS:
        for low, high, count in zip(edges[:-1], edges[1:], heights[method], strict=True):
            if count:
                tip = f"{METHOD_TITLES[method]}: {count} samples at {low:.2f}-{high:.2f} mm"
                parts.append(
                    f'<rect class="fill {method} veil" x="{x(low) + 0.5:.1f}" '
                    f'y="{y(min(count, highest)):.1f}" width="{x(high) - x(low) - 1:.1f}" '
                    f'height="{y(0) - y(min(count, highest)):.1f}" rx="1.5">'
                    f"<title>{escape(tip)}</title></rect>"
                )
        middle = float(np.mean(rmse_mm[method]))
        parts.append(_line(x(middle), _TOP, x(middle), y(0), f"stroke {method} dash"))
    return _svg(parts, "Histogram of the samples' RMSE, by method")


def position_scale(rmse_mm: Mapping[str, float]) -> str:
    """Return a ruler on which the floor, the network and the mean face stand (mm)."""
    top = 1.12 * max(rmse_mm.values())
    width, height, middle = 1120, 92, 46
    x = _linear(0, top, 12, width - 12)
    parts = [_line(x(0), middle, x(top), middle, "axis")]
    for tick in ticks(top):
        parts += [_line(x(tick), middle - 4, x(tick), middle + 4, "axis")]
        place, anchor = (x(tick), "middle") if tick > 0 else (2.0, "start")
        parts.append(f'<text x="{place:.1f}" y="{middle + 22}" text-anchor="{anchor}">{tick:g} mm</text>')
    parts.append(_line(x(rmse_mm["network"]), middle, x(rmse_mm["mean_face"]), middle, "reach"))
    anchors = dict.fromkeys(METHODS, "middle")
    if abs(x(rmse_mm["mean_face"]) - x(rmse_mm["network"])) < _LABEL_WIDTH:
        below, above = sorted(("network", "mean_face"), key=lambda method: rmse_mm[method])
        anchors |= {below: "end", above: "start"}
    for method in METHODS:
        place = x(rmse_mm[method])
        parts.append(f'<circle class="fill {method}" cx="{place:.1f}" cy="{middle}" r="8"/>')
        parts.append(
            f'<text class="strong" x="{place:.1f}" y="{middle - 18}" text-anchor="{anchors[method]}">'
            f"{escape(METHOD_TITLES[method])} {rmse_mm[method]:.2f}</text>"
        )
    return _svg(parts, "Where the network stands between floor and mean face", width, height)


def nice_top(value: float) -> float:
    """Return the least of 1, 1.5, 2, 3, 4, 5, 6, 8 times a power of ten that is not below `value`."""
    power = 10.0 ** np.floor(np.log10(max(value, 1e-9)))
    steps = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)
    return float(power * next(step for step in steps if step * power >= value * (1 - 1e-9)))


def ticks(top: float) -> Sequence[float]:
    """Return 3 to 8 round values from 0 to at most `top`."""
    rough = top / 5
    power = 10.0 ** np.floor(np.log10(rough))
    step = power * min((1, 2, 5, 10), key=lambda candidate: abs(candidate * power - rough))
    return [round(float(value), 6) for value in np.arange(0, top * (1 + 1e-9), step)]


def _linear(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (end - start) * (value - low) / (high - low)


def _horizontal_grid(top: float, y: Callable[[float], float], unit: str) -> list[str]:
    parts = []
    for tick in ticks(top):
        parts.append(_line(_LEFT, y(tick), _WIDTH - _RIGHT, y(tick), "grid"))
        parts.append(f'<text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(f'<text x="{_LEFT + 4}" y="{_TOP - 3}">{escape(unit)}</text>')
    return parts


def _x_ticks(top: float, x: Callable[[float], float], title: str) -> list[str]:
    base = _HEIGHT - _BOTTOM
    parts = [
        f'<text x="{x(tick):.1f}" y="{base + 16}" text-anchor="middle">{tick:g}</text>' for tick in ticks(top)
    ]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 5}" text-anchor="middle">{escape(title)}</text>')
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _svg(parts: Sequence[str], title: str, width: int = _WIDTH, height: int = _HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
