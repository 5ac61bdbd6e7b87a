"""The ledger's book: claims, owners that die, memory, rates, sums; with a clock that the tests turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve import ledger
from serve.ledger import FORGET_S, LEASE_S, Book, Claim, StoredAnswer
from serve.telemetry import Snapshot, Telemetry

GRANTED = Claim(granted=True)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book(clock: Clock) -> Book:
    """Answers for ten minutes, 1000 bytes of them, 30 requests a minute; replicas a and b live."""
    book = Book(minutes=10, max_bytes=1000, requests_per_minute=30, clock=clock)
    for owner in "ab":
        book.beat(owner, Snapshot())
    return book


def answer(text: str = "done", size: int = 0) -> StoredAnswer:
    return StoredAnswer(200, (("content-type", "text/plain"),), text.encode().ljust(size))


def claim(book: Book, key: str, fingerprint: str = "f", owner: str = "a", patience_s: float = 0.0) -> Claim:
    return asyncio.run(book.claim(key, fingerprint, owner, patience_s))


def test_the_first_computes_and_the_next_is_given_its_answer(book: Book) -> None:
    assert claim(book, "k") == GRANTED
    book.settle("k", "a", answer())
    assert claim(book, "k", owner="b") == Claim(answer=answer())
    assert claim(book, "other") == GRANTED


def test_a_key_belongs_to_one_request_while_it_runs_and_after(book: Book) -> None:
    claim(book, "k")
    assert claim(book, "k", "another") == Claim(conflict=True)
    book.settle("k", "a", answer())
    assert claim(book, "k", "another") == Claim(conflict=True)


def test_one_that_waits_is_told_as_soon_as_there_is_an_answer(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "POLL_S", 60.0)  # it is woken, and does not happen to look

    async def both() -> Claim:
        await book.claim("k", "f", "a", 0)
        waiting = asyncio.create_task(book.claim("k", "f", "b", 10))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        book.settle("k", "a", answer())
        return await asyncio.wait_for(waiting, 10)

    assert asyncio.run(both()) == Claim(answer=answer())


def test_of_several_that_wait_one_computes_when_the_first_has_failed(book: Book) -> None:
    async def three() -> list[Claim]:
        await book.claim("k", "f", "a", 0)
        waiting = [asyncio.create_task(book.claim("k", "f", "b", 10)) for _ in range(2)]
        await asyncio.sleep(0.01)
        book.settle("k", "a", None)
        done, others = await asyncio.wait(waiting, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        first = [task.result() for task in done]
        book.settle("k", "b", answer())
        return first + [await task for task in others]

    assert asyncio.run(three()) == [GRANTED, Claim(answer=answer())]


def test_patience_ends(book: Book, clock: Clock) -> None:
    async def wait() -> None:
        await book.claim("k", "f", "a", 0)
        waiting = asyncio.create_task(book.claim("k", "f", "b", LEASE_S - 1))
        await asyncio.sleep(0.01)
        clock.now += LEASE_S - 0.5  # the owner is still alive
        await waiting

    with pytest.raises(TimeoutError):
        asyncio.run(wait())


def test_a_dead_owner_is_replaced_and_comes_too_late(book: Book, clock: Clock) -> None:
    assert claim(book, "k", owner="a") == GRANTED
    clock.now += LEASE_S + 0.1
    book.beat("b", Snapshot())
    assert claim(book, "k", owner="b") == GRANTED
    book.settle("k", "a", answer("from the dead"))  # it was only slow
    book.settle("k", "b", answer("from the living"))
    assert claim(book, "k") == Claim(answer=answer("from the living"))


def test_one_that_waits_takes_over_from_a_dead_owner(book: Book, clock: Clock) -> None:
    async def wait() -> Claim:
        await book.claim("k", "f", "a", 0)
        waiting = asyncio.create_task(book.claim("k", "f", "b", 60))
        await asyncio.sleep(0.01)
        clock.now += LEASE_S + 0.1
        book.beat("b", Snapshot())
        return await asyncio.wait_for(waiting, 5)

    assert asyncio.run(wait()) == GRANTED


def test_an_owner_that_beats_keeps_its_claim_however_long_it_takes(book: Book, clock: Clock) -> None:
    claim(book, "k", owner="a")
    for _ in range(10):
        clock.now += LEASE_S / 2
        book.beat("a", Snapshot())
    with pytest.raises(TimeoutError):
        claim(book, "k", owner="b")


def test_an_answer_is_kept_for_its_time(book: Book, clock: Clock) -> None:
    claim(book, "k")
    book.settle("k", "a", answer())
    clock.now += 599
    assert claim(book, "k").answer == answer()
    clock.now += 2
    assert claim(book, "k") == GRANTED


def test_the_oldest_answers_go_when_memory_is_full(book: Book) -> None:
    for key in "klm":
        claim(book, key)
        book.settle(key, "a", answer(key, size=400))
    assert claim(book, "l").answer == answer("l", size=400)
    assert claim(book, "m").answer == answer("m", size=400)
    assert claim(book, "k") == GRANTED  # 1200 bytes were too many
    book.settle("k", "a", answer("k", size=400))
    assert claim(book, "m").answer is not None
    assert claim(book, "l") == GRANTED


def test_one_answer_that_is_too_large_is_not_kept(book: Book) -> None:
    claim(book, "k")
    book.settle("k", "a", answer(size=1001))
    assert claim(book, "k") == GRANTED
    book.settle("k", "a", answer(size=1000))
    assert claim(book, "k").answer is not None  # memory was given back


def test_answering_twice_changes_nothing(book: Book) -> None:
    claim(book, "k")
    book.settle("k", "b", answer("a stranger's"))
    book.settle("k", "a", answer("first", size=600))
    book.settle("k", "a", answer("second", size=600))
    book.settle("k", "a", None)
    assert claim(book, "k").answer == answer("first", size=600)


def test_a_key_may_ask_as_often_as_it_may(book: Book, clock: Clock) -> None:
    assert [book.take_token("ada") for _ in range(30)] == [0.0] * 30
    wait = book.take_token("ada")
    assert wait == pytest.approx(2.0)  # 30 a minute is one every two seconds
    assert book.take_token("bob") == 0.0
    clock.now += wait / 2
    assert book.take_token("ada") == pytest.approx(1.0)  # asking does not cost
    clock.now += 1.01
    assert book.take_token("ada") == 0.0
    assert book.take_token("ada") > 1.9
    clock.now += 3600
    assert [book.take_token("ada") for _ in range(31)].count(0.0) == 30  # what is not used does not pile up


def test_a_rate_below_one_a_minute_lets_one_in(clock: Clock) -> None:
    book = Book(1, 1, requests_per_minute=0.5, clock=clock)
    assert book.take_token("ada") == 0.0
    assert book.take_token("ada") == pytest.approx(120)


def test_without_a_rate_nobody_waits(clock: Clock) -> None:
    book = Book(1, 1, requests_per_minute=0, clock=clock)
    assert {book.take_token("ada") for _ in range(1000)} == {0.0}


def sums(book: Book) -> tuple[float, float]:
    """Return the counted requests and those under way, over all replicas."""
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(book.exposition().decode())
        for sample in family.samples
    }
    return values["dfmvr_requests_total"], values["dfmvr_requests_under_way"]


def replica(book: Book, name: str) -> tuple[Telemetry, Callable[[int], None]]:
    """Return a replica's counters, and a function that counts requests and tells the book."""
    telemetry = Telemetry(8)
    telemetry.under_way.inc()

    def work(n: int) -> None:
        telemetry.requests.labels("reconstructions", "200").inc(n)
        book.beat(name, telemetry.snapshot())

    return telemetry, work


