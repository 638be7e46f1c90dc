"""The store process: one chDB engine behind ClickHouse's HTTP interface on 127.0.0.1.

``python -m local.store_server --state-dir DIR --port PORT`` (0: the port of the last run, else a free one). Callers
use ``local.store``; this module is what it starts. SIGTERM and SIGINT end it: running inserts finish, running reads
are cancelled, exit status 0.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Final

from local.engine import Engine
from local.engine_process import STOP_WITH_STDIN
from local.http_face import StoreHTTPServer
from local.process_dir import EXIT_ANOTHER_RUNS, HOST, RuntimeRecord
from local.state_dir import DATABASE, USER, StateDir
from schemas.errors import LocalError

_LOCK_WAIT_S: Final = 1.0
_DRAIN_S: Final = 15.0

_LOG = logging.getLogger("millrace.store")


def main(arguments: list[str] | None = None) -> int:
    """Run the store until it is told to stop.

    Returns:
        0 after a clean stop, ``EXIT_ANOTHER_RUNS`` when another store has the directory, else the exit code of the
        error, which is the last line of standard error.
    """
    parser = argparse.ArgumentParser(prog="local.store_server", description="The local ClickHouse store.")
    parser.add_argument("--state-dir", type=Path, required=True, help="directory that holds everything of the store")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0: the last one, else a free one")
    parser.add_argument(STOP_WITH_STDIN, action="store_true", help="stop when standard input is closed")
    options = parser.parse_args(arguments)
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)sZ %(levelname)s %(message)s")
    state = StateDir(options.state_dir)
    try:
        return _serve(state, options.port, stop_with_stdin=options.stop_with_stdin)
    except LocalError as error:
        print(f"{state.error_prefix}{error}", file=sys.stderr, flush=True)  # noqa: T201 - read by whoever started it
        return error.exit_code


def _serve(state: StateDir, port: int, *, stop_with_stdin: bool) -> int:
    state.create()
    if state.acquire(_LOCK_WAIT_S) is None:
        _LOG.info("another store runs on %s", state.root)
        return EXIT_ANOTHER_RUNS
    state.withdraw()  # what a killed store left behind
    password = state.ensure_password()
    wake = _stop_signals()
    engine = Engine(state.data)
    with engine.session() as session:
        session.query(f"CREATE DATABASE IF NOT EXISTS {DATABASE}")
    server = _listen(state, port, engine, password)
    accepting = threading.Thread(target=server.serve_forever, args=(0.1,), name="accept")
    accepting.start()
    state.publish(RuntimeRecord(os.getpid(), HOST, server.port, USER, time.time_ns() // 1000))
    _LOG.info("store on %s listens on %s:%d, engine %s", state.root, HOST, server.port, engine.version)
    select.select([wake, *([sys.stdin.fileno()] if stop_with_stdin else [])], [], [])
    _LOG.info("stopping")
    drained = server.drain(_DRAIN_S)
    accepting.join()
    state.withdraw()
    if not drained:
        # The engine's data is safe at any kill; its threads are not safe at interpreter exit.
        _LOG.error("requests still ran after %g s: leaving without them", _DRAIN_S)
        os._exit(1)
    server.server_close()
    engine.close()
    _LOG.info("stopped")
    return 0


def _stop_signals() -> int:
    """A file descriptor that becomes readable on SIGTERM or SIGINT."""
    wake, signalled = os.pipe()
    os.set_blocking(signalled, False)
    signal.set_wakeup_fd(signalled)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return wake


def _listen(state: StateDir, port: int, engine: Engine, password: str) -> StoreHTTPServer:
    wanted = port or state.last_port()
    try:
        return StoreHTTPServer(wanted, engine, state.spool, USER, password)
    except OSError as error:
        if not port and error.errno == errno.EADDRINUSE:
            return StoreHTTPServer(0, engine, state.spool, USER, password)
        raise LocalError(
            f"the store cannot listen on port {port} of {HOST}: {error.strerror}; "
            "stop what uses it, or choose another port: local.store_port, where 0 takes a free one"
        ) from error
    except OverflowError as error:
        raise LocalError(
            f"the store's port must be 0 to 65535, got {port}; choose another: local.store_port"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
