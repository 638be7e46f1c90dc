"""The integrity check: it holds for what is whole, and names what is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from consumers_fixtures import EPISODE_FACTS, WALL, AdminSink, Writer, make_positions, make_trades

from analytics.integrity import IntegrityTable, check_run
from eventlog.forwarder import drain as drain_outbox
from eventlog.forwarder import ensure_forwarder, stop_forwarder
from eventlog.log import Log, Record
from eventlog.outbox import Publisher
from schemas import payloads
from schemas.errors import InputError, IntegrityError
from schemas.ids import Role, new_run_id
from schemas.topics import TOPICS

Drain = Callable[..., Any]
Check = Callable[[], IntegrityTable]


@pytest.fixture
def check(writer: Writer, drain: Drain, reader: Any) -> Check:
    """Store what is on the log, then check the writer's run."""

    def run() -> IntegrityTable:
        drain()
        drain()  # Dead letters of the first pass.
        return check_run(reader, writer.run_id)

    return run


@pytest.fixture
def whole(writer: Writer) -> Writer:
    """A run of one publisher with three episodes, closed."""
    for number in range(3):
        writer.episode(number)
    writer.close()
    return writer


def delete(sink: AdminSink, table: str, condition: str) -> None:
    sink.query(f"ALTER TABLE {table} DELETE WHERE {condition} SETTINGS mutations_sync = 2")


def test_a_whole_run_holds(whole: Writer, check: Check) -> None:
    table = check()
    assert table.ok
    assert table.problems == []
    table.require()
    lines = {line.event_type: line for line in table.lines}
    trades = lines["trades"]
    assert (trades.emitted, trades.acknowledged, trades.stored, trades.distinct) == (3, 3, 3, 3)
    assert (trades.declared_rows, trades.stored_rows) == (15, 15)
    assert lines["fills"].stored_rows == 30
    assert {line.publisher for line in table.lines} == {str(whole.publisher)}
    assert (table.publishers, table.open_publishers, table.dead_letters) == (1, [], 0)
    assert (table.abandoned_episodes, table.running_episodes) == (0, 0)


def test_each_type_of_event_has_its_line_and_holds(writer: Writer, check: Check) -> None:
    episode_id = writer.episode(0)
    writer.send(
        payloads.RunStarted(name="n", started_at=WALL, algorithm="DQN", env="e", seed=1, parameters={}, versions={}),
        payloads.AttemptStarted(
            started_at=WALL, resumed_from_iteration=None, host="h", pid=1, num_env_runners=1, num_envs_per_env_runner=1
        ),
        payloads.IterationEnded(
            iteration=1, env_steps=1, env_steps_total=1, episodes=1, episode_return_mean=0.1, seconds=1,
            policy_version=1,
        ),
        payloads.RunEnded(status="completed", ended_at=WALL, iterations=1, env_steps=1),
        payloads.Steps.model_validate(
            {**{name: [] for name in payloads.Steps.COLUMNS}, "episode_id": episode_id, "symbol": "AAPL",
             "split": "train", "policy": "agent", "iteration": 1, "window_id": "w1"}
        ),
        make_positions(episode_id, 3),
        payloads.WindowOpened(
            window_id="w1", data_hash="d", split="train", feed="f", symbols=["A"], interval="1d", cluster_id="c",
            topic="t", topic_id="i", partitions=[0], start_offsets=[0], end_offsets=[1], first_ts=1, last_ts=2, bars=2,
            refused_bars=0, feature_recipe="r", bar_policy="p", scaler_version="s",
        ),
    )  # fmt: skip
    writer.close()
    table = check()
    assert table.problems == []
    assert {line.event_type for line in table.lines} == set(payloads.PAYLOADS)
    assert next(line for line in table.lines if line.event_type == "positions").stored_rows == 6


def test_records_sent_twice_do_not_show(whole: Writer, check: Check) -> None:
    check()
    whole.put(whole.sent)
    assert check().ok


def test_a_publisher_without_a_closing_report_is_open(whole: Writer, log: Log, check: Check) -> None:
    other = Writer(log, run_id=whole.run_id, worker_index=2)
    other.episode(0)
    table = check()
    assert table.open_publishers == [str(other.publisher)]
    assert not table.ok
    assert any("no closing report" in problem and str(other.publisher) in problem for problem in table.problems)
    other.close()
    assert check().ok


def test_a_lost_record_is_named(whole: Writer, check: Check, sink: AdminSink) -> None:
    check()
    delete(sink, "events_rows", "event_type = 'trades' AND number = 2")
    table = check()
    assert not table.ok
    problem = f"publisher {whole.publisher}, trades: emitted 3, stored 2: 1 missing"
    assert problem in table.problems
    with pytest.raises(IntegrityError, match=f"run {whole.run_id}: .*1 missing"):
        table.require()


def test_a_lost_row_is_named(whole: Writer, check: Check, sink: AdminSink) -> None:
    check()
    delete(sink, "trades_rows", f"episode_id = '{whole.publisher.episode(0, 1)}' AND row_no = 3")
    table = check()
    assert table.problems == [f"publisher {whole.publisher}, trades: 15 rows declared, 14 stored: rows missing"]
    assert not table.ok


@pytest.mark.parametrize("table", ["episodes_started_rows", "episodes_ended_rows", "episode_actions_rows"])
def test_a_lost_episode_row_is_named(table: str, whole: Writer, check: Check, sink: AdminSink) -> None:
    check()
    delete(sink, table, f"episode_id = '{whole.publisher.episode(0, 1)}'")
    assert any("rows missing" in problem for problem in check().problems)


