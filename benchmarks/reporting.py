"""The last line of every benchmark: one JSON object with the figures and what they were measured on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path


def report(name: str, metrics: Mapping[str, float]) -> None:
    """Print the figures as a table, then as one JSON line."""
    width = max(map(len, metrics))
    for metric, value in metrics.items():
        print(f"{metric:<{width}}  {value:.4g}")
    print(
        json.dumps(
            {"name": name, "metrics": dict(metrics), "machine": machine(), "versions": versions()},
        )
    )


def machine() -> dict[str, str | int]:
    """Describe this machine: processor, cores that this process may use, load."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": f"{os.getloadavg()[0]:.1f}",
        "system": platform.system(),
    }


def versions() -> dict[str, str]:
    """Return the versions that figures depend on."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in ("dfmvr", "torch", "numpy", "numba")},
    }
