"""How many threads a process computes with."""

from __future__ import annotations

import os

import torch


def use_threads(count: int) -> None:
    """Let torch and numba compute with `count` threads; call it before the first parallel computation.

    A limit that numba is given later leaves its other threads spinning, on cores that others need.
    """
    import numba
    from numba.core import config

    torch.set_num_threads(count)
    count = min(count, len(os.sched_getaffinity(0)))
    before = os.environ.get("NUMBA_NUM_THREADS")
    os.environ["NUMBA_NUM_THREADS"] = str(count)
    try:
        config.reload_config()
    except RuntimeError:  # its threads have started; left as asked, it would raise at each compilation
        if before is None:
            del os.environ["NUMBA_NUM_THREADS"]
        else:
            os.environ["NUMBA_NUM_THREADS"] = before
        config.reload_config()
    numba.set_num_threads(min(count, config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
