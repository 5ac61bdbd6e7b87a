"""Files by URI: a local path, or s3://bucket/key.

Object storage follows the usual AWS settings: credentials from the environment, the configuration files or
the instance; AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3) for a store other than AWS; AWS_REGION.

What a store fails at for a moment (503, 500, a lost connection, half a body) is tried again here, after
pauses that grow; nobody above needs to. What stays wrong is told within half a minute.
"""

from __future__ import annotations

import functools
import math
import os
import random
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from dfmvr.files import write_atomic

TRANSIENT = (
    "AWS Error (NETWORK_CONNECTION|INTERNAL_FAILURE|SLOW_DOWN|SERVICE_UNAVAILABLE)",
    "AWS Error (THROTTLING|REQUEST_TIMEOUT)",
    r"\(HTTP status (429|5\d\d)\)",
)
"""Patterns of the errors that trying again can help against."""
_PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Longest pauses between attempts, in seconds; each is a random share of its own, so that clients spread."""
_PATIENCE = 25.0
"""Seconds after which no attempt may end, as far as the one before tells."""
_REQUEST_ATTEMPTS = 3
"""Attempts at one request inside one of ours: also for those who use the file system itself, as Ray does."""
_CONNECT_SECONDS, _SILENT_SECONDS = 3.0, 5.0
"""A request fails that is not connected, or has moved no byte, for so long."""
_HINTS = {
    "ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE": "the store refuses this: see AWS_ACCESS_KEY_ID, "
    "AWS_SECRET_ACCESS_KEY and what the bucket allows them",
    "NETWORK_CONNECTION": "the store does not answer: see AWS_ENDPOINT_URL",
}

_Result = TypeVar("_Result")


class StorageError(OSError):
    """A file cannot be reached, read or written; the message names its URI."""


def join(uri: str, *parts: str) -> str:
    """Return the URI of something below a folder."""
    return "/".join([uri.rstrip("/"), *parts])


def absolute(uri: str) -> str:
    """Return the URI so that it means the same in every process: local paths become absolute."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the file system that holds `uri`, and the path in it.

    Raises:
        StorageError: the URI's scheme is not known, or it names no bucket.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return fs.LocalFileSystem(), absolute(uri)
    parts = urlsplit(uri)
    if scheme == "file":
        return fs.LocalFileSystem(), unquote(parts.path)
    if scheme == "s3":
        if not parts.netloc:
            raise StorageError(f"{uri}: expected s3://bucket/key, got no bucket")
        return _s3(_endpoint(), os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")), (
            uri.removeprefix("s3://").rstrip("/")
        )
    try:
        system, path = fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, NotImplementedError, OSError) as error:
        raise StorageError(
            f"{uri}: expected a local path, file:// or s3://, got {scheme}:// ({error})"
        ) from error
    return system, path


def list_files(uri: str, suffix: str = "") -> list[str]:
    """Return the URIs of the files directly in a folder, sorted; none where there is no such folder."""
    return [file for file in _list(uri, fs.FileType.File) if file.endswith(suffix)]


def list_folders(uri: str) -> list[str]:
    """Return the URIs of the folders directly in a folder, sorted; none where there is no such folder."""
    return _list(uri, fs.FileType.Directory)


def exists(uri: str) -> bool:
    """Return whether there is a file (or a folder) at `uri`."""
    system, path = filesystem(uri)
    info = _retried("look up", uri, lambda: system.get_file_info(path))
    return bool(info.type != fs.FileType.NotFound)


def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """Return a file's content.

    Args:
        uri: of the file.
        limit: bytes that it may hold; None allows any number.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it cannot be read, or holds more.
    """
    system, path = filesystem(uri)

    def read() -> bytes:
        with system.open_input_file(path) as file:  # one request; a stream would send one every 256 KiB
            if limit is not None and file.size() > limit:
                raise OSError(f"expected at most {limit} bytes, got more")
            return bytes(file.read())

    return _retried("read", uri, read)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file as one: readers see the old content or the new, never a part.

    Raises:
        StorageError: it cannot be written.
    """
    system, path = filesystem(uri)

    def write() -> None:
        if isinstance(system, fs.LocalFileSystem):
            write_atomic(Path(path), data)
        else:  # an object appears when its upload is complete
            with system.open_output_stream(path) as stream:
                stream.write(data)

    _retried("write", uri, write)


def check_writable(folder: str) -> None:
    """Write a file into a folder and remove it: better known before hours of work than after.

    Raises:
        StorageError: it cannot be written.
    """
    probe = join(folder, f".writable-{secrets.token_hex(4)}")  # others may be checking at the same time
    write_bytes(probe, b"")
    delete(probe)


def delete(uri: str) -> None:
    """Remove a file.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it cannot be removed.
    """
    system, path = filesystem(uri)
    failed = False

    def remove() -> None:
        nonlocal failed
        try:
            system.delete_file(path)
        except FileNotFoundError:
            if not failed:  # else the store did it, and only its answer was lost
                raise
        except OSError:
            failed = True
            raise

    _retried("delete", uri, remove)


def _list(uri: str, kind: fs.FileType) -> list[str]:
    """Return what lies directly in a folder but hidden things, sorted."""
    system, path = filesystem(uri)
    infos = _retried("list", uri, lambda: system.get_file_info(fs.FileSelector(path, allow_not_found=True)))
    names = sorted(info.base_name for info in infos if info.type == kind)
    return [join(uri, name) for name in names if not name.startswith(".")]


def _endpoint() -> str | None:
    """Return the store's address; None is AWS."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


@functools.cache
def _s3(endpoint: str | None, region: str | None) -> fs.S3FileSystem:
    scheme, _, host = (endpoint or "").rpartition("://")
    return fs.S3FileSystem(
        endpoint_override=host.rstrip("/") or None,
        scheme=scheme or "https",
        region=region or ("us-east-1" if endpoint else None),
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_REQUEST_ATTEMPTS),
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_SILENT_SECONDS,
        allow_delayed_open=True,  # writes objects up to 5 MB with one request in place of three
    )


def _retried(action: str, uri: str, attempt: Callable[[], _Result]) -> _Result:
    """Do something, again where it fails in a way that may pass.

    Args:
        action: in words, for the error.
        uri: of what it is done to.
        attempt: does it; may be called several times.

    Raises:
        FileNotFoundError: as `attempt`, naming action and URI.
        StorageError: for any other OSError of the last attempt, naming these and the store.
    """
    started, pauses = time.monotonic(), iter(_PAUSES)
    while True:
        began = time.monotonic()
        try:
            return attempt()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"cannot {action} {uri}: no such file") from error
        except OSError as error:
            now, pause = time.monotonic(), next(pauses, math.inf)
            too_late = now + pause + (now - began) > started + _PATIENCE
            if too_late or not any(re.search(pattern, str(error)) for pattern in TRANSIENT):
                raise StorageError(f"cannot {action} {uri}: {error}{_hint(uri, str(error))}") from error
            time.sleep(pause * random.uniform(0.5, 1))


def _hint(uri: str, reason: str) -> str:
    """Return what to look at, for an error of an object store."""
    if not uri.startswith("s3://"):
        return ""
    hints = (f"; {hint}" for pattern, hint in _HINTS.items() if re.search(pattern, reason))
    return f" (store: {_endpoint() or 'AWS'}{next(hints, '')})"
