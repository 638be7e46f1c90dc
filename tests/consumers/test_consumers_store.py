"""From the log into the tables: every payload, every repeat, every record that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import orjson
from consumers_fixtures import (
    BAR,
    DAY,
    EPISODE_FACTS,
    TOPIC_NAMES,
    WALL,
    AdminSink,
    Writer,
    make_ended,
    make_positions,
    make_steps,
    make_trades,
)

from consumers import letters
from consumers.consumer import GROUP
from eventlog.log import Log, Record
from schemas import payloads
from schemas.ids import Role
from schemas.topics import MAX_RECORD_BYTES, TOPICS

Drain = Callable[..., Any]

TABLES = [
    *("runs_started_rows", "runs_ended_rows", "attempts_rows", "windows_rows", "iterations_rows"),
    *("publisher_reports_rows", "episodes_started_rows", "episodes_ended_rows", "episode_actions_rows", "trades_rows"),
    *("fills_rows", "steps_rows", "events_rows", "dead_letters_rows"),
]


def everything(writer: Writer) -> dict[str, payloads.Payload]:
    """One event of each type, by type."""
    episode_id = writer.publisher.episode(0, 0)
    return {
        payload.EVENT_TYPE: payload
        for payload in (
            payloads.RunStarted(
                name="näme", started_at=WALL, algorithm="DQN", env="millrace/Trading-v0", seed=None,
                parameters={"a": {"b": [1, 2]}}, versions={"ray": "2.60.0"}, notes="it's; a \\ note\n",
            ),
            payloads.RunEnded(status="completed", ended_at=WALL + 1, iterations=3, env_steps=900),
            payloads.AttemptStarted(
                started_at=WALL, resumed_from_iteration=None, host="h", pid=7, num_env_runners=2,
                num_envs_per_env_runner=4,
            ),
            payloads.WindowOpened(
                window_id="w1", data_hash="d1", split="train", feed="stocks", symbols=["AAPL", "IBM"], interval="1d",
                cluster_id="c", topic="millrace.bars.v1", topic_id="t", partitions=[0, 3], start_offsets=[0, 5],
                end_offsets=[10, 20], first_ts=BAR, last_ts=BAR + DAY, bars=30, refused_bars=0, feature_recipe="f",
                bar_policy="strict", scaler_version="s",
            ),
            payloads.IterationEnded(
                iteration=1, env_steps=300, env_steps_total=300, episodes=2, episode_return_mean=None, seconds=1.5,
                policy_version=4,
            ),
            payloads.PublisherReport(
                role="r", worker_index=1, restart=0, node="n", host="h", pid=9, emitted={"trades": 1},
                acknowledged={"trades": 0}, closing=False, closed_by="",
            ),
            payloads.EpisodeStarted(episode_id=episode_id, **EPISODE_FACTS),
            make_ended(episode_id, EPISODE_FACTS, 3),
            payloads.ActionsTaken(episode_id=episode_id, actions=[2, 0, 1]),
            make_trades(episode_id, 3),
            payloads.Fills.model_validate(
                {**{name: [] for name in payloads.Fills.COLUMNS}, "episode_id": episode_id,
                 "split": "test", "policy": "agent", "iteration": 1, "window_id": None}
            ),
            make_steps(episode_id, 4).model_copy(
                update={"price": [1.5, None, None, 2.5], "action": [None, 2.0, None, 0.0], "position": [None] * 4}
            ),
            make_positions(episode_id, 4),
        )
    }  # fmt: skip


VIEW_OF = {
    "attempt.started": "attempts",
    "window.opened": "windows",
    "iteration.ended": "iterations",
    "publisher.report": "publisher_reports",
    "episode.ended": "episodes",
    "trades": "trades",
    "fills": "fills",
    "steps": "steps",
    "positions": "positions",
}


def as_logged(value: Any) -> Any:
    """What a view gives, in the log's terms: times are microseconds."""
    return round(value.timestamp() * 1e6) if hasattr(value, "timestamp") else value