def test_a_lost_part_makes_its_record_missing(writer: Writer, check: Check, sink: AdminSink) -> None:
    writer.send(make_trades(writer.publisher.episode(0, 0), 300), max_bytes=4_000)
    writer.close()
    assert check().ok
    delete(sink, "events_rows", "event_type = 'trades' AND part = 2")
    assert any("emitted 1, stored 0: 1 missing" in problem for problem in check().problems)


def test_a_row_that_readers_see_twice_is_named(whole: Writer, check: Check, sink: AdminSink) -> None:
    """The same record with another wall time lies in another partition, where the views cannot fold it."""
    check()
    for table in ("events_rows", "trades_rows"):
        sink.query(
            f"INSERT INTO {table} SELECT * REPLACE (wall_time + INTERVAL 2 MONTH AS wall_time) FROM {table} "
            f"WHERE number = 1{' AND event_type = ' + repr('trades') if table == 'events_rows' else ''}"
        )
    problems = check().problems
    prefix = f"publisher {whole.publisher}, trades: "
    assert prefix + "4 records visible, 3 of them distinct: some are there twice" in problems
    assert prefix + "15 rows declared, 20 stored: rows too many" in problems


def test_two_records_that_claim_the_same_rows_are_named(writer: Writer, check: Check) -> None:
    episode_id = writer.publisher.episode(0, 0)
    writer.send(make_trades(episode_id, 3), make_trades(episode_id, 3))
    writer.close()
    assert any("6 rows declared, 3 stored" in problem for problem in check().problems)


def test_what_waits_in_an_outbox_is_named(whole: Writer, log: Log, check: Check) -> None:
    """The latest report counts an event that the log has not taken."""
    late = Writer(log, run_id=whole.run_id, worker_index=3)
    late.episode(0)
    late.record(make_trades(late.publisher.episode(0, 1), 1))  # Numbered, never sent.
    late.close()
    assert any("trades: emitted 2, stored 1: 1 missing" in problem for problem in check().problems)


def test_a_dead_letter_fails_the_check_until_its_event_is_stored(whole: Writer, check: Check) -> None:
    good = whole.record(make_trades(whole.publisher.episode(0, 9), 2))
    whole.put([Record(good.topic, good.key, good.value[:-5], good.headers)])
    whole.close()
    table = check()
    assert (table.dead_letters, table.dead_letters_resolved) == (1, 0)
    assert any("1 records of the run are dead letters" in problem for problem in table.problems)
    whole.put([good])
    table = check()
    assert table.ok
    assert (table.dead_letters, table.dead_letters_resolved) == (1, 1)


def test_a_dead_letter_that_names_no_run_is_counted_apart(whole: Writer, check: Check) -> None:
    whole.put([Record(TOPICS["trades"].name(), b"?", b"?", ())])
    table = check()
    assert table.ok
    assert table.unattributed_dead_letters == 1


def test_an_episode_that_can_no_longer_end_is_abandoned_with_no_metrics(
    writer: Writer, check: Check, sink: AdminSink
) -> None:
    writer.episode(0)
    episode_id = writer.publisher.episode(0, 1)
    writer.send(payloads.EpisodeStarted(episode_id=episode_id, **{**EPISODE_FACTS, "episode_no": 1}))
    table = check()
    assert (table.running_episodes, table.abandoned_episodes) == (1, 0)
    writer.close()
    table = check()
    assert (table.running_episodes, table.abandoned_episodes) == (0, 1)
    assert table.ok
    columns = "status, symbol, initial_value, ended_at, total_reward, steps, pnl, reason, fee"
    row = sink.query(f"SELECT {columns} FROM episodes WHERE episode_id = '{episode_id}'")
    assert row == [("abandoned", "AAPL", 10_000.0, None, None, None, None, None, None)]


def test_an_episode_of_an_earlier_attempt_is_abandoned(writer: Writer, log: Log, check: Check, sink: AdminSink) -> None:
    writer.send(payloads.EpisodeStarted(episode_id=writer.publisher.episode(0, 0), **EPISODE_FACTS))
    second = Writer(log, run_id=writer.run_id, attempt=2, role=Role.DRIVER, worker_index=0)
    second.send(
        payloads.AttemptStarted(
            started_at=WALL, resumed_from_iteration=1, host="h", pid=1, num_env_runners=1, num_envs_per_env_runner=1
        )
    )
    assert check().abandoned_episodes == 1


def test_an_unknown_run_is_said_so(sink: AdminSink, reader: Any) -> None:
    with pytest.raises(InputError, match="run 'nope': expected a run that the store knows"):
        check_run(reader, "nope")


def test_runs_do_not_mix(whole: Writer, log: Log, check: Check) -> None:
    other = Writer(log)
    other.episode(0)
    assert check().ok


def test_what_a_real_outbox_and_forwarder_sent_holds(
    tmp_path: Path, log: Log, drain: Drain, sink: AdminSink, reader: Any
) -> None:
    outbox, run_id = tmp_path / "outbox", new_run_id()
    outbox.mkdir()
    ensure_forwarder(outbox, log.address)
    try:
        for worker in (1, 2):
            with Publisher.open(outbox, run_id=run_id, attempt=1, role=Role.RUNNER, worker_index=worker) as publisher:
                for number in range(5):
                    episode_id = publisher.publisher_id.episode(0, number)
                    publisher.publish(
                        payloads.EpisodeStarted(episode_id=episode_id, **{**EPISODE_FACTS, "episode_no": number}),
                        make_trades(episode_id, 4),
                    )
                publisher.tick()
        assert drain_outbox(outbox, timeout_s=20)
    finally:
        stop_forwarder(outbox)
    drain()
    table = check_run(reader, run_id)
    assert table.problems == []
    assert table.ok
    assert table.publishers == 2
    assert sum(line.stored_rows for line in table.lines if line.event_type == "trades") == 40
