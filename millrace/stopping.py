"""SIGINT and SIGTERM: what is at hand is ended in order, within ten seconds; a second signal ends it at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# All must have ended within 10 s: the step at hand gets the first seconds, what was published is stored until the
# later time, and Ray and the engines get the rest to stop.
_PATIENCE_S = 2.0
_CLOSED_BY_S = 6.0
DRAINED_BY_S = 7.5


class Stop(threading.Event):
    """Set by SIGINT or SIGTERM."""

    def __init__(self) -> None:
        super().__init__()
        self.signal = 0
        self.at = 0.0
        self.armed = self.told = False

    def left(self, until_s: float) -> float:
        """Seconds that are left of the first ``until_s`` seconds after the signal, at least a half."""
        return max(0.5, self.at + until_s - time.monotonic())

    def heard(self) -> bool:
        """Whether to stop. Who was told so gets longer: it is closing."""
        self.told = self.is_set()
        return self.told

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it."""
        return 128 + self.signal

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """What stands within gets KeyboardInterrupt where it goes on for too long after the signal."""
        self.armed = True
        try:
            yield
        finally:
            self.armed = False

    def lose_patience(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGALRM."""
        if self.armed and (not self.told or time.monotonic() > self.at + _CLOSED_BY_S - 0.1):
            raise KeyboardInterrupt


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """SIGINT and SIGTERM end the command in order; a second one ends it at once.

    Only a flag and an alarm are set: Ray aborts the process when it is shut down inside a signal handler.
    """
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        stop.signal, stop.at = number, time.monotonic()
        stop.set()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE_S, _CLOSED_BY_S - _PATIENCE_S)
        # Not by say(): the signal may have come in the middle of another line's writing.
        os.write(2, b"millrace: stopping in order; a second signal ends it at once\n")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, stop.lose_patience)
    try:
        yield stop
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
