"""Named queries: the numbers are those of the episodes and trades, and the connection can only read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from consumers_fixtures import BAR, DAY, EPISODE_FACTS, WALL, AdminSink, Writer, make_ended, make_steps, shared

from analytics.connect import connect
from analytics.names import ask, queries, query
from schemas import payloads
from schemas.errors import InputError, SettingsError, StoreAuthError, StoreError, StoreUnavailableError

Drain = Callable[..., Any]


def result(writer: Writer, number: int, **facts: Any) -> None:
    known = {**EPISODE_FACTS, "episode_no": number}
    wanted = {name: facts.pop(name) for name in list(facts) if name in known}
    ended = make_ended(writer.publisher.episode(0, number), {**known, **wanted}, 3)
    writer.send(ended.model_copy(update=facts))


def test_results_on_the_test_split_stand_beside_the_baselines(writer: Writer, drain: Drain, reader: Any) -> None:
    result(writer, 0, split="test", symbol="AAPL", iteration=2, pnl=-500.0)  # An earlier evaluation.
    result(writer, 1, split="test", symbol="AAPL", iteration=4, pnl=1_000.0, sharpe=0.1, max_drawdown=0.2)
    result(writer, 2, split="test", symbol="IBM", iteration=4, pnl=-200.0, sharpe=0.3, max_drawdown=0.1)
    result(writer, 3, split="test", symbol="AAPL", policy="buy_and_hold", iteration=0, pnl=400.0)
    result(writer, 4, split="train", symbol="AAPL", iteration=4, pnl=9_999.0)
    drain()
    rows = query(reader, "test_results", {"run_id": writer.run_id}).dicts()
    assert [(row["symbol"], row["policy"]) for row in rows] == [
        ("AAPL", "agent"), ("AAPL", "buy_and_hold"), ("IBM", "agent"), ("all symbols", "agent"),
        ("all symbols", "buy_and_hold"),
    ]  # fmt: skip
    total = rows[3]
    assert (total["episodes"], total["pnl"], total["trades"], total["max_drawdown"]) == (2, 800.0, 6, 0.2)
    assert total["return"] == pytest.approx(0.04)
    assert total["sharpe"] == pytest.approx(0.2)
    assert total["costs"] == pytest.approx(2 * (8.0 + 1.5 + 2.0 + 0.5))
    assert rows[0]["return"] == pytest.approx(0.1)


def test_the_learning_curve_has_a_row_for_each_iteration(writer: Writer, drain: Drain, reader: Any) -> None:
    for iteration in (1, 2, 3):
        writer.send(
            payloads.IterationEnded(
                iteration=iteration, env_steps=100, env_steps_total=100 * iteration, episodes=1,
                episode_return_mean=None, seconds=2.0, policy_version=iteration,
            )
        )  # fmt: skip
    result(writer, 0, iteration=1, total_reward=-1.0, pnl=-10.0)
    result(writer, 1, iteration=3, total_reward=1.0, pnl=10.0)
    result(writer, 2, iteration=3, total_reward=3.0, pnl=30.0)
    drain()
    rows = query(reader, "learning_curve", {"run_id": writer.run_id}).dicts()
    assert [(row["iteration"], row["env_steps_total"], row["episodes"], row["mean_reward"]) for row in rows] == [
        (1, 100, 1, -1.0), (2, 200, 0, None), (3, 300, 2, 2.0)
    ]  # fmt: skip
    assert rows[2]["mean_return"] == pytest.approx(40 / 20_000)


def test_trades_by_symbol_add_up(writer: Writer, drain: Drain, reader: Any) -> None:
    writer.episode(0, trades=4)
    writer.episode(1, trades=2)
    writer.episode(2, trades=2, symbol="IBM", split="test")
    drain()
    rows = query(reader, "trades_by_symbol", {"run_id": writer.run_id}).dicts()
    assert [(row["split"], row["symbol"], row["trades"], row["wins"]) for row in rows] == [
        ("test", "IBM", 2, 1), ("train", "AAPL", 6, 4)
    ]  # fmt: skip
    assert rows[1]["net_pnl"] == pytest.approx(sum(1.25 * row - 0.1 for row in (0, 1, 2, 3, 0, 1)))
    assert rows[1]["fee"] == pytest.approx(0.6)


def test_a_reversal_is_an_exit_and_an_entry_and_a_quiet_step_is_a_hold(
    writer: Writer, drain: Drain, reader: Any
) -> None:
    episode_id = writer.publisher.episode(0, 0)
    writer.send(
        payloads.Fills(
            episode_id=episode_id, **shared("train", "agent"), symbol=["AAPL"] * 3, trade_no=[0, 0, 1], step=[0, 2, 3],
            decided_ts=[BAR, BAR + 2 * DAY, BAR + 3 * DAY], ts=[BAR + 1, BAR + 2 * DAY + 1, BAR + 3 * DAY + 1],
            row=[1, 3, 4], quantity=[10.0, -15.0, 5.0], price=[100.0, 110.0, 105.0],
            reference_price=[100.0, 110.0, 105.0], fee=[0.0] * 3, slippage=[0.0] * 3, kind=["action"] * 3,
            operations=["ENTRY_LONG", "EXIT_LONG+ENTRY_SHORT", "EXIT_SHORT"], position_after=[10.0, -5.0, 0.0],
            policy_version=[1, 1, 1],
        ),
        make_steps(episode_id, 4),
    )  # fmt: skip
    drain()
    parameters = {"run_id": writer.run_id, "episode_id": episode_id}
    rows = query(reader, "episode_operations", parameters).dicts()
    assert [(row["operation"], row["size"], row["price"]) for row in rows] == [
        ("ENTRY_LONG", 10.0, 100.0),
        ("HOLD", 0.0, 101.0),
        ("EXIT_LONG", 10.0, 110.0),
        ("ENTRY_SHORT", 5.0, 110.0),
        ("EXIT_SHORT", 5.0, 105.0),
    ]
    assert [row["trade_no"] for row in rows] == [0, None, 0, 0, 1]


def test_the_latest_run_is_listed_first(writer: Writer, drain: Drain, reader: Any) -> None:
    writer.send(
        payloads.RunStarted(name="one", started_at=WALL, algorithm="DQN", env="e", seed=7, parameters={}, versions={})
    )
    drain()
    rows = query(reader, "runs").dicts()
    assert [(row["name"], row["status"], row["seed"]) for row in rows] == [("one", "running", 7)]
    assert rows[0]["started_at"].isoformat() == "2026-05-28T20:26:40+00:00"


def test_every_named_query_runs_and_says_what_it_answers(sink: AdminSink, reader: Any) -> None:
    for name, known in queries().items():
        assert known.answers.endswith("."), name
        assert query(reader, name, dict.fromkeys(known.parameters, "x")).rows == []


def test_an_unknown_query_suggests_the_near_one(sink: AdminSink, reader: Any) -> None:
    with pytest.raises(InputError, match=r"query 'test_result': expected one of .*; did you mean 'test_results'\?"):
        query(reader, "test_result")
    with pytest.raises(InputError, match="query 'test_results': expected the parameters run_id, got none"):
        query(reader, "test_results")


def test_the_connection_can_only_read(sink: AdminSink, reader: Any) -> None:
    with pytest.raises(StoreError, match="readonly"):
        ask(reader, "INSERT INTO schema_migrations (number) VALUES (99)")
    with pytest.raises(StoreError, match="readonly"):
        ask(reader, "DROP TABLE trades_rows")
    assert ask(reader, "SELECT 1 + {a:Int64} AS two", {"a": "1"}).dicts() == [{"two": 2}]


def test_views_answer_the_same_whatever_the_reader_has_set(writer: Writer, drain: Drain, reader: Any) -> None:
    writer.episode(0)
    writer.send(payloads.EpisodeStarted(episode_id=writer.publisher.episode(0, 1), **EPISODE_FACTS))
    writer.send(make_steps(writer.publisher.episode(0, 0), 30))
    drain()
    for view in ("episodes", "trading_operations", "learning_curve", "runs", "publishers", "run_integrity_totals"):
        plain = ask(reader, f"SELECT count() FROM {view}").rows
        assert ask(reader, f"SELECT count() FROM {view} SETTINGS join_use_nulls = 1").rows == plain, view
    statuses = "SELECT status FROM episodes ORDER BY status SETTINGS join_use_nulls = 1"
    assert ask(reader, statuses).rows == [("completed",), ("running",)]


def test_the_integrity_views_say_what_their_columns_prove(sink: AdminSink) -> None:
    comments = dict(sink.query("SELECT name, comment FROM system.tables WHERE database = currentDatabase()"))
    assert "distinct_stored" in comments["run_integrity"]
    assert "closing report" in comments["run_integrity_totals"]


def test_wrong_sql_is_one_clear_line(sink: AdminSink, reader: Any) -> None:
    with pytest.raises(StoreError, match="UNKNOWN_TABLE") as caught:
        ask(reader, "SELECT * FROM nothing_here")
    assert "\n" not in str(caught.value)


def test_a_wrong_connection_is_named(url: str, password: str, store: Any) -> None:
    with pytest.raises(StoreAuthError, match="refused user or password"):
        connect(url, "wrong")
    with pytest.raises(StoreError, match="the database does not exist yet; a consumer makes it"):
        connect(url.rsplit("/", 1)[0] + "/not_there", password)
    with pytest.raises(StoreUnavailableError, match="expected an answer, got none"):
        connect("http://u@127.0.0.1:9/db", "x", timeout_s=1)
    with pytest.raises(SettingsError, match="with the password given apart"):
        connect("http://u:p@127.0.0.1:9/db", "x")
