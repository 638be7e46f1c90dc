"""The outer shape of a statement is read without being fooled by names, quotes and comments."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.sql_text import read_statement


@pytest.mark.parametrize(
    ("sql", "head", "input_format", "data"),
    [
        (b"INSERT INTO t FORMAT CSV\n1,2\n", b"INSERT INTO t ", "CSV", b"1,2\n"),
        (b"insert into t (a, b) format Native\nX", b"insert into t (a, b) ", "Native", b"X"),
        (b"INSERT INTO t SETTINGS async_insert=0 FORMAT CSV 1", b"INSERT INTO t SETTINGS async_insert=0 ", "CSV", b"1"),
        (b"INSERT INTO t VALUES (1, 'x')", b"INSERT INTO t ", "Values", b" (1, 'x')"),
        (b"INSERT INTO `values`.format FORMAT CSV\r\n1", b"INSERT INTO `values`.format ", "CSV", b"1"),
        (
            b"INSERT INTO TABLE FUNCTION null('a Int8') FORMAT CSV\n1",
            b"INSERT INTO TABLE FUNCTION null('a Int8') ",
            "CSV",
            b"1",
        ),
        (b'/* FORMAT */ -- VALUES\nINSERT INTO t(`FORMAT`, "VALUES") FORMAT TSV\n\n1', None, "TSV", b"\n1"),
        (b"INSERT INTO {t:Identifier} FORMAT CSV\n1", b"INSERT INTO {t:Identifier} ", "CSV", b"1"),
        (b"INSERT INTO t FORMAT JSONEachRow", b"INSERT INTO t ", "JSONEachRow", b""),
    ],
)
def test_an_insert_is_cut_where_its_data_begins(sql: bytes, head: bytes | None, input_format: str, data: bytes) -> None:
    statement = read_statement(sql)

    assert statement.insert_head is not None
    assert head is None or statement.insert_head == head
    assert (statement.input_format, sql[statement.data_at :]) == (input_format, data)


@given(st.binary())
def test_data_of_an_insert_is_never_touched(data: bytes) -> None:
    sql = b"INSERT INTO t FORMAT Native\n" + data

    assert sql[read_statement(sql).data_at :] == data


@given(st.binary(max_size=200))
def test_any_text_is_read_without_an_error(sql: bytes) -> None:
    read_statement(sql)


@pytest.mark.parametrize(
    "sql", [b"INSERT INTO t SELECT 1 FORMAT CSV", b"INSERT INTO t WITH 1 AS a SELECT a", b"INSERT INTO t"]
)
def test_an_insert_without_data_is_a_plain_statement(sql: bytes) -> None:
    assert read_statement(sql).insert_head is None


@pytest.mark.parametrize(
    ("sql", "output_format"),
    [
        (b"SELECT 1 FORMAT JSON", "JSON"),
        (b"SELECT 1 FORMAT Native SETTINGS max_threads=1;", "Native"),
        (b"SELECT 'a FORMAT CSV'", None),
        (b"SELECT format FROM t", None),
        (b"SELECT 1 AS format", None),
        (b"SELECT (SELECT 1) FORMAT CSV -- FORMAT TSV", "CSV"),
    ],
)
def test_the_output_format_is_the_last_word_of_the_query(sql: bytes, output_format: str | None) -> None:
    assert read_statement(sql).output_format == output_format


@pytest.mark.parametrize(
    ("sql", "several"),
    [
        (b"SELECT 1; SELECT 2", True),
        (b"SELECT 1; -- the end\n", False),
        (b"SELECT ';', \"a;b\", `c;d`, $x$ ; $x$ /* ; */", False),
    ],
)
def test_a_second_statement_is_seen(sql: bytes, several: bool) -> None:
    assert read_statement(sql).several is several
