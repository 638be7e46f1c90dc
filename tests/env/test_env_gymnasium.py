from __future__ import annotations

import copy
import pickle
import warnings

import gymnasium
import numpy as np
import pandas as pd
import pytest
from env_kinds import KINDS, market, settings_of
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

import env as env_room
from env.market_data import MarketData
from env.scaler import Scaler
from env.settings import EnvSettings
from env.spaces import action_space
from env.trading_env import TradingEnv
from schemas.errors import ActionError, InputError, SettingsError

SETTINGS = EnvSettings(window=8, episode_length=20)


@pytest.mark.parametrize("kind", KINDS)
def test_gymnasium_checker_is_green_without_a_warning(kind):
    env_room.register()
    settings = settings_of(kind)
    env = gymnasium.make(env_room.ENV_ID, data=market(settings), settings=settings, render_mode="rgb_array")
    with warnings.catch_warnings():  # advice that quantities, leverage and distances cannot follow
        warnings.filterwarnings("ignore", message=".*For Box action spaces, we recommend using a symmetric and norm")
        check_env(env.unwrapped)


@pytest.mark.parametrize("kind", KINDS)
def test_observations_of_every_kind_lie_in_the_space(kind):
    settings = settings_of(kind)
    env = TradingEnv(market(settings), settings)
    env.reset(seed=1)
    env.action_space.seed(1)
    for _ in range(100):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        assert observation in env.observation_space
        assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
        if terminated or truncated:
            env.reset()


def test_registration_twice_changes_nothing(random_data):
    env_room.register()
    spec = gymnasium.registry[env_room.ENV_ID]
    env_room.register()
    assert gymnasium.registry[env_room.ENV_ID] is spec
    made = gymnasium.make(env_room.ENV_ID, data=random_data, settings={"window": 8}, symbol="BBB")
    _, info = made.reset(seed=1)
    assert info["symbol"] == "BBB"


def test_spaces_follow_the_settings(random_data):
    env = TradingEnv(random_data, EnvSettings(window=8, targets=(0.0, 0.5, 1.0, 2.0), leverage=2.0))
    assert env.action_space == spaces.Discrete(4)
    assert env.observation_space.shape == (8 * 5 + 5,)
    observation, _ = env.reset(seed=3)
    assert observation.dtype == np.float32
    assert observation in env.observation_space

    def made(**values):
        return TradingEnv(random_data, {"window": 8} | values)

    assert made(actions="hold_buy_sell").action_space == spaces.Discrete(3)
    assert made(actions="weights", leverage=1.5).action_space == spaces.Box(-1.5, 1.5, (1,), np.float32)
    assert made(actions="weights", short=False).action_space == spaces.Box(0.0, 1.0, (1,), np.float32)
    assert made(actions="quantities", max_quantity=7.0).action_space == spaces.Box(-7.0, 7.0, (1,), np.float32)
    protected = made(actions="weights", protect_by_action=True, stop_loss=0.125, trailing_stop=0.25, portfolio=True)
    high = np.array([1.0, 0.125, 0.25] * 2, dtype=np.float32)
    low = np.array([-1.0, 0.0, 0.0] * 2, dtype=np.float32)
    assert protected.action_space == spaces.Box(low, high, dtype=np.float32)
    both = made(portfolio=True)
    assert both.action_space == spaces.MultiDiscrete([3, 3])
    assert both.observation_space.shape == (8 * 2 * 5 + 3 * 2 + 2,)
    assert made(position_features=("drawdown",)).observation_space.shape == (8 * 5 + 1,)


def test_bounds_of_a_box_are_within_those_of_the_settings_to_the_last_bit():
    settings = EnvSettings(actions="weights", leverage=1.1, protect_by_action=True, stop_loss=0.05)
    space = action_space(settings, 1)
    assert space.high.astype(np.float64).tolist() <= [1.1, 0.05]
    assert space.high == pytest.approx([1.1, 0.05], rel=1e-6)


def test_position_features_tell_what_the_page_says(case_env):
    env = case_env()
    observation, *_ = env.step(2)
    assert observation[-5:].tolist() == pytest.approx([1.0, 103 / 102 - 1, 1 / 2, 0.0, 0.0])
    observation, *_ = env.step(2)
    assert observation[-5:].tolist() == pytest.approx([1.0, 105 / 102 - 1, 2 / 3, 0.0, 0.0])
    observation, *_ = env.step(1)  # sold at 104, from a highest equity at 105
    assert observation[-5:].tolist() == pytest.approx([0.0, 0.0, 0.0, 1 - 104 / 105, 1.0])
    observation, *_ = env.step(0)  # short from 98, where it closes
    assert observation[-5:].tolist() == pytest.approx([-1.0, 0.0, 1 / 2, 1 - 104 / 105, 2.0])


