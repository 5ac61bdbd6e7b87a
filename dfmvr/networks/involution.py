"""Involution (Li et al., 2021): a convolution whose kernel changes with the place, not with the channel.

Axis letters: B batch, C channel, G channel group, H W input size, h w output size.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

GROUP_CHANNELS = 16
"""Channels that share one kernel, in layers that have as many."""

_REDUCTION = 4


def involution(x: Tensor, kernels: Tensor, kernel_size: int, stride: int = 1) -> Tensor:
    """Weigh each neighbourhood of `x` with the kernel that belongs to its place.

    The border is padded with zeros. float32 tensors on the CPU go through compiled channels-last kernels,
    tensors on CUDA through Triton's where it is installed, everything else through shifted multiply-adds; all
    keep only `x` and `kernels` for the backward pass, where unfolding would keep kernel_size^2 copies of `x`.

    Args:
        x: [B, C, H, W].
        kernels: [B, G, kernel_size^2, h, w] with h = ceil(H / stride), w = ceil(W / stride); G divides C.
        kernel_size: side of the square kernel, odd.
        stride: step between neighbourhoods.

    Returns:
        [B, C, h, w].

    Raises:
        ValueError: when the shapes do not fit each other.
    """
    batch, channels, height, width = x.shape
    expected = (batch, kernel_size**2, -(-height // stride), -(-width // stride))
    got = (kernels.shape[0], *kernels.shape[2:])
    if got != expected or channels % kernels.shape[1]:
        raise ValueError(
            f"kernels for x {tuple(x.shape)}, size {kernel_size}, stride {stride}: expected "
            f"[B, G, k*k, h, w] = [{expected[0]}, a divisor of {channels}, "
            f"{', '.join(map(str, expected[1:]))}], got {tuple(kernels.shape)}"
        )
    return _form(x, kernels).apply(x, kernels, kernel_size, stride)


def _form(x: Tensor, kernels: Tensor) -> Any:
    """Return the fastest form for these tensors."""
    if x.device.type == "cpu" and x.dtype == kernels.dtype == torch.float32:
        return _CompiledInvolution
    if x.is_cuda and x.dtype != torch.float64 and importlib.util.find_spec("triton"):
        from dfmvr.networks.involution_triton import TritonInvolution

        return TritonInvolution
    return _ShiftedInvolution


def _group_count(channels: int) -> int:
    """Return how many kernels a layer of `channels` channels predicts at each place."""
    return math.gcd(channels, max(channels // GROUP_CHANNELS, 1))


def _channels_last(x: Tensor) -> Tensor:
    """Return x [B, C, H, W] as contiguous [B, H, W, C]; no copy where it is stored so already."""
    return x.detach().permute(0, 2, 3, 1).contiguous()


class _CompiledInvolution(torch.autograd.Function):
    """Numba kernels for float32 on the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: Tensor, size: int, stride: int) -> Tensor:
        from dfmvr.networks import involution_kernels as compiled

        batch, groups, taps, rows, columns = kernels.shape
        x_last = _channels_last(x)
        kernels_last = _channels_last(kernels.reshape(batch, groups * taps, rows, columns))
        out = x.new_empty(batch, rows, columns, x.shape[1])
        compiled.use_threads(torch.get_num_threads())
        compiled.forward(x_last.numpy(), kernels_last.numpy(), groups, size, stride, out.numpy())
        ctx.save_for_backward(x_last, kernels_last)
        ctx.groups, ctx.size, ctx.stride = groups, size, stride
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        from dfmvr.networks import involution_kernels as compiled

        x, kernels = ctx.saved_tensors
        grad_x, grad_kernels = torch.zeros_like(x), torch.zeros_like(kernels)
        compiled.use_threads(torch.get_num_threads())
        compiled.backward(
            x.numpy(), kernels.numpy(), _channels_last(grad).numpy(), ctx.groups, ctx.size, ctx.stride,
            grad_x.numpy(), grad_kernels.numpy(),
        )  # fmt: skip
        grad_kernels = grad_kernels.permute(0, 3, 1, 2).unflatten(1, (ctx.groups, ctx.size**2))
        return grad_x.permute(0, 3, 1, 2), grad_kernels, None, None


class _ShiftedInvolution(torch.autograd.Function):
    """One multiply-add of the whole picture for each tap, in place; any device and dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: Tensor, size: int, stride: int) -> Tensor:
        batch, groups, _, rows, columns = kernels.shape
        out = x.new_zeros(batch, groups, x.shape[1] // groups, rows, columns)
        padded = functional.pad(x, (size // 2,) * 4).unflatten(1, (groups, -1))
        for tap, window in enumerate(_windows(size, stride, rows, columns)):
            out.addcmul_(kernels[:, :, None, tap].to(x.dtype), padded[window])
        ctx.save_for_backward(x, kernels)
        ctx.size, ctx.stride = size, stride
        return out.flatten(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, kernels = ctx.saved_tensors
        groups, (rows, columns), radius = kernels.shape[1], kernels.shape[3:], ctx.size // 2
        padded = functional.pad(x, (radius,) * 4).unflatten(1, (groups, -1))
        grad = grad.unflatten(1, (groups, -1))
        grad_padded, grad_kernels = torch.zeros_like(padded), torch.empty_like(kernels)
        for tap, window in enumerate(_windows(ctx.size, ctx.stride, rows, columns)):
            grad_padded[window].addcmul_(kernels[:, :, None, tap].to(x.dtype), grad)
            grad_kernels[:, :, tap] = (grad * padded[window]).sum(2)
        inner = (Ellipsis, slice(radius, radius + x.shape[2]), slice(radius, radius + x.shape[3]))
        return grad_padded[inner].flatten(1, 2), grad_kernels, None, None


def _windows(size: int, stride: int, rows: int, columns: int) -> list[tuple[Any, ...]]:
    """Return, for each tap of the kernel, the slice of the padded picture that it multiplies."""

    def steps(offset: int, count: int) -> slice:
        return slice(offset, offset + stride * (count - 1) + 1, stride)

    return [(Ellipsis, steps(i, rows), steps(j, columns)) for i in range(size) for j in range(size)]


class Involution(nn.Module):
    """An involution that predicts its own kernels from its input.

    The kernel branch averages the input over each stride's cell, so that its size is ceil(H / stride) like
    the output's; a last cell that sticks out is averaged over what it holds (ceil_mode), which is what lets
    any picture size through.

    With `bounded` the kernels' features are cut at six (ReLU6 after their batch-norm; the paper's are not):
    an involution is quadratic in its input otherwise, and sixteen of them in a row turn one unusual picture
    into an overflow.
    """

    def __init__(self, channels: int, kernel_size: int, stride: int = 1, *, bounded: bool = True) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride
        self.groups = _group_count(channels)
        reduced = max(channels // _REDUCTION, 1)
        self.kernels = nn.Sequential(
            nn.AvgPool2d(stride, stride, ceil_mode=True) if stride > 1 else nn.Identity(),
            nn.Conv2d(channels, reduced, 1, bias=False),
            nn.BatchNorm2d(reduced),
            nn.ReLU6(inplace=True) if bounded else nn.ReLU(inplace=True),
            nn.Conv2d(reduced, kernel_size**2 * self.groups, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, h, w] for x [B, C, H, W]."""
        kernels = self.kernels(x).unflatten(1, (self.groups, self.kernel_size**2))
        return involution(x, kernels, self.kernel_size, self.stride)
