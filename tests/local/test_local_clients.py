"""clickhouse-connect works against the local store as against a server."""

import datetime as dt
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, StreamFailureError
from clickhouse_connect.driver.external import ExternalData

from local.store import StoreAddress

COLUMNS = ["id", "at", "name", "price", "tags"]


def rows(count: int, start: int = 0) -> list[list[object]]:
    at = dt.datetime(2026, 1, 1, 0, 0, 0, 123456)
    return [[start + i, at, "a'b\\\t\n€", Decimal("1.25"), ["x", "y"]] for i in range(count)]


@pytest.fixture
def table(client: Client) -> Iterator[str]:
    client.command(
        "CREATE TABLE clients (id UInt64, at DateTime64(6), name LowCardinality(String), price Decimal(10, 2), "
        "tags Array(String)) ENGINE = MergeTree ORDER BY id SETTINGS non_replicated_deduplication_window = 100"
    )
    yield "clients"
    client.command("DROP TABLE clients SYNC")


@pytest.mark.parametrize("compress", [False, "lz4", "zstd", "gzip"])
def test_inserted_rows_come_back_equal(
    address: StoreAddress, connect: Callable[..., Client], table: str, compress: bool | str
) -> None:
    client = connect(address, compress=compress)

    summary = client.insert(table, rows(1000), column_names=COLUMNS)

    assert summary.written_rows == 1000
    assert [list(row) for row in client.query(f"SELECT * FROM {table} ORDER BY id").result_rows] == rows(1000)


def test_data_frames_and_arrow_go_in_and_out(client: Client, table: str) -> None:
    client.insert(table, rows(10), column_names=COLUMNS)
    frame = client.query_df(f"SELECT id + 10 AS id, at, name, price, tags FROM {table}")
    client.insert_df(table, frame)
    arrow = pa.table({"id": pa.array([100, 101], pa.uint64()), "name": ["p", "q"]})
    client.insert_arrow(table, arrow)

    assert client.query_arrow(f"SELECT id FROM {table} ORDER BY id")["id"].to_pylist() == [*range(20), 100, 101]
    assert isinstance(frame, pd.DataFrame)


def test_parameters_keep_every_character(client: Client, table: str) -> None:
    client.insert(table, rows(5), column_names=COLUMNS)
    name = rows(1)[0][2]

    found = client.query(
        "SELECT {text:String}, {list:Array(UInt8)}, {none:Nullable(String)}, count() FROM {t:Identifier} "
        "WHERE name = {text:String} AND id < {n:UInt8}",
        parameters={"text": name, "list": [1, 2], "none": None, "t": table, "n": 3},
    )

    assert found.result_rows == [(name, [1, 2], None, 3)]


def test_many_parameters_go_as_a_form(client: Client) -> None:
    ids = list(range(20_000))
    assert client.query("SELECT length({ids:Array(UInt32)})", parameters={"ids": ids}).first_row == (20_000,)


def test_external_data_is_a_table_of_one_query(client: Client) -> None:
    data = ExternalData(
        data=b"1,x\r\n2,y\n",
        fmt="CSV",
        structure=["id UInt8", "n String"],
        file_name="ext",
    )
    assert client.query("SELECT sum(id) FROM ext", external_data=data).first_row == (3,)
    with pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
        client.query("SELECT * FROM ext")


def test_settings_hold_for_their_request_only(client: Client) -> None:
    def threads(**settings: object) -> object:
        return client.query("SELECT getSetting('max_threads')", settings=settings).first_row[0]

    usual = threads()
    assert threads(max_threads=77) == 77
    assert threads() == usual
    with pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
        client.query("SELECT * FROM missing", settings={"max_threads": 77})
    with pytest.raises(DatabaseError, match="CANNOT_PARSE"):
        client.query("SELECT 1", settings={"max_threads": 77, "max_block_size": "many"})
    assert threads() == usual


def test_an_insert_with_a_token_is_taken_once(client: Client, table: str) -> None:
    for _ in range(2):
        client.insert(table, rows(3), column_names=COLUMNS, settings={"insert_deduplication_token": "a"})

    assert client.command(f"SELECT count() FROM {table}") == 3


def test_a_long_answer_streams(client: Client) -> None:
    with client.query_row_block_stream("SELECT number FROM numbers(300000)") as stream:
        assert sum(len(block) for block in stream) == 300_000


def test_an_error_in_the_middle_of_a_stream_is_raised(client: Client) -> None:
    sql = "SELECT throwIf(number = 900000, 'too far') FROM numbers(1000000)"
    with (
        client.query_row_block_stream(sql, settings={"max_threads": 1, "max_block_size": 10_000}) as stream,
        pytest.raises(StreamFailureError, match="too far"),
    ):
        for _ in stream:
            pass


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("SELECT * FROM missing", 60),
        ("SELECT * FROM missing.t", 81),
        ("SELECT FROM WHERE", 62),
        ("SELECT missing", 47),
        ("SELECT missing()", 46),
        ("SELECT 1; SELECT 2", 62),
        ("SELECT throwIf(1)", 395),
        ("SET max_threads = 1", 48),
        ("CREATE TEMPORARY TABLE x (a Int8)", 48),
        ("INSERT INTO missing VALUES (1)", 60),
    ],
)
def test_errors_carry_the_code_of_clickhouse(client: Client, sql: str, code: int) -> None:
    with pytest.raises(DatabaseError, match=f"(?i)code: {code}") as refused:
        client.command(sql)
    assert refused.value.code == code


def test_a_wrong_password_is_refused(address: StoreAddress, connect: Callable[..., Client]) -> None:
    with pytest.raises(DatabaseError, match="Authentication failed") as refused:
        connect(address, password="wrong")
    assert refused.value.code == 516


def test_a_missing_database_is_named(address: StoreAddress, connect: Callable[..., Client]) -> None:
    with pytest.raises(DatabaseError, match="Database missing does not exist"):
        connect(address, database="missing").command("SELECT 1")


def test_rows_that_do_not_fit_are_refused_whole(client: Client, table: str) -> None:
    with pytest.raises(DatabaseError, match="Code: "):
        client.raw_insert(table, ["id"], b'{"id": 1}\n{"id": "x"}\n', fmt="JSONEachRow")

    assert client.command(f"SELECT count() FROM {table}") == 0


def test_many_clients_at_once(address: StoreAddress, connect: Callable[..., Client], table: str) -> None:
    clients = [connect(address) for _ in range(6)]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for round_ in range(5):
                clients[number].insert(table, rows(20, 1000 * number + 20 * round_), column_names=COLUMNS)
                clients[number].query(f"SELECT sum(id) FROM {table}", settings={"max_threads": number + 1})
        except DatabaseError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert clients[0].command(f"SELECT uniqExact(id) FROM {table}") == 600
