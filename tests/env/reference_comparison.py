"""How the market model and the reference simulator are run beside each other and compared."""

from __future__ import annotations

import dataclasses
import math
import random
from decimal import Decimal

import numpy as np
from reference_account import Bar
from reference_simulator import ReferenceSimulator

from env.market_data import MarketData, SymbolBars
from env.settings import EnvSettings
from env.trading_env import TradingEnv

DAY = 86_400_000_000
NEAR = Decimal("1e-10")
TOLERANCE = 1e-9
OBSERVATION_LIMIT = 10.0
COSTS = ("fee", "slippage", "borrow", "funding")


@dataclasses.dataclass(frozen=True)
class Market:
    """What bars are like: hypothesis draws this, and a seed draws the bars."""

    seed: int
    rows: int
    symbols: int
    volatility: float
    missing: float
    thin: float


def on_grid(price: float) -> float:
    return max(round(price * 4) / 4, 2.0)


def column_of(market: Market, number: int) -> list[tuple[float, ...]]:
    """Open, high, low, close, volume, funding of each row: on a grid of quarters, with gaps, splits, dead bars."""
    rng = random.Random(f"{market.seed} {number}")
    price, rows = rng.choice([37.0, 103.0, 411.0]), []
    for _ in range(market.rows):
        price = on_grid(price * rng.choice([1.0] * 20 + [0.5, 2.0]))
        open_ = on_grid(price * math.exp(rng.gauss(0.0, market.volatility / 2)))
        close = on_grid(open_ * math.exp(rng.gauss(0.0, market.volatility)))
        high = on_grid(max(open_, close) * (1 + abs(rng.gauss(0.0, market.volatility / 2))))
        low = on_grid(min(open_, close) * (1 - min(abs(rng.gauss(0.0, market.volatility / 2)), 0.9)))
        if rng.random() < 0.05:
            open_ = high = low = close = price
        volume = (
            rng.choice([0.0, math.nan, 0.7, 3.0, 17.0]) if rng.random() < market.thin else float(rng.randint(50, 5_000))
        )
        funding = rng.choice([0.0, 0.00131, -0.00217, math.nan])
        rows.append((open_, high, low, close, volume, funding))
        price = close
    return rows


def bars_of(market: Market, portfolio: bool) -> tuple[MarketData, list[list[Bar | None]]]:
    """Make the same bars for both: a missing bar is NaN, or in a portfolio a time that the symbol does not have."""
    rng = random.Random(market.seed)
    data, columns = [], []
    for number in range(market.symbols):
        rows = column_of(market, number)
        missing = [row > 0 and rng.random() < market.missing for row in range(market.rows)]
        columns.append([None if gone else Bar.of(row[:4], *row[4:]) for row, gone in zip(rows, missing, strict=True)])
        # The first symbol has every time: a time that no symbol has is not on the clock.
        absent = [portfolio and number > 0 and gone and rng.random() < 0.5 for gone in missing]
        table = np.array([(math.nan,) * 6 if gone else row for row, gone in zip(rows, missing, strict=True)])
        kept = ~np.array(absent)
        ts = np.arange(market.rows, dtype=np.int64)[kept] * DAY
        data.append(SymbolBars(f"S{number}", 100 * number, ts, ts + DAY, *table[kept].T))
    return MarketData(data), columns


class Agent:
    """Random actions: held, repeated, extreme, and anything between."""

    def __init__(self, env: TradingEnv, options: EnvSettings, seed: int, stay: float) -> None:
        self.rng = random.Random(seed)
        self.space, self.options, self.stay = env.action_space, options, stay
        self.last: np.ndarray | None = None

    def act(self) -> np.ndarray:
        if self.last is None or self.rng.random() > self.stay:
            self.last = self._new()
        return self.last

    def _new(self) -> np.ndarray:
        if self.options.discrete:
            count = getattr(self.space, "nvec", None)
            sizes = [self.space.n] if count is None else list(count)
            return np.array([self.rng.randrange(int(size)) for size in sizes])
        numbers = [self._between(low, high) for low, high in zip(self.space.low, self.space.high, strict=True)]
        return np.array(numbers, dtype=np.float32)

    def _between(self, low: float, high: float) -> float:
        draw = self.rng.random()
        if draw < 0.3:
            return self.rng.choice([low, high, 0.0, 0.0])
        value = self.rng.uniform(low, high) * (1.0 if draw < 0.6 else 0.1)
        return round(value) if self.options.actions == "quantities" and draw > 0.8 and high > 1 else value


def of_reference(
    action: np.ndarray, options: EnvSettings, symbols: int
) -> tuple[list[float], list[list[float]] | None]:
    if options.discrete:
        return [int(item) for item in action], None
    rows = action.astype(np.float64).reshape(symbols, -1).tolist()
    return [row[0] for row in rows], [row[1:] for row in rows]


def check_episode(options: EnvSettings, market: Market, stay: float) -> str:
    """Run both over one episode and compare; return how it ended: a reason, or "near" where the comparison stopped."""
    data, columns = bars_of(market, options.portfolio)
    env = TradingEnv(data, options)
    _, info = env.reset(seed=market.seed)
    if options.portfolio:
        first, symbols = info["start_row"], list(data.symbols)
    else:
        number = data.number(info["symbol"])
        first, symbols, columns = info["start_row"] - 100 * number, [info["symbol"]], [columns[number]]
    run = ReferenceSimulator(columns, options, first)
    agent = Agent(env, options, market.seed, stay)
    ended = False
    while not ended:
        action = agent.act()
        given = int(action[0]) if options.discrete and not options.portfolio else action
        observation, reward, terminated, truncated, _ = env.step(given)
        expected, ruined, cut = run.step(*of_reference(action, options, len(symbols)))
        if run.nearest < NEAR:
            return "near"
        assert (terminated, truncated) == (ruined, cut), f"step {run.steps}: {run.reason}"
        compare_step(env, run, reward / options.reward_scale, float(expected), observation)
        ended = terminated or truncated
    compare_books(env, run, symbols)
    return run.reason


