"""By how much does fusion beat the best method without it? python -m benchmarks.margin [--no-training]

Trains what is missing of v6, ours and the baselines as `benchmarks.tables` does (hours), and measures them
with three views on people whom none has seen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import report
from benchmarks.tables.contents import margins
from benchmarks.tables.measuring import Measurements
from benchmarks.tables.results import Runs
from benchmarks.tables.systems import BASELINES, REFERENCE
from benchmarks.tables.training import train_all
from dfmvr.config import load_settings


def main() -> None:
    """Parse, train, measure, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--no-training", action="store_true", help="measure what is trained")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the training split (default: 1)")
    parser.add_argument("--people", type=int, help="measure on the first so many test people (default: all)")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="folder of the runs (default: runs)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change in all systems")
    options = parser.parse_intermixed_args()
    runs = Runs(Path(options.runs))
    if not options.no_training:
        train_all(runs, ["v6", "ours", *BASELINES], options.epochs, options.overrides)
    with Measurements(runs, load_settings(REFERENCE, options.overrides), options.people) as measure:
        report("margin", margins(measure))


if __name__ == "__main__":
    main()
