"""Train, measure and write the paper's tables on the synthetic benchmark.

    python -m benchmarks.tables                       # hours: every system and seed that is not there yet
    python -m benchmarks.tables --only v6 confidence  # those alone; the tables show what there is
    python -m benchmarks.tables --no-training         # measure and write what is trained

Every system learns from the same samples in the same order, for as many epochs (--epochs), from
configs/NAME.yaml with nothing else changed, and is measured on people that none of them has seen. What is
finished is kept: a stopped command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import machine, report, versions
from benchmarks.tables.contents import make_tables, margins
from benchmarks.tables.measuring import Measurements, faces_of_test
from benchmarks.tables.pictures import draw_faces, draw_variants
from benchmarks.tables.results import Runs, combine
from benchmarks.tables.systems import REFERENCE, SYSTEMS
from benchmarks.tables.training import train_all, training_times
from benchmarks.tables.writing import Table, introduction, timing_table, to_json, to_markdown
from dfmvr.config import Settings, load_settings
from dfmvr.data.manifest import read_manifest
from dfmvr.files import write_atomic

NAMES = [system.name for system in SYSTEMS]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, measure, write."""
    options = parse(argv)
    runs = Runs(Path(options.runs))
    if not options.no_training:
        train_all(runs, options.only or NAMES, options.epochs, options.overrides)
    settings = load_settings(REFERENCE, options.overrides)
    with Measurements(runs, settings, options.people) as measure:
        mean_face = combine([measure.mean_face()])
        tables = make_tables(measure, mean_face)
        found = margins(measure)
    write(Path(options.out), tables, runs, settings, options, found)
    draw_variants(runs, settings, Path(options.out) / "variants.jpg")
    draw_faces(runs, settings, Path(options.out) / "systems.jpg")
    report("tables", {"mean_face_rmse_mm": mean_face.mean, **found})
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=sorted(NAMES), metavar="NAME", help="systems to train")
    parser.add_argument("--no-training", action="store_true", help="measure and write what is trained")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the training split (default: 1)")
    parser.add_argument("--people", type=int, help="measure on the first so many test people (default: all)")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="folder of the runs (default: runs)")
    parser.add_argument("--out", default="docs/results", metavar="DIR", help="default: docs/results")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change in all systems")
    return parser.parse_intermixed_args(argv)


def write(
    out: Path,
    tables: Sequence[Table],
    runs: Runs,
    settings: Settings,
    options: argparse.Namespace,
    found: dict[str, Any],
) -> None:
    """Write tables.md and tables.json."""
    times = training_times(runs)
    content = {
        "margin": found,
        "tables": {table.name: to_json(table) for table in tables},
        "training": times,
        "epochs": options.epochs,
        "people": len(faces_of_test(settings, options.people)),
        "samples": read_manifest(settings.data.uri).rows["train"],
        "image_size": settings.data.image_size,
        "machine": machine(),
        "versions": versions(),
    }
    write_atomic(out / "tables.json", (json.dumps(content, indent=2) + "\n").encode())
    notes = out / "tables_notes.md"  # written by hand: what the numbers say
    few = f" --people {options.people}" if options.people else ""
    parts = [
        introduction(content, f"python -m benchmarks.tables{few}"),
        *([notes.read_text()] if notes.is_file() else []),
        *map(to_markdown, tables),
        timing_table(times, content["machine"]),
    ]
    write_atomic(out / "tables.md", "\n".join(parts).encode())


if __name__ == "__main__":
    sys.exit(main())
