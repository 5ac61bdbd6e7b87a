"""Where the page keeps pictures and heads for a few minutes: in memory, for this user's eyes only.

Gradio passes files between browser and server through a folder. This one lies in /dev/shm, so that nothing of
a face reaches a disk; the replicas of one machine share it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import shutil
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

MEMORY = Path("/dev/shm")
AGE_S = 600.0
"""After so many seconds a file goes."""
PERIOD_S = 30.0
SHARE = 0.25
"""Of the file system in memory that the folder may fill; beyond it the oldest files go first."""


class PageRefused(RuntimeError):
    """The page cannot keep its promise that pictures stay in memory."""


class PageFolder:
    """Files that vanish by themselves.

    Args:
        path: an existing folder.
        max_bytes: of all files in it.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path, self.max_bytes = path, max_bytes

    @classmethod
    def open(cls) -> PageFolder:
        """Make this user's folder, or find it.

        Raises:
            PageRefused: there is no file system in memory here, or somebody else made a folder of that name.
        """
        path = MEMORY / f"dfmvr-page-{os.getuid()}"
        try:
            path.mkdir(0o700, exist_ok=True)
            found = path.lstat()
        except OSError as error:
            raise PageRefused(
                f"{path}: expected a file system in memory to keep pictures in, got: {error.strerror}"
            ) from error
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise PageRefused(f"{path}: expected a folder of user {os.getuid()}, got somebody else's")
        path.chmod(0o700)
        return cls(path, int(SHARE * shutil.disk_usage(path).total))

    def write(self, name: str, data: bytes) -> Path:
        """Write a file where nobody can guess it, and return its path."""
        self.sweep(len(data))
        place = self.path / secrets.token_hex(32)
        place.mkdir(0o700)
        (place / name).write_bytes(data)
        return place / name

    def sweep(self, room: int = 0) -> None:
        """Delete what is old, and the oldest files until `room` bytes more fit."""
        now = time.time()
        files = []
        for path in self.path.rglob("*"):
            with suppress(FileNotFoundError):  # another replica sweeps too
                info = path.lstat()
                if not stat.S_ISDIR(info.st_mode):
                    files.append((info.st_mtime, info.st_size, path))
                elif now - info.st_mtime > AGE_S:
                    with suppress(OSError):  # not empty
                        path.rmdir()
        total = room + sum(size for _, size, _ in files)
        for changed, size, path in sorted(files):
            if now - changed > AGE_S or total > self.max_bytes:
                path.unlink(missing_ok=True)
                total -= size

    @asynccontextmanager
    async def lifespan(self, _: object) -> AsyncIterator[None]:
        """Sweep while the server runs; the last server of this machine to end deletes everything."""

        async def keep_sweeping() -> None:
            while True:
                await asyncio.to_thread(self.sweep)
                await asyncio.sleep(PERIOD_S)

        lock = os.open(self.path, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_SH)
        sweeping = asyncio.create_task(keep_sweeping())
        yield
        sweeping.cancel()
        with suppress(BlockingIOError):  # others run
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in self.path.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        os.close(lock)