def test_counters_never_fall_when_a_replica_goes(book: Book, clock: Clock) -> None:
    _, a = replica(book, "a")
    _, b = replica(book, "b")
    a(5)
    b(7)
    assert sums(book) == (12, 2)
    clock.now += LEASE_S + 0.1  # a has died
    b(1)
    assert sums(book) == (13, 1)
    clock.now += FORGET_S
    b(1)
    assert sums(book) == (14, 1)
    _, c = replica(book, "c")
    for _ in range(3):
        clock.now += FORGET_S
        c(10)
        b(0)
    assert sums(book) == (44, 2)


def test_a_replica_that_was_only_busy_is_not_counted_twice(book: Book, clock: Clock) -> None:
    _, a = replica(book, "a")
    _, b = replica(book, "b")
    a(5)
    clock.now += LEASE_S + 0.1
    b(7)
    assert sums(book) == (12, 1)
    a(1)
    assert sums(book) == (13, 2)


def test_snapshots_hold_histograms_whole(book: Book) -> None:
    telemetry, work = replica(book, "a")
    with telemetry.stage("predict"):
        pass
    telemetry.batches.observe(3)
    work(1)
    other, work = replica(book, "b")
    other.batches.observe(8)
    work(1)
    samples = {
        (sample.name, sample.labels.get("le")): sample.value
        for family in text_string_to_metric_families(book.exposition().decode())
        for sample in family.samples
        if family.name == "dfmvr_batch_size"
    }
    assert samples["dfmvr_batch_size_count", None] == 2
    assert samples["dfmvr_batch_size_sum", None] == 11
    assert samples["dfmvr_batch_size_bucket", "3.0"] == 1
    assert samples["dfmvr_batch_size_bucket", "+Inf"] == 2