def test_reversal_begins_a_trade_in_the_observation_too(case_env):
    env = case_env()
    env.step(2)
    observation, *_ = env.step(0)
    equity = 10_000 / 102 * 103 * (2 - 105 / 103)
    expected = [-105 / (2 * 103 - 105), 1 - 105 / 103, 1 / 2, 1 - equity / (10_000 * 103 / 102), 2 * 103 / (206 - 105)]
    assert observation[-5:].tolist() == pytest.approx(expected)
    assert env.episode_record().final_value == pytest.approx(equity)


def test_portfolio_shows_features_and_positions_of_each_symbol():
    settings = settings_of("portfolio: weights", fee=0.0, slippage=0.0, no_trade_band=0.0)
    data = market(settings)
    clock = data.on_common_clock()
    start = next(row for row in range(60, 200) if clock.tradable[:, row : row + 4].all())
    env = TradingEnv(data, settings)
    env.reset(options={"start_row": start + clock.base_row})
    weights = np.array([0.5, -0.25, 0.125], dtype=np.float32)
    for _ in range(3):
        observation, *_ = env.step(weights)
    record = env.episode_record()
    row = record.start_row + record.steps - clock.base_row
    bars = observation[: 8 * 3 * 5].reshape(8, 3 * 5)
    assert np.array_equal(bars, clock.features[row - 7 : row + 1])
    held = record.positions_table["position"][-3:]
    shares = held * clock.mark[:, row] / record.final_value
    assert observation[-11:-8] == pytest.approx(shares, rel=1e-5)
    assert np.sign(shares).tolist() == [1.0, -1.0, 1.0]
    assert observation[-1] == pytest.approx(1.0 - shares.sum(), rel=1e-5)


def test_wild_features_are_clipped_into_the_space(random_data):
    env = TradingEnv(random_data, SETTINGS, scaler=Scaler.of(np.zeros(5), np.full(5, 1e-6)))
    observation, _ = env.reset(seed=1)
    assert observation in env.observation_space
    assert np.abs(observation).max() == 10.0


def test_episode_of_given_length_is_truncated(random_data):
    env = TradingEnv(random_data, SETTINGS)
    env.reset(seed=1)
    for _ in range(19):
        assert env.step(2)[2:] == (False, False, {})
    _, _, terminated, truncated, info = env.step(2)
    assert (terminated, truncated, info["reason"]) == (False, True, "length")
    record = env.episode_record()
    assert (record.reason, record.steps, record.truncated) == ("length", 20, True)


def test_episode_without_length_runs_to_the_end_of_the_data(random_data):
    env = TradingEnv(random_data, EnvSettings(window=8, episode_length=None, starts="whole"), symbol="BBB")
    env.reset()
    steps, ended = 0, False
    while not ended:
        ended = env.step(1)[3]
        steps += 1
    record = env.episode_record()
    assert (steps, record.reason) == (300 - 8 - 1, "end_of_data")
    assert record.steps_table["row"][-1] == 50 + 300 - 1


def test_episode_longer_than_the_data_ends_with_it(random_data):
    env = TradingEnv(random_data, EnvSettings(window=8, episode_length=10_000))
    _, info = env.reset(seed=1, options={"symbol": "BBB"})
    assert info["start_row"] == 50 + 8


@pytest.mark.parametrize("action", [3, -1, 1.0, "1", None, np.array([0, 1])])
def test_action_out_of_the_space_is_refused(random_data, action):
    env = TradingEnv(random_data, SETTINGS)
    env.reset(seed=1)
    with pytest.raises(ActionError, match=r"environment 0: expected an action 0\.\.2, got"):
        env.step(action)
    env.step(1)  # and the episode goes on


@pytest.mark.parametrize("action", [2, np.int64(2), np.array(2), np.uint8(2)])
def test_integers_of_any_kind_are_actions(random_data, action):
    env = TradingEnv(random_data, SETTINGS)
    env.reset(seed=1)
    env.step(action)
    assert env.episode_record().actions.tolist() == [2]


def test_step_before_reset_and_after_the_end_is_refused(random_data):
    env = TradingEnv(random_data, EnvSettings(window=8, episode_length=1))
    with pytest.raises(InputError, match="expected a running episode"):
        env.step(1)
    with pytest.raises(InputError, match="expected an episode, got none; reset it first"):
        env.episode_record()
    env.reset(seed=1)
    env.step(1)
    with pytest.raises(InputError, match="environment 0: expected a running episode, got an ended one; reset it"):
        env.step(1)


def test_record_can_be_asked_for_at_any_time_until_the_next_reset(random_data):
    env = TradingEnv(random_data, SETTINGS)
    env.reset(seed=1)
    env.step(2)
    early = env.episode_record()
    for _ in range(19):
        env.step(0)
    late = env.episode_record()
    assert (early.steps, early.reason) == (1, "running")
    assert early.steps_table["value"].tolist() == late.steps_table["value"][:1].tolist()
    assert (late.steps, late.reason) == (20, "length")


