from __future__ import annotations

import math
import sys
from types import ModuleType

import numpy as np
import pytest
from env_kinds import market, settings_of

from env import kernel
from env.rewards import OfUser, RewardInput
from env.rules import rules_of
from env.settings import EnvSettings
from env.state import ACCOUNT
from env.trading_env import TradingEnv
from env.vector_env import TradingVectorEnv
from schemas.errors import InputError, SettingsError

CURVE = [10_000.0, 10_200.0, 9_900.0, 10_500.0, 10_500.0, 8_000.0, 8_400.0]


def paid_by(reward: str, **values: object) -> EnvSettings:
    return EnvSettings.model_validate({"reward": reward} | values)


def account_before(equity: float) -> np.ndarray:
    account = np.zeros((), ACCOUNT)
    account["equity"] = account["highest"] = equity
    return account


def paid(settings: EnvSettings, account: np.ndarray, equity: float) -> float:
    """Take a step to ``equity``, as the compiled step does."""
    account["equity_before"], account["highest_before"] = account["equity"], account["highest"]
    account["equity"] = equity
    account["highest"] = max(equity, account["highest"])
    return kernel.reward_of(rules_of(settings)[()], account[()])


def along(reward: str, curve: list[float] = CURVE, **values: object) -> list[float]:
    account = account_before(curve[0])
    return [paid(paid_by(reward, **values), account, equity) for equity in curve[1:]]


def given(before: float, after: float, peak: float, number: int = 0) -> RewardInput:
    numbers = (before, after, peak, after, 0.0, 100.0, number, number)
    return RewardInput(*(np.array([number]) for number in numbers))


def test_log_return_adds_up_to_the_log_of_the_growth():
    assert along("log_return")[0] == pytest.approx(math.log(1.02))
    assert sum(along("log_return")) == pytest.approx(math.log(0.84))


def test_return_and_pnl_are_the_change_as_a_fraction_and_in_money():
    assert along("return")[1] == pytest.approx(-300 / 10_200)
    assert along("pnl") == [200.0, -300.0, 600.0, 0.0, -2_500.0, 400.0]


def test_drawdown_takes_its_penalty_from_what_a_step_adds_alone():
    logs, rewards = along("log_return"), along("drawdown", drawdown_penalty=2.0)
    assert rewards[0] == logs[0]  # a new peak
    assert rewards[1] == pytest.approx(logs[1] - 2.0 * (300 / 10_200))
    assert rewards[2] == logs[2]  # from a drawdown to a new peak: no penalty, no bonus
    assert rewards[4] == pytest.approx(logs[4] - 2.0 * (2_500 / 10_500))
    assert rewards[5] == logs[5]


def test_differential_sharpe_is_the_derivative_of_the_moving_sharpe_ratio_in_its_rate():
    """Moody and Saffell define it so: d S(η) / d η at η = 0, with S of the averages A + η ΔA and B + η ΔB."""
    eta = 0.1
    rewards = along("differential_sharpe", reward_decay=eta)
    a = b = 0.0
    for n, reward in enumerate(rewards):
        r = CURVE[n + 1] / CURVE[n] - 1
        if b - a * a > 1e-12:

            def sharpe(rate: float, a: float = a, b: float = b, r: float = r) -> float:
                mean, square = a + rate * (r - a), b + rate * (r * r - b)
                return mean / math.sqrt(square - mean * mean)

            assert reward == pytest.approx((sharpe(1e-6) - sharpe(-1e-6)) / 2e-6, rel=1e-4, abs=1e-6)
        else:
            assert reward == 0.0
        a, b = a + eta * (r - a), b + eta * (r * r - b)
    assert sum(reward != 0.0 for reward in rewards) == len(rewards) - 1


def test_differential_sharpe_begins_each_episode_anew():
    settings = settings_of("targets", reward="differential_sharpe", episode_length=5, starts="whole")
    env = TradingEnv(market(settings), settings)
    episodes = []
    for _ in range(2):
        env.reset(seed=1)
        episodes.append([env.step(2)[1] for _ in range(4)])
    assert episodes[0] == episodes[1]
    assert episodes[0][1] != 0.0


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ("log_return", math.log(1e-6)),
        ("return", -1.0),
        ("pnl", -10_500.0),
        ("drawdown", math.log(1e-6) - (0.5 - 5e-7)),
    ],
)
def test_ruin_is_paid_a_finite_negative_number(reward, expected):
    account = account_before(10_000.0)
    account["highest"] = 20_000.0
    assert paid(paid_by(reward), account, -500.0) == pytest.approx(expected)


