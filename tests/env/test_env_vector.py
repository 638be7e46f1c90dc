from __future__ import annotations

import copy
import pickle
from typing import Any

import gymnasium
import numpy as np
import pytest
from env_kinds import KINDS, market, settings_of
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import env as env_room
from env.episode_record import EpisodeRecord
from env.trading_env import TradingEnv
from env.vector_env import TradingVectorEnv
from schemas.errors import ActionError, InputError

PLAIN = settings_of("targets")


def assert_same_infos(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        assert values.dtype == theirs[name].dtype, name
        assert np.array_equal(values, theirs[name]), name


def assert_same_records(one: EpisodeRecord, other: EpisodeRecord) -> None:
    for name, value in vars(one).items():
        twin = getattr(other, name)
        if isinstance(value, dict):
            assert value.keys() == twin.keys()
            for column, numbers in value.items():
                assert np.array_equal(numbers, twin[column]), (name, column)
        else:
            assert np.array_equal(value, twin), name


def streams(first: int, count: int) -> list[np.random.SeedSequence]:
    return [np.random.SeedSequence([7, index]) for index in range(first, first + count)]


# -- the same as gymnasium's own vector of single environments --------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_bit_by_bit_what_a_sync_vector_of_single_environments_gives(kind):
    settings, count = settings_of(kind), 4
    data = market(settings)
    ours = TradingVectorEnv(data, settings, num_envs=count)
    theirs = SyncVectorEnv([lambda: TradingEnv(data, settings)] * count)
    assert ours.action_space == theirs.action_space
    assert ours.observation_space == theirs.observation_space
    assert ours.single_action_space == theirs.single_action_space
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP

    (observations, infos), (expected, expected_infos) = ours.reset(seed=11), theirs.reset(seed=11)
    assert np.array_equal(observations, expected)
    assert_same_infos(infos, expected_infos)
    ours.action_space.seed(3)
    ended = 0
    for number in range(130):
        if number % 60 == 59:  # a reset of some of them, in the middle
            mask = np.arange(count) % 2 == 0
            (observations, infos), (expected, expected_infos) = (
                vector.reset(options={"reset_mask": mask.copy()}) for vector in (ours, theirs)
            )
            assert np.array_equal(observations, expected)
            assert_same_infos(infos, expected_infos)
        actions = ours.action_space.sample()
        step, expected_step = ours.step(actions), theirs.step(actions)
        for value, expected in zip(step[:4], expected_step[:4], strict=True):
            assert value.dtype == expected.dtype
            assert np.array_equal(value, expected), number
        assert step[0] in ours.observation_space
        assert_same_infos(step[4], expected_step[4])
        for index in np.flatnonzero(step[2] | step[3]).tolist():
            ended += 1
            assert_same_records(ours.episode_record(index), theirs.envs[index].episode_record())
    assert ended > 10


@pytest.mark.parametrize("kind", ["targets", "weights, everything on", "portfolio: weights, everything on"])
def test_256_environments_give_bit_by_bit_what_each_gives_alone(kind):
    settings = settings_of(kind)
    data, count, chosen = market(settings), 256, [0, 100, 255]
    batch = TradingVectorEnv(data, settings, num_envs=count, streams=streams(0, count))
    alone = [TradingVectorEnv(data, settings, num_envs=1, streams=streams(index, 1)) for index in chosen]
    first, _ = batch.reset()
    for index, one in zip(chosen, alone, strict=True):
        assert np.array_equal(one.reset()[0][0], first[index])
    batch.action_space.seed(1)
    for _ in range(60):
        actions = batch.action_space.sample()
        step = batch.step(actions)
        for index, one in zip(chosen, alone, strict=True):
            own = one.step(actions[index : index + 1])
            for value, expected in zip(step[:4], own[:4], strict=True):
                assert np.array_equal(value[index], expected[0])
            assert_same_records(batch.episode_record(index), one.episode_record(0))


def test_starts_follow_the_global_index_however_environments_are_spread():
    data = market(PLAIN)

    def starts(vector: TradingVectorEnv) -> list[tuple[str, int]]:
        found = []
        for _ in range(5):
            _, infos = vector.reset()
            found += zip(infos["symbol"].tolist(), infos["start_row"].tolist(), strict=True)
        return [found[index :: vector.num_envs] for index in range(vector.num_envs)]

    whole = starts(TradingVectorEnv(data, PLAIN, num_envs=8, streams=streams(0, 8)))
    parts = [TradingVectorEnv(data, PLAIN, num_envs=n, streams=streams(first, n)) for first, n in ((0, 3), (3, 5))]
    assert [start for part in parts for start in starts(part)] == whole
    assert len({tuple(start) for start in whole}) == 8


def test_a_vector_with_streams_ignores_seeds():
    data = market(PLAIN)
    first, second = (TradingVectorEnv(data, PLAIN, num_envs=4, streams=streams(0, 4)) for _ in range(2))
    assert np.array_equal(first.reset(seed=1)[0], second.reset(seed=2)[0])
    assert first.episode_record(2).env_seed == "7,2#0"


# -- made by gymnasium ------------------------------------------------------------------------------------------------


def test_make_vec_makes_it_and_its_vector_wrappers_work():
    env_room.register()
    vector = gymnasium.make_vec(
        env_room.ENV_ID, num_envs=3, vectorization_mode="vector_entry_point", data=market(PLAIN), settings=PLAIN
    )
    assert isinstance(vector, TradingVectorEnv)
    assert str(vector) == "TradingVectorEnv(millrace/Trading-v0, num_envs=3)"
    wrapped = gymnasium.wrappers.vector.RecordEpisodeStatistics(vector)
    wrapped.reset(seed=1)
    total = np.zeros(3)
    for _ in range(20):
        *_, infos = wrapped.step(np.array([0, 1, 2]))
        total += _[1]
    assert infos["episode"]["r"] == pytest.approx(total)
    assert infos["episode"]["l"].tolist() == [20, 20, 20]
    assert infos["episode"]["r"][0] == pytest.approx(vector.episode_record(0).total_reward)
    wrapped.close()
    listed = gymnasium.wrappers.vector.DictInfoToList(TradingVectorEnv(market(PLAIN), PLAIN, num_envs=2))
    _, infos = listed.reset(seed=1)
    assert [set(info) for info in infos] == [{"symbol", "start_row"}] * 2


# -- autoreset, records, infos ----------------------------------------------------------------------------------------


def test_record_of_an_ended_episode_is_there_until_its_reset():
    vector = TradingVectorEnv(market(PLAIN), PLAIN, num_envs=2)
    vector.reset(seed=1)
    for _ in range(10):
        vector.step(np.array([2, 0]))
    vector.reset(options={"reset_mask": np.array([True, False])})
    for _ in range(10):
        _, _, terminated, truncated, infos = vector.step(np.array([2, 0]))
    assert truncated.tolist() == [False, True]
    assert not terminated.any()
    assert infos["reason"].tolist() == [None, "length"]
    assert infos["_reason"].tolist() == [False, True]
    record = vector.episode_record(1)
    assert (record.steps, record.reason, vector.episode_record(0).steps) == (20, "length", 10)
    assert infos["value"][1] == record.final_value
    observations, rewards, _, truncated, infos = vector.step(np.array([2, 0]))
    assert (rewards[1], truncated[1], vector.episode_record(1).steps) == (0.0, False, 0)
    assert infos["_start_row"].tolist() == [False, True]
    assert infos["start_row"][1] == vector.episode_record(1).start_row
    assert vector.episode_record(0).steps == 11
    assert observations[1] in vector.single_observation_space


def test_infos_are_empty_while_nothing_begins_or_ends():
    vector = TradingVectorEnv(market(PLAIN), PLAIN, num_envs=2)
    vector.reset(seed=1)
    for _ in range(19):
        assert vector.step(np.array([2, 0]))[4] == {}


def test_arrays_that_were_handed_out_are_not_written_again():
    vector = TradingVectorEnv(market(PLAIN), PLAIN, num_envs=2)
    kept = [vector.reset(seed=1)[0]]
    kept += vector.step(np.array([2, 0]))[:4]
    copies = [array.copy() for array in kept]
    for _ in range(25):
        vector.step(np.array([0, 2]))
    for array, before in zip(kept, copies, strict=True):
        assert np.array_equal(array, before)


def test_vector_can_be_copied_and_pickled_in_mid_episode():
    vector = TradingVectorEnv(market(PLAIN), PLAIN, num_envs=3)
    vector.reset(seed=1)
    actions = np.array([2, 0, 1])
    for _ in range(20):
        vector.step(actions)
    twins = [copy.deepcopy(vector), pickle.loads(pickle.dumps(vector))]  # noqa: S301 - our own bytes
    for _ in range(25):
        step = vector.step(actions)
        for twin in twins:
            for value, expected in zip(twin.step(actions)[:4], step[:4], strict=True):
                assert np.array_equal(value, expected)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("targets", 3, r"environment 2: expected an action 0\.\.2, got 3"),
        ("weights", np.nan, r"environment 2: .* got nan"),
        ("weights", 1.5, r"environment 2: .* got 1\.5"),
        ("quantities", np.inf, "environment 2: .* got inf"),
        ("portfolio: weights", np.nan, r"environment 2: .* got nan"),
    ],
)
def test_bad_action_names_its_environment_and_value_and_nobody_steps(kind, value, words):
    settings = settings_of(kind)
    vector, twin = (TradingVectorEnv(market(settings), settings, num_envs=4) for _ in range(2))
    vector.action_space.seed(1)
    for each in (vector, twin):
        each.reset(seed=1)
    for number in range(45):  # also in the steps that reset
        good = vector.action_space.sample()
        bad = good.copy()
        bad[2] = value
        if number not in (20, 41):  # there the action of every environment is ignored
            with pytest.raises(ActionError, match=words):
                vector.step(bad)
            with pytest.raises(ActionError, match="expected"):
                vector.step(bad[:3])
        step, expected = vector.step(good), twin.step(good)
        for own, other in zip(step[:4], expected[:4], strict=True):
            assert np.array_equal(own, other)


