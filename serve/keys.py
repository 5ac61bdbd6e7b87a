"""Keys that let programs in: kept as hashes, compared in constant time.

    python -m serve.keys new NAME     prints a new key and the line that lets it in

A line is `NAME:SHA-256 of the key`; lines come from a file (`keys_file`) and from the environment variable
DFMVR_SERVE_KEYS (separated by spaces or line ends). The key itself is kept nowhere. Keys are random and long,
so that a plain hash of them tells nothing.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.problems import Problem

VARIABLE = "DFMVR_SERVE_KEYS"
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
_LINE = re.compile(r"([A-Za-z0-9._-]{1,64}):([0-9a-f]{64})")
_PREFIX = "dfmvr_"


class KeysError(ValueError):
    """The keys cannot be used; the message names the file and the line."""


class KeyRing:
    """The keys that let requests in.

    Args:
        hashes: SHA-256 of each key, in hexadecimal digits, by the key's name.
    """

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = {name: bytes.fromhex(text) for name, text in hashes.items()}

    def __len__(self) -> int:
        return len(self._hashes)

    @classmethod
    def load(cls, path: str) -> KeyRing:
        """Read the keys of a file (none if empty) and of the environment.

        Raises:
            KeysError: the file does not exist, a line is none, or a name comes twice.
        """
        lines = [
            (VARIABLE, number, line) for number, line in enumerate(os.environ.get(VARIABLE, "").split(), 1)
        ]
        if path:
            try:
                content = Path(path).read_text().splitlines()
            except OSError as error:
                raise KeysError(f"keys_file: {path}: {error.strerror}") from error
            except UnicodeDecodeError as error:
                raise KeysError(f"keys_file: {path}: expected text, got something else") from error
            lines += [(path, number, line.strip()) for number, line in enumerate(content, 1)]
        return cls(dict(_parse(lines)))

    def owner(self, key: str) -> str | None:
        """Return the name of a key, or None for an unknown one; takes the same time for all."""
        digest = hashlib.sha256(key.encode()).digest()
        found = None
        for name, known in self._hashes.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found


class KeyCheck:
    """ASGI middleware that asks for a key, and leaves its name in `scope["state"]["key"]`.

    Programs send `Authorization: Bearer KEY`; a browser that opens the page asks its user for it (any name,
    the key as the password).

    Args:
        app: what it protects.
        ring: the keys.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing) -> None:
        self.app, self.ring = app, ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] in ("http", "websocket") and scope["path"] not in OPEN_PATHS:
            owner = self.ring.owner(_presented(scope))
            if owner is None:
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close", "code": 1008})
                    return
                await _refusal(scope).response()(scope, receive, send)
                return
            scope.setdefault("state", {})["key"] = owner
        await self.app(scope, receive, send)


def keys_wanted(mode: str, host: str | None) -> bool:
    """Say whether requests need a key.

    Args:
        mode: auto, required or none.
        host: the address that Serve listens on; None where it is not known.
    """
    if mode != "auto":
        return mode == "required"
    return not is_loopback(host)


def is_loopback(host: str | None) -> bool:
    """Say whether an address can only be reached from its own machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _parse(lines: Iterable[tuple[str, int, str]]) -> Iterable[tuple[str, str]]:
    seen = set()
    for source, number, line in lines:
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:  # the line is not shown: it may be a key
            raise KeysError(f"{source}, line {number}: expected NAME:SHA-256 (python -m serve.keys new NAME)")
        if match[1] in seen:
            raise KeysError(f"{source}, line {number}: expected each name once, got {match[1]} again")
        seen.add(match[1])
        yield match[1], match[2]


def _presented(scope: Scope) -> str:
    """Return the key that a request presents; empty if none."""
    header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    kind, _, value = header.decode("latin-1").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def _refusal(scope: Scope) -> Problem:
    came = "an unknown one" if _presented(scope) else "none"
    asked = "Bearer" if scope["path"].startswith("/v1/") else 'Basic realm="dfmvr", charset="UTF-8"'
    return Problem(
        401,
        f"expected a key (Authorization: Bearer KEY), got {came}",
        field="Authorization",
        reason="unauthorised",
        headers={"WWW-Authenticate": asked},
    )


def main() -> None:
    """Make a key."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.keys", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    new = actions.add_parser("new", help="make a key")
    new.add_argument("name", help="whose it is: letters, digits, dot, dash, underscore")
    options = parser.parse_args()
    key = _PREFIX + secrets.token_urlsafe(32)
    line = f"{options.name}:{hashlib.sha256(key.encode()).hexdigest()}"
    if _LINE.fullmatch(line) is None:
        parser.error(f"NAME: expected up to 64 letters, digits, dots and dashes, got {options.name!r}")
    print(f"key (shown only now): {key}\nline for the keys file: {line}")


if __name__ == "__main__":
    main()