def test_ruin_is_finite_for_differential_sharpe_too():
    rewards = along("differential_sharpe", [100.0, 101.0, 100.5, -5.0])
    assert rewards[-1] < 0.0
    assert math.isfinite(rewards[-1])


# -- a function of the user's -----------------------------------------------------------------------------------------


@pytest.fixture
def user_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("user_rewards_of_a_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_function_of_the_user_gets_arrays_and_gives_one_reward_each(user_module):
    seen: list[RewardInput] = []

    def half(given: RewardInput) -> np.ndarray:
        seen.append(given)
        return (given.equity - given.equity_before) / 2

    user_module.half = half
    half_of = OfUser(f"{user_module.__name__}:half")
    assert half_of(given(10.0, 12.0, 10.0, 3)).tolist() == [1.0]
    two = RewardInput(*(np.full(2, number) for number in (10.0, 14.0, 10.0, 1.0, 0.0, 1.0, 3, 3)))
    assert half_of(two).tolist() == [2.0, 2.0]
    assert seen[1] is two


@pytest.mark.parametrize("kind", ["targets", "portfolio: weights"])
def test_function_of_the_user_sees_the_accounts_of_every_face(user_module, kind):
    seen: list[RewardInput] = []

    def growth(given: RewardInput) -> np.ndarray:
        seen.append(given)
        return given.equity / given.equity_before - 1.0

    user_module.growth = growth
    settings = settings_of(kind, reward=f"{user_module.__name__}:growth", reward_scale=10.0)
    data = market(settings)
    env, vector = TradingEnv(data, settings), TradingVectorEnv(data, settings, num_envs=3)
    _, info = env.reset(seed=1)
    vector.reset(seed=1)
    vector.action_space.seed(1)
    for number in range(5):
        actions = vector.action_space.sample()
        seen.clear()
        reward, rewards = env.step(actions[0])[1], vector.step(actions)[1]
        one, three = seen
        held = (3,) if settings.portfolio else ()
        assert (one.equity.shape, one.position.shape, one.price.shape) == ((1,), (1, *held), (1, *held))
        assert (three.equity.shape, three.position.shape, three.price.shape) == ((3,), (3, *held), (3, *held))
        assert three.equity == pytest.approx(three.cash + (three.position * three.price).reshape(3, -1).sum(axis=1))
        assert (one.row.tolist(), one.step.tolist()) == ([info["start_row"] + number + 1], [number])
        for alone, batch in zip(one, three, strict=True):
            assert alone.dtype == batch.dtype
            assert np.array_equal(alone[0], batch[0])
        assert reward == rewards[0] == 10.0 * (one.equity[0] / one.equity_before[0] - 1.0)
    record = env.episode_record()
    assert record.total_reward == pytest.approx(sum(np.diff(record.equity) / record.equity[:-1]))
    assert one.peak[0] == max(record.equity[:-1])


def test_function_of_the_user_that_gives_nan_or_another_shape_is_told_by_name(user_module):
    user_module.bad = lambda given: np.log(given.equity - 12.0)
    user_module.one = lambda _: 1.0
    with np.errstate(divide="ignore"), pytest.raises(InputError, match=r":bad', environment 0: .*finite.* got -inf"):
        OfUser(f"{user_module.__name__}:bad")(given(10.0, 12.0, 10.0))
    with pytest.raises(InputError, match=r":one': expected an array \(1,\), one reward per environment, got"):
        OfUser(f"{user_module.__name__}:one")(given(10.0, 12.0, 10.0))


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ("log_retrun", "setting 'reward': unknown reward 'log_retrun'; did you mean 'log_return'?"),
        ("xyz", "unknown reward 'xyz'; choose log_return, return, .* or 'package.module:function'"),
        ("no_such_module:f", "setting 'reward': expected a module on the Python path in 'no_such_module:f'"),
        ("math:no_such", "setting 'reward': expected a function 'no_such' in module 'math', got None"),
    ],
)
def test_unknown_reward_is_one_clear_line(reward, words):
    with pytest.raises(SettingsError, match=words):
        rules_of(paid_by(reward))
