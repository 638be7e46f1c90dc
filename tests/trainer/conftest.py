"""What the tests of the trainer share: a log with bars on it, an outbox, small jobs, one Ray session."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from env.bars import SymbolBars
from env.market_data import MarketData
from env.settings import EnvSettings
from eventlog.forwarder import drain, stop_forwarder
from eventlog.log import Record
from eventlog.open_log import open_log
from schemas.bars import BarsRecord
from schemas.events import Event, decode
from schemas.ids import PublisherId, new_run_id
from schemas.topics import EVENT_TOPICS, TOPICS
from trainer.callbacks import EventCallbacks
from trainer.loop import Job, TrainResult, train
from trainer.ray_session import start_ray
from trainer.settings import AlgorithmSettings, DataSettings, EventSettings, OutboxSettings, TrainSettings

# For the modules beside this one that several tests import.
sys.path.insert(0, str(Path(__file__).parent))

DAY = 86_400_000_000

SMALL_ENV = EnvSettings(window=4, episode_length=40)

# The smallest runs that still learn something in every iteration.
SMALL_TABLES: dict[str, dict[str, dict[str, Any]]] = {
    "DQN": {
        "training": {"num_steps_sampled_before_learning_starts": 100, "train_batch_size": 32},
        "reporting": {"min_sample_timesteps_per_iteration": 200},
    },
    "PPO": {
        "training": {"train_batch_size_per_learner": 200, "minibatch_size": 100, "num_epochs": 1},
        "reporting": {"min_sample_timesteps_per_iteration": 0},
    },
}


def make_bars(symbol: str, count: int, seed: int = 1, first: int = 0) -> SymbolBars:
    """Daily bars of a random walk from day ``first`` on."""
    rng = np.random.default_rng([seed, *symbol.encode()])
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, count)))
    open_ = close * np.exp(rng.normal(0.0, 0.003, count))
    high, low = np.maximum(open_, close) * 1.002, np.minimum(open_, close) / 1.002
    ts = (np.arange(count, dtype=np.int64) + first) * DAY
    return SymbolBars(symbol, 0, ts, ts + DAY, open_, high, low, close, rng.uniform(1e5, 1e6, count))


def make_record(bars: SymbolBars, start: int, stop: int, feed: str = "walk", adjusted: bool = True) -> BarsRecord:
    """The bars' record for the rows ``start`` to ``stop``."""
    columns = ("ts_open", "ts_close", "open", "high", "low", "close", "volume")
    rows = {name: getattr(bars, name)[start:stop].tolist() for name in columns}
    return BarsRecord(feed=feed, symbol=bars.symbol, interval="1d", adjusted=adjusted, wall_time=1, **rows)


@dataclass
class Run:
    """The events of a finished run; ``seen`` is for what a test has observed besides."""

    events: list[Event]
    result: TrainResult | None = None
    seen: list[Any] = field(default_factory=list)

    def of(self, event_type: str, **wanted: Any) -> list[Any]:
        """Payloads of a type whose fields have the wanted values."""
        return [
            event.data
            for event in self.events
            if event.event_type == event_type and all(getattr(event.data, name) == wanted[name] for name in wanted)
        ]

    def agent(self, split: str = "train") -> list[Any]:
        """Ended episodes of the agent."""
        return self.of("episode.ended", policy="agent", split=split)

    def publishers(self) -> dict[str, PublisherId]:
        """Who published, by role, worker and restart, such as "r1.0"."""
        found = {PublisherId.parse(event.publisher_id) for event in self.events}
        return {f"{one.role}{one.worker_index}.{one.restart}": one for one in found}


