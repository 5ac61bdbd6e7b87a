"""An object store with faults: a proxy that breaks a share of what passes through it."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, BinaryIO, Self
from urllib.parse import urlsplit

import pytest

TRANSIENT = ("slow_down", "internal", "reset", "lost", "cut", "truncated", "slow")
"""What trying again can help against:

slow_down, internal: 503 and 500, with S3's XML
reset: the connection is reset before the request is passed on
lost: the request is passed on, and the connection is reset in place of the answer
cut: half of an upload is read, nothing is passed on, and the connection is reset
truncated: half of a promised body is sent, then the connection is closed
slow: the answer comes after `FaultyStore.delay` seconds
"""
DENIED = "denied"
"""403, with S3's XML."""
_REFUSALS = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "internal": (500, "InternalError", "We encountered an internal error. Please try again."),
    DENIED: (403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist."),
}
_ONLY_FOR = {"cut": ("PUT", "POST"), "truncated": ("GET",)}
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "expect", "date", "server"}

Choice = Callable[[str, str], bool]


class FaultyStore:
    """A proxy on this machine in front of an S3 server; `url` is its address while it is entered."""

    def __init__(
        self,
        upstream: str,
        share: float,
        kinds: Sequence[str] = TRANSIENT,
        *,
        seed: int = 0,
        delay: float = 0.3,
        only: Choice = lambda method, path: True,
    ) -> None:
        """Prepare the proxy.

        Args:
            upstream: address of the server.
            share: of the requests that meet a fault, in [0, 1]; may be changed while the proxy runs.
            kinds: of the faults, out of TRANSIENT and DENIED, alike often.
            seed: of the draws.
            delay: seconds of a slow answer.
            only: (method, path) -> whether such a request may meet a fault.
        """
        self.share, self.kinds, self.delay, self.only = share, tuple(kinds), delay, only
        self.upstream = urlsplit(upstream).netloc
        self.counts: Counter[str] = Counter()
        """Requests by kind of fault; `passed` are those without one."""
        self.closing = threading.Event()
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def faults(self) -> int:
        return self.counts.total() - self.counts["passed"]

    def draw(self, method: str, path: str) -> str:
        """Choose, and count, what happens to a request."""
        with self._lock:
            kinds = [kind for kind in self.kinds if method in _ONLY_FOR.get(kind, method)]
            meets = kinds and self.only(method, path) and self._random.random() < self.share
            kind = self._random.choice(kinds) if meets else "passed"
            self.counts[kind] += 1
            return kind

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def faulty(share: float, kinds: Sequence[str] = TRANSIENT, **options: Any) -> Iterator[FaultyStore]:
    """Set a FaultyStore before AWS's endpoint of this process, as long as it is entered."""
    with (
        FaultyStore(os.environ["AWS_ENDPOINT_URL"], share, kinds, **options) as store,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("AWS_ENDPOINT_URL", store.url)
        yield store


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def shutdown_request(self, request: Any) -> None:
        """Close without saying goodbye first, which would hide a reset."""
        self.close_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up on slow and broken answers: nothing to tell."""


class _Handler(BaseHTTPRequestHandler):
    store: FaultyStore
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        kind = self.store.draw(self.command, self.path)
        length = int(self.headers.get("Content-Length", 0))
        if kind == "cut":
            self.rfile.read(int(self.headers.get("X-Amz-Decoded-Content-Length", length)) // 2)
            return self._reset()
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        body = _read_chunked(self.rfile) if chunked else self.rfile.read(length)
        if kind == "reset":
            return self._reset()
        if kind in _REFUSALS:
            return self._refuse(*_REFUSALS[kind])
        if kind == "slow":
            self.store.closing.wait(self.store.delay)
        answer, content = self._pass_on(body)
        if kind == "lost":
            return self._reset()
        return self._send(answer, content, truncate=kind == "truncated")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _pass_on(self, body: bytes) -> tuple[HTTPResponse, bytes]:
        upstream = HTTPConnection(self.store.upstream)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        upstream.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        return answer, content

    def _send(self, answer: HTTPResponse, content: bytes, truncate: bool) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        if length is not None:
            self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if truncate else content)
        self.close_connection = self.close_connection or truncate

    def _refuse(self, status: int, code: str, message: str) -> None:
        content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content.encode())

    def _reset(self) -> None:
        """Close so that the client sees a reset, not an end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True


def _read_chunked(stream: BinaryIO) -> bytes:
    parts = []
    while size := int(stream.readline().split(b";")[0], 16):
        parts.append(stream.read(size))
        stream.readline()
    while stream.readline().strip():
        pass  # trailers
    return b"".join(parts)
