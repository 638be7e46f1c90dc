"""A store behind a network that misbehaves: lost answers, hangs, and errors that pass by themselves."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError
from consumers_fixtures import AdminSink, Writer

from consumers.consumer import GROUP, run_consumer, source_topics
from consumers.sink import Sink
from consumers.store_errors import store_error
from eventlog.log import Log
from local.store import StoreAddress
from schemas.errors import StoreAuthError, StoreError, StoreUnavailableError

FAULTS = 3


@contextmanager
def proxy_to(store: StoreAddress, fault: str) -> Iterator[tuple[int, list[str]]]:
    """A proxy that spoils the first answers to inserts into the tables of rows; gives its port and what it spoiled."""
    spoiled: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("transfer-encoding", "content-length", "connection", "server", "date"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            body = self.body()
            spoil = b"INSERT INTO" in body[:40] and b"_rows" in body[:60] and len(spoiled) < FAULTS
            if spoil:
                spoiled.append(fault)
                if fault.startswith("code"):
                    code = fault.split()[1]
                    error = f"Code: {code}. DB::Exception: made up. (MADE_UP)".encode()
                    return self.answer(500, [("X-ClickHouse-Exception-Code", code)], error)
                if fault == "503":
                    return self.answer(503, [], b"upstream is away")
                if fault == "hang":
                    time.sleep(1.5)
                    self.close_connection = True
                    return None
            far = http.client.HTTPConnection(store.host, store.port)
            given = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
            far.request("POST", self.path, body, {**given, "Content-Length": str(len(body))})
            reply = far.getresponse()
            content = reply.read()
            far.close()
            if spoil and fault == "answer lost":
                self.close_connection = True
                return None
            return self.answer(reply.status, reply.getheaders(), content)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1], spoiled
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("fault", ["answer lost", "hang", "503", "code 241", "code 252", "code 202"])
def test_a_fault_that_passes_is_outlasted_and_changes_nothing(
    fault: str, writer: Writer, log: Log, sink: AdminSink, store: StoreAddress, database: str, password: str
) -> None:
    for number in range(3):
        writer.episode(number, trades=4)
    stop = threading.Event()
    with (
        proxy_to(store, fault) as (port, spoiled),
        Sink.connect(f"http://{store.user}@127.0.0.1:{port}/{database}", password, request_timeout_s=1) as far,
    ):
        done = run_consumer(log, far, batch_seconds=0.05, stop=stop, on_progress=lambda _: stop.set())
    assert len(spoiled) == FAULTS
    assert done.records == len(writer.sent)
    assert done.retries >= 1
    assert log.lag(GROUP, source_topics()) == 0
    assert sink.query("SELECT count() FROM events") == [(len(writer.sent),)]
    assert sink.query("SELECT count(), uniqExact(episode_id, row_no) FROM trades") == [(12, 12)]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *(
            (DatabaseError("Code: x", code=code), StoreUnavailableError)
            for code in (3, 159, 202, 209, 241, 242, 243, 999)
        ),
        (DatabaseError("TOO_MANY_PARTS: merges are slow", code=252), StoreUnavailableError),
        (DatabaseError("the limit max_partitions_per_insert_block", code=252), StoreError),
        *((DatabaseError("Code: x", code=code), StoreError) for code in (16, 27, 53, 60, 62, 497)),
        (DatabaseError("Code: x", code=516), StoreAuthError),
        (DatabaseError("HTTP driver received HTTP status 503"), StoreUnavailableError),
        (DatabaseError("HTTP driver received HTTP status 404"), StoreError),
        (OperationalError("Error executing HTTP request"), StoreUnavailableError),
    ],
)
def test_errors_that_pass_are_told_from_those_that_do_not(error: Any, expected: type[StoreError]) -> None:
    named = store_error(error, "http://h:1", "insert")
    assert type(named) is expected
    assert "http://h:1" in str(named)
