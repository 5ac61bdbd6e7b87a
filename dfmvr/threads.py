"""How many threads a process computes with."""

from __future__ import annotations

import contextlib
import os

import torch


def use_threads(count: int) -> None:
    """Let torch and numba compute with `count` threads; call it before the first parallel computation.

    A limit that numba is given later leaves its other threads spinning, on cores that others need.
    """
    import numba
    from numba.core import config

    torch.set_num_threads(count)
    os.environ["NUMBA_NUM_THREADS"] = str(min(count, len(os.sched_getaffinity(0))))
    with contextlib.suppress(RuntimeError):  # its threads have started already
        config.reload_config()
    numba.set_num_threads(min(count, config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