@dataclass
class Bench:
    """A log and an outbox under one directory, and what was published on them."""

    root: Path
    run_id: str = field(default_factory=new_run_id)

    def __post_init__(self) -> None:
        (self.root / "log").mkdir(parents=True)
        with open_log(self.address) as log:
            log.ensure_topics(list(TOPICS.values()), "millrace")

    @property
    def address(self) -> str:
        return f"sqlite:{self.root / 'log'}"

    @property
    def outbox(self) -> OutboxSettings:
        return OutboxSettings(directory=self.root / "outbox")

    def open_log(self) -> Any:
        """The log, open."""
        return open_log(self.address)

    def send(self, *records: BarsRecord) -> None:
        """Put bars on the log."""
        with open_log(self.address) as log, log.producer() as producer:
            producer.send([Record(TOPICS["bars"].name(), *record.encode()) for record in records])

    def send_walks(self, *symbols: str, count: int = 300) -> None:
        """Put a random walk of each symbol on the log."""
        walks = [make_bars(symbol, count) for symbol in symbols]
        self.send(*(make_record(bars, 0, count) for bars in walks))

    def settings(self, **more: Any) -> EventSettings:
        """What callbacks need to publish here."""
        given = {"run_id": self.run_id, "attempt": 1, "log": self.address, "outbox": self.outbox} | more
        return EventSettings(**given)

    def callbacks(self, **more: Any) -> Callable[[], EventCallbacks]:
        """For ``config.callbacks()``."""
        return partial(EventCallbacks, self.settings(**more))

    def job(self, name: str = "DQN", runners: int = 0, envs: int = 2, **more: Any) -> Job:
        """A small job on the feed "walk"; ``tables``, ``train`` and ``env`` override single settings."""
        tables = {method: dict(arguments) for method, arguments in SMALL_TABLES[name].items()}
        tables |= {
            "env_runners": {"num_env_runners": runners, "num_envs_per_env_runner": envs},
            "rl_module": {"model_config": {"fcnet_hiddens": [16], "fcnet_activation": "relu"}},
        }
        for method, arguments in more.pop("tables", {}).items():
            tables[method] = {**tables.get(method, {}), **arguments}
        settings = {"seed": 7, "iterations": 2, "checkpoint_every": 0, **more.pop("train", {})}
        return Job(
            data=DataSettings(feed="walk"),
            env=SMALL_ENV.model_copy(update=more.pop("env", {})),
            algorithm=AlgorithmSettings(name=name, **tables),
            train=TrainSettings(**settings),
            outbox=self.outbox,
            log_address=self.address,
            folder=self.root / "runs",
            **more,
        )

    def train(self, job: Job, **hooks: Any) -> Run:
        """Run the job to its end, and wait for its events."""
        quiet: dict[str, Any] = {
            "say": lambda line: None,
            "on_iteration": lambda iteration: None,
            "should_stop": lambda: False,
        }
        with open_log(self.address) as log:
            result = train(job, log, **(quiet | hooks))
        return self.run(result)

    def run(self, result: TrainResult | None = None) -> Run:
        """All events of all attempts, once the forwarder has sent the last; in order within publisher and type."""
        assert drain(self.outbox.directory, 30.0), "the outboxes were not empty within 30 s"
        found: dict[str, Event] = {}
        with open_log(self.address) as log:
            for topic in (TOPICS[short].name() for short in EVENT_TOPICS):
                for partition, (start, end) in log.offsets(topic).items():
                    while start < end and (records := log.read(topic, partition, start, end)):
                        for record in records:
                            event = decode(record.value, record.headers)
                            found[event.event_id] = event
                        start = records[-1].offset + 1
        order = sorted(
            found.values(), key=lambda event: (event.publisher_id, event.event_type, event.number, event.part)
        )
        return Run(order, result)

    def close(self) -> None:
        if self.outbox.directory.exists():
            stop_forwarder(self.outbox.directory)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for all tests: each start costs seconds."""
    start_ray(num_cpus=8, object_store_mb=128)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def new_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Bench]]:
    """Makes benches, for fixtures that live as long as a module."""
    made: list[Bench] = []

    def make() -> Bench:
        made.append(Bench(tmp_path_factory.mktemp("bench") / "here"))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "here")
    yield made
    made.close()


@pytest.fixture(scope="session")
def bars() -> Callable[..., SymbolBars]:
    return make_bars


@pytest.fixture(scope="session")
def record() -> Callable[..., BarsRecord]:
    return make_record


@pytest.fixture
def market() -> MarketData:
    """Two symbols of 300 daily bars."""
    return MarketData([make_bars("AAA", 300), make_bars("BBB", 300)])
