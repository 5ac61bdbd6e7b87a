"""ASGI middleware that bounds what a stranger can send: the size of a body, and the time it may take."""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.problems import Problem

MAX_DIGITS = 18
"""Of a Content-Length: Python refuses to read numbers of thousands."""


class BodyLimits:
    """Counts a body while it arrives, and refuses it as soon as it is too large or too slow.

    Args:
        app: what it protects.
        max_bytes: of a body.
        timeout_s: for the whole body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self.app, self.max_bytes, self.timeout_s = app, max_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            self._check_announced(scope)
            await self.app(scope, self._counted(receive), watched)
        except Problem as problem:
            if started:
                raise
            await problem.response()(scope, receive, send)

    def _check_announced(self, scope: Scope) -> None:
        """Refuse a length that is already announced as too large, before anything is read."""
        for name, value in scope["headers"]:
            if name != b"content-length":
                continue
            if not value.isdigit() or len(value) > MAX_DIGITS:
                got = value[:MAX_DIGITS].decode("latin-1")
                detail = f"Content-Length: expected a whole number, got {got!r}"
                raise Problem(400, detail, "Content-Length", "bad_content_length")
            if int(value) > self.max_bytes:
                raise self._too_large(f"{int(value):,}")

    def _counted(self, receive: Receive) -> Receive:
        arrived, complete = 0, False
        deadline = time.monotonic() + self.timeout_s

        async def counted() -> Message:
            nonlocal arrived, complete
            if complete:  # what follows is the client's hanging up, which may take as long as it likes
                return await receive()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise Problem(
                    408,
                    f"expected the body within {self.timeout_s:g} s, got {arrived:,} bytes",
                    reason="slow_body",
                    headers={"Connection": "close"},
                ) from None
            arrived += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if arrived > self.max_bytes:
                raise self._too_large(f"at least {arrived:,}")
            return message

        return counted

    def _too_large(self, got: str) -> Problem:
        return Problem(
            413,
            f"expected a body of at most {self.max_bytes:,} bytes, got {got}",
            reason="body_too_large",
            headers={"Connection": "close"},
        )
