"""A lock on a file that the kernel frees when its holder dies, so that a free lock proves a death.

A process id proves nothing: it is given again to another process.
"""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from pathlib import Path

_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """An exclusive ``flock``. A child made by a fork does not inherit it; one made by exec never does."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor
        _held.add(self)

    @classmethod
    def take(cls, path: Path, *, wait_s: float) -> FileLock | None:
        """The lock, or None where another process, or another part of this one, held it for ``wait_s`` seconds.

        Raises:
            OSError: the file cannot be opened.
        """
        deadline = time.monotonic() + wait_s
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(path, descriptor):
                    return cls(path, descriptor)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    return None
            except BaseException:
                os.close(descriptor)
                raise
            # Held, or removed by its holder between our open and our lock: then the name may lead to a new file.
            os.close(descriptor)
            time.sleep(0.005)

    @classmethod
    def is_held(cls, path: Path) -> bool:
        """Whether any process holds the lock now.

        Asked by a shared lock: those who ask do not take each other for the holder.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def write(self, text: str) -> None:
        """Replace what is in the file, for those who ask who holds it."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text.encode(), 0)

    def release(self) -> None:
        """Free the lock. Safe to call twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.release()


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    own = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)


def _drop_in_child() -> None:
    # A copy of the descriptor in a forked child would hold the lock after the owner's death. Closing a copy frees
    # nothing for the owner.
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_drop_in_child)
