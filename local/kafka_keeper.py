"""The keeper of a Kafka broker: formats its storage, runs its Java process, and stops it.

``local.kafka_broker`` starts it. Both the keeper and the broker hold the lock of the directory, so that neither can be
mistaken for gone while the other lives. SIGTERM and SIGINT stop the broker cleanly; so does the end of the broker
itself, and of standard input where that was asked.
"""

from __future__ import annotations

import argparse
import base64
import errno
import json
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from local.engine_process import STOP_WITH_STDIN
from local.kafka_jars import java
from local.process_dir import EXIT_ANOTHER_RUNS, HOST, ProcessDir, RuntimeRecord, write_privately
from schemas.errors import LocalError

ORDERS_VARIABLE: Final = "MILLRACE_KAFKA_ORDERS"
"""Environment variable with what must not be on a command line: JSON with user, password, certificate, settings."""

_LOCK_WAIT_S: Final = 1.0
_STOP_S: Final = 30.0

# Serial collector, first compiler tier, small buffers: ready in 2 s, below 200 MB.
_JVM: Final = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx128m")

_SETTINGS: Final = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    "num.network.threads": "1",
    "num.io.threads": "2",
    "background.threads": "1",
    "num.recovery.threads.per.data.dir": "1",
    # With the default of 128 MiB the broker would not start in this heap.
    "log.cleaner.dedupe.buffer.size": "2097152",
    "offsets.topic.num.partitions": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    # A broker that was killed is let in again once its session is over: 3 s after its restart instead of 11.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
}

_LOG = logging.getLogger("millrace.kafka")


def broker_dir(state_dir: Path) -> ProcessDir:
    """The broker's files: everything lies in ``kafka`` below the state directory."""
    return ProcessDir(state_dir.absolute() / "kafka", "kafka", "Kafka broker")


def main(arguments: list[str] | None = None) -> int:
    """Keep a broker until it ends or is told to.

    Returns:
        0 after a clean stop, ``EXIT_ANOTHER_RUNS`` when another broker has the directory, else the exit code of the
        error, which is the last line of standard error.
    """
    parser = argparse.ArgumentParser(prog="local.kafka_keeper", description="Run one Kafka broker on 127.0.0.1.")
    parser.add_argument("--state-dir", type=Path, required=True, help="the broker's files lie in kafka below it")
    parser.add_argument("--jars", type=Path, required=True, help="directory of Apache Kafka's jars")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0: the last one, else a free one")
    parser.add_argument(STOP_WITH_STDIN, action="store_true", help="stop when standard input is closed")
    options = parser.parse_args(arguments)
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)sZ %(levelname)s %(message)s")
    orders = json.loads(os.environ.pop(ORDERS_VARIABLE, "{}"))
    state = broker_dir(options.state_dir)
    try:
        return _keep(state, options.jars, options.port, orders, stop_with_stdin=options.stop_with_stdin)
    except LocalError as error:
        print(f"{state.error_prefix}{error}", file=sys.stderr, flush=True)  # noqa: T201 - read by whoever started it
        return error.exit_code


