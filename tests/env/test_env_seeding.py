from __future__ import annotations

import random

import numpy as np

from env.settings import EnvSettings
from env.trading_env import TradingEnv

SETTINGS = EnvSettings(window=4, episode_length=10)


def starts_of(env: TradingEnv, count: int, seed: int | None = None) -> list[tuple[str, int]]:
    infos = [env.reset(seed=seed if number == 0 else None)[1] for number in range(count)]
    return [(info["symbol"], info["start_row"]) for info in infos]


def test_one_seed_gives_one_start(random_data):
    env = TradingEnv(random_data, SETTINGS)
    starts = {env.reset(seed=7)[1]["start_row"] for _ in range(5)}
    assert len(starts) == 1


def test_resets_without_a_seed_go_on_with_the_stream(random_data):
    first = starts_of(TradingEnv(random_data, SETTINGS), 20, seed=7)
    second = starts_of(TradingEnv(random_data, SETTINGS), 20, seed=7)
    assert first == second
    assert len(set(first)) > 10
    assert {symbol for symbol, _ in first} == {"AAA", "BBB"}


def test_starts_leave_room_for_a_whole_episode_and_reach_both_ends(make_bars, prices_of):
    from env.market_data import MarketData

    env = TradingEnv(MarketData([make_bars(prices_of(1, 20), base_row=70)]), SETTINGS)
    starts = {row for _, row in starts_of(env, 200, seed=1)}
    assert starts == set(range(70 + 4, 70 + 20 - 10))


def test_streams_of_64_environments_of_two_runners_differ(random_data):
    runners, per_runner = 2, 32
    streams = [
        np.random.SeedSequence([42, runner * per_runner + index])
        for runner in range(runners)
        for index in range(per_runner)
    ]
    all_starts = [tuple(starts_of(TradingEnv(random_data, SETTINGS, stream=stream), 5)) for stream in streams]
    assert len(set(all_starts)) == 64


def test_environment_with_a_stream_ignores_the_seed_of_its_runner(random_data):
    stream = np.random.SeedSequence([42, 3])
    unseeded = starts_of(TradingEnv(random_data, SETTINGS, stream=stream), 5)
    seeded = starts_of(TradingEnv(random_data, SETTINGS, stream=stream), 5, seed=99)
    assert seeded == unseeded


def test_choosing_an_episode_does_not_shift_the_stream(random_data):
    plain = starts_of(TradingEnv(random_data, SETTINGS), 3, seed=5)
    env = TradingEnv(random_data, SETTINGS)
    env.reset(seed=5, options={"symbol": "AAA", "start_row": 1_010})
    assert starts_of(env, 2) == plain[1:]


def test_global_generators_are_neither_used_nor_moved(random_data):
    random.seed(1)
    np.random.seed(1)
    before, before_numpy = random.getstate(), np.random.get_state()[1].tobytes()
    env = TradingEnv(random_data, SETTINGS)
    env.reset()
    env.step(2)
    assert random.getstate() == before
    assert np.random.get_state()[1].tobytes() == before_numpy


def test_reset_carries_nothing_of_the_last_episode(random_data):
    env = TradingEnv(random_data, SETTINGS)
    fresh, _ = env.reset(seed=7)
    for action in (2, 0, 2, 0):
        env.step(action)
    again, _ = env.reset(seed=7)
    assert again.tobytes() == fresh.tobytes()
    assert again[-5:].tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]
    record = env.episode_record()
    assert record.steps == 0
    assert record.final_value == 10_000.0
    assert record.fills["step"].size == 0


def test_observation_handed_out_is_not_written_again(random_data):
    env = TradingEnv(random_data, SETTINGS)
    first, _ = env.reset(seed=7)
    copy = first.copy()
    env.step(2)
    assert np.array_equal(first, copy)


def test_record_tells_the_stream_and_the_number_of_the_reset(random_data):
    env = TradingEnv(random_data, SETTINGS)
    env.reset(seed=7)
    env.reset()
    assert env.episode_record().env_seed == "7#1"
    child = np.random.SeedSequence([42, 3]).spawn(1)[0]
    env = TradingEnv(random_data, SETTINGS, stream=child)
    env.reset(seed=7)
    assert env.episode_record().env_seed == "42,3/0#0"
    env = TradingEnv(random_data, SETTINGS, stream=np.random.SeedSequence(np.int64(9)))
    env.reset()
    assert env.episode_record().env_seed == "9#0"


def test_generator_set_from_outside_is_drawn_from(random_data):
    env = TradingEnv(random_data, SETTINGS)
    env.np_random = np.random.default_rng(5)
    starts = starts_of(env, 3)
    env.np_random = np.random.default_rng(5)
    assert starts_of(env, 3) == starts
    env.reset(seed=3)
    assert env.np_random_seed == 3


def test_portfolio_draws_rows_where_every_symbol_has_begun(random_data):
    env = TradingEnv(random_data, SETTINGS.model_copy(update={"portfolio": True}))
    starts = starts_of(env, 20, seed=7)
    assert {symbol for symbol, _ in starts} == {"portfolio"}
    assert len({row for _, row in starts}) > 10
    assert starts_of(env, 20, seed=7) == starts
