"""The middleware that counts bodies, by itself."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from serve.limits import BodyLimits

MAX_BYTES = 100


def ask(
    messages: list[tuple[float, bytes, bool]],
    headers: dict[str, str] | None = None,
    timeout_s: float = 5.0,
    answer_first: bool = False,
) -> tuple[list[Any], bytes]:
    """Send pieces (pause before it, bytes, more to come); return what is sent back, and what is read."""
    waiting, sent, read = list(messages), [], b""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal read
        if answer_first:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            message = await receive()
            read += message.get("body", b"")
            if not message.get("more_body", False):
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Any:
        pause, body, more = waiting.pop(0)
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": body, "more_body": more}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
    }
    asyncio.run(BodyLimits(app, MAX_BYTES, timeout_s)(scope, receive, send))
    return sent, read


def reason(sent: list[Any]) -> str:
    return str(json.loads(sent[1]["body"])["type"]).rpartition(":")[2]


def test_a_body_of_just_the_limit_passes() -> None:
    sent, read = ask([(0, b"x" * 60, True), (0, b"x" * 40, False)], {"content-length": "100"})
    assert sent[0]["status"] == 200
    assert len(read) == MAX_BYTES


def test_one_byte_more_does_not_whether_announced_or_not() -> None:
    sent, read = ask([(0, b"x" * 60, True), (0, b"x" * 41, True)])
    assert (sent[0]["status"], reason(sent), len(read)) == (413, "body_too_large", 60)
    sent, read = ask([], {"content-length": "101"})  # it is not read at all
    assert (sent[0]["status"], reason(sent), len(read)) == (413, "body_too_large", 0)


def test_an_announced_length_that_lies_does_not_help() -> None:
    sent, _ = ask([(0, b"x" * 101, False)], {"content-length": "5"})
    assert (sent[0]["status"], reason(sent)) == (413, "body_too_large")


@pytest.mark.parametrize("value", ["-1", "1.5", "0x10", "", "1e3", "9" * 5000])
def test_a_length_must_be_a_number(value: str) -> None:
    sent, _ = ask([], {"content-length": value})
    assert (sent[0]["status"], reason(sent)) == (400, "bad_content_length")


def test_the_time_counts_for_the_whole_body_and_not_for_each_piece() -> None:
    sent, read = ask([(0.05, b"x", True)] * 50, timeout_s=0.2)
    assert (sent[0]["status"], reason(sent)) == (408, "slow_body")
    assert len(read) < 10
    assert (b"connection", b"close") in sent[0]["headers"]


def test_after_the_body_a_client_may_wait_as_long_as_it_likes() -> None:
    """What comes then is its hanging up, which an application may listen for while it works."""

    async def listen() -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            last.append(await receive())

        async def receive() -> Any:
            if not asked:
                asked.append(True)
                return {"type": "http.request", "body": b"x", "more_body": False}
            await asyncio.sleep(0.3)
            return {"type": "http.disconnect"}

        asked: list[bool] = []
        last: list[Any] = []
        await BodyLimits(app, MAX_BYTES, 0.1)({"type": "http", "headers": []}, receive, None)  # type: ignore[arg-type]
        return last[0]

    assert asyncio.run(listen())["type"] == "http.disconnect"


def test_an_answer_that_has_begun_is_not_answered_twice() -> None:
    from serve.problems import Problem

    with pytest.raises(Problem, match="at most 100 bytes"):
        ask([(0, b"x" * 101, False)], answer_first=True)


def test_what_is_no_http_passes() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(BodyLimits(app, 1, 1.0)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]
