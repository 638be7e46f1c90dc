"""The way out of a training process: ``publish()`` writes to a local file and never waits for the log.

What it has accepted survives the death of this process, of the forwarder and of the log (a loss of power excepted). The
forwarder (``eventlog.forwarder``), a process of its own, sends it on.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from eventlog.file_lock import FileLock
from eventlog.lives import allot_restart, claim_attempt, make_directory
from eventlog.outbox_file import SUFFIX, Outbox, lock_path
from eventlog.outbox_records import Accepted, Meta, make_records, make_report, number_deferred
from schemas.errors import OutboxError, SchemaError
from schemas.events import Envelope
from schemas.ids import PublisherId, Role
from schemas.payloads import PAYLOADS, Deferred, Publishable
from schemas.times import wall_now
from schemas.topics import DEFAULT_PREFIX

__all__ = ["MAX_OUTBOX_BYTES", "Publisher", "claim_attempt", "this_node"]

MAX_OUTBOX_BYTES = 2 * 1024**3
"""Default limit of one publisher's outbox."""


def this_node() -> str:
    """A short name of this machine for publisher ids: six hex digits of its host name's SHA-256."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


class Publisher:
    """One process life that publishes events of a run. Made by ``Publisher.open``; for any thread of its process."""

    def __init__(self, outbox: Outbox, lock: FileLock, meta: Meta, *, max_bytes: int, report_every_s: float) -> None:
        self._outbox = outbox
        self._lock = lock
        self._meta = meta
        self._max_bytes = max_bytes
        self._report_every_s = report_every_s
        self._report_due = time.monotonic() + report_every_s
        self._mutex = threading.Lock()
        self._closed = False

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        run_id: str,
        attempt: int,
        role: Role,
        worker_index: int,
        node: str | None = None,
        topic_prefix: str = DEFAULT_PREFIX,
        max_bytes: int = MAX_OUTBOX_BYTES,
        report_every_s: float = 5.0,
    ) -> Publisher:
        """A publisher under a number that no other process life of this worker has had or will have.

        Args:
            directory: the outbox directory of this machine, shared by all its publishers; made where it is missing.
            run_id: the run, a UUID.
            attempt: the run's attempt, from ``claim_attempt``.
            role: what kind of process this is.
            worker_index: RLlib's index of the worker; 0 is the driver's own.
            node: name of this machine in publisher ids; ``this_node()`` where it is None.
            topic_prefix: prefix of the topics' names.
            max_bytes: limit of what may wait in the outbox.
            report_every_s: seconds between cumulative reports.

        Raises:
            SchemaError: run, attempt, worker index or node cannot be part of an identity.
            OutboxError: the directory cannot be written.
        """
        node = this_node() if node is None else node
        PublisherId.parse(str(PublisherId(run_id, attempt, role, worker_index, 0, node)))
        make_directory(directory)
        restart = allot_restart(directory, run_id, attempt, role, worker_index, node)
        meta = Meta(
            PublisherId(run_id, attempt, role, worker_index, restart, node),
            socket.gethostname(),
            os.getpid(),
            topic_prefix,
        )
        # The lock first: the forwarder takes an outbox without a held lock for a dead publisher's.
        path = lock_path(directory / f"{meta.publisher_id}{SUFFIX}")
        try:
            lock = FileLock.take(path, wait_s=5.0)
        except OSError as error:
            raise OutboxError(f"outbox lock {path}: expected a file that this user may write: {error}") from error
        if lock is None:
            raise OutboxError(f"outbox lock {path}: expected it to be free, got one that another process holds")
        try:
            outbox = Outbox.create(directory, meta)
        except BaseException:
            lock.release()
            raise
        return cls(outbox, lock, meta, max_bytes=max_bytes, report_every_s=report_every_s)

    @property
    def publisher_id(self) -> PublisherId:
        """The identity of this process life."""
        return self._meta.publisher_id

    def publish(self, *payloads: Publishable) -> list[Envelope]:
        """Accept the payloads as events, all or none, to be sent in this order. Does not wait for the log.

        Returns:
            The events as they will stand on the log, those of written payloads without them: one a payload, several
            where a payload was too large for one record. Deferred ones, which the forwarder will make, are not among
            them.

        Raises:
            OutboxFullError: the outbox is at its limit; nothing of this call was accepted, numbers are unchanged.
            OutboxError: it is closed, was opened in another process, or cannot be written; nothing was accepted.
            RecordTooLargeError: an event is too large and cannot be split; nothing was accepted.
            SchemaError: not one of the payloads that are known on the log; nothing was accepted.
        """
        for payload in payloads:
            for model in payload.models if isinstance(payload, Deferred) else (payload.model,):
                if PAYLOADS.get(model.EVENT_TYPE) is not model:
                    raise SchemaError(
                        f"publisher {self.publisher_id}: expected payloads of the types {sorted(PAYLOADS)}, got "
                        f"{model.__name__}"
                    )
        self._check_process()
        with self._mutex:
            self._check_open()
            return self._append(payloads)

    def tick(self) -> None:
        """Write the cumulative report if it is due. To be called now and then by a process that publishes rarely.

        Raises:
            OutboxError: as ``publish``.
        """
        self._check_process()
        with self._mutex:
            self._check_open()
            if time.monotonic() >= self._report_due:
                self._append(())

    def close(self) -> None:
        """No event will follow: the forwarder sends the rest, then the closing report. Safe to call twice.

        Raises:
            OutboxError: it cannot be noted in the outbox; the forwarder then treats this process as killed.
        """
        if self._meta.pid != os.getpid():
            return  # a fork's copy: what the parent's process will still publish is not its concern
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            try:
                self._outbox.mark_closed()
                self._outbox.close()
            finally:
                self._lock.release()

    def _append(self, payloads: tuple[Publishable, ...]) -> list[Envelope]:
        # Numbers come from the file each time: it alone knows what was accepted, whatever interrupted the last call.
        emitted, acknowledged = self._outbox.counts()
        now = wall_now()
        accepted: list[Accepted] = []
        events: list[Envelope] = []
        for payload in payloads:
            if isinstance(payload, Deferred):
                accepted.append(number_deferred(payload, emitted, now))
            else:
                made = make_records(self._meta, [payload], emitted, now)
                accepted += made
                events += [event for event, _ in made]
        report_is_due = time.monotonic() >= self._report_due
        if report_is_due:
            report = make_report(self._meta, emitted, acknowledged, closing=False)
            accepted += make_records(self._meta, [report], emitted, now)
        if accepted:
            self._outbox.append(accepted, self._max_bytes)
        if report_is_due:
            self._report_due = time.monotonic() + self._report_every_s
        return events

    def _check_process(self) -> None:
        if self._meta.pid != os.getpid():
            raise OutboxError(
                f"publisher {self.publisher_id}: expected to be used in process {self._meta.pid} that opened it, got "
                f"process {os.getpid()}; open one in each process"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise OutboxError(f"publisher {self.publisher_id}: it was closed; open another")

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"publisher {self.publisher_id}: it belongs to one process and cannot be pickled or copied; open one in "
            f"each process"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
