"""A real local store, a real SQLite log, and a writer of events that stands for many publishers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from analytics.connect import connect
from consumers.consumer import GROUP, run_consumer, source_topics
from consumers.sink import Sink
from eventlog.log import Log, Record
from eventlog.open_log import open_log
from local.store import StoreAddress, start_store, stop_store
from schemas import payloads
from schemas.events import Event
from schemas.ids import PublisherId, Role, new_run_id
from schemas.topics import EVENT_TOPICS, TOPICS

WALL = 1_780_000_000_000_000  # 2026-05-28: when the events of these tests were made.
BAR = 1_400_000_000_000_000
DAY = 86_400_000_000

ALL_TOPICS = [TOPICS[short] for short in (*EVENT_TOPICS, "dead-letters")]
TOPIC_NAMES = source_topics()

EPISODE_FACTS: dict[str, Any] = {
    "rllib_episode_id": "abc",
    "role": "r",
    "worker_index": 1,
    "env_index": 0,
    "episode_no": 0,
    "env": "millrace/Trading-v0",
    "policy": "agent",
    "split": "train",
    "iteration": 1,
    "started_at": WALL,
    "symbol": "AAPL",
    "window_id": "w1",
    "start_row": 7,
    "initial_value": 10_000.0,
}


@dataclass
class Writer:
    """One publisher's life: numbers its events as the outbox does, and sends them to the log."""

    log: Log
    run_id: str = field(default_factory=new_run_id)
    role: Role = Role.RUNNER
    worker_index: int = 1
    attempt: int = 1
    emitted: dict[str, int] = field(default_factory=dict)
    sent: list[Record] = field(default_factory=list)
    wall_time: int = WALL

    @property
    def publisher(self) -> PublisherId:
        return PublisherId(self.run_id, self.attempt, self.role, self.worker_index, 0, "n0de00")

    def event(self, payload: payloads.Payload) -> Event:
        kind = payload.EVENT_TYPE
        self.emitted[kind] = self.emitted.get(kind, 0) + 1
        self.wall_time += 1_000
        return Event(
            event_type=kind,
            run_id=self.run_id,
            attempt=self.attempt,
            publisher_id=str(self.publisher),
            number=self.emitted[kind],
            rows=payload.rows,
            wall_time=self.wall_time,
            data=payload,
        )

    def record(self, payload: payloads.Payload) -> Record:
        event = self.event(payload)
        key, value, headers = event.encode()
        return Record(TOPICS[payload.TOPIC].name(), key, value, headers)

    def send(self, *events: payloads.Payload, max_bytes: int = 1_000_000) -> None:
        records = []
        for payload in events:
            for part in self.event(payload).split(max_bytes):
                key, value, headers = part.encode()
                records.append(Record(TOPICS[payload.TOPIC].name(), key, value, headers))
        self.put(records)

    def put(self, records: Sequence[Record]) -> None:
        with self.log.producer() as producer:
            producer.send(records)
        self.sent += records

    def close(self) -> None:
        emitted = {**self.emitted, "publisher.report": self.emitted.get("publisher.report", 0) + 1}
        self.send(
            payloads.PublisherReport(
                role=self.role,
                worker_index=self.worker_index,
                restart=0,
                node="n0de00",
                host="here",
                pid=1,
                emitted=emitted,
                acknowledged=emitted,
                closing=True,
                closed_by="publisher",
            )
        )

    def episode(
        self, number: int, trades: int = 5, *, split: str = "train", policy: str = "agent", **facts: Any
    ) -> str:
        """An episode from start to end, with its actions, trades, fills and steps."""
        episode_id = self.publisher.episode(0, number)
        known = {**EPISODE_FACTS, "episode_no": number, "split": split, "policy": policy, **facts}
        self.send(
            payloads.EpisodeStarted(episode_id=episode_id, **known),
            make_trades(episode_id, trades, split=split, policy=policy, symbol=known["symbol"]),
            make_fills(episode_id, trades, split=split, policy=policy, symbol=known["symbol"]),
            payloads.ActionsTaken(episode_id=episode_id, actions=[1, 0, 2][: max(1, trades)]),
            make_ended(episode_id, known, trades),
        )
        return episode_id


def make_ended(episode_id: str, known: dict[str, Any], trades: int) -> payloads.EpisodeEnded:
    return payloads.EpisodeEnded(
        episode_id=episode_id,
        **known,
        ended_at=WALL + 5_000_000,
        terminated=False,
        truncated=True,
        reason="length",
        steps=20,
        total_reward=0.25,
        first_policy_version=3,
        last_policy_version=4,
        action_counts={"0": 5, "1": 15},
        data_hash="d1",
        settings_hash="s1",
        env_seed="12345678901234567890",
        first_ts=BAR,
        last_ts=BAR + 20 * DAY,
        final_value=10_100.0,
        pnl=100.0,
        sharpe=0.05,
        max_drawdown=0.02,
        win_rate=0.6,
        gross_pnl=110.0,
        fee=8.0,
        slippage=1.5,
        borrow=2.0,
        funding=0.5,
        interest=0.25,
        symbols=[known["symbol"]],
        bars_per_year=252.0,
        open_quantity=0.0,
        trade_count=trades,
        fill_count=2 * trades,
    )


def shared(split: str, policy: str) -> dict[str, Any]:
    return {"split": split, "policy": policy, "iteration": 1, "window_id": "w1"}


