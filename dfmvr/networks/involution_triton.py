"""Involution as Triton kernels, for CUDA: a program takes a channel group at some places, all taps in turn.

Tensors are addressed by their strides, so that any memory order goes through without a copy. Sums are taken
in float32. Every output is written by one program: the results are the same in every run.

Axis letters: B batch, C channel, G channel group, H W input size, h w output size, P places of a program.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_PLACES = 64


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    x, kernels, out, groups, width_of_group, height, width, rows, columns,
    xb, xc, xh, xw, kb, kg, kt, kh, kw, ob, oc, oh, ow,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, PLACES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Add up out = sum over taps of kernel x neighbour."""
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    batch, group = tl.program_id(1) // groups, tl.program_id(1) % groups
    row, column = place // columns, place % columns
    channel = tl.arange(0, CHANNELS)
    there = place < rows * columns
    wanted = there[:, None] & (channel < width_of_group)[None, :]
    x_of_group = x + batch * xb + (group * width_of_group + channel)[None, :] * xc
    kernel_of_place = kernels + batch * kb + group * kg + row * kh + column * kw
    total = tl.zeros((PLACES, CHANNELS), dtype=tl.float32)
    for tap in tl.static_range(SIZE * SIZE):
        y = row * STRIDE + tap // SIZE - SIZE // 2
        z = column * STRIDE + tap % SIZE - SIZE // 2
        inside = (y >= 0) & (y < height) & (z >= 0) & (z < width)
        weight = tl.load(kernel_of_place + tap * kt, mask=there, other=0.0).to(tl.float32)
        value = tl.load(x_of_group + (y * xh + z * xw)[:, None], mask=wanted & inside[:, None], other=0.0)
        total += weight[:, None] * value.to(tl.float32)
    target = out + batch * ob + (group * width_of_group + channel)[None, :] * oc
    tl.store(target + (row * oh + column * ow)[:, None], total.to(out.dtype.element_ty), mask=wanted)


@triton.jit
def _backward_kernels(  # type: ignore[no-untyped-def]
    x, grad, grad_kernels, groups, width_of_group, height, width, rows, columns,
    xb, xc, xh, xw, gb, gc, gh, gw, kb, kg, kt, kh, kw,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, PLACES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Add up, for each tap, the products of gradient and neighbour over the group's channels."""
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    batch, group = tl.program_id(1) // groups, tl.program_id(1) % groups
    row, column = place // columns, place % columns
    channel = tl.arange(0, CHANNELS)
    there = place < rows * columns
    wanted = there[:, None] & (channel < width_of_group)[None, :]
    of_group = (group * width_of_group + channel)[None, :]
    x_of_group = x + batch * xb + of_group * xc
    source = grad + batch * gb + of_group * gc + (row * gh + column * gw)[:, None]
    of_out = tl.load(source, mask=wanted, other=0.0).to(tl.float32)
    target = grad_kernels + batch * kb + group * kg + row * kh + column * kw
    for tap in tl.static_range(SIZE * SIZE):
        y = row * STRIDE + tap // SIZE - SIZE // 2
        z = column * STRIDE + tap % SIZE - SIZE // 2
        inside = (y >= 0) & (y < height) & (z >= 0) & (z < width)
        value = tl.load(x_of_group + (y * xh + z * xw)[:, None], mask=wanted & inside[:, None], other=0.0)
        total = tl.sum(of_out * value.to(tl.float32), axis=1)
        tl.store(target + tap * kt, total.to(grad_kernels.dtype.element_ty), mask=there)


@triton.jit
def _backward_x(  # type: ignore[no-untyped-def]
    kernels, grad, grad_x, groups, width_of_group, height, width, rows, columns,
    kb, kg, kt, kh, kw, gb, gc, gh, gw, xb, xc, xh, xw,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, PLACES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gather, for each input place, the gradients of the outputs that have looked at it."""
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    batch, group = tl.program_id(1) // groups, tl.program_id(1) % groups
    y, z = place // width, place % width
    channel = tl.arange(0, CHANNELS)
    there = place < height * width
    wanted = there[:, None] & (channel < width_of_group)[None, :]
    of_group = (group * width_of_group + channel)[None, :]
    grad_of_group = grad + batch * gb + of_group * gc
    total = tl.zeros((PLACES, CHANNELS), dtype=tl.float32)
    for tap in tl.static_range(SIZE * SIZE):
        down = y + SIZE // 2 - tap // SIZE
        right = z + SIZE // 2 - tap % SIZE
        row, column = down // STRIDE, right // STRIDE
        met = there & (down >= 0) & (right >= 0) & (row < rows) & (column < columns)
        met = met & (row * STRIDE == down) & (column * STRIDE == right)
        source = kernels + batch * kb + group * kg + tap * kt + row * kh + column * kw
        weight = tl.load(source, mask=met, other=0.0).to(tl.float32)
        of_out = tl.load(
            grad_of_group + (row * gh + column * gw)[:, None], mask=wanted & met[:, None], other=0.0
        )
        total += weight[:, None] * of_out.to(tl.float32)
    target = grad_x + batch * xb + of_group * xc + (y * xh + z * xw)[:, None]
    tl.store(target, total.to(grad_x.dtype.element_ty), mask=wanted)


class TritonInvolution(torch.autograd.Function):
    """Keeps only x and the kernels for the backward pass, like the other forms."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: Tensor, size: int, stride: int) -> Tensor:
        """See involution.involution; the result has x's memory order."""
        batch, rows, columns = kernels.shape[0], *kernels.shape[3:]
        order = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else None
        out = torch.empty(
            (batch, x.shape[1], rows, columns),
            dtype=x.dtype, device=x.device, memory_format=order or torch.contiguous_format,
        )  # fmt: skip
        _launch(_forward, rows * columns, x, kernels, (x, kernels, out), size, stride)
        ctx.save_for_backward(x, kernels)
        ctx.size, ctx.stride = size, stride
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Return the gradients of x and of the kernels."""
        x, kernels = ctx.saved_tensors
        grad_x, grad_kernels = torch.empty_like(x), torch.empty_like(kernels)
        places = kernels.shape[3] * kernels.shape[4]
        _launch(_backward_kernels, places, x, kernels, (x, grad, grad_kernels), ctx.size, ctx.stride)
        places = x.shape[2] * x.shape[3]
        _launch(_backward_x, places, x, kernels, (kernels, grad, grad_x), ctx.size, ctx.stride)
        return grad_x, grad_kernels, None, None


def _launch(
    kernel: Any, places: int, x: Tensor, kernels: Tensor, tensors: tuple[Tensor, ...], size: int, stride: int
) -> None:
    """Run a kernel over blocks of places, and over samples and groups; strides follow the tensors' order."""
    batch, channels, height, width = x.shape
    groups, rows, columns = kernels.shape[1], *kernels.shape[3:]
    per_group = channels // groups
    strides = [step for tensor in tensors for step in tensor.stride()]
    kernel[(triton.cdiv(places, _PLACES), batch * groups)](
        *tensors, groups, per_group, height, width, rows, columns, *strides,
        SIZE=size, STRIDE=stride, PLACES=_PLACES, CHANNELS=triton.next_power_of_2(per_group),
    )  # fmt: skip