def _keep(state: ProcessDir, jars: Path, port: int, orders: dict[str, object], *, stop_with_stdin: bool) -> int:
    state.create()
    lock = state.acquire(_LOCK_WAIT_S)
    if lock is None:
        _LOG.info("another broker runs on %s", state.root)
        return EXIT_ANOTHER_RUNS
    state.withdraw()  # what a killed broker left behind
    wake = _signals()
    launcher = java()
    user = str(orders.get("user", ""))
    settings = state.root / "server.properties"
    listen_port = _choose_port(port, state.last_port())
    write_privately(settings, _properties(state.root / "data", listen_port, orders))
    classes = ["-cp", str(jars / "*")]
    _format([launcher, *_JVM, *classes], state.root, settings, user, str(orders.get("password", "")))
    os.set_inheritable(lock, True)
    broker = subprocess.Popen(
        [launcher, *_JVM, *classes, "kafka.Kafka", str(settings)],
        stdin=subprocess.DEVNULL,
        cwd=state.root,
        pass_fds=[lock],
    )
    state.publish(RuntimeRecord(broker.pid, HOST, listen_port, user, time.time_ns() // 1000))
    _LOG.info("broker on %s: process %d, %s:%d", state.root, broker.pid, HOST, listen_port)
    asked = _wait(broker, wake, stop_with_stdin=stop_with_stdin)
    state.withdraw()
    _LOG.info("broker on %s has ended with status %d", state.root, broker.returncode)
    # Kafka ends with 143, and Java with -15, when SIGTERM stopped it as asked.
    clean = asked or broker.returncode in (0, 143, -signal.SIGTERM)
    return 0 if clean else LocalError.exit_code


def _wait(broker: subprocess.Popen[bytes], wake: int, *, stop_with_stdin: bool) -> bool:
    """Wait for the broker's end; whether the keeper brought it about."""
    watched = [wake, *([sys.stdin.fileno()] if stop_with_stdin else [])]
    while broker.poll() is None:
        ready, _, _ = select.select(watched, [], [])
        numbers = os.read(wake, 64) if wake in ready else b""
        if wake not in ready or set(numbers) & {signal.SIGTERM, signal.SIGINT}:
            _LOG.info("stopping")
            broker.send_signal(signal.SIGCONT)  # a frozen one would not hear
            broker.terminate()
            try:
                broker.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                _LOG.error("the broker did not stop within %g s: killing it; acknowledged records are safe", _STOP_S)
                broker.kill()
                broker.wait()
            return True
    return False


def _signals() -> int:
    """A file descriptor on which the numbers of SIGTERM, SIGINT and SIGCHLD arrive."""
    wake, signalled = os.pipe()
    os.set_blocking(signalled, False)
    signal.set_wakeup_fd(signalled)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return wake


def _choose_port(asked: int, last: int) -> int:
    """A port that is free now: the broker itself would only say so in a stack trace."""
    try:
        return _free_port(asked or last)
    except OSError as error:
        if not asked and error.errno == errno.EADDRINUSE:
            return _free_port(0)
        raise LocalError(
            f"the Kafka broker cannot listen on port {asked or last} of {HOST}: {error.strerror}; stop what uses it, "
            "or choose another port (0 takes a free one)"
        ) from error
    except OverflowError as error:
        raise LocalError(f"the Kafka broker's port must be 0 to 65535, got {asked}; choose another") from error


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
        return int(probe.getsockname()[1])


def _properties(data: Path, port: int, orders: Mapping[str, object]) -> str:
    controller = _free_port(0)
    while controller == port:
        controller = _free_port(0)
    name = "SASL_SSL" if orders.get("user") else "PLAINTEXT"
    values = {
        **_SETTINGS,
        "log.dirs": str(data),
        "listeners": f"{name}://{HOST}:{port},CONTROLLER://{HOST}:{controller}",
        "advertised.listeners": f"{name}://{HOST}:{port}",
        "listener.security.protocol.map": f"CONTROLLER:PLAINTEXT,{name}:{name}",
        "inter.broker.listener.name": name,
        "controller.quorum.voters": f"1@{HOST}:{controller}",
    }
    if orders.get("user"):
        login = "org.apache.kafka.common.security.scram.ScramLoginModule required"
        values |= {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(orders["certificate"]),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(orders["authority"]),
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-512",
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": (
                f"{login} username={_quoted(str(orders['user']))} password={_quoted(str(orders['password']))};"
            ),
        }
    more = orders.get("settings", {})
    assert isinstance(more, dict)  # noqa: S101 - written by kafka_broker, read here
    values |= {str(key): str(value) for key, value in more.items()}
    return "".join(f"{key}={_escaped(value)}\n" for key, value in values.items())


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _escaped(value: str) -> str:
    # Java's properties format takes a backslash as the beginning of an escape.
    return value.replace("\\", "\\\\")


def _format(launch: list[str], root: Path, settings: Path, user: str, password: str) -> None:
    """Give the storage its cluster id, once. Where a format was cut off nothing was stored yet, so it begins again."""
    done = root / "formatted"
    if done.exists():
        return
    shutil.rmtree(root / "data", ignore_errors=True)
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    # One argument: an id may begin with a hyphen.
    words = ["format", f"--cluster-id={cluster_id}", "-c", str(settings)]
    secret = root / "format.arguments"
    if user:
        # StorageTool reads arguments from a file: a password on a command line is for all to see.
        write_privately(secret, f"--add-scram\nSCRAM-SHA-512=[name={user},password={password}]\n")
        words.append(f"@{secret}")
    try:
        tool = subprocess.run(
            [*launch, "kafka.tools.StorageTool", *words], capture_output=True, text=True, cwd=root, check=False
        )
    finally:
        secret.unlink(missing_ok=True)
    if tool.returncode:
        lines = (tool.stdout + tool.stderr).splitlines()
        said = " | ".join(line.strip() for line in lines if not line.startswith("\t"))  # without the stack
        raise LocalError(f"the Kafka broker's storage in {root} cannot be formatted: {said or 'no reason given'}")
    done.touch()


if __name__ == "__main__":
    sys.exit(main())