def test_failed_reset_step_draws_no_second_start():
    vector, twin = (TradingVectorEnv(market(PLAIN), PLAIN, num_envs=2) for _ in range(2))
    for each in (vector, twin):
        each.reset(seed=1)
        each.step(np.array([0, 1]))
        each.reset(options={"reset_mask": np.array([True, False])})
        for _ in range(19):
            each.step(np.array([0, 1]))
    with pytest.raises(ActionError, match="environment 0"):
        vector.step(np.array([9, 1]))
    assert np.array_equal(vector.step(np.array([0, 9]))[0], twin.step(np.array([0, 9]))[0])
    assert vector.episode_record(1).env_seed == "2#1"


def test_options_choose_symbol_and_start_row_for_all_or_each():
    vector = TradingVectorEnv(market(PLAIN), PLAIN, num_envs=2)
    _, infos = vector.reset(options={"symbol": "BBB", "start_row": 1_020})
    assert infos["symbol"].tolist() == ["BBB", "BBB"]
    assert infos["start_row"].tolist() == [1_020, 1_020]
    _, infos = vector.reset(options={"symbol": ["AAA", "CCC"], "start_row": np.array([30, 2_050])})
    assert infos["symbol"].tolist() == ["AAA", "CCC"]
    assert infos["start_row"].tolist() == [30, 2_050]
    options = {"reset_mask": np.array([False, True]), "symbol": "BBB"}
    _, infos = vector.reset(seed=[None, 5], options=options)
    assert infos["_symbol"].tolist() == [False, True]
    assert infos["symbol"][1] == "BBB"
    assert set(options) == {"reset_mask", "symbol"}, "the caller's options are left as they are"


