"""The HTTP face as curl or any plain client meets it."""

import base64
import http.client
import json
import socket
import time
import urllib.parse
from collections.abc import Iterator

import pytest

from local.store import StoreAddress

Answer = tuple[int, http.client.HTTPMessage, bytes]


class Plain:
    """A bare HTTP client with the store's user."""

    def __init__(self, address: StoreAddress) -> None:
        self.address = address
        self.login = {"X-ClickHouse-User": address.user, "X-ClickHouse-Key": address.password.get_secret_value()}

    def __call__(
        self,
        sql: str = "",
        body: bytes | Iterator[bytes] | None = None,
        *,
        method: str = "POST",
        path: str = "/",
        headers: dict[str, str] | None = None,
        **options: str,
    ) -> Answer:
        query = urllib.parse.urlencode({**({"query": sql} if sql else {}), **options})
        connection = http.client.HTTPConnection(self.address.host, self.address.port, timeout=30)
        try:
            data = body if body is not None or method == "GET" else b""
            connection.request(method, f"{path}?{query}", data, self.login if headers is None else headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def http_(address: StoreAddress) -> Plain:
    plain = Plain(address)
    status, _, text = plain("CREATE TABLE millrace.raw (a UInt32, b String) ENGINE = MergeTree ORDER BY a")
    assert (status, text) == (200, b"")
    return plain


def count(plain: Plain, where: str = "1") -> int:
    return int(plain(f"SELECT count() FROM millrace.raw WHERE {where}")[2])


def test_ping_needs_no_password(http_: Plain) -> None:
    assert http_(method="GET", path="/ping", headers={})[::2] == (200, b"Ok.\n")


def test_an_unknown_path_is_not_found(http_: Plain) -> None:
    assert http_(method="GET", path="/play")[0] == 404


@pytest.mark.parametrize("way", ["headers", "basic", "url"])
def test_three_ways_to_give_the_password(http_: Plain, way: str) -> None:
    user, password = http_.login.values()
    token = base64.b64encode(f"{user}:{password}".encode()).decode()
    headers = {"headers": http_.login, "basic": {"Authorization": f"Basic {token}"}, "url": {}}[way]
    options = {"user": user, "password": password} if way == "url" else {}

    assert http_("SELECT currentDatabase()", headers=headers, **options)[::2] == (200, b"default\n")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"X-ClickHouse-User": "millrace"}, 403),
        ({"X-ClickHouse-User": "millrace", "X-ClickHouse-Key": "x"}, 403),
        ({"X-ClickHouse-User": "root", "X-ClickHouse-Key": "x"}, 403),
        ({"Authorization": "Basic !!!"}, 403),
        ({"Authorization": "Bearer abc"}, 401),
    ],
)
def test_without_the_password_nothing_runs(http_: Plain, headers: dict[str, str], status: int) -> None:
    before = count(http_)

    got, heads, text = http_("INSERT INTO millrace.raw FORMAT CSV", b'1,"x"\n' * 100_000, headers=headers)

    assert (got, heads["X-ClickHouse-Exception-Code"]) == (status, "516")
    assert b"Code: 516. DB::Exception: " in text
    assert b"(AUTHENTICATION_FAILED) (version " in text
    assert count(http_) == before


@pytest.mark.parametrize(
    ("sql", "body"),
    [
        ("INSERT INTO millrace.raw FORMAT JSONEachRow", b'{"a":1001,"b":"x"}\n{"a":1002,"b":"y"}'),
        ("", b'INSERT INTO millrace.raw (a, b) FORMAT CSV\n1003,"x"\n1004,y\n'),
        ("INSERT INTO millrace.raw VALUES", b"(1005, 'x'), (1000 + 6, 'y')"),
        ("INSERT INTO millrace.raw VALUES (1007, 'x'), (1008, 'y')", b""),
        ("INSERT INTO millrace.raw SELECT number + 1009, 'x' FROM numbers(2)", b""),
        ("INSERT INTO millrace.{t:Identifier} (a) FORMAT TSV", b"1011\n1012\n"),
    ],
)
def test_every_kind_of_insert_counts_its_rows(http_: Plain, sql: str, body: bytes) -> None:
    before = count(http_)

    status, heads, text = http_(sql, body, param_t="raw")

    assert (status, text) == (200, b"")
    assert json.loads(heads["X-ClickHouse-Summary"])["written_rows"] == "2"
    assert count(http_) == before + 2


def test_a_chunked_insert_arrives(http_: Plain) -> None:
    body = (f"{2000 + i},x\n".encode() for i in range(5000))

    assert http_("INSERT INTO millrace.raw FORMAT CSV", body)[0] == 200
    assert count(http_, "a BETWEEN 2000 AND 6999") == 5000


