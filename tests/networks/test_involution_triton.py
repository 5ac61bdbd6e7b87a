"""The Triton kernels against the torch form: on CUDA, or without it in Triton's interpreter.

Skipped where triton is not installed (it comes with torch for CUDA).
"""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
pytest.importorskip("triton")

from dfmvr.networks.involution import _ShiftedInvolution, involution  # noqa: E402
from dfmvr.networks.involution_triton import TritonInvolution  # noqa: E402


def draw(
    channels: int, groups: int, size: int, stride: int, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows, columns = -(-height // stride), -(-width // stride)
    x = torch.randn(2, channels, height, width, generator=generator)
    kernels = torch.randn(2, groups, size**2, rows, columns, generator=generator)
    return x.to(DEVICE), kernels.to(DEVICE)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("channels", "groups", "size", "stride", "height", "width"),
    [(32, 2, 3, 1, 9, 11), (6, 3, 3, 2, 9, 4), (5, 1, 7, 1, 5, 4), (8, 2, 7, 2, 6, 5), (6, 3, 3, 1, 1, 2)],
)
def test_forward_and_backward_equal_the_torch_form(
    channels: int, groups: int, size: int, stride: int, height: int, width: int, last: bool
) -> None:
    x, kernels = draw(channels, groups, size, stride, height, width)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
        kernels = kernels.movedim(2, -1).contiguous().movedim(-1, 2)
    x.requires_grad_()
    kernels.requires_grad_()
    results = []
    for form in (TritonInvolution, _ShiftedInvolution):
        out = form.apply(x, kernels, size, stride)
        weights = torch.arange(out.numel(), device=DEVICE).view(out.shape).sin()
        results.append((out, *torch.autograd.grad((out * weights).sum(), (x, kernels))))
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)


def test_low_precision_is_summed_in_float32() -> None:
    x, kernels = draw(32, 2, 7, 1, 6, 6)
    exact = _ShiftedInvolution.apply(x.bfloat16().float(), kernels.bfloat16().float(), 7, 1)
    found = TritonInvolution.apply(x.bfloat16(), kernels.bfloat16(), 7, 1)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, exact.bfloat16(), atol=0, rtol=0.01)


def test_not_a_number_is_not_hidden() -> None:
    x, kernels = draw(8, 1, 3, 1, 8, 8)
    x[0, 0, 4, 4] = float("nan")
    hit = TritonInvolution.apply(x, kernels, 3, 1).isnan()
    assert hit[0, 0, 3:6, 3:6].all()
    assert hit.sum() == 9


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs CUDA")
def test_involution_takes_this_form_on_cuda() -> None:
    x, kernels = draw(32, 2, 7, 1, 8, 8)
    assert type(involution(x.requires_grad_(), kernels, 7).grad_fn).__name__ == "TritonInvolutionBackward"
