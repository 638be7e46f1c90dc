"""The worked cases, computed by hand, on every shape of the core: alone, in a batch, and as a portfolio of one symbol.

Elsewhere: cases 13 and 14 (test_env_metrics.py), 15 (test_env_lookahead.py, coarser bars in test_env_coarser.py), 16
(test_env_scaler.py), 18 (test_env_seeding.py) and 19 (tests/system).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from env.episode_record import EpisodeRecord
from env.market_data import MarketData
from env.market_model import MarketModel
from env.settings import EnvSettings

Prices = Sequence[Sequence[float]]

BARS = [(100, 101, 99, 100), (102, 104, 101, 103), (103, 106, 102, 105), (104, 105, 98, 99), (98, 100, 97, 98)]
BEFORE = (99, 100, 98, 100)  # an observation needs a previous close
FREE = {"window": 1, "starts": "whole", "fee": 0.0, "slippage": 0.0}
UNITS = {"actions": "quantities", "max_quantity": 1e6}
SHORT, FLAT, LONG = 0, 1, 2
NAN = math.nan


def near(value: float) -> Any:
    return pytest.approx(value, rel=0, abs=5e-8)


def flat(*prices: float) -> list[tuple[float, float, float, float]]:
    return [(price, price, price, price) for price in prices]


@dataclass
class Played:
    record: EpisodeRecord
    rewards: list[float]
    observation: np.ndarray

    @property
    def equity(self) -> list[float]:
        return self.record.steps_table["value"].tolist()

    def fills(self, *names: str) -> list[tuple[Any, ...]]:
        return list(zip(*(self.record.fills[name].tolist() for name in names), strict=True))


@pytest.fixture(params=["alone", "batch", "portfolio"])
def play(request, make_bars) -> Callable[..., Played]:
    """Play actions, one a bar from t0 on, on bars t0, t1, …, and tell what happened."""
    shape = request.param
    count = 3 if shape == "batch" else None

    def play(prices: Prices, *actions: Any, volume: Any = None, funding: Any = None, **values: Any) -> Played:
        volumes = None if volume is None else [1.0, *volume]
        bars = make_bars([BEFORE, *prices], volume=volumes, funding=None if funding is None else [0.0, *funding])
        settings = EnvSettings.model_validate(FREE | {"portfolio": shape == "portfolio"} | values)
        model = MarketModel(MarketData([bars]), settings, None, count, [np.random.default_rng(0)] * (count or 1))
        model.reset(range(count or 1))
        rewards = []
        for action in actions:
            given = np.asarray(action) if settings.discrete else np.atleast_1d(np.asarray(action, dtype=np.float32))
            if shape == "alone" and settings.discrete:
                given = int(action)
            elif shape == "portfolio" and settings.discrete:
                given = np.atleast_1d(given)
            elif shape == "batch":
                # Another action for the neighbours, which must not be seen in the one between them.
                other = np.zeros_like(given)
                given = np.stack([other, given, other])
            _, reward, terminated, truncated = model.step(given)
            index = 1 if shape == "batch" else 0
            rewards.append(float(np.atleast_1d(reward)[index]))
            if np.any(terminated | truncated):
                model_ended = bool(np.atleast_1d(terminated | truncated)[index])
                assert model_ended or shape == "batch"
                break
        observation = model.observations()
        return Played(model.episode_record(index), rewards, observation[index] if shape == "batch" else observation)

    return play


def test_case_1_a_target_fills_at_the_next_open(play):
    done = play(BARS, LONG, LONG)
    assert done.fills("quantity", "price") == [(near(98.0392156863), 102.0)]
    assert done.equity == [near(10_098.0392157), near(10_294.1176471)]


def test_case_2_fee_and_slippage_of_a_round_trip(play):
    done = play(BARS, LONG, LONG, FLAT, fee=0.001, slippage=0.0005)
    record, fills, trades = done.record, done.record.fills, done.record.trades
    assert fills["price"].tolist() == [near(102.051), near(103.948)]
    assert (fills["quantity"][0], fills["fee"][0]) == (near(97.8923282477), near(9.9900099900))
    assert fills["slippage"][0] == near(4.9925087406)
    assert done.equity == [near(10_082.9098095), near(10_278.6944660), near(10_165.5360250)]
    assert (trades["gross_pnl"][0], trades["fee"][0]) == (near(185.7017467), near(20.1657217))
    assert (trades["net_pnl"][0], record.pnl) == (near(165.5360250), near(165.5360250))
    assert done.rewards == [pytest.approx(value, abs=5e-11) for value in (0.0082567996, 0.0192313619, -0.0110700764)]
    assert record.total_reward == pytest.approx(0.0164180851, abs=5e-11)
    assert (record.open_pnl, record.win_rate) == (0.0, 1.0)


@pytest.mark.parametrize(
    "values",
    [
        {"targets": (-1.0, 0.0, 1.0)},
        {"actions": "weights", "stop_loss": 0.04, "interest": 0.001},
        UNITS | {"borrow": 0.01, "fee_fixed": 1.0, "half_spread": 0.1, "impact": 0.01, "liquidate_at_end": True},
    ],
)
def test_case_3_the_books_close(play, values):
    script = [LONG, SHORT, SHORT, LONG] if "targets" in values else [0.5, -0.7, -0.7, 0.3]
    script = [100 * item for item in script] if values.get("actions") == "quantities" else script
    done = play(BARS, *script, fee=0.001, slippage=0.0005, funding=[0.0, 0.001, -0.002, 0.003, 0.001], **values)
    record = done.record
    closed = record.trades["net_pnl"].sum() + record.open_pnl + record.interest
    change = record.final_value - record.initial_value
    assert closed == pytest.approx(change, rel=0, abs=1e-9 * record.turnover)
    assert sum(done.rewards) == pytest.approx(math.log(record.final_value / record.initial_value), rel=0, abs=1e-9)
    assert record.funding != 0.0


def test_case_4_all_in_and_out_at_a_flat_price(play):
    assert play(flat(100, 100, 100), LONG, FLAT, fee=0.001).record.final_value == near(9_980.0199800)


def test_case_5_integer_lots(play):
    done = play(BARS, LONG, fee=0.001, lot=1.0)
    assert done.fills("quantity") == [(97.0,)]
    assert done.record.steps_table["cash"][0] == near(96.106)
    assert done.record.final_value == near(10_087.106)


def test_case_6_a_short_with_and_without_borrow(play):
    script = (-100, 0, 0, 100)
    free = play(BARS, *script, initial_cash=20_000.0, **UNITS)
    assert (free.equity[0], free.record.final_value) == (19_900.0, 20_400.0)
    paid = play(BARS, *script, initial_cash=20_000.0, borrow=0.001, **UNITS)
    assert paid.record.borrow == near(10.30 + 10.50 + 9.90)
    assert paid.record.trades["borrow"].tolist() == [near(30.70)]
    assert paid.record.final_value == near(20_369.30)
    constant = {"initial_cash": 20_000.0, "borrow": 0.001} | UNITS
    one, ten = (play(flat(*[100] * 12), -100, *[0] * held, **constant) for held in (0, 9))
    assert ten.record.borrow == near(10 * one.record.borrow) == near(100.0)


def test_case_7_a_reversal_is_one_fill_of_two_trades(play):
    done = play([*BARS[:3], (104, 105, 98, 104)], 100, 0, -200, initial_cash=20_000.0, fee=0.001, **UNITS)
    assert done.fills("quantity", "kind") == [(100.0, "entry"), (-200.0, "reversal")]
    assert done.fills("operations", "trade_no") == [("ENTRY_LONG", 0), ("EXIT_LONG+ENTRY_SHORT", 0)]
    assert done.record.fee == near(31.00)
    assert done.record.trades["net_pnl"].tolist() == [near(179.40)]
    assert done.record.trades["exit_kind"].tolist() == ["reversal"]
    assert done.record.final_value == near(20_169.00)


@pytest.mark.parametrize(("liquidate", "final"), [(False, 19_689.80), (True, 19_679.90)])
def test_case_8_the_end_of_the_data(play, liquidate, final):
    done = play(BARS[:4], 100, 0, 0, initial_cash=20_000.0, fee=0.001, liquidate_at_end=liquidate, **UNITS)
    record = done.record
    assert (record.reason, record.terminated, record.truncated) == ("end_of_data", False, True)
    assert record.final_value == near(final)
    assert [kind for (kind,) in done.fills("kind")] == (["entry", "end_of_data"] if liquidate else ["entry"])
    assert record.open_pnl == near(0.0 if liquidate else -310.20)
    if liquidate:
        assert record.fills["ts"][1] == record.last_ts
        assert record.trades["net_pnl"].tolist() == [near(-320.10)]
    elif record.open_quantity is not None:  # of one symbol
        assert (record.open_quantity, record.open_entry_price) == (100.0, 102.0)


def test_case_9_ruin_terminates_with_a_finite_negative_reward(play):
    done = play([*flat(100, 100), (120, 120, 120, 120), (240, 240, 240, 240), *flat(100, 100)], SHORT, SHORT, SHORT)
    assert (done.record.reason, done.record.terminated, done.record.truncated) == ("ruin", True, False)
    assert done.rewards[-1] == pytest.approx(math.log(1e-6))
    assert math.isfinite(done.record.total_reward)
    assert done.record.steps == 3


@pytest.mark.parametrize(
    ("bar", "price", "kind"),
    [
        ((90, 120, 85, 110), 90, "stop_loss"),  # the open is beyond the stop
        ((102, 103, 98, 101), 100, "stop_loss"),  # it is met inside the bar
        ((115, 120, 105, 118), 115, "take_profit"),
        ((105, 112, 104, 108), 110, "take_profit"),
        ((105, 112, 99, 108), 100, "stop_loss"),  # both sides of the open: the adverse one
        ((105, 109, 101, 108), None, None),
    ],
)
def test_case_10_a_stop_at_100_and_a_profit_at_110(play, bar, price, kind):
    distances = {"stop_loss": 5 / 105, "take_profit": 5 / 105}
    done = play([*flat(100, 105), bar], 100, 0, initial_cash=20_000.0, **distances, **UNITS)
    expected = [] if kind is None else [(-100.0, near(price), kind, 0.0)]
    assert done.fills("quantity", "price", "kind", "position_after")[1:] == expected


@pytest.mark.parametrize(
    ("stop", "bar", "kind", "price"),
    [
        (0.05, (100, 100, 85, 90), "stop_loss", 95),  # met before the liquidation at 90
        (0.15, (100, 100, 85, 90), "liquidation", 90),  # the liquidation is nearer
        (0.10, (100, 100, 85, 90), "liquidation", 90),  # equal
        (0.05, (88, 100, 85, 90), "liquidation", 88),  # the open is beyond both
        (0.05, (92, 100, 85, 90), "stop_loss", 92),  # the open is beyond the stop alone
    ],
)
def test_case_10_a_stop_and_a_liquidation(play, stop, bar, kind, price):
    # 1,000 units at 100 on 10,000: equity is 0 at 90.
    done = play([*flat(100, 100), bar], 1_000, 0, stop_loss=stop, leverage=10.0, **UNITS)
    assert done.fills("kind", "price")[1:] == [(kind, near(price))]


def test_case_10_a_stop_lives_in_the_bar_of_its_entry(play):
    done = play([*flat(100), (105, 106, 99, 104)], 100, initial_cash=20_000.0, stop_loss=5 / 105, **UNITS)
    assert done.fills("kind", "price", "step") == [("entry", 105.0, 0), ("stop_loss", near(100.0), 0)]
    assert done.record.trades["bars"].tolist() == [0]


def test_case_11_bankrupt_at_80_inside_a_bar(play):
    done = play([*flat(100, 100), (99, 99, 79, 90), *flat(90)], 500, 0, leverage=5.0, **UNITS)
    assert done.fills("kind", "price")[1:] == [("liquidation", 80.0)]
    assert (done.record.final_value, done.record.bad_debt, done.record.reason) == (0.0, 0.0, "ruin")


def test_case_11_a_gap_to_75_is_bad_debt_without_recovery(play):
    done = play([*flat(100, 100), (75, 200, 75, 200), *flat(200)], 500, 100, leverage=5.0, **UNITS)
    assert done.fills("kind", "price", "position_after")[1:] == [("liquidation", 75.0, 0.0)]
    record = done.record
    assert (record.final_value, record.bad_debt, record.terminated) == (-2_500.0, 2_500.0, True)
    assert done.rewards[-1] == pytest.approx(math.log(1e-6))
    assert record.cancelled_orders == 1


def test_case_12_partial_fills(play):
    prices, volume = flat(100, 102, 103, 104, 105), [1e9, 500, 300, 900, 900]
    values = UNITS | {"initial_cash": 20_000.0, "max_volume_share": 0.1}
    carried = play(prices, 100, 0, 0, 0, volume=volume, remainder="carry", **values)
    assert carried.fills("quantity", "price") == [(50.0, 102.0), (30.0, 103.0), (20.0, 104.0)]
    if carried.record.open_quantity is not None:  # of one symbol
        assert (carried.record.open_quantity, carried.record.open_entry_price) == (100.0, near(102.70))
    cancelled = play(prices, 100, 0, 0, 0, volume=volume, **values)
    assert cancelled.fills("quantity") == [(50.0,)]


def test_case_17_a_missing_bar_fills_nothing_and_keeps_the_price(play):
    gap = [*flat(100, 104), (NAN, NAN, NAN, NAN), *flat(110, 120)]
    done = play(gap, 50, 10, 0, 5, fee=0.001, **UNITS)
    assert done.fills("quantity", "price", "step") == [(50.0, 104.0, 0), (5.0, 120.0, 3)]
    assert done.record.steps_table["stale"].tolist() == [False, True, False, False]
    assert done.equity[1] == done.equity[0]
    assert done.rewards[1] == 0.0
    assert (done.record.cancelled_orders, done.record.stale_steps) == (1, 1)
    prices = done.record.positions_table or done.record.steps_table
    assert prices["price"].tolist() == [104.0, 104.0, 110.0, 120.0]
    assert np.isfinite(done.observation).all()


def test_case_12_a_bar_without_volume_fills_nothing_where_volume_matters(play):
    volume = [1e9, 0.0, 500.0, 500.0]
    for values in ({"impact": 0.1}, {"max_volume_share": 1.0}):
        done = play(flat(100, 100, 100, 100), 10, 0, 0, volume=volume, remainder="carry", **values, **UNITS)
        assert done.fills("quantity", "step") == [(10.0, 1)]


@pytest.mark.parametrize("closing", [{"stop_loss": 0.1}, {"leverage": 10.0, "maintenance_margin": 0.05}])
def test_case_12_what_is_carried_ends_with_the_position(play, closing):
    # 50 of 1,000 units fill; then a bar closes the position, and what was carried with it.
    prices, volume = [*flat(100, 100), (100, 100, 5, 50), *flat(50, 50)], [1e9, 500, 1, 5000, 5000]
    values = UNITS | {"initial_cash": 1_000.0, "leverage": 10.0, "max_volume_share": 0.1, "remainder": "carry"}
    done = play(prices, 1_000, 0, 0, 0, volume=volume, **values | closing)
    kinds = [kind for (kind,) in done.fills("kind")]
    assert kinds[0] == "entry"
    assert kinds[-1] == ("stop_loss" if "stop_loss" in closing else "liquidation")
