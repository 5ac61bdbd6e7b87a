import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dfmvr.networks.involution import Involution, _CompiledInvolution, _ShiftedInvolution, involution

FORMS = [_CompiledInvolution, _ShiftedInvolution]


def oracle(x: Tensor, kernels: Tensor, size: int, stride: int) -> Tensor:
    """The definition: unfold every neighbourhood, multiply, sum."""
    batch, groups, taps, rows, columns = kernels.shape
    patches = functional.unfold(x, size, padding=size // 2, stride=stride)
    patches = patches.view(batch, groups, -1, taps, rows, columns)
    return torch.einsum("bgckhw,bgkhw->bgchw", patches, kernels).flatten(1, 2)


def draw(
    channels: int, groups: int, size: int, stride: int, height: int, width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows, columns = -(-height // stride), -(-width // stride)
    x = torch.randn(2, channels, height, width, generator=generator, dtype=dtype)
    kernels = torch.randn(2, groups, size**2, rows, columns, generator=generator, dtype=dtype)
    return x.requires_grad_(), kernels.requires_grad_()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (7, 10), (5, 4), (1, 2)])
@pytest.mark.parametrize(("channels", "groups"), [(32, 2), (8, 1), (6, 3)])
def test_every_form_equals_the_oracle(form, size, stride, height, width, channels, groups):
    x, kernels = draw(channels, groups, size, stride, height, width, torch.float32)
    got, expected = form.apply(x, kernels, size, stride), oracle(x, kernels, size, stride)
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)

    weights = torch.randn_like(expected)
    got_grads = torch.autograd.grad((got * weights).sum(), (x, kernels))
    expected_grads = torch.autograd.grad((expected * weights).sum(), (x, kernels))
    torch.testing.assert_close(got_grads, expected_grads, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_against_finite_differences(stride):
    x, kernels = draw(4, 2, 3, stride, 5, 4, torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: involution(a, b, 3, stride), (x, kernels))


def test_memory_order_of_the_input_does_not_matter():
    x, kernels = draw(32, 2, 7, 1, 9, 9, torch.float32)
    last = x.detach().contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(involution(x, kernels, 7), involution(last, kernels, 7))


def test_not_a_number_is_not_hidden():
    x, kernels = draw(8, 1, 3, 1, 8, 8, torch.float32)
    x.data[0, 0, 4, 4] = float("nan")
    hit = involution(x, kernels, 3).isnan()
    assert hit[0, 0, 3:6, 3:6].all()
    assert hit.sum() == 9


@pytest.mark.parametrize("shape", [(2, 3, 9, 8, 8), (2, 2, 49, 8, 8), (2, 2, 9, 4, 4)])
def test_kernels_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \[B, G, k\*k, h, w\] = \[2, a divisor of 32, 9, 8, 8\]"):
        involution(torch.zeros(2, 32, 8, 8), torch.zeros(shape), 3)


@pytest.mark.parametrize("size", [4, 7, 14, 15])
@pytest.mark.parametrize("stride", [1, 2])
def test_layer_takes_any_size(size, stride):
    layer = Involution(32, 7, stride)
    assert layer.groups == 2
    out = layer(torch.randn(2, 32, size, size))
    assert out.shape == (2, 32, -(-size // stride), -(-size // stride))


def test_layer_predicts_its_kernels_from_the_place():
    layer = Involution(16, 3).eval()
    x = torch.randn(1, 16, 8, 8)
    moved = x.roll(2, dims=3)
    out = layer(x).roll(2, dims=3)
    torch.testing.assert_close(layer(moved)[..., 3:-1], out[..., 3:-1], atol=1e-5, rtol=1e-4)
