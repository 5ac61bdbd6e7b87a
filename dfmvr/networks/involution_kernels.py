"""The compiled CPU kernels of the involution, on channels-last arrays.

Kept apart from involution.py so that numba is imported only when a float32 CPU tensor meets an involution.
The sizes are run-time arguments: one compilation serves every layer, and specialised closures gained nothing
that a training step would notice.
"""

from __future__ import annotations

import numba
import numpy as np
from numba.core import config
from numpy.typing import NDArray

_FASTMATH = {"reassoc", "contract", "nsz"}  # lets sums vectorise, and still carries NaN and infinity through

Array = NDArray[np.float32]


def use_threads(count: int) -> None:
    """Let the kernels use as many threads as torch, so that workers on one machine do not crowd it."""
    numba.set_num_threads(min(count, config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]


@numba.njit(parallel=True, fastmath=_FASTMATH, error_model="numpy", cache=True)
def forward(x: Array, kernels: Array, groups: int, size: int, stride: int, out: Array) -> None:
    """Fill `out` with the involution of `x`.

    Args:
        x: [B, H, W, C].
        kernels: [B, h, w, groups * size * size].
        groups: channel groups that share a kernel.
        size: side of the kernel, odd.
        stride: step between the centres.
        out: [B, h, w, C], overwritten.
    """
    batch, height, width, channels = x.shape
    rows, columns = out.shape[1], out.shape[2]
    depth, radius, taps = channels // groups, size // 2, size * size
    for task in numba.prange(batch * rows):
        b, y = task // rows, task % rows
        total = np.empty(depth, np.float32)
        i0, i1 = max(0, radius - y * stride), min(size, height + radius - y * stride)
        for z in range(columns):
            j0, j1 = max(0, radius - z * stride), min(size, width + radius - z * stride)
            for g in range(groups):
                total[:] = 0
                for i in range(i0, i1):
                    for j in range(j0, j1):
                        weight = kernels[b, y, z, g * taps + i * size + j]
                        source = x[b, y * stride + i - radius, z * stride + j - radius]
                        for c in range(depth):
                            total[c] += weight * source[g * depth + c]
                for c in range(depth):
                    out[b, y, z, g * depth + c] = total[c]


@numba.njit(parallel=True, fastmath=_FASTMATH, error_model="numpy", cache=True)
def backward(
    x: Array, kernels: Array, grad: Array, groups: int, size: int, stride: int, grad_x: Array, grad_k: Array
) -> None:
    """Fill `grad_x` and `grad_k`, the gradients of an involution, from the gradient of its output.

    Args:
        x: [B, H, W, C].
        kernels: [B, h, w, groups * size * size].
        grad: [B, h, w, C].
        groups: channel groups that share a kernel.
        size: side of the kernel, odd.
        stride: step between the centres.
        grad_x: [B, H, W, C], zeros on entry.
        grad_k: [B, h, w, groups * size * size], zeros on entry.
    """
    batch, height, width, channels = x.shape
    rows, columns = grad.shape[1], grad.shape[2]
    depth, radius, taps = channels // groups, size // 2, size * size
    for task in numba.prange(batch * groups):  # one image and group: no two tasks write the same place
        b, g = task // groups, task % groups
        first = g * depth
        for y in range(rows):
            i0, i1 = max(0, radius - y * stride), min(size, height + radius - y * stride)
            for z in range(columns):
                j0, j1 = max(0, radius - z * stride), min(size, width + radius - z * stride)
                for i in range(i0, i1):
                    row = y * stride + i - radius
                    for j in range(j0, j1):
                        column = z * stride + j - radius
                        tap = g * taps + i * size + j
                        weight = kernels[b, y, z, tap]
                        total = np.float32(0)
                        for c in range(first, first + depth):
                            grad_x[b, row, column, c] += weight * grad[b, y, z, c]
                            total += grad[b, y, z, c] * x[b, row, column, c]
                        grad_k[b, y, z, tap] = total