def test_each_payload_comes_out_of_its_view_as_it_went_in(writer: Writer, drain: Drain, sink: AdminSink) -> None:
    sent = everything(writer)
    writer.send(*sent.values())
    drain()
    for event_type, view in VIEW_OF.items():
        payload = sent[event_type].model_dump()
        payload.pop("first_row", None)
        names = sorted(payload)
        order = " ORDER BY row_no" if payload.get("episode_id") and sent[event_type].COLUMNS else ""
        rows = sink.query(f"SELECT {', '.join(names)} FROM {view}{order}")
        columns = sent[event_type].COLUMNS
        for row_no in range(sent[event_type].rows if columns else 1):
            expected = [payload[name][row_no] if name in columns else payload[name] for name in names]
            assert [as_logged(value) for value in rows[row_no]] == expected, event_type
        assert len(rows) == (sent[event_type].rows if columns else 1), event_type
    assert sink.query("SELECT actions, steps, action_kind FROM episode_actions") == [([2.0, 0.0, 1.0], 3, "discrete")]
    run = sink.query(
        "SELECT name, status, algorithm, seed, parameters, versions, iterations, env_steps, notes FROM runs"
    )
    assert run == [
        ("näme", "completed", "DQN", None, '{"a":{"b":[1,2]}}', {"ray": "2.60.0"}, 3, 900, "it's; a \\ note\n")
    ]
    # The ledger has a line for each, with its place on the log; no columns count as one row.
    lines = dict(sink.query("SELECT event_type, rows FROM events"))
    assert lines == {kind: payload.rows if payload.COLUMNS else 1 for kind, payload in sent.items()}
    assert sink.query("SELECT countIf(topic = '' OR published_at < '2020-01-01') FROM events") == [(0,)]


def test_every_record_delivered_twice_changes_no_table(writer: Writer, log: Log, drain: Drain, sink: AdminSink) -> None:
    writer.send(*everything(writer).values())
    writer.episode(1, trades=7)
    drain()
    views = ("runs", "episodes", "trades", "fills", "steps", "episode_actions", "iterations", "windows", "attempts")

    def contents() -> dict[str, Any]:
        found = {view: sorted(map(repr, sink.query(f"SELECT * FROM {view}"))) for view in views}
        found["events"] = sorted(map(repr, sink.query("SELECT event_id, rows, part, parts FROM events")))
        return found

    once = contents()
    writer.put(writer.sent)  # The forwarder sent everything again: the same records at other offsets.
    drain()
    assert contents() == once
    drain(group="another")  # And another group reads the whole log from its start.
    assert contents() == once


def test_a_split_event_is_whole_again_in_the_tables(writer: Writer, drain: Drain, sink: AdminSink) -> None:
    episode_id = writer.publisher.episode(0, 0)
    trades = make_trades(episode_id, 400)
    writer.send(trades, payloads.ActionsTaken(episode_id=episode_id, actions=list(range(900))), max_bytes=3_000)
    drain()
    parts = "SELECT max(parts) > 3, uniqExact(part) = max(parts), sum(rows) FROM events WHERE event_type = 'trades'"
    assert sink.query(parts) == [(True, True, 400)]
    assert [row[0] for row in sink.query("SELECT net_pnl FROM trades ORDER BY row_no")] == trades.net_pnl
    assert sink.query("SELECT actions FROM episode_actions") == [([float(action) for action in range(900)],)]


def test_records_that_cannot_be_read_are_dead_letters_once_and_their_neighbours_are_stored(
    writer: Writer, log: Log, drain: Drain, sink: AdminSink
) -> None:
    good = [writer.record(make_trades(writer.publisher.episode(0, number), 2)) for number in range(8)]
    bad = writer.record(make_trades(writer.publisher.episode(0, 8), 2))
    body = orjson.loads(bad.value)
    wrong_type = orjson.dumps({**body, "data": {**body["data"], "fee": ["secret-value", 1.0]}})
    newer = orjson.dumps({**body, "schema_version": "2.0"})
    poison = {
        "bad JSON": b'{"a": ',
        "not UTF-8": b'{"a": "\xff\xfe"}',
        "empty": b"",
        "NaN": bad.value.replace(b"0.1", b"NaN", 1),
        "wrong type": wrong_type,
        "newer major": newer,
        "past 64 bits": json.dumps({**body, "number": 2**80}).encode(),
        "missing header": bad.value,
    }
    headers = {"missing header": tuple(pair for pair in bad.headers if pair[0] != "ce_id")}
    for neighbour, (name, value) in zip(good, poison.items(), strict=True):
        writer.put([neighbour, Record(bad.topic, bad.key, value, headers.get(name, bad.headers))])
    drain()
    drain()  # The dead letters themselves.
    assert sink.query("SELECT count(), uniqExact(episode_id) FROM trades") == [(16, 8)]
    rows = sink.query(
        "SELECT value, source_topic, run_id, publisher_id, event_type, exception_class, exception_message, key, stage, "
        "resolved FROM dead_letters"
    )
    assert len(rows) == len(poison)
    readable = {str(row[0]): row for row in rows}
    assert readable['{"a": '][1:6] == (
        bad.topic, writer.run_id, str(writer.publisher), "trades", "SchemaError"
    )  # fmt: skip
    assert {row[7:] for row in rows} == {(bad.key.decode(), "VALUE_CONVERTER", False)}
    assert not any("secret-value" in row[6] for row in rows)
    # Each once on its topic, too, as it came and with Kafka Connect's headers.
    topic = TOPICS["dead-letters"].name()
    on_log = log.read(topic, 0, *log.offsets(topic)[0])
    assert sorted(record.value for record in on_log) == sorted(poison.values())
    for record in on_log:
        names = {name.removeprefix("__connect.errors.") for name, _ in record.headers}
        assert {"topic", "partition", "offset", "stage", "class.name", "exception.class.name",
                "exception.message"} <= names  # fmt: skip
        source = dict(record.headers)["__connect.errors.topic"].decode()
        place = [int(dict(record.headers)[f"__connect.errors.{part}"]) for part in ("partition", "offset")]
        assert log.read(source, place[0], place[1], place[1] + 1)[0].value == record.value
    # Sent again in a form that can be read, it lands once, and its dead letters count as resolved.
    writer.put([bad, bad])
    drain()
    assert sink.query("SELECT count() FROM trades") == [(18,)]
    assert sink.query("SELECT count(), countIf(resolved) FROM dead_letters") == [(8, 7)]


