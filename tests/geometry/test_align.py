import pytest
import torch
from torch.autograd import gradcheck

from dfmvr.geometry.align import Similarity, nearest_rotation, umeyama
from dfmvr.geometry.rotation import euler_to_matrix


def points(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def similarity(*leading: int) -> Similarity:
    generator = torch.Generator().manual_seed(5)
    return Similarity(
        scale=torch.rand(leading, generator=generator, dtype=torch.float64) + 0.5,
        rotation=euler_to_matrix(torch.randn((*leading, 3), generator=generator, dtype=torch.float64)),
        translation=torch.randn((*leading, 3), generator=generator, dtype=torch.float64) * 100,
    )


def assert_same(found: Similarity, expected: Similarity) -> None:
    torch.testing.assert_close(found.scale, expected.scale)
    torch.testing.assert_close(found.rotation, expected.rotation)
    torch.testing.assert_close(found.translation, expected.translation)


@pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
def test_finds_the_similarity_that_made_the_target(leading):
    expected, source = similarity(*leading), points(*leading, 7)
    assert_same(umeyama(source, expected.apply(source)), expected)


def test_planar_points_and_equal_singular_values_are_no_exception():
    expected = similarity()
    square = torch.tensor([[1.0, 1, 0], [-1, 1, 0], [-1, -1, 0], [1, -1, 0]], dtype=torch.float64)
    assert_same(umeyama(square, expected.apply(square)), expected)
    cube = torch.cat((square + square.new_tensor([0, 0, 1]), square - square.new_tensor([0, 0, 1])))
    assert_same(umeyama(cube, expected.apply(cube)), expected)


def test_a_mirrored_target_gets_a_proper_rotation():
    source = points(7)
    found = umeyama(source, source * source.new_tensor([-1.0, 1.0, 1.0]))
    assert torch.linalg.det(found.rotation).item() == pytest.approx(1.0)


def test_no_other_similarity_fits_noisy_points_better():
    source = points(9)
    target = similarity().apply(source) + 0.2 * points(9, seed=1)
    best = umeyama(source, target)

    def error(s: Similarity) -> float:
        return (s.apply(source) - target).square().sum().item()

    for seed in range(20):
        turn = euler_to_matrix(0.02 * points(1, seed=seed)[0])
        other = Similarity(
            best.scale * (1 + 0.01 * points(1, seed=seed)[0, 0]),
            turn @ best.rotation,
            best.translation + 0.02 * points(1, seed=seed + 50)[0],
        )
        assert error(other) > error(best)


def test_weights_leave_points_out():
    expected, source = similarity(), points(8)
    target = expected.apply(source)
    target[3] += 500.0
    weights = torch.ones(8, dtype=torch.float64)
    weights[3] = 0.0
    assert_same(umeyama(source, target, weights), expected)


def test_without_scale_the_scale_is_one():
    expected, source = similarity(), points(8)
    rigid = Similarity(torch.ones((), dtype=torch.float64), expected.rotation, expected.translation)
    assert_same(umeyama(source, rigid.apply(source), with_scale=False), rigid)
    assert umeyama(source, 3.0 * source, with_scale=False).scale == 1.0


@pytest.mark.parametrize(
    "source",
    [
        torch.ones(5, 3, dtype=torch.float64),
        torch.linspace(0, 1, 5, dtype=torch.float64)[:, None] * torch.ones(3, dtype=torch.float64),
    ],
    ids=["coinciding", "on a line"],
)
def test_undetermined_alignments_stay_proper_with_finite_gradients(source):
    source = source.clone().requires_grad_()
    target = similarity().apply(source.detach()).requires_grad_()
    found = umeyama(source, target)
    assert torch.linalg.det(found.rotation).item() == pytest.approx(1.0)
    torch.testing.assert_close(found.apply(source), target)
    (found.apply(source) ** 2).sum().backward()
    assert source.grad.isfinite().all()
    assert target.grad.isfinite().all()


def test_all_zero_weights_give_a_finite_answer():
    source = points(5).requires_grad_()
    found = umeyama(source, points(5, seed=1), torch.zeros(5, dtype=torch.float64))
    found.apply(source).sum().backward()
    assert found.scale == 1.0
    assert source.grad.isfinite().all()


@pytest.mark.parametrize("with_scale", [True, False])
@pytest.mark.parametrize("plane", [False, True])
def test_gradients(with_scale, plane):
    source, target = points(2, 6), points(2, 6, seed=1)
    if plane:
        source[..., 2] = 0.0
    weights = torch.rand(2, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def aligned(source, target):
        found = umeyama(source, target, weights, with_scale)
        return found.scale, found.rotation, found.translation, found.apply(source)

    assert gradcheck(aligned, (source.requires_grad_(), target.requires_grad_()))


def test_gradients_at_equal_singular_values_and_at_a_mirrored_matrix():
    for matrix in (torch.eye(3), torch.diag(torch.tensor([2.0, 2.0, -1.0]))):
        assert gradcheck(nearest_rotation, (matrix.double().requires_grad_(),))


def test_a_sample_that_is_not_finite_spoils_only_itself() -> None:
    torch.manual_seed(0)
    source, target = torch.randn(2, 6, 3), torch.randn(2, 6, 3)
    alone = umeyama(source[1], target[1])
    source[0, 2] = torch.nan
    together = umeyama(source, target)
    assert together.rotation[0].isnan().all()
    torch.testing.assert_close(together.rotation[1], alone.rotation)
