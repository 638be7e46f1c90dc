"""The files by which processes find, lock and read about one local engine: the part that every engine has in common.

Of an engine whose files are called NAME: ``NAME.lock`` held by the engine's process for its life, whatever its pid;
``NAME.json`` where the running engine listens; ``NAME.port`` the port of the last run, so that a restart takes it
again; ``NAME.log`` what it says.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from schemas.errors import LocalError

HOST: Final = "127.0.0.1"

EXIT_ANOTHER_RUNS: Final = 75
"""Exit status by which an engine's process says that another one has the directory."""


@dataclass(frozen=True, slots=True)
class RuntimeRecord:
    """Where a running engine listens: the content of ``NAME.json``.

    Attributes:
        pid: Process id.
        host: Always 127.0.0.1.
        port: TCP port of its clients' interface.
        user: The one user; empty where anyone on this machine is let in.
        started_at: Wall time of the start, UTC microseconds.
    """

    pid: int
    host: str
    port: int
    user: str
    started_at: int


class ProcessDir:
    """The paths and small files of one engine.

    Args:
        root: The directory; made absolute.
        files: What the engine's files are called.
        noun: What people call the engine.
    """

    def __init__(self, root: Path, files: str, noun: str) -> None:
        self.root = root.absolute()
        self.noun = noun
        self.error_prefix = f"millrace {noun}: "
        self.log = self.root / f"{files}.log"
        self._runtime = self.root / f"{files}.json"
        self._port = self.root / f"{files}.port"
        self._lock = self.root / f"{files}.lock"

    def create(self) -> None:
        """Make the directory and check that it can be written.

        Raises:
            LocalError: It is a file, or it cannot be made or written.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.root).close()
        except OSError as error:
            raise LocalError(
                f"the state directory {self.root} cannot be used: expected a directory that can be written, "
                f"got {error.strerror or error}; choose another state directory or mend its permissions"
            ) from error

    def acquire(self, wait_s: float) -> int | None:
        """Take the engine's lock for the life of this process; None when another process keeps it.

        Args:
            wait_s: Seconds to try: whoever looks for an engine holds the lock for a moment, too.

        Returns:
            The file descriptor that holds the lock.
        """
        lock = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(lock)
                    return None
                time.sleep(0.02)
            else:
                return lock

    def is_held(self) -> bool:
        """Whether an engine lives on this directory. The kernel frees its lock however it dies."""
        try:
            lock = os.open(self._lock, os.O_RDWR)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(lock)

    def last_port(self) -> int:
        """The port of the last run, or 0."""
        text = read_text(self._port).strip()
        return int(text) if text.isdigit() and int(text) < 65536 else 0

    def publish(self, record: RuntimeRecord) -> None:
        """Say where the engine listens, and remember the port."""
        write_privately(self._port, f"{record.port}\n")
        write_privately(self._runtime, json.dumps(asdict(record)) + "\n")

    def withdraw(self) -> None:
        """The engine has stopped."""
        self._runtime.unlink(missing_ok=True)

    def record(self) -> RuntimeRecord | None:
        """What the last engine to start here wrote; it may be dead. None when there is nothing to read."""
        text = read_text(self._runtime)
        if not text:
            return None
        try:
            return RuntimeRecord(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise LocalError(
                f"the runtime file {self._runtime} cannot be read as one ({error}); stop the {self.noun} if one runs, "
                f"delete the file and start the {self.noun} again"
            ) from error


def read_text(path: Path) -> str:
    """The file's text; empty where there is none."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def write_privately(path: Path, text: str) -> None:
    """Replace the file in one step, readable by its owner only."""
    fresh = path.with_name(f"{path.name}.new")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
    fresh.replace(path)
