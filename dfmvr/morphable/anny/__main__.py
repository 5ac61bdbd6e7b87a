"""Build the face model: `python -m dfmvr.morphable.anny --out DIR`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from dfmvr.morphable.anny.builder import Recipe, build
from dfmvr.morphable.anny.source import anny_version


def main() -> None:
    """Parse the command line, build, report."""
    parser = argparse.ArgumentParser(prog="python -m dfmvr.morphable.anny", description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for default.npz, population.npz and appearance.npz",
    )
    out = parser.parse_args().out
    start = time.monotonic()

    def say(line: str) -> None:
        sys.stdout.write(f"[{time.monotonic() - start:6.1f} s] {line}\n")
        sys.stdout.flush()

    build(out, Recipe(anny=anny_version()), say)


if __name__ == "__main__":
    main()
