"""The batcher: full batches while the model is busy, order, errors, requests that were given up."""

from __future__ import annotations

import asyncio

import pytest

from serve.batching import Batcher


class Model:
    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    async def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        await asyncio.sleep(0.02)
        if 13 in items:
            raise ValueError("thirteen")
        return [10 * item for item in items]


def test_what_waits_is_computed_together_and_in_order():
    model = Model()

    async def ask() -> list[int]:
        batcher = Batcher(model, max_size=4)
        first = asyncio.create_task(batcher(0))
        await asyncio.sleep(0.01)  # the first one is being computed, alone
        return [*await asyncio.gather(*(batcher(item) for item in range(1, 8))), await first]

    assert asyncio.run(ask()) == [10, 20, 30, 40, 50, 60, 70, 0]
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]


def test_the_first_one_waits_for_others_if_told():
    model = Model()

    async def ask() -> None:
        batcher = Batcher(model, max_size=4, wait_s=0.05)
        first = asyncio.create_task(batcher(0))
        await asyncio.sleep(0.01)
        await asyncio.gather(batcher(1), first)

    asyncio.run(ask())
    assert model.batches == [[0, 1]]


def test_an_error_is_its_batchs_own():
    model = Model()

    async def ask() -> list[object]:
        batcher = Batcher(model, max_size=2)
        return await asyncio.gather(*(batcher(item) for item in (1, 13, 3)), return_exceptions=True)

    one, thirteen, three = asyncio.run(ask())
    assert isinstance(one, ValueError)
    assert isinstance(thirteen, ValueError)
    assert three == 30


def test_a_request_that_was_given_up_is_not_computed():
    model = Model()

    async def ask() -> int:
        batcher = Batcher(model, max_size=1)
        first, second = asyncio.create_task(batcher(1)), asyncio.create_task(batcher(2))
        await asyncio.sleep(0.01)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        await first
        return await batcher(3)

    assert asyncio.run(ask()) == 30
    assert model.batches == [[1], [3]]
