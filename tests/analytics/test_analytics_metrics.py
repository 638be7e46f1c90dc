"""The metrics of an episode are the same numbers in Python, in its event and in SQL over its stored rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from consumers_fixtures import BAR, DAY, EPISODE_FACTS, WALL, Writer, make_ended, make_steps, shared

from analytics.names import ask
from env.bars import SymbolBars
from env.market_data import MarketData
from env.metrics import EpisodeMetrics, episode_metrics
from env.settings import EnvSettings
from env.trading_env import TradingEnv
from schemas import payloads
from trainer.episode_events import EpisodeFacts, recorded

Drain = Callable[..., Any]

NAMES = tuple(EpisodeMetrics.__dataclass_fields__)


class Case:
    """One episode as arrays, and as the events that tell of it."""

    def __init__(
        self, equity: list[float], trades: list[tuple[int, float, int]] = (), actions: Any = None, year: float = 252.0
    ) -> None:
        self.equity = np.array(equity)
        self.steps = len(equity) - 1
        rng = np.random.default_rng(self.steps)
        self.side, self.net_pnl, self.bars = (np.array([row[i] for row in trades]) for i in range(3))
        self.exposure = rng.integers(0, 2, self.steps) * rng.uniform(0.5, 1.5, self.steps)
        self.costs = {name: rng.uniform(-1, 1, self.steps) for name in ("borrow", "funding", "interest")}
        self.quantity = rng.uniform(-10, 10, 2 * len(trades))
        self.price, self.fee, self.slippage = rng.uniform(1, 100, (3, 2 * len(trades)))
        self.actions = rng.integers(0, 3, self.steps) if actions is None else np.array(actions)
        self.year = year

    def metrics(self) -> EpisodeMetrics:
        return episode_metrics(
            self.equity,
            side=self.side,
            net_pnl=self.net_pnl,
            bars=self.bars,
            steps_in_position=int(np.count_nonzero(self.exposure)),
            traded_notional=float(np.abs(self.quantity * self.price).sum()),
            actions=self.actions,
            bars_per_year=self.year,
            fee=float(self.fee.sum()),
            slippage=float(self.slippage.sum()),
            **{name: float(values.sum()) for name, values in self.costs.items()},
        )

    def send(self, writer: Writer, number: int) -> str:
        episode_id = writer.publisher.episode(0, number)
        steps, trades, fills = self.steps, len(self.side), len(self.price)
        facts = {"initial_value": float(self.equity[0]), "steps": steps, "bars_per_year": self.year}
        end = make_ended(episode_id, EPISODE_FACTS, trades).model_copy(update={**facts, **asdict(self.metrics())})
        vectors = self.actions.ndim == 2
        writer.send(
            end,
            payloads.ActionsTaken(episode_id=episode_id, actions=self.actions.tolist()),
            payloads.Steps(
                episode_id=episode_id, symbol="AAPL", **shared("train", "agent"),
                ts=[BAR + row * DAY for row in range(steps)], row=list(range(steps)), value=self.equity[1:].tolist(),
                reward=[0.0] * steps, price=[None] * steps, position=[None] * steps, cash=[0.0] * steps,
                action=[None] * steps if vectors else self.actions.tolist(), exposure=self.exposure.tolist(),
                stale=[False] * steps, policy_version=[None] * steps,
                **{name: values.tolist() for name, values in self.costs.items()},
            ),
            max_bytes=6_000,  # In several records, as long episodes come.
        )  # fmt: skip
        if trades:
            writer.send(
                payloads.Trades.model_validate(
                    {name: [0] * trades for name in payloads.Trades.COLUMNS}
                    | {"episode_id": episode_id, **shared("train", "agent"), "side": self.side.tolist(),
                       "symbol": ["AAPL"] * trades, "exit_kind": ["exit"] * trades,
                       "net_pnl": self.net_pnl.tolist(), "bars": self.bars.tolist()}
                ),
                payloads.Fills.model_validate(
                    {name: [0] * fills for name in payloads.Fills.COLUMNS}
                    | {"episode_id": episode_id, **shared("train", "agent"), "quantity": self.quantity.tolist(),
                       "symbol": ["AAPL"] * fills, "kind": ["entry"] * fills, "operations": ["ENTRY_LONG"] * fills,
                       "price": self.price.tolist(), "fee": self.fee.tolist(), "slippage": self.slippage.tolist()}
                ),
            )  # fmt: skip
        return episode_id


def random_case(seed: int) -> Case:
    rng = np.random.default_rng([seed, 17])
    steps = int(rng.integers(2, 200))
    returns = rng.normal(0.0, rng.choice([1e-4, 0.01, 0.2]), steps)
    equity = 10_000.0 * np.cumprod(np.concatenate([[1.0], 1.0 + np.maximum(returns, -0.9)]))
    count = int(rng.integers(0, 12))
    trades = list(
        zip(
            rng.choice([-1, 1], count).tolist(),
            rng.normal(0, 100, count).tolist(),
            rng.integers(0, 30, count).tolist(),
            strict=True,
        )
    )
    actions = rng.integers(0, 2, (steps, 3)) / 2 if seed % 3 == 0 else None
    return Case(equity.tolist(), trades, actions, year=float(rng.choice([12.0, 252.0, 525_600.0])))


EDGES = {
    "one bar": Case([100.0, 101.0]),
    "flat": Case([100.0] * 6),
    "rising": Case([100.0, 101.0, 103.0, 104.0]),
    "case 13": Case([100.0, 120.0, 90.0, 130.0, 104.0]),
    "the same fall twice": Case([100.0, 50.0, 100.0, 50.0, 100.0, 100.0]),
    "a long peak": Case([100.0, 100.0, 100.0, 90.0, 95.0, 100.0]),
    "never back": Case([100.0, 120.0, 60.0, 70.0]),
    "ruin": Case([100.0, 120.0, -30.0], [(1, -130.0, 1)]),
    "equal returns": Case([1.0, 2.0, 4.0, 8.0, 16.0]),
    "all won": Case([100.0, 110.0, 120.0], [(1, 10.0, 1), (-1, 10.0, 1)]),
    "all lost": Case([100.0, 90.0, 80.0], [(1, -10.0, 1), (1, -10.0, 2)]),
    "nothing won or lost": Case([100.0, 90.0, 80.0], [(-1, 0.0, 1)]),
    "twenty one returns": Case(np.linspace(100.0, 50.0, 22).tolist()),
    "twenty returns": Case(np.linspace(100.0, 50.0, 21).tolist()),
    "too large a year": Case([1.0, 2.0], year=525_600.0),
    "vectors": Case([1.0, 2.0, 1.0, 2.0], actions=[[0.0, 1.0], [0.0, 1.0], [0.0, 0.5]]),
    "one number in a vector": Case([1.0, 2.0, 1.0, 2.0], actions=[[0.5], [0.5], [1.0]]),
}


def check(reader: Any, expected: dict[str, EpisodeMetrics]) -> None:
    """The view and the episodes have these numbers, and no other rows."""
    for source in ("episode_metrics", "episodes"):
        found = ask(reader, f"SELECT episode_id, {', '.join(NAMES)} FROM {source}").dicts()
        assert {row["episode_id"] for row in found} == set(expected)
        for row in found:
            for name in NAMES:
                value, wanted = row[name], getattr(expected[row["episode_id"]], name)
                if wanted is None:
                    assert value is None, (source, row["episode_id"], name, value)
                else:
                    assert value is not None, (source, row["episode_id"], name, wanted)
                    assert math.isfinite(value)
                    assert math.isclose(value, wanted, rel_tol=1e-9, abs_tol=1e-9), (source, name, value, wanted)


def test_sql_computes_what_python_does(writer: Writer, drain: Drain, reader: Any) -> None:
    cases = [*EDGES.values(), *(random_case(seed) for seed in range(40))]
    expected = {case.send(writer, number): case.metrics() for number, case in enumerate(cases)}
    drain()
    check(reader, expected)


COSTLY = {"fee": 0.001, "slippage": 0.0005, "half_spread": 0.01, "borrow": 0.001, "interest": 0.0002, "leverage": 3.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "targets": {},
    "hold_buy_sell": {"actions": "hold_buy_sell", "stop_loss": 0.03, "take_profit": 0.05},
    "weights": {"actions": "weights", "liquidate_at_end": True},
    "quantities": {"actions": "quantities", "max_quantity": 300.0, "maintenance_margin": 0.2},
    "ruin": {"targets": (-20.0, 20.0), "leverage": 20.0},
    "portfolio of targets": {"portfolio": True, "trailing_stop": 0.04},
    "ruin of a portfolio": {"portfolio": True, "targets": (-20.0, 20.0), "leverage": 20.0},
    "portfolio of weights": {"portfolio": True, "actions": "weights"},
    "portfolio of quantities": {
        "portfolio": True,
        "actions": "quantities",
        "protect_by_action": True,
        "stop_loss": 0.1,
    },
}


def bars(symbol: str, seed: int) -> SymbolBars:
    rng = np.random.default_rng([seed, 5])
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.02, 90)))
    open_ = np.concatenate([[100.0], close[:-1]]) * np.exp(rng.normal(0.0, 0.003, 90))
    high, low = np.maximum(open_, close) * 1.01, np.minimum(open_, close) / 1.01
    ts = BAR + np.arange(90) * DAY
    funding = np.where(np.arange(90) % 8 == 0, 0.0005, np.nan)
    return SymbolBars(symbol, 0, ts, ts + DAY, open_, high, low, close, rng.uniform(1e5, 1e6, 90), funding)


@pytest.mark.parametrize("kind", SETTINGS)
def test_sql_computes_what_the_market_model_has_recorded(kind: str, writer: Writer, drain: Drain, reader: Any) -> None:
    settings = EnvSettings.model_validate({"window": 4, "episode_length": 40} | COSTLY | SETTINGS[kind])
    env = TradingEnv(MarketData([bars("AAPL", 1), bars("IBM", 2)]), settings)
    expected = {}
    ruined_in_the_market = False
    for number in range(40, 46):
        env.action_space.seed(number)
        env.reset(seed=number)
        done = False
        while not done:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            done = terminated or truncated
        record = env.episode_record()
        facts = {key: value for key, value in EPISODE_FACTS.items() if key in EpisodeFacts.__dataclass_fields__}
        episode_id = writer.publisher.episode(0, number)
        known = EpisodeFacts(**facts | {"episode_id": episode_id, "episode_no": number})
        nobody = np.zeros(0, dtype=np.int64)
        events = recorded(known, 1, WALL, nobody, record, None, record_steps=True)
        writer.send(*(event.read() if isinstance(event, payloads.Written) else event for event in events))
        expected[episode_id] = record.metrics
        ruined_in_the_market |= record.terminated and bool(record.steps_table["exposure"][-1] != 0)
    drain()
    check(reader, expected)
    assert any(metrics.fee > 0 and metrics.borrow > 0 and metrics.funding != 0 for metrics in expected.values())
    if kind.startswith("ruin"):
        assert any(metrics.total_return <= -1 for metrics in expected.values())
        assert ruined_in_the_market is settings.portfolio  # A single position is closed on its way to 0.
    rows = ask(reader, "SELECT uniqExact(symbol), sum(position * price) FROM positions").rows
    assert (rows[0][0] == 2) is settings.portfolio


def test_only_episodes_whose_steps_are_all_there_have_a_row(writer: Writer, drain: Drain, reader: Any) -> None:
    whole = EDGES["case 13"].send(writer, 0)
    without, partly = (writer.publisher.episode(0, number) for number in (1, 2))
    writer.send(
        make_ended(without, EPISODE_FACTS, 0),
        make_ended(partly, EPISODE_FACTS, 0),  # Of 20 steps.
        make_steps(partly, 4),
        make_steps(writer.publisher.episode(0, 3), 4),  # Steps before the end of their episode.
    )
    drain()
    assert ask(reader, "SELECT episode_id FROM episode_metrics").rows == [(whole,)]
