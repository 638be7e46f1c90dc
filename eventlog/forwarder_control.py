"""Starting, asking and stopping the forwarder of an outbox directory from any other process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from eventlog.file_lock import FileLock
from eventlog.lives import make_directory
from eventlog.open_log import canonical_address
from eventlog.outbox_file import SUFFIX, Outbox, lock_path
from schemas.errors import OutboxError

LOCK_NAME = "forwarder.lock"
OUTPUT_NAME = "forwarder.log"

_ROOT = Path(__file__).resolve().parent.parent
_START_S = 60.0


def ensure_forwarder(directory: Path, log_address: str) -> None:
    """Start the directory's forwarder unless it runs; returns when one holds the directory.

    To be called after ``Publisher.open``, and again now and then: a forwarder ends when no outbox has been open for a
    while, and may be killed. It goes on when this process has ended. What it says is in ``forwarder.log``.

    Args:
        directory: the outbox directory; made where it is missing.
        log_address: the log that it sends to. The log need not answer yet.

    Raises:
        SettingsError: the address has another form.
        OutboxError: it could not be started, or the one that runs sends to another log.
    """
    address = canonical_address(log_address)
    make_directory(directory)
    if forwarder_running(directory):
        _check_address(directory, address)
        return
    directory = directory.absolute()
    output = directory / OUTPUT_NAME
    # -P, and the packages' own root first: a module of the same name in the working directory must not shadow ours.
    command = [sys.executable, "-P", "-m", "eventlog.forwarder", "--outbox", str(directory), "--log", address]
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with output.open("ab") as stream:
        try:
            status = subprocess.run(
                [*command, "--detach"],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                timeout=_START_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise OutboxError(
                f"forwarder of {directory}: expected it to start within {_START_S:g} s; see {output}"
            ) from error
    if status:
        last = output.read_text(errors="replace").strip().rpartition("\n")[2]
        raise OutboxError(f"forwarder of {directory}: expected it to start, got exit status {status}: {last}")
    _check_address(directory, address)


def forwarder_running(directory: Path) -> bool:
    """Whether a forwarder holds the directory."""
    return FileLock.is_held(directory / LOCK_NAME)


def stop_forwarder(directory: Path, timeout_s: float = 30.0) -> None:
    """Ask the forwarder to end after its batch and wait until it has; what is unsent stays in the outboxes.

    Raises:
        OutboxError: it did not end in time.
    """
    deadline = time.monotonic() + timeout_s
    asked: set[int] = set()
    while forwarder_running(directory):
        pid, _ = _holder(directory)
        # Only once: a second signal would cut its batch off.
        if pid and pid not in asked:
            asked.add(pid)
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                continue  # ended by itself between the two questions
        if time.monotonic() > deadline:
            raise OutboxError(
                f"forwarder of {directory}: expected it to end within {timeout_s:g} s, process {pid} still runs; "
                f"kill -9 {pid} ends it, and nothing is lost by that"
            )
        time.sleep(0.02)


def pending(directory: Path) -> int:
    """How many records of all outboxes the log has not acknowledged, those that it refused included.

    Raises:
        OutboxError: an outbox cannot be read.
    """
    return sum(outbox.pending() for outbox in _outboxes(directory))


def drain(directory: Path, timeout_s: float) -> bool:
    """Wait until nothing is pending, and each publisher that has ended has its closing report on the log.

    A forwarder must run. Open outboxes may stay, when they are empty.

    Returns:
        False when that was not so within ``timeout_s`` seconds.

    Raises:
        OutboxError: an outbox cannot be read.
    """
    deadline = time.monotonic() + timeout_s
    while not all(_is_settled(outbox) for outbox in _outboxes(directory)):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def _is_settled(outbox: Outbox) -> bool:
    if not FileLock.is_held(lock_path(outbox.path)):
        return False
    meta = outbox.meta()
    return meta is None or (not meta.closed and outbox.pending() == 0)


def _outboxes(directory: Path) -> Iterator[Outbox]:
    """The outboxes, each open as long as the caller looks at it."""
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        try:
            outbox = Outbox.open(path)
        except OutboxError:
            if path.exists():
                raise
            continue  # the forwarder removed it between the two looks
        try:
            yield outbox
        finally:
            outbox.close()


def _holder(directory: Path) -> tuple[int, str]:
    """Process id and log address of the forwarder, as it wrote them; 0 where it has not yet."""
    lines = (directory / LOCK_NAME).read_text().splitlines()
    return (int(lines[0]), lines[1]) if len(lines) == 2 else (0, "")


def _check_address(directory: Path, address: str) -> None:
    pid, running = _holder(directory)
    if running and running != address:
        raise OutboxError(
            f"forwarder of {directory}: expected one that sends to {address}, got one that sends to {running} (process "
            f"{pid}); stop it, or use another outbox directory"
        )
