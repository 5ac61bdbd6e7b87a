from __future__ import annotations

import os
from pathlib import Path

import pytest

from dfmvr.data import storage


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, s3_server: str) -> str:
    return str(tmp_path) if request.param == "local" else f"{s3_server}/{tmp_path.name}-{os.getpid()}"


def test_what_is_written_is_read(folder: str) -> None:
    file = storage.join(folder, "a", "b.bin")
    data = os.urandom(6 * 2**20)  # more than one part of an upload
    assert not storage.exists(file)
    storage.write_bytes(file, data)
    assert storage.exists(file)
    assert storage.read_bytes(file) == data
    storage.write_bytes(file, b"new")
    assert storage.read_bytes(file) == b"new"
    storage.delete(file)
    assert not storage.exists(file)


def test_files_are_listed_in_order_without_folders(folder: str) -> None:
    for name in ("b.parquet", "a.parquet", "note.txt", "below/c.parquet"):
        storage.write_bytes(storage.join(folder, name), b"x")
    names = [uri.removeprefix(folder) for uri in storage.list_files(folder, ".parquet")]
    assert names == ["/a.parquet", "/b.parquet"]
    assert storage.read_bytes(storage.list_files(folder)[0]) == b"x"
    assert storage.list_files(storage.join(folder, "absent")) == []
    assert storage.list_folders(folder) == [storage.join(folder, "below")]
    assert storage.list_folders(storage.join(folder, "absent")) == []


def test_more_bytes_than_allowed_are_refused(folder: str) -> None:
    file = storage.join(folder, "big")
    storage.write_bytes(file, b"12345")
    assert storage.read_bytes(file, limit=5) == b"12345"
    with pytest.raises(storage.StorageError, match=f"cannot read {file}: expected at most 4 bytes, got more"):
        storage.read_bytes(file, limit=4)


def test_a_missing_file_is_told_by_its_uri(folder: str) -> None:
    file = storage.join(folder, "absent.bin")
    with pytest.raises(FileNotFoundError, match=f"cannot read {file}: no such file"):
        storage.read_bytes(file)


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    storage.write_bytes(str(file), b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(storage.StorageError, match=f"cannot write {file}: disk full"):
        storage.write_bytes(str(file), b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_bytes() == b"old"


def test_an_unfinished_file_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".part.parquet.x1.parquet").write_bytes(b"half")
    assert storage.list_files(str(tmp_path), ".parquet") == []


def test_a_missing_bucket_is_an_error(s3_server: str) -> None:
    with pytest.raises(OSError, match="cannot write s3://no-such-bucket/file"):
        storage.write_bytes("s3://no-such-bucket/file", b"x")


def test_wrong_uris_are_refused() -> None:
    with pytest.raises(storage.StorageError, match="expected a local path, file:// or s3://, got ftp://"):
        storage.read_bytes("ftp://host/file")
    with pytest.raises(storage.StorageError, match="s3:///key: expected s3://bucket/key, got no bucket"):
        storage.read_bytes("s3:///key")


def test_file_uris_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage.write_bytes("below/file", b"x")
    assert storage.read_bytes(f"file://{tmp_path}/below/file") == b"x"
    assert storage.absolute("below") == str(tmp_path / "below")
    assert storage.absolute("s3://bucket/key") == "s3://bucket/key"