def test_bad_arguments_are_one_clear_line():
    data = market(PLAIN)
    with pytest.raises(InputError, match="num_envs: expected 1 or more, got 0"):
        TradingVectorEnv(data, PLAIN, num_envs=0)
    with pytest.raises(InputError, match="streams: expected 3, one for each environment, got 2"):
        TradingVectorEnv(data, PLAIN, num_envs=3, streams=streams(0, 2))
    with pytest.raises(InputError, match="symbol 'TSLA': expected one of AAA, BBB, CCC"):
        TradingVectorEnv(data, PLAIN, num_envs=3, symbol="TSLA")
    vector = TradingVectorEnv(data, PLAIN, num_envs=3)
    with pytest.raises(InputError, match="expected a running episode"):
        vector.step(np.zeros(3, dtype=np.int64))
    with pytest.raises(InputError, match="seed: expected one, or 3 of them, got 2"):
        vector.reset(seed=[1, 2])
    with pytest.raises(InputError, match=r"reset options: expected symbol, start_row or reset_mask, got \['row'\]"):
        vector.reset(options={"row": 3})
    for mask in (np.ones(2, dtype=bool), np.ones(3), np.zeros(3, dtype=bool)):
        with pytest.raises(InputError, match=r"reset_mask: expected a bool array \(3,\) with a True in it"):
            vector.reset(options={"reset_mask": mask})
