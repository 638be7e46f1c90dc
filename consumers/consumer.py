"""The consumer: reads events from the log and keeps the store's tables equal to it.

``python -m consumers.consumer --log ADDRESS --clickhouse-url http://USER@HOST:PORT/DATABASE``

What holds, whatever is killed when:

* An offset is committed only after ClickHouse has acknowledged the rows and the log the dead letters before it. A
  consumer that dies leaves work to be read again, never work that is lost.
* What is read again writes the same rows (consumers/migrations/0001_rows.sql), so it changes nothing.
* A store that is away stops the reading, not the consumer: the batch is tried again, with growing pauses, and does not
  grow; lag rises on the log, which is made to hold it. A store that refuses for good (a missing table, a wrong
  password) ends the consumer with that error at once.
* A record that cannot be read goes to the dead-letter topic once, and its neighbours are stored. Of records of an older
  or newer minor version the known fields are stored; those of another major version are dead letters until a consumer
  that reads them sends them back.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from consumers.batch import Batch
from consumers.sink import Sink
from eventlog.log import Consumer, Log
from eventlog.open_log import open_log
from schemas.errors import (
    CommitFencedError,
    LogUnavailableError,
    MillraceError,
    SettingsError,
    StoreUnavailableError,
)
from schemas.topics import DEFAULT_PREFIX, EVENT_TOPICS, TOPICS

GROUP = "millrace-clickhouse"
PASSWORD_VARIABLE = "MILLRACE__CLICKHOUSE__PASSWORD"  # noqa: S105 - the variable's name

_log = logging.getLogger("millrace.consumer")

_POLL_S = 0.2
_POLL_RECORDS = 200
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0


_SOURCES = [TOPICS[short] for short in (*EVENT_TOPICS, "dead-letters")]


def source_topics(prefix: str = DEFAULT_PREFIX) -> list[str]:
    """Full names of the topics that are consumed, dead letters last; ``log.lag(GROUP, …)`` of them is what is left."""
    return [topic.name(prefix) for topic in _SOURCES]


@dataclass(frozen=True, slots=True)
class Progress:
    """What one consumer has done since it started. Redelivered records count again.

    Attributes:
        records: records whose offsets were committed.
        rows: rows inserted for them, without the ledger's.
        dead_letters: records that were sent to the dead-letter topic.
        batches: batches committed.
        retries: steps that were tried again because the store or the log was away.
        dropped: batches dropped because another member had taken over the group.
        left: records read and not committed when the consumer was stopped; they are read again.
    """

    records: int = 0
    rows: int = 0
    dead_letters: int = 0
    batches: int = 0
    retries: int = 0
    dropped: int = 0
    left: int = 0


def run_consumer(
    log: Log,
    sink: Sink,
    *,
    group: str = GROUP,
    prefix: str = DEFAULT_PREFIX,
    batch_rows: int = 50_000,
    batch_seconds: float = 1.0,
    batch_bytes: int = 32 * 1024 * 1024,
    stop: threading.Event | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Progress:
    """Consume until ``stop`` is set; then finish the batch at hand and return.

    Args:
        log: where events come from; its topics are made where they are missing.
        sink: a store that is migrated.
        group: the consumer group; all members share the work and the committed offsets.
        prefix: of the topics' names.
        batch_rows: a batch is written once it has this many rows …
        batch_seconds: … or its first record has waited this long …
        batch_bytes: … or its records' values have this many bytes; with batch_rows this bounds the memory.
        stop: set it from another thread or a signal handler.
        on_progress: called after every committed batch.

    Returns:
        The final progress.

    Raises:
        StoreError: the store refused for good. Nothing of the batch was committed.
        LogError: the log refused for good, such as an offset that has expired.
    """
    return _Loop(
        log, sink, prefix, (batch_rows, batch_seconds, batch_bytes), stop or threading.Event(), on_progress
    ).run(group)


class _Loop:
    def __init__(
        self,
        log: Log,
        sink: Sink,
        prefix: str,
        limits: tuple[int, float, int],
        stop: threading.Event,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._log = log
        self._sink = sink
        self._prefix = prefix
        self._rows, self._seconds, self._bytes = limits
        self._stop = stop
        self._on_progress = on_progress
        self._progress = Progress()
        self._consumer: Consumer | None = None
        # Jitter keeps consumers that failed together from coming back together; it needs no seed.
        self._jitter = random.Random()  # noqa: S311

    def run(self, group: str) -> Progress:
        self._log.ensure_topics(_SOURCES, self._prefix)
        names = source_topics(self._prefix)
        with self._log.consumer(group, names) as consumer, self._log.producer() as producer:
            self._consumer = consumer
            batch = Batch(names[-1])
            try:
                while not self._stop.is_set():
                    self._fill(consumer, batch)
                    if self._is_due(batch) or (self._stop.is_set() and batch.records):
                        if batch.problems:
                            _log.warning(
                                "%d records become dead letters; the first: %s", len(batch.dead), batch.problems[0]
                            )
                        batch.store(self._sink, producer, self._until_done)
                        self._commit(consumer, batch)
                        batch = Batch(names[-1])
            except (StoreUnavailableError, LogUnavailableError) as error:
                if not self._stop.is_set():
                    raise
                # Asked to stop while the store is away: the log keeps the records.
                self._progress = replace(self._progress, left=batch.records)
                _log.warning("stopped with %d records not stored; they are read again: %s", batch.records, error)
        return self._progress

    def _fill(self, consumer: Consumer, batch: Batch) -> None:
        wait = min(_POLL_S, max(0.0, self._seconds - batch.age_s()))
        records = []

        def poll() -> None:
            records.extend(consumer.poll(wait, _POLL_RECORDS))

        self._until_done(poll)
        for record in records:
            batch.add(record)

    def _is_due(self, batch: Batch) -> bool:
        full = batch.rows.count >= self._rows or batch.bytes >= self._bytes
        return batch.records > 0 and (full or batch.age_s() >= self._seconds)

    def _commit(self, consumer: Consumer, batch: Batch) -> None:
        try:
            self._until_done(lambda: consumer.commit(batch.offsets))
        except CommitFencedError as error:
            self._progress = replace(self._progress, dropped=self._progress.dropped + 1)
            _log.warning(
                "%d records were stored but not committed, so another member stores them again: %s",
                batch.records,
                error,
            )
            return
        self._progress = replace(
            self._progress,
            records=self._progress.records + batch.records,
            rows=self._progress.rows + batch.rows.count + len(batch.arrived),
            dead_letters=self._progress.dead_letters + len(batch.dead),
            batches=self._progress.batches + 1,
        )
        if self._on_progress is not None:
            self._on_progress(self._progress)

    def _until_done(self, step: Callable[[], None]) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            try:
                return step()
            except (StoreUnavailableError, LogUnavailableError) as error:
                if self._stop.is_set():
                    raise
                self._progress = replace(self._progress, retries=self._progress.retries + 1)
                _log.warning("trying again in %.1f s: %s", pause, error)
            self._stop.wait(pause * self._jitter.uniform(0.5, 1.0))
            self._stay_a_member()
            pause = min(_LONGEST_PAUSE_S, pause * 2)

    def _stay_a_member(self) -> None:
        # Takes no records: a member that does not poll for long is taken for dead, and its partitions go elsewhere.
        if self._consumer is not None:
            with suppress(LogUnavailableError):  # the step that is tried again says so itself
                self._consumer.poll(0.0, 0)


def _password(file: Path | None) -> str:
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"password file {str(file)!r}: expected a readable text file: {error}") from error
    if (password := os.environ.get(PASSWORD_VARIABLE)) is None:
        raise SettingsError(
            f"ClickHouse password: expected it in {PASSWORD_VARIABLE} or by --password-file, found neither"
        )
    return password


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m consumers.consumer",
        description="Store the events of the log in ClickHouse, until SIGTERM or SIGINT.",
        epilog=f"The password comes from {PASSWORD_VARIABLE} or from --password-file, never from the command line.",
    )
    parser.add_argument("--log", required=True, metavar="ADDRESS", help="the event log, such as sqlite:DIR")
    parser.add_argument("--clickhouse-url", required=True, metavar="URL", help="http://USER@HOST:PORT/DATABASE")
    parser.add_argument("--password-file", type=Path, metavar="FILE", help="file that holds the password")
    parser.add_argument("--group", default=GROUP, help="consumer group (%(default)s)")
    parser.add_argument("--prefix", default=DEFAULT_PREFIX, help="of the topics' names (%(default)s)")
    parser.add_argument("--batch-rows", type=int, default=50_000, metavar="N", help="write at N rows (%(default)s)")
    parser.add_argument(
        "--batch-seconds", type=float, default=1.0, metavar="S", help="or after S seconds (%(default)s)"
    )
    parser.add_argument(
        "--connect-timeout", type=float, default=30.0, metavar="S", help="wait for the store (%(default)s)"
    )
    parser.add_argument("--stop-with-stdin", action="store_true", help="stop when standard input is closed")
    return parser.parse_args(arguments)


def _stop_at_end_of_input(stop: threading.Event) -> None:
    """Whoever started this process holds the other end of the pipe, and has died when it closes."""
    select.select([sys.stdin.fileno()], [], [])
    _log.info("standard input was closed: finishing the batch")
    stop.set()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the process. Returns its exit code."""
    given = _arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr)
    # They tell of each failed request and connection; so do we, in one line with the reason.
    for noisy in ("clickhouse_connect", "kafka", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    stop = threading.Event()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        _log.info("%s: finishing the batch; a second one ends at once", signal.Signals(number).name)
        signal.signal(number, signal.SIG_DFL)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    if given.stop_with_stdin:
        threading.Thread(target=_stop_at_end_of_input, args=(stop,), daemon=True).start()
    began = time.monotonic()
    try:
        with (
            open_log(given.log) as log,
            Sink.connect(
                given.clickhouse_url, _password(given.password_file), timeout_s=given.connect_timeout, stop=stop
            ) as sink,
        ):
            for step in sink.migrate():
                _log.info("applied migration %s", step)
            _log.info("consuming %s into %s/%s", log.address, sink.address, sink.database)
            done = run_consumer(
                log,
                sink,
                group=given.group,
                prefix=given.prefix,
                batch_rows=given.batch_rows,
                batch_seconds=given.batch_seconds,
                stop=stop,
            )
    except MillraceError as error:
        if stop.is_set() and isinstance(error, (StoreUnavailableError, LogUnavailableError)):
            _log.warning("stopped before it began: %s", error)
            return 0
        _log.error("%s", error)
        return error.exit_code
    _log.info(
        "done: %d records, %d rows, %d dead letters in %.0f s",
        done.records,
        done.rows,
        done.dead_letters,
        time.monotonic() - began,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
