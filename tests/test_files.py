from pathlib import Path

import pytest

from dfmvr.files import write_atomic


def test_folders_are_made_and_others_can_read_the_file(tmp_path: Path):
    path = tmp_path / "new" / "face.glb"
    write_atomic(path, b"data")
    assert path.read_bytes() == b"data"
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "face.glb"
    write_atomic(path, b"old")

    def no_space(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises(OSError, match="no space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["face.glb"]
