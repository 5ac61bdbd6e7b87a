"""`dfmvr submit`: check a job, then send it to a Ray cluster."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from typing import Any

from dfmvr.cli.errors import UserError

JOBS = ("make_dataset", "preprocess", "pretrain_parser", "train", "tune", "evaluate")
ADDRESS = "http://127.0.0.1:8265"
DESCRIPTION = (
    "Check a job, then send it to a running Ray cluster with this folder (but no data, runs, secrets), show "
    "its log and return its exit code. Ctrl-C asks it to stop. Exit code 2: it was not sent, and why."
)
EPILOG = (
    "example: dfmvr submit --address http://head:8265 train -- --config configs/small.yaml "
    "data.uri=s3://bucket/faces training.runs=s3://bucket/runs (docs/cluster.md)"
)


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "submit", help="send a job to a Ray cluster", description=DESCRIPTION, epilog=EPILOG
    )
    add_arguments(parser)
    parser.set_defaults(run=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments, which are those of `python -m ray_jobs.submit` as well."""
    parser.add_argument(
        "--address",
        metavar="URL",
        help=f"of the cluster's dashboard (default: RAY_API_SERVER_ADDRESS, else {ADDRESS})",
    )
    parser.add_argument("--detach", action="store_true", help="do not wait; print how to follow the job")
    parser.add_argument(
        "--requirements",
        action="store_true",
        help="let the cluster install what the job needs, as constraints.txt pins it (minutes, once a node); "
        "without, its image must have it",
    )
    parser.add_argument("job", choices=JOBS, metavar="JOB", help=f"one of {', '.join(JOBS)}")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="-- ...", help="as `python -m ray_jobs.JOB` takes them"
    )


def job_arguments(options: argparse.Namespace) -> list[str]:
    """Return the job's own arguments, without the `--` before them (which argparse takes away, or not)."""
    arguments: list[str] = options.arguments
    return arguments[1:] if arguments[:1] == ["--"] else arguments


def run(options: argparse.Namespace) -> int:
    """Run `python -m ray_jobs.submit` with the same arguments; return its exit code.

    Raises:
        UserError: Ray is not installed.
    """
    if not all(importlib.util.find_spec(name) for name in ("ray", "ray_jobs")):
        raise UserError("expected Ray beside dfmvr, found none; pip install 'dfmvr[ray]' brings it")
    command = [sys.executable, "-m", "ray_jobs.submit"]
    command += ["--address", options.address] if options.address else []
    command += [f"--{name}" for name in ("detach", "requirements") if getattr(options, name)]
    # A process of its own, because this package must work without Ray and never imports what knows it.
    process = subprocess.Popen([*command, options.job, "--", *job_arguments(options)])
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal tells both processes, and the other one knows what to do
            continue
