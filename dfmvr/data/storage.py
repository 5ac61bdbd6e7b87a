"""Files by URI: a local path, or s3://bucket/key.

Object storage follows the usual AWS settings: credentials from the environment, the configuration files or
the instance; AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3) for a store other than AWS; AWS_REGION.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from dfmvr.files import write_atomic


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
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return _s3(endpoint, os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")), (
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
    with _named("look up", uri):
        return bool(system.get_file_info(path).type != fs.FileType.NotFound)


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
    with _named("read", uri), system.open_input_stream(path) as stream:
        data = bytes(stream.read() if limit is None else stream.read(limit + 1))
    if limit is not None and len(data) > limit:
        raise StorageError(f"cannot read {uri}: expected at most {limit} bytes, got more")
    return data


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file as one: readers see the old content or the new, never a part.

    Raises:
        StorageError: it cannot be written.
    """
    system, path = filesystem(uri)
    with _named("write", uri):
        if isinstance(system, fs.LocalFileSystem):
            write_atomic(Path(path), data)
        else:  # an object appears when its upload is complete
            with system.open_output_stream(path) as stream:
                stream.write(data)


def check_writable(folder: str) -> None:
    """Write a file into a folder and remove it: better known before hours of work than after.

    Raises:
        StorageError: it cannot be written.
    """
    probe = join(folder, ".writable")
    write_bytes(probe, b"")
    delete(probe)


def delete(uri: str) -> None:
    """Remove a file.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it cannot be removed.
    """
    system, path = filesystem(uri)
    with _named("delete", uri):
        system.delete_file(path)


def _list(uri: str, kind: fs.FileType) -> list[str]:
    """Return what lies directly in a folder but hidden things, sorted."""
    system, path = filesystem(uri)
    with _named("list", uri):
        infos = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    names = sorted(info.base_name for info in infos if info.type == kind)
    return [join(uri, name) for name in names if not name.startswith(".")]


@functools.cache
def _s3(endpoint: str | None, region: str | None) -> fs.S3FileSystem:
    retry = fs.AwsStandardS3RetryStrategy(max_attempts=5)
    # Delayed opening writes objects up to 5 MB with one request in place of three.
    if endpoint is None:
        return fs.S3FileSystem(region=region, retry_strategy=retry, allow_delayed_open=True)
    scheme, _, host = endpoint.rpartition("://")
    return fs.S3FileSystem(
        endpoint_override=host.rstrip("/"),
        scheme=scheme or "https",
        region=region or "us-east-1",
        retry_strategy=retry,
        allow_delayed_open=True,
    )


@contextmanager
def _named(action: str, uri: str) -> Iterator[None]:
    """Tell failures with the action and the URI; missing files keep their own kind."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"cannot {action} {uri}: no such file") from error
    except OSError as error:
        raise StorageError(f"cannot {action} {uri}: {error}") from error