def test_a_dead_letter_too_large_for_its_topic_leaves_its_value_at_the_source(
    writer: Writer, log: Log, drain: Drain, sink: AdminSink
) -> None:
    bad = writer.record(make_trades(writer.publisher.episode(0, 0), 2))
    used = len(bad.key) + sum(len(name) + len(content) for name, content in bad.headers)
    writer.put([Record(bad.topic, bad.key, b"x" * (MAX_RECORD_BYTES - used), bad.headers)])
    drain()
    drain()
    (value, message, run_id), = sink.query("SELECT value, exception_message, run_id FROM dead_letters")  # fmt: skip
    assert value == ""
    assert "did not fit beside these headers" in message
    assert run_id == writer.run_id


def test_strangers_on_the_dead_letter_topic_are_stored_as_they_are(
    writer: Writer, drain: Drain, sink: AdminSink
) -> None:
    writer.put([Record(TOPICS["dead-letters"].name(), b"\xff", b"\xfe what?", (("h", b"\xfd"),))])
    drain()
    assert sink.query("SELECT source_topic, run_id, headers FROM dead_letters") == [
        (TOPICS["dead-letters"].name(), "", [{"name": "h", "value": "\\xfd"}])
    ]


def test_an_empty_table_of_trades_is_an_event_without_rows(writer: Writer, drain: Drain, sink: AdminSink) -> None:
    writer.send(make_trades(writer.publisher.episode(0, 0), 0))
    drain()
    assert sink.query("SELECT rows FROM events") == [(0,)]
    assert sink.query("SELECT count() FROM trades") == [(0,)]


def test_a_replay_over_many_months_is_one_insert(writer: Writer, drain: Drain, sink: AdminSink) -> None:
    for month in range(150):  # More partitions than a server takes in one insert by default.
        writer.wall_time = WALL - month * 31 * DAY
        writer.send(payloads.ActionsTaken(episode_id=f"e{month}", actions=[1]))
    drain(batch_rows=1_000, batch_seconds=1.0)
    assert sink.query("SELECT count() FROM events") == [(150,)]


def test_small_batches_commit_as_they_go(writer: Writer, log: Log, drain: Drain, sink: AdminSink) -> None:
    for number in range(6):
        writer.episode(number, trades=10)
    done = drain(batch_rows=1)
    assert done.batches >= 1
    assert done.records == len(writer.sent)
    assert log.lag(GROUP, TOPIC_NAMES) == 0


def test_the_status_of_a_run_follows_its_last_attempt(writer: Writer, log: Log, drain: Drain, sink: AdminSink) -> None:
    driver = Writer(log, run_id=writer.run_id, role=Role.DRIVER, worker_index=0)
    known = everything(writer)

    def status() -> list[tuple[Any, ...]]:
        drain()
        return sink.query("SELECT status, attempts, name FROM runs")

    driver.send(known["run.started"], known["attempt.started"])
    assert status() == [("running", 1, "näme")]
    driver.close()  # Its process died: a forwarder closed it, and no end was published.
    assert status() == [("interrupted", 1, "näme")]
    second = Writer(log, run_id=writer.run_id, role=Role.DRIVER, worker_index=0, attempt=2)
    second.send(known["attempt.started"])
    assert status() == [("running", 2, "näme")]
    second.send(payloads.RunEnded(status="stopped", ended_at=WALL + 9, iterations=3, env_steps=900))
    second.close()
    assert status() == [("stopped", 2, "näme")]


def test_letters_name_their_publisher_by_source_id_or_key() -> None:
    publisher = "01a20724-faec-7b9f-92a6-98b8e508ba6f.1.r1.0.n0de00"
    assert letters._publisher(publisher, "", "") == (publisher[:36], publisher)
    assert letters._publisher("feed/x", publisher + ".0.3", "") == (publisher[:36], publisher)
    assert letters._publisher("", "", publisher[:36]) == (publisher[:36], "")
    assert letters._publisher("", "a.b.c.d.e", "\x00") == ("", "")
