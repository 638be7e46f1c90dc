"""Migrations: applied once, safe twice, and never on a store that they do not know."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from consumers_fixtures import AdminSink

from consumers.migrate import Step, migrate, statements, steps
from schemas.errors import StoreError

pytestmark = pytest.mark.usefixtures("fresh")

VIEWS = {
    *("runs", "attempts", "windows", "iterations", "publisher_reports", "publishers", "episodes", "episode_actions"),
    *("trades", "fills", "steps", "positions", "trading_operations", "events", "dead_letters", "run_integrity"),
    *("run_integrity_totals", "test_results", "learning_curve", "trades_by_symbol", "episode_metrics"),
}


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 1; SELECT 2", ["SELECT 1", "SELECT 2"]),
        ("SELECT ';' ; ;;\n", ["SELECT ';'"]),
        ("SELECT 'it''s; \\'x;' AS `a;b`, \"c;d\"", ["SELECT 'it''s; \\'x;' AS `a;b`, \"c;d\""]),
        ("-- a; comment 'with\nSELECT 1 /* and; */ - 2; -- end;", ["SELECT 1   - 2"]),
        ("SELECT 4 / 2 - 1", ["SELECT 4 / 2 - 1"]),
        ("", []),
    ],
)
def test_statements_end_at_semicolons_outside_quotes_and_comments(sql: str, expected: list[str]) -> None:
    assert list(statements(sql)) == expected


def test_a_second_migration_applies_nothing(url: str, password: str) -> None:
    with AdminSink.connect(url, password) as sink:
        assert sink.migrate() == ["0001_rows", "0002_views", "0003_integrity", "0004_analysis", "0005_metrics"]
        assert sink.migrate() == []
        views = {name for (name,) in sink.query("SELECT name FROM system.tables WHERE database = currentDatabase() "
                                                "AND engine = 'View'")}  # fmt: skip
        assert views == VIEWS


def test_views_have_plain_column_types_on_any_server(sink: AdminSink) -> None:
    odd = sink.query(
        "SELECT table, name, type FROM system.columns WHERE database = currentDatabase() "
        "AND (type LIKE '%Variant%' OR type LIKE '%Nothing%' OR type LIKE '%Dynamic%')"
    )
    assert odd == []


def test_two_migrations_at_once_end_in_one_store(url: str, password: str) -> None:
    def one(_: int) -> list[str]:
        with AdminSink.connect(url, password) as sink:
            return sink.migrate()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(2)))
    with AdminSink.connect(url, password) as sink:
        assert sink.query("SELECT count(), uniqExact(number) FROM schema_migrations FINAL") == [(5, 5)]
        assert sink.migrate() == []


def test_a_step_that_was_changed_after_it_was_applied_is_refused(sink: AdminSink) -> None:
    known = steps()
    known[1] = replace(known[1], sql=known[1].sql + "\nSELECT 1;")
    with pytest.raises(StoreError, match=r"0002_views was applied with SHA-256 .* add a new step instead"):
        migrate(sink.client, sink.database, known)


def test_a_store_of_a_newer_version_is_refused(sink: AdminSink) -> None:
    with pytest.raises(StoreError, match=r"has migration 0005_metrics, and this version knows 4 steps"):
        migrate(sink.client, sink.database, steps()[:4])


def test_a_step_that_fails_half_way_is_applied_in_full_later(sink: AdminSink) -> None:
    good = "CREATE TABLE IF NOT EXISTS extra (a Int64) ENGINE = MergeTree ORDER BY a;"
    with pytest.raises(StoreError, match="apply migration 0006_extra"):
        migrate(sink.client, sink.database, [*steps(), Step(6, "extra", good + "CREATE TABL broken")])
    assert migrate(sink.client, sink.database, [*steps(), Step(6, "extra", good)]) == ["0006_extra"]


def test_a_database_name_is_a_name(sink: AdminSink) -> None:
    with pytest.raises(StoreError, match=r"database 'a; DROP': expected a name"):
        migrate(sink.client, "a; DROP")
