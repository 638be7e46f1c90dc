"""The local stack: log, store and consumer on this machine, started, watched, drained and stopped as one."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from clickhouse_connect.driver.client import Client

from analytics.integrity import IntegrityTable, check_run
from consumers.consumer import GROUP, PASSWORD_VARIABLE, source_topics
from consumers.sink import Sink
from eventlog.file_lock import FileLock
from eventlog.forwarder_control import drain, ensure_forwarder, forwarder_running, pending, stop_forwarder
from eventlog.log import Log
from eventlog.open_log import open_log
from local.kafka_broker import broker_address, start_broker, stop_broker
from local.store import StoreAddress, start_store, stop_store, store_address
from millrace.connections import configured_clickhouse, connect_to, log_address, url_of
from millrace.settings import Settings
from schemas.errors import LocalError, LogUnavailableError
from schemas.topics import TOPICS

_STOP_S = 8.0
# A server that does not answer at once at the start is down, or its address is wrong.
_CONNECT_S = 2.0


@dataclass(frozen=True)
class StackState:
    """What runs and what waits. ``lag`` counts records on the log that are not in the store yet; None: no answer."""

    state_dir: Path
    log: str | None
    store: str | None
    consumer_pid: int | None
    forwarder: bool
    waiting_in_outboxes: int
    lag: int | None


class LocalStack:
    """Log, store and consumer on this machine.

    With ``log.bootstrap_servers`` or ``clickhouse.url`` set, that cluster or that server takes the local one's place.

    As a context manager it stops what it started and leaves alone what was running before::

        with LocalStack() as stack:
            run_id = publish_events(config, log=stack.log_address, outbox=stack.outbox)
            ...
            stack.drain(60)

    Args:
        settings: None takes ``millrace.toml`` and the environment, as the command line does.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        if settings is None:
            from millrace.settings import load_settings

            settings = load_settings()
        self.settings = settings
        self.state_dir = settings.state_dir
        self.outbox = settings.outbox_settings.directory
        self._detached = False
        self._started_store = self._started_consumer = self._started_broker = False
        self._consumer: subprocess.Popen[bytes] | None = None
        self._log: Log | None = None

    # --- start and stop -----------------------------------------------------------------------------------------------

    def start(self, *, detached: bool = False) -> Self:
        """Start what does not run yet.

        Args:
            detached: It all outlives this process (``millrace local up``).

        Raises:
            LocalError: the directory, a port or an engine is not right.
            StoreError: ClickHouse does not answer or refuses user or password, or its tables are newer than this code.
        """
        self._detached = detached
        make_state_dir(self.state_dir)
        self._ensure_log()
        self.log.ensure_topics(list(TOPICS.values()), self.settings.log.topic_prefix)
        self._ensure_store()
        # Also the consumer's first step; done here, it tells a wrong address or password at once and to this process.
        address = self.address
        with Sink.connect(url_of(address), address.password.get_secret_value(), timeout_s=_CONNECT_S) as sink:
            sink.migrate()
        self._ensure_consumer()
        self._ensure_forwarder()
        return self

    def ensure(self) -> list[str]:
        """Bring back what has died. Returns one line for each, for people.

        Raises:
            LocalError: the consumer ended with an error: another one would end with the same.
        """
        lines = []
        if self._ensure_log():
            lines.append("the Kafka broker had died and is up again")
        if self._ensure_store():
            lines.append("the store had died and is up again")
        if self._ensure_consumer():
            lines.append("the consumer had died and is up again")
        if self._ensure_forwarder():
            lines.append("the forwarder had died and is up again")
        return lines

    def stop(self, *, everything: bool = False) -> None:
        """Stop consumer and store: those that this object started, or all of this state directory."""
        with ExitStack() as rest:
            if everything or self._started_broker:
                rest.callback(stop_broker, self.state_dir)
            if everything or self._started_store:
                rest.callback(stop_store, self.state_dir)
            if self._log is not None:
                rest.callback(self._log.close)
                self._log = None
            # With nothing left to send it would end by itself in a while; a later publisher starts another.
            if everything or (self._started_consumer and pending(self.outbox) == 0):
                rest.callback(stop_forwarder, self.outbox)
            if everything or self._started_consumer:
                rest.callback(self._stop_consumer)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- use ----------------------------------------------------------------------------------------------------------

    @property
    def log_address(self) -> str:
        """Address of the event log.

        Raises:
            LocalError: the local log is Kafka, and its broker does not run.
        """
        return log_address(self.settings)

    @property
    def log(self) -> Log:
        """The event log, opened at first use."""
        if self._log is None:
            self._log = open_log(self.log_address)
        return self._log

    @property
    def address(self) -> StoreAddress:
        """Where ClickHouse listens: the server of ``clickhouse.url``, or the store.

        Raises:
            LocalError: the local store does not run.
        """
        configured = configured_clickhouse(self.settings)
        if configured is not None:
            return configured
        running = store_address(self.state_dir)
        if running is None:
            raise LocalError(f"store of {self.state_dir}: not running; start it with `millrace local up`")
        return running

    def client(self) -> Client:
        """A new clickhouse-connect client, to read with."""
        return connect_to(self.address)

    def check(self, run_id: str) -> IntegrityTable:
        """Compare what a run has published with what is stored, as ``millrace check`` does.

        Raises:
            InputError: the store knows nothing of such a run.
            StoreError: the store refused or did not answer.
        """
        with self.client() as client:
            return check_run(client, run_id)

    def lag(self) -> int:
        """Records of events that are on the log and not yet in the store."""
        return self.log.lag(GROUP, source_topics(self.settings.log.topic_prefix))

    def known_lag(self) -> int | None:
        """The same, or None while the log does not answer."""
        try:
            return self.lag()
        except LogUnavailableError:
            return None

    def drain(self, timeout_s: float, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Wait until all that was published is in the store, bringing back what dies meanwhile.

        Returns:
            Whether it is; False when the time is over or ``should_stop`` said so.
        """
        deadline = time.monotonic() + timeout_s
        while not (drain(self.outbox, 0.2) and self.known_lag() == 0):
            if time.monotonic() > deadline or should_stop():
                return False
            self.ensure()
            time.sleep(0.1)
        return True

    def state(self) -> StackState:
        """What runs and what waits, without starting anything."""
        store = configured_clickhouse(self.settings) or store_address(self.state_dir)
        return StackState(
            state_dir=self.state_dir,
            log=self._running_log(),
            store=store.url if store else None,
            consumer_pid=self._consumer_pid(),
            forwarder=forwarder_running(self.outbox),
            waiting_in_outboxes=pending(self.outbox),
            lag=self.known_lag() if self._running_log() else None,
        )

    # --- log ----------------------------------------------------------------------------------------------------------

    @property
    def _has_broker(self) -> bool:
        return self.settings.log.engine == "kafka" and not self.settings.log.bootstrap_servers

    def _ensure_log(self) -> bool:
        if not self._has_broker:
            if not self.settings.log.bootstrap_servers:
                make_state_dir(self.state_dir / "log")
            return False
        if broker_address(self.state_dir) is not None:
            return False
        local = self.settings.local
        jars = Path(local.kafka_jars) if local.kafka_jars else None
        start_broker(self.state_dir, port=local.kafka_port, detached=self._detached, jars_dir=jars)
        again, self._started_broker = self._started_broker, True
        return again

    def _running_log(self) -> str | None:
        if self._has_broker:
            return self.log_address if broker_address(self.state_dir) else None
        return self.log_address if self.settings.log.bootstrap_servers or (self.state_dir / "log").exists() else None

    # --- store --------------------------------------------------------------------------------------------------------

    def _ensure_store(self) -> bool:
        if configured_clickhouse(self.settings) is not None or store_address(self.state_dir) is not None:
            return False
        start_store(self.state_dir, port=self.settings.local.store_port, detached=self._detached)
        again, self._started_store = self._started_store, True
        return again

    # --- consumer and forwarder ---------------------------------------------------------------------------------------

    @property
    def _consumer_lock(self) -> Path:
        return self.state_dir / "consumer.lock"

    def _ensure_consumer(self) -> bool:
        # The child inherits the locked descriptor and so holds the lock for its life, however that ends.
        descriptor = os.open(self._consumer_lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._reap_consumer()
            child = self._spawn_consumer(descriptor)
            if self._detached:
                child.returncode = 0  # it outlives this process, and Popen would warn that nobody waits for its end
            else:
                self._consumer = child
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{child.pid}\n".encode())
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        again, self._started_consumer = self._started_consumer, True
        return again

    def _spawn_consumer(self, descriptor: int) -> subprocess.Popen[bytes]:
        address = self.address
        command = [sys.executable, "-m", "consumers.consumer", "--log", self.log.address]
        command += ["--clickhouse-url", url_of(address)]
        command += ["--prefix", self.settings.log.topic_prefix]
        if not self._detached:
            command.append("--stop-with-stdin")
        with self._consumer_output.open("ab") as output:
            return subprocess.Popen(
                command,
                env=os.environ | {PASSWORD_VARIABLE: address.password.get_secret_value()},
                # The pipe closes when this process ends in any way, and the consumer ends with it.
                stdin=subprocess.DEVNULL if self._detached else subprocess.PIPE,
                stdout=output,
                stderr=output,
                # The child looks for our packages here first, not in a directory of the user.
                cwd=Path(__file__).resolve().parent.parent,
                # Ctrl-C in the terminal is for the driver, which stops the rest in order.
                start_new_session=True,
                pass_fds=(descriptor,),
            )

    @property
    def _consumer_output(self) -> Path:
        return self.state_dir / "consumer.log"

    def _reap_consumer(self) -> None:
        """Let go of a consumer that has ended.

        Raises:
            LocalError: it ended with an error of its own, not by a signal.
        """
        if self._consumer is None:
            return
        child, self._consumer = self._consumer, None
        status = child.wait()
        if child.stdin is not None:
            child.stdin.close()
        if status > 0:
            last = self._consumer_output.read_text(errors="replace").strip().rpartition("\n")[2]
            raise LocalError(
                f"consumer: expected it to run, it ended with exit status {status}: {last}; read "
                f"{self._consumer_output}. What was published is safe on the log"
            )

    def _consumer_pid(self) -> int | None:
        if not FileLock.is_held(self._consumer_lock):
            return None
        text = self._consumer_lock.read_text().strip()
        return int(text) if text else None

    def _stop_consumer(self) -> None:
        deadline = time.monotonic() + _STOP_S
        asked = None
        while (pid := self._consumer_pid()) is not None:
            late = time.monotonic() > deadline
            if late or pid != asked:
                asked = pid
                with suppress(ProcessLookupError):  # ended by itself between the two questions
                    # Killed, it loses nothing: what it read is not committed, and is read again.
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
            time.sleep(0.02)
        self._reap_consumer()

    def _ensure_forwarder(self) -> bool:
        """Start the forwarder where outboxes wait for it: those with records, and those of publishers that died."""
        if forwarder_running(self.outbox) or drain(self.outbox, 0):
            return False
        ensure_forwarder(self.outbox, self.log.address)
        return True


def make_state_dir(path: Path) -> None:
    """Make the state directory.

    Raises:
        LocalError: it is no directory or cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise LocalError(
            f"state directory {path}: expected a directory that this user may write, got {error.strerror}; set "
            "local.state_dir to another one"
        ) from error
