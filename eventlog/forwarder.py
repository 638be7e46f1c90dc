"""The forwarder: sends what publishers wrote to their outboxes to the log. A process of its own, one per directory.

Run as ``python -m eventlog.forwarder --outbox DIR --log ADDRESS``, or started by ``ensure_forwarder``. A record leaves
its outbox only after the log has acknowledged it: a kill at any moment loses nothing and may send some records again,
with the same identity. Events that a publisher left to be made are made here, on their way.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from eventlog.file_lock import FileLock
from eventlog.forwarder_control import LOCK_NAME, drain, ensure_forwarder, forwarder_running, pending, stop_forwarder
from eventlog.log import Log, Producer
from eventlog.open_log import canonical_address, open_log
from eventlog.outbox_file import SUFFIX, Entry, Outbox, lock_path
from eventlog.outbox_records import Meta, make_records, make_report
from schemas.errors import LogUnavailableError, MillraceError, OutboxError, RecordTooLargeError, UnknownTopicError
from schemas.times import wall_now

__all__ = ["Forwarder", "drain", "ensure_forwarder", "forwarder_running", "main", "pending", "stop_forwarder"]

MAX_BATCH_RECORDS = 500
MAX_BATCH_BYTES = 2_000_000
"""While a batch is dropped from its outbox, which takes about a millisecond a megabyte, its publisher waits."""

IDLE_S = 30.0

_LOOK_S = 0.05
_SEND_TIMEOUT_S = 20.0
_BACKOFF_S = (0.1, 5.0)
_RETRY_SOURCE_S = 2.0

logger = logging.getLogger("millrace.forwarder")


class Forwarder:
    """Empties the outboxes of a directory into a log. The caller holds the directory's forwarder lock.

    Args:
        directory: the outbox directory.
        log_address: the log's address.
        is_stopped: asked between batches; true ends the work.
    """

    def __init__(self, directory: Path, log_address: str, is_stopped: Callable[[], bool]) -> None:
        self._directory = directory
        self._address = log_address
        self._is_stopped = is_stopped
        self._sources: dict[Path, _Source] = {}
        self._log: Log | None = None
        self._producer: Producer | None = None
        self._failures = 0

    def run(self, exit_when_idle_s: float) -> None:
        """Forward until stopped, or until for so many seconds no outbox was open or held what can be sent."""
        _sweep(self._directory)
        needed_at = time.monotonic()
        while not self._is_stopped():
            sent = 0
            try:
                sent = self.step()
            except LogUnavailableError as error:
                self._back_off(error)
            if any(not source.stuck for source in self._sources.values()):
                needed_at = time.monotonic()
            elif time.monotonic() - needed_at >= exit_when_idle_s:
                return
            if not sent:
                self._pause(_LOOK_S)

    def step(self) -> int:
        """Send one batch of each outbox that has one. Returns how many records left their outbox.

        Raises:
            LogUnavailableError: the log does not answer; what was not acknowledged stays where it is.
        """
        self.finds_new()
        busy = [source for source in self._sources.values() if self._attempt(source, _Source.has_news)]
        for source in busy:
            # Before anything is sent: the publishers rely on it also while the log does not answer.
            self._attempt(source, _Source.checkpoint)
        sent = 0
        for source in busy:
            if self._is_stopped():
                break
            sent += self._attempt(source, self._serve)
        return sent

    def finds_new(self) -> bool:
        """Look for new outboxes; whether there are any."""
        found = [path for path in sorted(self._directory.glob(f"*{SUFFIX}")) if path not in self._sources]
        self._sources.update({path: _Source(path) for path in found})
        return bool(found)

    def forward(self, outbox: Outbox, entries: Sequence[Entry]) -> None:
        """Send the entries and, once the log has them, drop them from the outbox."""
        outbox.acknowledge(entries, self.send(outbox, entries))

    def send(self, outbox: Outbox, entries: Sequence[Entry]) -> dict[Entry, str]:
        """Send the entries. Returns those that the log will never take, with the reason."""
        producer = self._connected()
        refused: dict[Entry, str] = {}
        try:
            producer.send([entry.record for entry in entries], timeout_s=_SEND_TIMEOUT_S)
        except RecordTooLargeError:
            # Nothing was sent. One by one, the others keep their order and only the record at fault is set aside.
            for entry in entries:
                try:
                    producer.send([entry.record], timeout_s=_SEND_TIMEOUT_S)
                except RecordTooLargeError as error:
                    logger.error("%s: set aside for good: %s", outbox.path, error)
                    refused[entry] = str(error)
        if self._failures:
            logger.info("log %s: answers again after %d failed attempts", self._address, self._failures)
            self._failures = 0
        return refused

    def close(self) -> None:
        """Close the log and the outboxes. Safe to call twice."""
        for source in self._sources.values():
            source.close()
        self._sources.clear()
        self._disconnect()

    def _attempt(self, source: _Source, work: Callable[[_Source], int]) -> int:
        try:
            return work(source)
        except (UnknownTopicError, OutboxError) as error:
            # The fault of this outbox alone: the others go on. A missing topic may yet be made.
            source.put_off(error)
            return 0

    def _serve(self, source: _Source) -> int:
        # Asked before the records are read: a publisher that is gone by now cannot add any after them.
        gone = source.is_gone()
        outbox = source.outbox
        meta = outbox.meta()
        if meta is None:
            source.mark_read()
            if gone:
                self._remove(source)  # killed before its first event: the file is empty
            return 0
        entries = outbox.batch(MAX_BATCH_RECORDS, MAX_BATCH_BYTES)
        if entries:
            source.stuck = False
            self.forward(outbox, entries)
            return len(entries)
        source.mark_read()
        if gone or meta.closed:
            self._finish(source, meta)
        return 0

    def _finish(self, source: _Source, meta: Meta) -> None:
        outbox = source.outbox
        if meta.closing:
            self._remove(source)
            logger.info("%s: acknowledged to the end", meta.publisher_id)
        elif refused := outbox.refused():
            source.stuck = True
            logger.error(
                "%s: the log refused %d records for good; they stay in table refused of %s, and the publisher counts "
                "as open until they are gone from there",
                meta.publisher_id,
                refused,
                outbox.path,
            )
        else:
            # Written down before it is sent: a forwarder that is killed now sends the same bytes after its restart.
            emitted, acknowledged = outbox.counts()
            report = make_report(meta, emitted, acknowledged, closing=True)
            outbox.append_closing_report(make_records(meta, [report], emitted, wall_now())[0])
            source.mark_unread()

    def _remove(self, source: _Source) -> None:
        source.close()
        _remove_files(source.path)
        del self._sources[source.path]

    def _connected(self) -> Producer:
        if self._producer is None:
            self._log = open_log(self._address)
            self._producer = self._log.producer()
        return self._producer

    def _disconnect(self) -> None:
        if self._producer is not None:
            self._producer.close()
        if self._log is not None:
            self._log.close()
        self._producer = self._log = None

    def _back_off(self, error: LogUnavailableError) -> None:
        # A new connection each time: the log may come back as another process or another file.
        self._disconnect()
        first, most = _BACKOFF_S
        seconds = min(most, first * 2 ** min(self._failures, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        if self._failures == 0 or self._failures % 50 == 49:
            logger.warning("%s (attempt %d; trying on, nothing is lost)", error, self._failures + 1)
        self._failures += 1
        self._pause(seconds)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._is_stopped() and (left := until - time.monotonic()) > 0:
            time.sleep(min(_LOOK_S, left))


class _Source:
    """One outbox, as the forwarder sees it. ``stuck``: nothing can be done for it now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stuck = False
        self._outbox: Outbox | None = None
        self._gone = False
        self._version: int | None = None
        self._read_version: int | None = None
        self._not_before = 0.0
        self._complaint = ""

    @property
    def outbox(self) -> Outbox:
        if self._outbox is None:
            self._outbox = Outbox.open(self.path)
        return self._outbox

    def has_news(self) -> bool:
        """Whether something may have happened since ``mark_read``. Asked often, so it must be cheap."""
        if time.monotonic() < self._not_before:
            return False
        was_gone = self._gone
        self._version = self.outbox.data_version()
        return self._version != self._read_version or (not was_gone and self.is_gone())

    def checkpoint(self) -> int:
        self.outbox.checkpoint()
        return 0

    def is_gone(self) -> bool:
        """Whether the publisher's process has ended, or has closed the outbox."""
        self._gone = self._gone or not FileLock.is_held(lock_path(self.path))
        return self._gone

    def mark_read(self) -> None:
        self._read_version = self._version

    def mark_unread(self) -> None:
        self._read_version = None

    def put_off(self, error: MillraceError) -> None:
        self._not_before = time.monotonic() + _RETRY_SOURCE_S
        self.mark_unread()
        self.stuck = isinstance(error, OutboxError)
        if str(error) != self._complaint:
            self._complaint = str(error)
            logger.error("%s: %s (trying on, nothing is lost)", self.path.name, error)

    def close(self) -> None:
        if self._outbox is not None:
            self._outbox.close()
            self._outbox = None


