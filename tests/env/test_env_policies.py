"""Baselines: what they do is computed here a second time, from the bars alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from env.episode_record import EpisodeRecord
from env.market_data import MarketData
from env.market_model import MarketModel
from env.policies import Policy, Seen, Trader, baselines, buy_and_hold, flat, momentum, play, sma_cross
from env.settings import EnvSettings

ACTIONS = ("targets", "hold_buy_sell", "weights", "quantities")
ALL = {"flat", "buy_and_hold", "sma_cross", "momentum", "random"}
FREE: dict[str, Any] = {"window": 4, "starts": "whole", "fee": 0.0, "slippage": 0.0, "max_quantity": 1e6}


def settings_of(actions: str = "targets", **more: Any) -> EnvSettings:
    return EnvSettings.model_validate(FREE | {"actions": actions} | more)


def model_of(data: MarketData, settings: EnvSettings, seed: int = 7) -> MarketModel:
    return MarketModel(data, settings, None, None, [np.random.default_rng(seed)])


@pytest.fixture
def market(make_bars: Callable[..., Any], prices_of: Callable[..., Any]) -> MarketData:
    """Two symbols of 200 bars, at different base rows."""
    return MarketData([make_bars(prices_of(1, 200), "AAA", base_row=30), make_bars(prices_of(2, 200), "BBB")])


def start_of(data: MarketData, settings: EnvSettings) -> int:
    """Index of the first observation."""
    return data.lookback + settings.window - 1


@pytest.mark.parametrize("portfolio", [False, True])
@pytest.mark.parametrize("actions", ACTIONS)
def test_flat_never_trades(market: MarketData, actions: str, portfolio: bool) -> None:
    settings = settings_of(actions, portfolio=portfolio)
    record = play(model_of(market, settings), flat, None if portfolio else "AAA")
    assert (len(record.fills["step"]), record.pnl) == (0, 0.0)
    assert record.reason == "end_of_data"


@pytest.mark.parametrize("actions", ACTIONS)
def test_buy_and_hold_is_what_the_bars_say(market: MarketData, actions: str) -> None:
    settings = settings_of(actions, fee=0.001, slippage=0.0005)
    for number, symbol in enumerate(market.symbols):
        record = play(model_of(market, settings), buy_and_hold, symbol)
        bars, start = market.bars(number), start_of(market, settings)
        price = bars.open[start + 1] * 1.0005
        # An order for a quantity is sized at the close before, the others where they fill.
        units = 10_000.0 / (bars.close[start] * 1.0015 if actions == "quantities" else price * 1.001)
        cash = 10_000.0 - units * price * 1.001
        tolerance = 1e-9 if actions != "quantities" else 0.02
        assert record.final_value == pytest.approx(units * bars.close[-1] + cash, rel=tolerance)
        assert record.trades["side"].size == 0
        traded = np.abs(record.fills["quantity"])
        assert traded[0] == pytest.approx(units, rel=tolerance)
        assert traded[1:].sum() <= 1e-9 * traded[0]


def test_buy_and_hold_of_a_portfolio_buys_all_alike_and_lets_them_drift(market: MarketData) -> None:
    settings = settings_of("targets", portfolio=True)
    record = play(model_of(market, settings), buy_and_hold)
    start = start_of(market, settings)
    growth = [market.bars(number).close[-1] / market.bars(number).open[start + 1] for number in (0, 1)]
    assert record.final_value == pytest.approx(5_000.0 * sum(growth))
    assert record.fills["symbol"].tolist() == ["AAA", "BBB"]


def test_weights_of_a_portfolio_are_held_but_for_the_drift_to_the_open(market: MarketData) -> None:
    settings = settings_of("weights", portfolio=True)
    record = play(model_of(market, settings), buy_and_hold)
    values = np.abs(record.fills["quantity"] * record.fills["price"])
    assert values[:2] == pytest.approx(5_000.0, rel=1e-9)
    rebalanced = settings_of("weights", portfolio=True)
    always = play(model_of(market, rebalanced), lambda seen: np.array([0.5, 0.5]) + 1e-9 * (seen.closes.shape[1] % 2))
    # From close to open moves half as much as from open to open: half the bars' range is not in it.
    assert record.metrics.turnover < always.metrics.turnover


@pytest.mark.parametrize("actions", ["targets", "weights"])
def test_sma_cross_is_long_above_and_short_below(market: MarketData, actions: str) -> None:
    settings = settings_of(actions)
    record = play(model_of(market, settings), sma_cross(5, 20), "AAA")
    closes, start = market.bars(0).close, start_of(market, settings)
    for step, position in enumerate(record.steps_table["position"]):
        known = closes[: start + step + 1]
        expected = np.sign(known[-5:].mean() - known[-20:].mean()) if len(known) >= 20 else 0.0
        assert np.sign(position) == expected, step
    assert set(np.sign(record.steps_table["position"])) == {-1.0, 0.0, 1.0}


def test_momentum_follows_the_change_over_its_bars(market: MarketData) -> None:
    settings = settings_of()
    record = play(model_of(market, settings), momentum(10), "BBB")
    closes, start = market.bars(1).close, start_of(market, settings)
    for step, position in enumerate(record.steps_table["position"]):
        now = start + step
        assert np.sign(position) == (np.sign(closes[now] - closes[now - 10]) if now >= 10 else 0.0), step


@pytest.mark.parametrize("portfolio", [False, True])
@pytest.mark.parametrize("actions", ACTIONS)
def test_random_is_drawn_from_its_generator_and_fits_the_actions(
    market: MarketData, actions: str, portfolio: bool
) -> None:
    settings = settings_of(actions, portfolio=portfolio)

    def played(seed: int) -> EpisodeRecord:
        policy = baselines(settings, np.random.default_rng(seed))["random"]
        return play(model_of(market, settings), policy, None if portfolio else "AAA")

    first, again, other = played(1), played(1), played(2)
    assert first.final_value == again.final_value != other.final_value
    assert len(first.fills["step"]) > 50


@pytest.mark.parametrize("name", ["buy_and_hold", "sma_cross", "momentum"])
@pytest.mark.parametrize("portfolio", [False, True])
def test_a_policy_sees_closes_up_to_now_and_never_after(market: MarketData, name: str, portfolio: bool) -> None:
    settings = settings_of("weights", portfolio=portfolio)
    policy = baselines(settings, np.random.default_rng(1))[name]
    seen: list[np.ndarray] = []

    def spy(now: Seen) -> np.ndarray:
        seen.append(now.closes)
        return policy(now)

    play(model_of(market, settings), spy, None if portfolio else "BBB")
    closes = np.stack([market.bars(number).close for number in ((0, 1) if portfolio else (1,))])
    first = start_of(market, settings)
    assert len(seen) == closes.shape[1] - first - 1
    for step, known in enumerate(seen):
        assert np.array_equal(known, closes[:, : first + step + 1])


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({}, ALL),
        ({"targets": (-1.0, 1.0)}, ALL - {"flat"}),
        ({"targets": (-1.0, 0.0)}, ALL - {"buy_and_hold"}),
        ({"actions": "hold_buy_sell", "targets": (-1.0, 1.0)}, ALL),
        ({"actions": "weights"}, ALL),
    ],
)
def test_baselines_exist_where_the_actions_allow_them(more: dict[str, Any], names: set[str]) -> None:
    assert set(baselines(EnvSettings.model_validate(more), np.random.default_rng(1))) == names


def seen_at(price: float = 100.0, position: float = 0.0) -> Seen:
    return Seen(np.array([[price]]), np.array([position]), 10_000.0)


@pytest.mark.parametrize(
    ("targets", "shares", "chosen"),
    [
        ((-1.0, 0.0, 1.0), (1.0, -0.3, 0.0), [2, 0, 1]),
        ((0.0, 0.5, 2.0), (1.0, 0.2, -1.0), [1, 1, 0]),
        ((0.5, 1.0), (0.0, -1.0, 1.0), [0, 0, 1]),
    ],
)
def test_the_nearest_target_of_the_same_sign_is_chosen(
    targets: tuple[float, ...], shares: tuple[float, ...], chosen: list[int]
) -> None:
    trader = Trader(EnvSettings(targets=targets, leverage=2.0), 1)
    assert [trader.action(np.array([share]), seen_at()) for share in shares] == chosen


@pytest.mark.parametrize(
    ("targets", "chosen"), [((-1.0, 0.0, 1.0), [1, 2, 0]), ((0.0, 1.0), [1, 2, 2]), ((-1.0, 0.0), [1, 2, 1])]
)
def test_hold_buy_and_sell(targets: tuple[float, ...], chosen: list[int]) -> None:
    trader = Trader(EnvSettings(actions="hold_buy_sell", targets=targets), 1)
    assert [trader.action(np.array([share]), seen_at()) for share in (1.0, -1.0, 0.0)] == chosen


def test_a_quantity_is_ordered_until_nine_tenths_are_there_and_no_more_after_a_stop() -> None:
    settings = EnvSettings(actions="quantities", max_quantity=60.0, fee=0.0, slippage=0.0)
    trader, whole = Trader(settings, 1), np.array([1.0])
    orders = [trader.action(whole, seen_at(100.0, held)).tolist() for held in (0.0, 0.0, 60.0, 91.0, 91.0, 0.0)]
    assert orders == [[60.0], [60.0], [40.0], [0.0], [0.0], [0.0]]
    assert trader.action(-whole, seen_at(100.0, 91.0)).tolist() == [-60.0]
    assert trader.action(np.array([0.0]), seen_at(100.0, 31.0)).tolist() == [-31.0]


def test_distances_of_protective_orders_are_none() -> None:
    settings = EnvSettings(actions="weights", portfolio=True, stop_loss=0.1, take_profit=0.2, protect_by_action=True)
    seen = Seen(np.full((2, 1), 100.0), np.zeros(2), 10_000.0)
    action = Trader(settings, 2).action(np.array([0.5, -0.5]), seen)
    assert action.tolist() == [0.5, 0.0, 0.0, -0.5, 0.0, 0.0]
    assert action.dtype == np.float32


def test_a_policy_of_the_users_is_a_function(market: MarketData) -> None:
    contrarian: Policy = lambda seen: -np.sign(seen.closes[:, -1] - seen.closes[:, -2])  # noqa: E731
    record = play(model_of(market, settings_of()), contrarian, "AAA")
    closes, start = market.bars(0).close, start_of(market, settings_of())
    assert np.sign(record.steps_table["position"][0]) == -np.sign(closes[start] - closes[start - 1])