def test_an_insert_that_breaks_off_leaves_nothing(http_: Plain) -> None:
    before = count(http_)
    target = "/?" + urllib.parse.urlencode({"query": "INSERT INTO millrace.raw FORMAT CSV"})
    login = "".join(f"{name}: {value}\r\n" for name, value in http_.login.items())
    for framing, sent in (
        ("Content-Length: 1000", "1,x\n2,y\n"),
        ("Transfer-Encoding: chunked", "8\r\n1,x\n2,y\n\r\n"),
    ):
        with socket.create_connection((http_.address.host, http_.address.port)) as connection:
            connection.sendall(f"POST {target} HTTP/1.1\r\nHost: x\r\n{login}{framing}\r\n\r\n{sent}".encode())
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100) == b""

    assert count(http_) == before


@pytest.mark.parametrize(
    ("output", "content_type", "text"),
    [
        ("TabSeparated", "text/tab-separated-values; charset=UTF-8", b"1\tx\n"),
        ("JSONEachRow", "application/json; charset=UTF-8", b'{"a":1,"b":"x"}\n'),
        ("CSVWithNames", "text/plain; charset=UTF-8", b'"a","b"\n1,"x"\n'),
        ("RowBinary", "application/octet-stream", b"\x01\x01x"),
    ],
)
def test_any_format_by_query_or_by_default(http_: Plain, output: str, content_type: str, text: bytes) -> None:
    by_query = http_(f"SELECT 1 AS a, 'x' AS b FORMAT {output}")
    by_option = http_("SELECT 1 AS a, 'x' AS b", default_format=output)

    for status, heads, body in (by_query, by_option):
        assert (status, heads["X-ClickHouse-Format"], heads["Content-Type"], body) == (200, output, content_type, text)


def test_get_only_reads(http_: Plain) -> None:
    assert http_("SELECT 1", method="GET")[::2] == (200, b"1\n")
    status, heads, text = http_("INSERT INTO millrace.raw VALUES (1, 'x')", method="GET")
    assert (status, heads["X-ClickHouse-Exception-Code"]) == (500, "164")
    assert b"readonly" in text


@pytest.mark.parametrize(
    ("sql", "options", "status", "code", "words"),
    [
        ("SELECT * FROM nowhere", {}, 404, "60", b"UNKNOWN_TABLE"),
        ("SELECT 1 +", {}, 400, "62", b"SYNTAX_ERROR"),
        ("-- nothing", {}, 400, "62", b"Empty query"),
        ("SELECT 1", {"database": "nowhere"}, 404, "81", b"nowhere does not exist"),
        ("SELECT 1", {"max_thread": "1"}, 404, "115", b"max_threads"),
        ("SELECT 1", {"a b": "1"}, 404, "115", b"not a plain word"),
        ("SELECT {x:UInt8}", {"param_x": "y"}, 500, "457", b"x"),
        ("SELECT sleep(3)", {"max_execution_time": "0.2"}, 408, "159", b"TIMEOUT_EXCEEDED"),
        ("SELECT 1", {"decompress": "1"}, 501, "48", b"Content-Encoding"),
        ("USE millrace", {}, 501, "48", b"keeps no sessions"),
        ("SELECT 1 FORMAT Nope", {}, 404, "73", b"UNKNOWN_FORMAT"),
    ],
)
def test_errors_have_the_status_of_a_server(
    http_: Plain, sql: str, options: dict[str, str], status: int, code: str, words: bytes
) -> None:
    got, heads, text = http_(sql, **options)

    assert words in text
    assert heads["X-ClickHouse-Exception-Code"] == code
    assert got == status


def test_a_reader_that_goes_away_ends_its_query(http_: Plain) -> None:
    connection = http.client.HTTPConnection(http_.address.host, http_.address.port, timeout=30)
    connection.request("POST", "/", b"SELECT number FROM numbers(1000000000000) FORMAT Native", http_.login)
    connection.getresponse().read(1000)
    connection.close()

    deadline = time.monotonic() + 10
    while http_("SELECT count() FROM system.processes WHERE query LIKE '%1000000000000)%'")[2] != b"1\n":  # itself
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_post_without_length_is_refused(http_: Plain) -> None:
    login = "".join(f"{name}: {value}\r\n" for name, value in http_.login.items())
    with socket.create_connection((http_.address.host, http_.address.port)) as connection:
        connection.sendall(f"POST /?query=SELECT%201 HTTP/1.1\r\nHost: x\r\n{login}\r\n".encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, answer.headers["X-ClickHouse-Exception-Code"]) == (411, "381")
        answer.close()


def test_the_query_id_comes_back(http_: Plain) -> None:
    assert http_("SELECT 1", query_id="my-query")[1]["X-ClickHouse-Query-Id"] == "my-query"


def test_a_query_need_not_be_utf8(http_: Plain) -> None:
    assert http_(body=b"SELECT hex('\xff\xfe')")[2] == b"FFFE\n"


def test_one_connection_serves_many_requests_after_errors(http_: Plain) -> None:
    connection = http.client.HTTPConnection(http_.address.host, http_.address.port, timeout=30)
    connection.connect()
    first = connection.sock
    for sql, status in (("SELECT 1", 200), ("SELECT oops", 404), ("SELECT 2", 200)):
        connection.request("POST", "/", sql.encode(), http_.login)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
        assert connection.sock is first
    connection.close()