def _remove_files(path: Path) -> None:
    # The outbox first: without it, what remains means nothing. Without its -wal it would be an older outbox, whose
    # records would be sent again under another closing report.
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm", lock_path(path).name):
        path.with_name(name).unlink(missing_ok=True)


def _sweep(directory: Path) -> None:
    """Remove what a forwarder that was killed in ``_remove_files`` left."""
    for ending in (f"{SUFFIX}-wal", f"{SUFFIX}-shm", ".lock"):
        for path in directory.glob(f"*{ending}"):
            outbox = path.with_name(path.name.removesuffix(ending) + SUFFIX)
            if path.name != LOCK_NAME and not outbox.exists() and not FileLock.is_held(lock_path(outbox)):
                path.unlink(missing_ok=True)


def _serve_directory(directory: Path, address: str, exit_when_idle_s: float, ready: Callable[[], None]) -> int:
    stopped = False

    def stop(number: int, _frame: object) -> None:
        nonlocal stopped
        stopped = True
        logger.info("%s: finishing the batch; what is unsent stays in the outbox", signal.Signals(number).name)
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)  # a second signal ends the process at once

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, stop)
    while True:
        # Those who ask whether it is taken hold the lock for some microseconds, hence the wait.
        lock = FileLock.take(directory / LOCK_NAME, wait_s=1.0)
        if lock is None:
            logger.info("a forwarder runs for %s already; this one is not needed", directory)
            ready()
            return 0
        lock.write(f"{os.getpid()}\n{address}\n")
        ready()
        logger.info("forwarding %s to %s", directory, address)
        forwarder = Forwarder(directory, address, lambda: stopped)
        try:
            forwarder.run(exit_when_idle_s)
        finally:
            lock.release()
            # A publisher that opened just now may have seen the lock still held, and so started no forwarder.
            another_round = not stopped and forwarder.finds_new()
            forwarder.close()
        if not another_round:
            return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a forwarder until it is stopped or idle. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m eventlog.forwarder", description="Send the outboxes of a directory to the event log."
    )
    parser.add_argument("--outbox", type=Path, required=True, metavar="DIR", help="the outbox directory")
    parser.add_argument("--log", required=True, metavar="ADDRESS", help="the log's address, such as sqlite:DIR")
    parser.add_argument(
        "--exit-when-idle",
        type=float,
        default=IDLE_S,
        metavar="S",
        help="end after so many seconds without an open outbox (default: %(default)g)",
    )
    parser.add_argument(
        "--detach", action="store_true", help="go on as a daemon; return once it works or is not needed"
    )
    options = parser.parse_args(arguments)
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)sZ forwarder[%(process)d] %(levelname)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    # It tells of each failed connection; so do we, in one line with the reason.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    try:
        address = canonical_address(options.log)
        if not options.outbox.is_dir():
            raise OutboxError(f"outbox directory {options.outbox}: expected an existing directory; correct the path")
        ready = _detach() if options.detach else (lambda: None)
        return _serve_directory(options.outbox.absolute(), address, options.exit_when_idle, ready)
    except OSError as error:
        logger.error("outbox directory %s: expected to read and write files in it: %s", options.outbox, error)
        return OutboxError.exit_code
    except MillraceError as error:
        logger.error("%s", error)
        return error.exit_code


def _detach() -> Callable[[], None]:
    """Go on in a daemon. The first process leaves when the daemon calls what this returns, or has failed."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        is_ready = os.read(reading, 1) == b"+"
        os._exit(0 if is_ready else 1)
    os.close(reading)
    os.setsid()
    waiting = [writing]

    def ready() -> None:
        if waiting:
            descriptor = waiting.pop()
            os.write(descriptor, b"+")
            os.close(descriptor)

    return ready


if __name__ == "__main__":
    sys.exit(main())