def make_trades(
    episode_id: str, rows: int, split: str = "train", policy: str = "agent", symbol: str = "AAPL"
) -> payloads.Trades:
    each = range(rows)
    return payloads.Trades(
        episode_id=episode_id,
        **shared(split, policy),
        symbol=[symbol] * rows,
        side=[1 if row % 2 else -1 for row in each],
        quantity=[1.5 + row for row in each],
        entry_ts=[BAR + row * DAY for row in each],
        exit_ts=[BAR + (row + 1) * DAY for row in each],
        entry_row=list(each),
        exit_row=[row + 1 for row in each],
        entry_price=[100.25 + row for row in each],
        exit_price=[101.5 + row for row in each],
        gross_pnl=[1.25 * row for row in each],
        fee=[0.1] * rows,
        slippage=[0.01] * rows,
        borrow=[0.0] * rows,
        funding=[0.0] * rows,
        net_pnl=[1.25 * row - 0.1 for row in each],
        bars=[1] * rows,
        exit_kind=["action"] * rows,
        entry_policy_version=[3 if row % 2 else None for row in each],
        exit_policy_version=[4] * rows,
    )


def make_fills(
    episode_id: str, trades: int, split: str = "train", policy: str = "agent", symbol: str = "AAPL"
) -> payloads.Fills:
    rows = 2 * trades
    each = range(rows)
    return payloads.Fills(
        episode_id=episode_id,
        **shared(split, policy),
        symbol=[symbol] * rows,
        trade_no=[row // 2 for row in each],
        step=list(each),
        decided_ts=[BAR + row * DAY for row in each],
        ts=[BAR + row * DAY + 1 for row in each],
        row=list(each),
        quantity=[1.0 if row % 2 == 0 else -1.0 for row in each],
        price=[100.0 + row for row in each],
        reference_price=[100.0 + row for row in each],
        fee=[0.05] * rows,
        slippage=[0.005] * rows,
        kind=["action"] * rows,
        operations=["ENTRY_LONG" if row % 2 == 0 else "EXIT_LONG" for row in each],
        position_after=[1.0 if row % 2 == 0 else 0.0 for row in each],
        policy_version=[3] * rows,
    )


def make_steps(episode_id: str, rows: int) -> payloads.Steps:
    each = range(rows)
    return payloads.Steps(
        episode_id=episode_id,
        **shared("train", "agent"),
        symbol="AAPL",
        ts=[BAR + row * DAY for row in each],
        row=list(each),
        value=[10_000.0 + row for row in each],
        reward=[0.001] * rows,
        price=[100.0 + row for row in each],
        action=[float(row % 3) for row in each],
        position=[1.0] * rows,
        cash=[9_000.0] * rows,
        exposure=[0.1] * rows,
        borrow=[0.0] * rows,
        funding=[0.0] * rows,
        interest=[0.0] * rows,
        stale=[row % 2 == 0 for row in each],
        policy_version=[None] * rows,
    )


def make_positions(episode_id: str, steps: int, symbols: Sequence[str] = ("AAPL", "IBM")) -> payloads.Positions:
    each = [(step, number) for step in range(steps) for number in range(len(symbols))]
    return payloads.Positions(
        episode_id=episode_id,
        **shared("train", "agent"),
        step=[step for step, _ in each],
        symbol=[symbols[number] for _, number in each],
        price=[100.0 + step + 0.5 * number for step, number in each],
        position=[float(number - step) for step, number in each],
        stale=[step == number for step, number in each],
    )


class AdminSink(Sink):
    """A sink that can also be asked."""

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.client.query(sql, settings={"database": self.database}).result_rows]


@pytest.fixture(scope="package")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreAddress]:
    """One local store for all tests of a folder."""
    state = tmp_path_factory.mktemp("store")
    yield start_store(state)
    stop_store(state)


@pytest.fixture
def fresh() -> None:
    """Ask for it where a test changes tables: it gets a database of its own."""


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """One database for all tests, emptied before each: making one takes longer than most tests."""
    return f"of_{tmp_path.name}" if "fresh" in request.fixturenames else "shared"


def url_of(address: StoreAddress, database: str, user: str | None = None) -> str:
    return f"http://{user or address.user}@{address.host}:{address.port}/{database}"


@pytest.fixture
def url(store: StoreAddress, database: str) -> str:
    return url_of(store, database)


@pytest.fixture
def password(store: StoreAddress) -> str:
    return store.password.get_secret_value()


@pytest.fixture
def sink(url: str, password: str, database: str) -> Iterator[AdminSink]:
    with AdminSink.connect(url, password) as connected:
        connected.migrate()
        for (table,) in connected.query("SELECT name FROM system.tables WHERE database = currentDatabase() "
                                        "AND name LIKE '%\\_rows' AND total_rows > 0"):  # fmt: skip
            connected.query(f"TRUNCATE TABLE {table}")
        yield connected
        if database != "shared":
            connected.query(f"DROP DATABASE {database}")


@pytest.fixture
def reader(sink: Sink, url: str, password: str) -> Iterator[Any]:
    client = connect(url, password)
    yield client
    client.close()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    (tmp_path / "log").mkdir()
    with open_log(f"sqlite:{tmp_path / 'log'}") as opened:
        opened.ensure_topics(ALL_TOPICS, "millrace")
        yield opened


@pytest.fixture
def writer(log: Log) -> Writer:
    return Writer(log)


@pytest.fixture
def drain(log: Log, sink: Sink) -> Callable[..., Any]:
    """Consume until nothing is left on the log."""

    def run(group: str = GROUP, **settings: Any) -> Any:
        stop = threading.Event()

        def watch(_progress: object) -> None:
            if log.lag(group, TOPIC_NAMES) == 0:
                stop.set()

        if log.lag(group, TOPIC_NAMES) == 0:
            return None
        return run_consumer(log, sink, group=group, stop=stop, on_progress=watch, **{"batch_seconds": 0.05, **settings})

    return run
