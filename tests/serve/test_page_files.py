"""The folder that the page keeps its pictures in for a few minutes."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from serve import page_files
from serve.page_files import AGE_S, PageFolder, PageRefused


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PageFolder:
    monkeypatch.setattr(page_files, "MEMORY", tmp_path)
    folder = PageFolder.open()
    folder.max_bytes = 1000
    return folder


def test_only_this_user_may_look(folder: PageFolder) -> None:
    folder.path.chmod(0o755)
    assert PageFolder.open().path == folder.path
    assert folder.path.stat().st_mode & 0o777 == 0o700
    path = folder.write("face.glb", b"face")
    assert path.read_bytes() == b"face"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert len(path.parent.name) == 64, "nobody guesses it"


def test_a_link_that_somebody_laid_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_files, "MEMORY", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"dfmvr-page-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PageRefused, match=r"expected a folder of user \d+, got somebody else's"):
        PageFolder.open()


def test_what_is_old_goes(folder: PageFolder) -> None:
    old, new = folder.write("old.png", b"old"), folder.write("new.png", b"new")
    for path in (old, old.parent):
        os.utime(path, (time.time() - AGE_S - 1,) * 2)
    folder.sweep()
    assert not old.exists()
    assert new.exists()
    os.utime(old.parent, (time.time() - AGE_S - 1,) * 2)  # losing its file made it new
    folder.sweep()
    assert not old.parent.exists()


def test_the_oldest_make_room(folder: PageFolder) -> None:
    paths = [folder.write(f"{k}.png", bytes(300)) for k in range(3)]
    for k, path in enumerate(paths):
        os.utime(path, (time.time() - 100 + k,) * 2)
    last = folder.write("last.png", bytes(300))
    assert [path.exists() for path in (*paths, last)] == [False, True, True, True]


def test_the_last_server_to_end_leaves_nothing(folder: PageFolder) -> None:
    async def run() -> None:
        async with folder.lifespan(None):
            async with PageFolder.open().lifespan(None):
                path = folder.write("face.glb", b"face")
                (folder.path / "half an upload").write_bytes(b"face")
            assert path.exists(), "another server runs"
        assert not list(folder.path.iterdir())

    asyncio.run(run())


def test_the_server_sweeps_while_it_runs(folder: PageFolder) -> None:
    async def run() -> None:
        async with folder.lifespan(None):
            for _ in range(100):
                await asyncio.sleep(0.02)
                if not old.exists():
                    return

    old = folder.write("old.png", b"old")
    os.utime(old, (time.time() - AGE_S - 1,) * 2)
    asyncio.run(run())
    assert not old.exists()
