"""ClickHouse's HTTP interface, on loopback, over the engine of this process.

It follows https://clickhouse.com/docs/interfaces/http, so that clickhouse-connect, curl and other HTTP clients work
as against a server. Left out on purpose, each with a clear refusal: sessions (SET, USE and temporary tables would not
last: give settings with the request), ClickHouse's own block compression (``compress``, ``decompress``), roles. The
``session_id`` that clients send by habit is read over. Answers are never compressed: they do not leave the machine.
"""

from __future__ import annotations

import hmac
import json
import logging
import re
import secrets
import socket
import socketserver
import sys
import threading
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, cast
from urllib.parse import parse_qsl, urlsplit

from local.engine import Answer, Engine, EngineError, Session
from local.http_rules import (
    INTERFACE_NAMES,
    STREAMABLE_FORMATS,
    content_type_of,
    credentials_of,
    refuse_unsupported,
    status_of,
)
from local.process_dir import HOST
from local.request_body import CHUNK, BodyTornError, discard_body, read_form, receive_body
from local.sql_text import Statement, read_statement

_LOG = logging.getLogger("millrace.store")

_TYPES_COMMA: Final = re.compile(r",\s*(?![^()]*\))")  # not the one in Decimal(10, 2)

# The engine parses no statement past max_query_size (256 KiB) anyway; what lies behind it can only be data.
_HEAD_BYTES: Final = 1 << 18


@dataclass(slots=True)
class _Request:
    """What one HTTP request asks for, by header, URL and form together."""

    url: dict[str, str]
    query: bytes
    body: IO[bytes] | None
    files: dict[str, bytes] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)


