"""Importing the library is fast and brings in no heavy package."""

import subprocess
import sys

import pytest

HEAVY = ("ray", "open3d", "matplotlib", "cv2", "scipy.optimize", "numba", "pandas", "torch.utils.tensorboard")


def imported_modules(statement: str) -> tuple[set[str], float]:
    """Run an import in a fresh interpreter; return the modules that it loaded and the seconds it took."""
    program = (
        f"import sys, time\nstart = time.perf_counter()\n{statement}\n"
        "print(time.perf_counter() - start, *sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, *modules = result.stdout.split()
    return set(modules), float(seconds)


def test_import_of_the_package_takes_less_than_a_second():
    seconds = min(imported_modules("import dfmvr")[1] for _ in range(2))
    assert seconds < 1.0


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("dfmvr", ()),
        ("dfmvr.types", ()),
        ("dfmvr.geometry.camera", ()),
        ("dfmvr.morphable.model", ()),
        ("dfmvr.reconstructor", ()),
        ("dfmvr.losses.total", ()),
        ("dfmvr.predictor", ()),
        ("dfmvr.export", ()),
        ("dfmvr.cli", ()),
    ],
)
def test_import_brings_in_no_heavy_package(module: str, allowed: tuple[str, ...]):
    modules, _ = imported_modules(f"import {module}")
    heavy = {name for name in HEAVY if name in modules} - set(allowed)
    assert not heavy, f"import {module} loads {sorted(heavy)}"
