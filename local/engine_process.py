"""Starting and stopping the process of a local engine: what the store and the Kafka broker have in common.

The engine's process holds the lock of its directory (``ProcessDir``) for its life. An attached one watches the pipe of
its standard input, which closes when its starter ends in any way; a detached one has none.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from local.process_dir import EXIT_ANOTHER_RUNS, ProcessDir
from schemas.errors import LocalError

STOP_WITH_STDIN: Final = "--stop-with-stdin"
"""Argument that makes an engine's process stop when its standard input is closed."""

_LOG_TAIL_LINES: Final = 8
_ROOT: Final = Path(__file__).resolve().parent.parent

Address = TypeVar("Address")

# Processes that this process started, by pid: dropping one would close the pipe that keeps an attached one alive.
_children: dict[int, subprocess.Popen[bytes]] = {}


@atexit.register
def _let_go() -> None:
    """At the end of this process: attached engines end with their pipes, detached ones live on. Nobody waits here."""
    for child in list(_children.values()):  # a daemon thread may still start one
        if child.stdin is not None:
            child.stdin.close()
        child.returncode = 0  # else Popen warns of a process that still runs


def start_process(
    state: ProcessDir,
    command: Sequence[str],
    answering: Callable[[], Address | None],
    *,
    timeout_s: float,
    detached: bool,
    environment: Mapping[str, str] | None = None,
) -> Address:
    """Start an engine, or find the one that already runs in the directory. Of two starts at once one wins.

    Args:
        state: The engine's directory, which exists.
        command: Module and arguments, for this Python's ``-m``.
        answering: Address of the engine in the directory, once it answers.
        timeout_s: Seconds to wait until it does.
        detached: The engine outlives this process.
        environment: Variables for its process alone, such as secrets.

    Raises:
        LocalError: It died at its start or did not answer in time.
    """
    child: subprocess.Popen[bytes] | None = None
    log_start = state.log.stat().st_size if state.log.exists() else 0
    deadline = time.monotonic() + timeout_s
    while True:
        address = answering()
        if address is not None:
            return address
        if child is None:
            child = _spawn(state, command, environment or {}, detached=detached)
        exit_code = child.poll()
        if exit_code is not None:
            _reap(child.pid)
            if exit_code != EXIT_ANOTHER_RUNS:
                raise LocalError(_why_it_died(state, exit_code, log_start))
            if not state.is_held():
                child = None  # the other one was just stopping
        if time.monotonic() > deadline:
            holder = _holder(state)
            if exit_code is None and child is not None:
                _end(child)
            raise LocalError(
                f"the {state.noun} on {state.root} did not answer within {timeout_s:g} s{holder}; "
                f"read {state.log}, or give it more time"
            )
        time.sleep(0.05)


def stop_process(state: ProcessDir, timeout_s: float, promise: str) -> bool:
    """Ask the engine in the directory to stop, and wait for its end.

    Args:
        state: The engine's directory.
        timeout_s: Seconds to wait.
        promise: What a kill would leave safe, for the error.

    Returns:
        Whether one was running.

    Raises:
        LocalError: It was still there after ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    stopped = 0
    found = False
    while state.is_held():
        found = True
        # One that only just started has not published itself yet: wait for its record, never guess a pid.
        record = state.record()
        if record is not None and record.pid != stopped:
            with suppress(ProcessLookupError):  # it ended by itself, as asked
                os.kill(record.pid, signal.SIGTERM)
            stopped = record.pid
        if time.monotonic() > deadline:
            raise LocalError(
                f"the {state.noun} on {state.root} did not stop within {timeout_s:g} s{_holder(state)}; "
                f"end that process with `kill -9`: {promise}"
            )
        time.sleep(0.02)
    _reap_ended()
    return found


def _spawn(
    state: ProcessDir, command: Sequence[str], environment: Mapping[str, str], *, detached: bool
) -> subprocess.Popen[bytes]:
    _reap_ended()  # killed from elsewhere
    with open(os.open(state.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", *command, *([] if detached else [STOP_WITH_STDIN])],
            stdin=subprocess.DEVNULL if detached else subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=_ROOT,  # the child looks for its modules here first, not where a user has another `local`
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C in a terminal is for the caller, which may still have work to finish
        )
    _children[child.pid] = child
    return child


def _why_it_died(state: ProcessDir, exit_code: int, log_start: int) -> str:
    with state.log.open(errors="replace") as log:
        log.seek(log_start)
        lines = log.read().splitlines()
    for line in reversed(lines):
        if line.startswith(state.error_prefix):
            return line.removeprefix(state.error_prefix)
    tail = " | ".join(line.strip() for line in lines[-_LOG_TAIL_LINES:] if line.strip())
    return (
        f"the {state.noun} on {state.root} died at its start with exit status {exit_code}; "
        f"its log ends: {tail or '(nothing)'}; read {state.log}"
    )


def _holder(state: ProcessDir) -> str:
    record = state.record()
    return f" (process {record.pid})" if record is not None and state.is_held() else ""


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    _reap(child.pid)


def _reap_ended() -> None:
    # A copy, which CPython makes in one go: another thread may start an engine meanwhile.
    for pid in [pid for pid, child in list(_children.items()) if child.poll() is not None]:
        _reap(pid)


def _reap(pid: int) -> None:
    child = _children.pop(pid, None)
    if child is not None:
        child.wait()
        if child.stdin is not None:
            child.stdin.close()