def scale_of(run: ReferenceSimulator) -> float:
    """Money that went through the books."""
    return float(run.equity[0] + sum(abs(fill.quantity * fill.price) for fill in run.fills))


def agree(actual: object, expected: object, allowed: object, what: str) -> None:
    """Demand that numbers or arrays differ by no more than ``allowed``."""
    left, right = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert left.shape == right.shape, f"{what}: {left.shape} {right.shape}"
    wrong = ~(np.abs(left - right) <= allowed)
    assert not wrong.any(), f"{what}: {left[wrong]} is not {right[wrong]} at {np.flatnonzero(wrong)}"


def arrays_of(items: list, names: tuple[str, ...]) -> list[np.ndarray]:
    return [np.array([float(getattr(item, name)) for item in items]) for name in names]


def compare_step(env: TradingEnv, run: ReferenceSimulator, reward: float, expected: float, seen: np.ndarray) -> None:
    """Reward and account after a step: the fills and the equity of all steps are compared at the end."""
    scale, before, after = scale_of(run), float(run.equity[-2]), float(run.equity[-1])
    allowed = TOLERANCE * scale
    if run.settings.reward != "pnl":
        allowed = TOLERANCE * (scale / before + scale / max(after, 1e-6 * before))
    if run.settings.reward == "differential_sharpe":
        # The formula divides by the variance to the power of 3/2.
        allowed += 1e-15 * scale / before / max(float(run.variance), 1e-12) ** 1.5
    agree(reward, expected, allowed, f"step {run.steps}, reward")
    if after > 1e-3 * scale:
        account = run.account()
        wanted = np.array([float(item) for name in run.settings.position_features for item in account[name]])
        clipped = np.clip(wanted, -OBSERVATION_LIMIT, OBSERVATION_LIMIT)
        float32 = 1e-6 * np.maximum(np.abs(clipped), 1.0)
        agree(seen[-len(wanted) :], clipped, float32, f"step {run.steps}, account")


def compare_books(env: TradingEnv, run: ReferenceSimulator, symbols: list[str]) -> None:
    record, scale = env.episode_record(), scale_of(run)
    money = TOLERANCE * scale
    assert (record.reason, record.steps) == (run.reason, run.steps)

    fills = record.fills
    told = list(zip(fills["symbol"], fills["step"], fills["kind"], strict=True))
    assert told == [(symbols[fill.symbol], fill.step, fill.kind) for fill in run.fills]
    names = ("price", "reference", "fee", "slippage", "quantity", "position_after")
    price, reference, fee, slippage, quantity, after = arrays_of(run.fills, names)
    agree(fills["price"], price, TOLERANCE * price, "price")
    agree(fills["reference_price"], reference, TOLERANCE * reference, "reference price")
    agree(fills["fee"], fee, money, "fee")
    agree(fills["slippage"], slippage, money, "slippage")
    agree(fills["quantity"], quantity, money / price, "quantity")
    agree(fills["position_after"], after, money / price, "position after")

    trades = record.trades
    told = list(zip(trades["symbol"], trades["side"], trades["exit_kind"], trades["bars"], strict=True))
    assert told == [(symbols[t.symbol], t.side, t.exit_kind, t.exit_step - t.entry_step) for t in run.trades]
    entry, exit_, quantity, *costs = arrays_of(run.trades, ("entry_price", "exit_price", "quantity", *COSTS))
    agree(trades["entry_price"], entry, TOLERANCE * entry, "entry price")
    agree(trades["exit_price"], exit_, TOLERANCE * exit_, "exit price")
    agree(trades["quantity"], quantity, money / entry, "largest quantity")
    for name, expected in zip(COSTS, costs, strict=True):
        agree(trades[name], expected, money, f"{name} of a trade")
    agree(trades["gross_pnl"], [float(trade.gross_pnl()) for trade in run.trades], money, "gross pnl")
    agree(trades["net_pnl"], [float(trade.net_pnl()) for trade in run.trades], money, "net pnl")

    agree(record.final_value, float(run.equity[-1]), money, "final value")
    agree(record.interest, float(run.interest), money, "interest")
    if run.settings.record == "steps":
        agree(record.steps_table["value"], [float(value) for value in run.equity[1:]], money, "equity")
        agree(record.steps_table["cash"][-1], float(run.cash), money, "cash")
    # The reference must close its own books too.
    open_pnl = sum(h.trade.net_pnl(h.position, h.price) for h in run.holdings if h.trade is not None)
    closed = sum(trade.net_pnl() for trade in run.trades)
    agree(float(closed + open_pnl + run.interest), float(run.equity[-1] - run.equity[0]), money, "identity")


def follow(options: EnvSettings, bars: list[SymbolBars], columns: list[list[Bar | None]], actions: list) -> list[str]:
    """Run both on given actions, compare without leaving out near decisions, and return the kinds of the fills."""
    env = TradingEnv(MarketData(bars), options)
    _, info = env.reset()
    run = ReferenceSimulator(columns, options, info["start_row"])
    for action in actions:
        _, _, terminated, truncated, _ = env.step(np.array(action))
        assert (terminated, truncated) == run.step(action)[1:]
    compare_books(env, run, [item.symbol for item in bars])
    return [fill.kind for fill in run.fills]
