"""What the benchmarks share: fair timing of several sides in turn, and the JSON line at the end."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dfmvr.threads import use_threads


def time_in_turn(
    sides: Mapping[str, Callable[[], object]],
    rounds: int = 7,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Run each side once in every round, so that a busy machine hurts all sides alike.

    Args:
        sides: what to time, by name.
        rounds: how often each side is timed.
        warm_up: untimed runs of each side before the first round.
        clock: seconds; see add_timing.

    Returns:
        Milliseconds of each side's runs; compare medians (see ratio), as single runs are noisy.
    """
    for side in sides.values():
        for _ in range(warm_up):
            side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = clock()
            side()
            _wait_for_device()
            times[name].append((clock() - start) * 1e3)
    return times


def add_timing(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add --rounds, --threads and --processor-time to a benchmark's options."""
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--rounds", type=int, default=rounds, help="timed runs of each side (%(default)d)")
    parser.add_argument("--threads", type=int, default=cores, help="threads to compute with (all cores)")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="time by the processor's clock, with one thread: what others do on the machine counts less",
    )


def start_timing(options: argparse.Namespace) -> Callable[[], float]:
    """Set the number of threads and return the clock that add_timing's options ask for; call it early."""
    if not options.processor_time:
        use_threads(options.threads)
        return time.perf_counter
    options.threads = 1
    use_threads(1)
    return time.process_time


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Return the median over rounds of slow / fast: how many times faster the fast side is."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def report(name: str, metrics: Mapping[str, float | str], **more: Any) -> None:
    """Print the figures as a table, then as the benchmark's last line, one JSON object.

    Args:
        name: the benchmark's name, as in `python -m benchmarks.NAME`.
        metrics: numbers by name (or names, where the question is which).
        more: further entries that explain the numbers (sizes, what was scaled).
    """
    width = max(map(len, metrics), default=0)
    for metric, value in metrics.items():
        print(f"{metric:<{width}}  {value if isinstance(value, str) else format(value, '.4g')}")
    line = {"name": name, "metrics": dict(metrics), "machine": machine(), "versions": versions(), **more}
    print(json.dumps(line, allow_nan=False), flush=True)


def machine() -> dict[str, Any]:
    """Describe the hardware and how busy it is."""
    load = os.getloadavg()[0]
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": round(load, 2),
    }


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of the named packages that are installed (the usual ones if none)."""
    found = {"python": platform.python_version()}
    for package in packages or ("dfmvr", "torch", "numpy", "numba", "ray", "scipy", "open3d-cpu", "trimesh"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
