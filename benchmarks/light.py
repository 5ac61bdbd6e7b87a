"""What does a lighter fusion network cost in accuracy? RMSE against multiply-adds.

    python -m benchmarks.light                # hours: trains every network and seed that is not there yet
    python -m benchmarks.light --no-training  # measures and draws what is trained

Networks learn and are measured as those of `benchmarks.tables` (the same samples in the same order, the same
test people); what is finished is kept.
"""

from __future__ import annotations

import argparse
import io
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import report
from benchmarks.tables.measuring import Measurements
from benchmarks.tables.results import Measured, Runs, combine
from benchmarks.tables.systems import ALL, BY_NAME, REFERENCE
from benchmarks.tables.training import train_all
from dfmvr.config import load_settings
from dfmvr.files import write_atomic
from dfmvr.training.dry_run import count_macs

LIGHT = "light"
MODELS = ("v6", "ours")
"""Whom the light network is set beside."""
OTHERS = ("light_plain", "narrow", "v1", "v2", "v3")


@dataclass(frozen=True)
class Point:
    """A network in the plane of cost and error."""

    gmac: float
    measured: Measured

    @property
    def spread(self) -> float:
        """Standard deviation of the mean RMSE over seeds, mm; 0 of one seed."""
        seeds = self.measured.of_seeds
        return statistics.stdev(seeds) if len(seeds) > 1 else 0.0


def main() -> None:
    """Parse, train, measure, draw, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--no-training", action="store_true", help="measure and draw what is trained")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the training split (default: 1)")
    parser.add_argument("--people", type=int, help="measure on the first so many test people (default: all)")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="folder of the runs (default: runs)")
    parser.add_argument("--picture", default="docs/results/light.png", metavar="FILE", help="the plot")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change in all")
    options = parser.parse_intermixed_args()
    runs = Runs(Path(options.runs))
    names = [*MODELS, LIGHT, *OTHERS]
    if not options.no_training:
        train_all(runs, names, options.epochs, options.overrides)
    points = {}
    with Measurements(runs, load_settings(REFERENCE, options.overrides), options.people) as measure:
        for name in names:
            if of_seeds := measure(name, ALL):
                settings = load_settings(f"configs/{BY_NAME[name].config}.yaml", options.overrides)
                gmac = count_macs(settings.network, settings.data.image_size) / 1e9
                points[name] = Point(gmac, combine(of_seeds))
    write_atomic(Path(options.picture), draw(points))
    report("light", figures(points), seeds={name: point.measured.of_seeds for name, point in points.items()})


def figures(points: Mapping[str, Point]) -> dict[str, float]:
    """Return each network's figures, and how the light one stands to its models."""
    found = {}
    for name, point in points.items():
        found |= {f"{name}_gmac": round(point.gmac, 4), f"{name}_rmse_mm": round(point.measured.mean, 4)}
    for model in MODELS:
        if LIGHT in points and model in points:
            below = points[LIGHT].measured.below(points[model].measured)
            found |= {
                f"share_of_macs_of_{model}": round(points[LIGHT].gmac / points[model].gmac, 4),
                f"below_{model}": round(below["share"], 4),
                f"below_{model}_ci_low": round(below["ci_low"], 4),
                f"below_{model}_ci_high": round(below["ci_high"], 4),
            }
    return found


def draw(points: Mapping[str, Point]) -> bytes:
    """Draw RMSE against multiply-adds, with bars of one standard deviation over seeds, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure((7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, point in points.items():
        colour = "tab:red" if name == LIGHT else "tab:blue" if name in MODELS else "tab:grey"
        rmse = point.measured.mean
        axes.errorbar(point.gmac, rmse, point.spread or None, fmt="o", color=colour, capsize=3)
        axes.annotate(name, (point.gmac, rmse), (6, 6), textcoords="offset points", color=colour, fontsize=9)
    axes.set_xlabel("multiply-adds of one sample's three views, 10⁹")
    axes.set_ylabel("RMSE, mm")
    axes.set_xlim(0, 1.15 * max(point.gmac for point in points.values()))
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    return stream.getvalue()


if __name__ == "__main__":
    main()
