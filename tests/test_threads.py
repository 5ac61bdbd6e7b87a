"""The number of threads, each case in a process of its own: numba starts its pool once."""

from __future__ import annotations

import subprocess
import sys

import pytest

START = "numba.np.ufunc.parallel._launch_threads()"
COMPILE = "assert numba.njit(lambda x: x + 1)(1) == 2"


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (["use_threads(1)"], "1"),
        (["use_threads(1)", START, COMPILE, "use_threads(2)", COMPILE], "1"),
        ([START, COMPILE, "use_threads(1)", COMPILE], "1"),
    ],
    ids=["before", "started_with_fewer", "started_with_more"],
)
def test_numba_compiles_and_keeps_to_the_threads(steps, expected):
    code = ["import numba, numba.np.ufunc.parallel", "from dfmvr.threads import use_threads", *steps]
    code.append("print(numba.get_num_threads())")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected
