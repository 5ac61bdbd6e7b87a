"""The command line `dfmvr`: one file a command, errors of the user's as one line and exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dfmvr import __version__
from dfmvr.cli import avatar, evaluate, face_model, import_checkpoint, inspect, reconstruct, submit
from dfmvr.cli.errors import UserError
from dfmvr.cli.evaluate import PROTOCOL_NAMES
from dfmvr.cli.pictures import find_faces, parse_points, read_image

__all__ = [
    "PROTOCOL_NAMES",
    "UserError",
    "build_parser",
    "find_faces",
    "main",
    "parse_points",
    "read_image",
]

USER_ERROR = 2
"""Exit code where the user must change something."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        code: int | None = options.run(options)
    except (ValueError, OSError) as error:  # all errors of this project's own are ValueErrors
        print(f"dfmvr {options.command}: error: {error}", file=sys.stderr)
        return USER_ERROR
    return code or 0  # only `submit` has a code of its own


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="dfmvr",
        description="3D faces from a few photographs.",
        epilog="Jobs that run on Ray: python -m ray_jobs.make_dataset | train | evaluate --help",
    )
    parser.add_argument("--version", action="version", version=f"dfmvr {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (face_model, reconstruct, avatar, evaluate, inspect, import_checkpoint, submit):
        command.add_parser(commands)
    return parser
