"""Importing the library is fast and brings in no heavy package."""

import subprocess
import sys

HEAVY = ("ray", "open3d", "matplotlib", "cv2", "scipy.optimize", "numba", "pandas", "torch.utils.tensorboard")

LIGHT_MODULES = (
    *("dfmvr", "dfmvr.types", "dfmvr.geometry.camera", "dfmvr.morphable.model", "dfmvr.reconstructor"),
    *("dfmvr.losses.total", "dfmvr.predictor", "dfmvr.export", "dfmvr.overlay", "dfmvr.cli"),
)


def run_python(program: str) -> str:
    """Run a program in a fresh interpreter and return what it prints."""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return result.stdout


def test_import_of_the_package_takes_less_than_a_second():
    program = "import time; start = time.perf_counter(); import dfmvr; print(time.perf_counter() - start)"
    assert min(float(run_python(program)) for _ in range(2)) < 1.0


def test_imports_bring_in_no_heavy_package():
    """One interpreter imports one module after the other, so that torch is loaded once."""
    program = (
        f"import importlib, sys\nfor module in {LIGHT_MODULES}:\n    importlib.import_module(module)\n"
        f"    print(module, *(name for name in {HEAVY} if name in sys.modules))"
    )
    loaded = {line.split()[0]: line.split()[1:] for line in run_python(program).splitlines()}
    assert loaded == {module: [] for module in LIGHT_MODULES}


def test_cli_help_does_not_load_torch():
    program = "import sys, dfmvr.cli\ndfmvr.cli.build_parser().format_help()\nprint('torch' in sys.modules)"
    assert run_python(program).strip() == "False"