def test_record_of_an_ended_episode_is_there_under_vector_autoreset(random_data):
    vector = gymnasium.vector.SyncVectorEnv([lambda: TradingEnv(random_data, EnvSettings(window=8, episode_length=3))])
    vector.reset(seed=1)
    for _ in range(3):
        _, _, _, truncated, _ = vector.step(np.array([2]))
    assert truncated.tolist() == [True]
    assert vector.envs[0].episode_record().steps == 3
    vector.step(np.array([2]))  # gymnasium resets here, one step later
    assert vector.envs[0].episode_record().steps == 0


def test_episode_runs_again_from_its_record(random_data):
    env = TradingEnv(random_data, SETTINGS, stream=np.random.SeedSequence([1, 2]))
    env.reset()
    rng = np.random.default_rng(0)
    ended = False
    while not ended:
        ended = env.step(rng.integers(3))[3]
    record = env.episode_record()

    again = TradingEnv(random_data, SETTINGS)
    again.reset(options={"symbol": record.symbol, "start_row": record.start_row})
    for action in record.actions:
        again.step(action)
    replayed = again.episode_record()
    assert replayed.final_value == record.final_value
    for name in ("trades", "fills", "steps_table"):
        for column, values in getattr(record, name).items():
            assert np.array_equal(values, getattr(replayed, name)[column]), (name, column)


def test_environment_can_be_copied_and_pickled_in_mid_episode(random_data):
    env = TradingEnv(random_data, SETTINGS)
    env.reset(seed=1)
    env.step(2)
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):  # noqa: S301 - our own bytes
        assert twin.step(0)[1] == copy.deepcopy(env).step(0)[1]
        assert twin.episode_record().steps == 2
        assert env.episode_record().steps == 1


def test_environment_on_read_only_arrays_as_an_object_store_gives_them(random_data):
    twin = pickle.loads(pickle.dumps(random_data))  # noqa: S301 - our own bytes
    for value in vars(twin).values():
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
    env = TradingEnv(twin, SETTINGS)
    env.reset(seed=1)
    env.step(2)


def test_data_frame_goes_straight_in():
    index = pd.date_range("2024-01-01", periods=60, freq="D")
    close = np.linspace(100.0, 160.0, 60)
    bars = pd.DataFrame({"open": close, "high": close, "low": close, "close": close, "volume": 1.0}, index=index)
    env = TradingEnv(bars, {"window": 4, "episode_length": None, "starts": "whole"})
    env.reset()
    assert env.step(2)[1] < 0.0  # costs, and no move inside the bar
    assert env.step(2)[1] > 0.0


def test_bad_arguments_are_one_clear_line(random_data):
    with pytest.raises(SettingsError, match="unknown setting 'windw'; did you mean 'window'"):
        TradingEnv(random_data, {"windw": 3})
    with pytest.raises(SettingsError, match="'window': expected at most 298 for the 300 bars of 'BBB', got 350"):
        TradingEnv(random_data, {"window": 350})
    with pytest.raises(InputError, match="symbol 'TSLA': expected one of AAA, BBB"):
        TradingEnv(random_data, symbol="TSLA")
    with pytest.raises(InputError, match="render_mode: expected None, 'ansi' or 'rgb_array', got 'human'"):
        TradingEnv(random_data, render_mode="human")
    with pytest.raises(InputError, match="symbol: expected None in a portfolio, which trades all symbols, got 'AAA'"):
        TradingEnv(random_data, {"portfolio": True, "window": 8}, symbol="AAA")
    with pytest.raises(SettingsError, match="setting 'features': expected those of the data, log_open, .* got rsi"):
        TradingEnv(random_data, {"window": 8, "features": ("rsi(14)",)})
    env = TradingEnv(random_data, SETTINGS)
    with pytest.raises(InputError, match=r"reset options: expected symbol or start_row, got \['row'\]"):
        env.reset(options={"row": 3})
    with pytest.raises(InputError, match="symbol 'TSLA': expected one of"):
        env.reset(options={"symbol": "TSLA"})
    for row in (3, "1010", 1_399):
        with pytest.raises(InputError, match=r"start_row of 'AAA': expected 1008\.\.1398 "):
            env.reset(options={"symbol": "AAA", "start_row": row})


def test_market_data_is_not_changed_by_trading(random_data):
    before = {name: value.copy() for name, value in vars(random_data).items() if isinstance(value, np.ndarray)}
    env = TradingEnv(random_data, SETTINGS)
    env.reset(seed=1)
    for _ in range(20):
        env.step(2)
    assert isinstance(random_data, MarketData)
    for name, value in before.items():
        assert np.array_equal(getattr(random_data, name), value)