class StoreHTTPServer(socketserver.ThreadingTCPServer):
    """The listening socket, one thread a connection.

    Args:
        port: Port on 127.0.0.1; 0 takes a free one.
        engine: The engine to ask.
        spool_dir: Directory for large request bodies.
        user: The one user.
        password: Its password.

    Raises:
        OSError: The port is taken.
    """

    allow_reuse_address = True  # a restart takes its port back from connections in TIME_WAIT
    request_queue_size = 128
    daemon_threads = False  # a thread in the engine at interpreter exit would crash it: they are joined
    block_on_close = True

    def __init__(self, port: int, engine: Engine, spool_dir: Path, user: str, password: str) -> None:
        self.engine = engine
        self.spool_dir = spool_dir
        self._user = user.encode()
        self._password = password.encode()
        self._open: dict[socket.socket, bool] = {}  # connection → is a request being answered
        self._lock = threading.Lock()
        self._stopping = False
        super().__init__((HOST, port), _Handler)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    def admits(self, user: str, password: str) -> bool:
        """Whether user and password are right; takes the same time whichever is wrong."""
        right_user = hmac.compare_digest(user.encode("utf-8", "surrogateescape"), self._user)
        return hmac.compare_digest(password.encode("utf-8", "surrogateescape"), self._password) and right_user

    def mark(self, connection: socket.socket, *, busy: bool) -> bool:
        """Note that ``connection`` answers a request or waits for one; False says that the server stops."""
        with self._lock:
            self._open[connection] = busy
            return not self._stopping

    def forget(self, connection: socket.socket) -> None:
        """The connection is over."""
        with self._lock:
            self._open.pop(connection, None)

    def drain(self, seconds: float) -> bool:
        """Stop listening, cancel reads, let running inserts finish; True when all requests ended in time."""
        self.shutdown()
        self.socket.close()
        started = time.monotonic()
        while (waited := time.monotonic() - started) < seconds:
            with self._lock:
                self._stopping = True
                if not self._open:
                    return True
                answering = any(self._open.values())
                for connection, busy in self._open.items():
                    # Whoever is still sending gets no further; whoever has an answer to come gets it, for a while.
                    _hang_up(connection, socket.SHUT_RD if busy and waited < seconds / 2 else socket.SHUT_RDWR)
            if answering:
                self.engine.cancel_reads()
            time.sleep(0.05)
        return False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what a handler did not expect; a client that went away is nothing to report."""
        if not isinstance(sys.exception(), ConnectionError):
            _LOG.exception("a request failed inside the store")


def _hang_up(connection: socket.socket, how: int) -> None:
    with suppress(OSError):  # its client closed it already
        connection.shutdown(how)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "MillraceStore"
    sys_version = ""
    # Head and body of an answer leave in one packet, at once: unbuffered writes and Nagle cost 40 ms a call.
    wbufsize = -1
    disable_nagle_algorithm = True

    server: StoreHTTPServer
    _query_id = ""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Nothing per request: a URL may carry the password."""

    def handle_one_request(self) -> None:
        if not self.server.mark(self.connection, busy=False):
            self.close_connection = True
            return
        super().handle_one_request()

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            self.server.forget(self.connection)

    def do_GET(self) -> None:
        """Read-only, as on a server."""
        self._answer()

    def do_POST(self) -> None:
        """Anything."""
        self._answer()

    def _answer(self) -> None:
        if not self.server.mark(self.connection, busy=True):
            self.close_connection = True
            return
        self._query_id = str(uuid.uuid4())
        url = urlsplit(self.path)
        options = dict(parse_qsl(url.query, keep_blank_values=True, errors="surrogateescape"))
        source = cast(BinaryIO, self.rfile)
        try:
            if url.path == "/" and (self.command == "POST" or options.get("query")):
                self._answer_query(options)
            else:
                discard_body(source, self.headers)
                known = url.path in {"/", "/ping"}
                self._send(200 if known else 404, b"Ok.\n" if known else b"There is no such handle.\n")
        except EngineError as error:
            self._send_error(error)
        except BodyTornError:
            self.close_connection = True

    def _answer_query(self, options: dict[str, str]) -> None:
        source = cast(BinaryIO, self.rfile)
        given = credentials_of(self.headers, options)
        if given is None or not self.server.admits(*given):
            discard_body(source, self.headers)
            self._send_refusal(given)
            return
        self._query_id = options.get("query_id") or self._query_id
        if self.command == "POST" and "Content-Length" not in self.headers and "Transfer-Encoding" not in self.headers:
            raise EngineError.of(381, "HTTP_LENGTH_REQUIRED", "A POST needs a Content-Length or chunked encoding.")
        try:
            body = receive_body(source, self.headers, self.server.spool_dir)
        except EngineError:
            self.close_connection = True  # where the next request begins is not known
            raise
        with body:
            self._run(self._read_request(options, body))

    def _run(self, request: _Request) -> None:
        head = request.query
        if request.body is not None:
            head += request.body.read(_HEAD_BYTES)
        statement = read_statement(head)
        sql = b""
        if statement.insert_head is None:
            sql = b"".join(_chunks(head, request.body))
            statement = read_statement(sql) if len(sql) > len(head) else statement
        refuse_unsupported(statement, request.url)
        database = request.url.get("database") or self.headers.get("X-ClickHouse-Database") or "default"
        with self.server.engine.session(database, request.settings, request.params) as session:
            _add_files(session, request)
            if statement.insert_head is None:
                self._send_rows(session, sql, statement, request.url)
            else:
                rest = _chunks(head[statement.data_at :], request.body)
                self._send_answer(session.insert(statement.insert_head, statement.input_format, rest), "TabSeparated")

    def _read_request(self, options: dict[str, str], body: IO[bytes]) -> _Request:
        url = dict(options)
        query = url.get("query", "").encode("utf-8", "surrogateescape")
        files: dict[str, bytes] = {}
        data: IO[bytes] | None = body
        content_type = self.headers.get("Content-Type", "")
        if content_type.lower().startswith("multipart/form-data"):
            data = None
            for name, content in read_form(content_type, body.read()).items():
                if name == "query":
                    query = content
                elif f"{name}_structure" in url or f"{name}_types" in url or f"{name}_format" in url:
                    files[name] = content
                else:
                    url[name] = content.decode("utf-8", "surrogateescape")
        elif query:
            query += b"\n"
        described = {f"{name}_{what}" for name in files for what in ("structure", "types", "format")}
        own = {name: text for name, text in url.items() if name not in INTERFACE_NAMES and name not in described}
        params = {name.removeprefix("param_"): text for name, text in own.items() if name.startswith("param_")}
        settings = {name: text for name, text in own.items() if not name.startswith("param_")}
        if self.command == "GET":
            settings["readonly"] = "2"  # GET changes nothing, as on a server
        return _Request(url, query, data, files, params=params, settings=settings)

    def _send_rows(self, session: Session, sql: bytes, statement: Statement, url: dict[str, str]) -> None:
        default = url.get("default_format") or self.headers.get("X-ClickHouse-Format") or "TabSeparated"
        output = statement.output_format or default
        streamed = (
            output in STREAMABLE_FORMATS and statement.verb in {"SELECT", "WITH"} and self.request_version != "HTTP/1.0"
        )
        if streamed and url.get("wait_end_of_query") not in {"1", "true"}:
            self._send_stream(session.stream(sql, output), output)
        else:
            self._send_answer(session.query(sql, output), output)

    def _send_stream(self, stream: Generator[bytes, None, None], output: str) -> None:
        with closing(stream) as blocks:  # a client that went away cancels the query
            first = next(blocks, b"")  # an error before the first block is still an answer of its own
            tag = secrets.token_hex(8)
            self._head(200, output, {"Transfer-Encoding": "chunked", "X-ClickHouse-Exception-Tag": tag})
            try:
                self._chunk(first)
                for block in blocks:
                    self._chunk(block)
            except EngineError as error:
                # The status is long sent: a server puts the error behind the rows, between tags, and breaks off.
                text = str(error).encode("utf-8", "surrogateescape") + b"\n"
                marks = (tag.encode(), text, len(text), tag.encode())
                self._chunk(b"\r\n__exception__\r\n%b\r\n%b%d %b\r\n__exception__\r\n" % marks)
                self.close_connection = True
            else:
                self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, data: bytes) -> None:
        if data:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.flush()

    def _send_answer(self, answer: Answer, output: str) -> None:
        counts = {
            "read_rows": answer.read_rows,
            "read_bytes": answer.read_bytes,
            "written_rows": answer.written_rows,
            "written_bytes": answer.written_bytes,
        }
        summary = json.dumps({name: str(count) for name, count in counts.items()})
        self._send(200, answer.body, output, {"X-ClickHouse-Summary": summary})

    def _send_refusal(self, given: tuple[str, str] | None) -> None:
        error = EngineError.of(
            516,
            "AUTHENTICATION_FAILED",
            f"{given[0] if given else 'default'}: Authentication failed: password is incorrect, or there is no user "
            "with such name. The password is in the file store.password of the store's state directory.",
        )
        if given is None:
            self._send_error(error, 401, {"WWW-Authenticate": 'Basic realm="ClickHouse server HTTP API"'})
        else:
            self._send_error(error)

    def _send_error(self, error: EngineError, status: int | None = None, headers: dict[str, str] | None = None) -> None:
        text = str(error)
        if "(version " not in text:
            text = f"{text} (version {self.server.engine.version})"
        code = {"X-ClickHouse-Exception-Code": str(error.code)}
        status = status or status_of(error.code)
        self._send(status, text.encode("utf-8", "surrogateescape") + b"\n", headers={**code, **(headers or {})})

    def _send(
        self, status: int, body: bytes, output: str = "TabSeparated", headers: dict[str, str] | None = None
    ) -> None:
        self._head(status, output, {"Content-Length": str(len(body)), **(headers or {})})
        self.wfile.write(body)

    def _head(self, status: int, output: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type_of(output))
        self.send_header("X-ClickHouse-Server-Display-Name", "millrace-local")
        self.send_header("X-ClickHouse-Query-Id", _header_text(self._query_id))
        self.send_header("X-ClickHouse-Format", _header_text(output))
        self.send_header("X-ClickHouse-Timezone", self.server.engine.timezone)
        if self.close_connection:
            self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _add_files(session: Session, request: _Request) -> None:
    for name, content in request.files.items():
        structure = request.url.get(f"{name}_structure")
        if structure is None:
            types = _TYPES_COMMA.split(request.url.get(f"{name}_types", ""))
            structure = ", ".join(f"_{number} {kind}" for number, kind in enumerate(types, 1))
        session.add_table(name, structure, request.url.get(f"{name}_format", "TabSeparated"), content)


def _chunks(start: bytes, rest: IO[bytes] | None) -> Iterator[bytes]:
    if start:
        yield start
    while rest is not None and (chunk := rest.read(CHUNK)):
        yield chunk


def _header_text(text: str) -> str:
    """Text that came from a client, made safe to stand in a header."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)
