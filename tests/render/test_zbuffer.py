"""What is particular to the z-buffer's backends: threads, caches, memory."""

import os
from dataclasses import replace

import pytest
import torch

from dfmvr.render import zbuffer_numba, zbuffer_torch
from dfmvr.render.zbuffer import ZBufferRenderer


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_gradients_are_the_same_bits_every_time(head, backend, two_threads):
    first, second = (head.gradients(ZBufferRenderer(backend)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_number_of_threads_changes_nothing(head, two_threads):
    together = head.gradients(ZBufferRenderer("numba"))
    torch.set_num_threads(1)
    alone = head.gradients(ZBufferRenderer("numba"))
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


@pytest.mark.timeout(60)
def test_a_forked_process_has_threads_of_its_own(two_threads):
    zbuffer_numba._for_each_image(4, lambda index: None)
    child = os.fork()
    if child == 0:
        seen: list[int] = []
        zbuffer_numba._for_each_image(4, seen.append)
        os._exit(0 if sorted(seen) == [0, 1, 2, 3] else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_an_error_in_a_thread_is_raised(two_threads):
    with pytest.raises(ZeroDivisionError):
        zbuffer_numba._for_each_image(4, lambda index: 1 // (index - 2))


def test_kernels_compile_where_nothing_can_be_cached(monkeypatch):
    njit = zbuffer_numba.numba.njit

    def refusing(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(zbuffer_numba.numba, "njit", refusing)
    assert zbuffer_numba._compiled(lambda x: x + 1)(2) == 3


@pytest.mark.parametrize("pairs", [1, 100, 10**9])
def test_the_size_of_the_parts_changes_nothing(soup, monkeypatch, pairs):
    expected = soup.render(ZBufferRenderer("numba")).triangle_ids
    monkeypatch.setattr(zbuffer_torch, "_PAIRS_AT_ONCE", {"cpu": pairs})
    assert torch.equal(soup.render(ZBufferRenderer("torch")).triangle_ids, expected)


def test_backends_are_chosen_by_name_and_device(tile):
    assert torch.equal(
        tile.render(ZBufferRenderer()).attributes, tile.render(ZBufferRenderer("numba")).attributes
    )
    with pytest.raises(ValueError, match=r"backend: expected one of .*'numba'.*, got 'opengl'"):
        ZBufferRenderer("opengl")
    with pytest.raises(ValueError, match="backend 'numba': expected tensors on the CPU, got meta"):
        replace(tile, vertices=tile.vertices.to("meta")).render(ZBufferRenderer("numba"))
