"""What is written down at each step: arrays over all environments, which grow, and hold less on request."""

from __future__ import annotations

import numpy as np
import pytest

from env import memory
from env.market_model import MarketModel
from env.settings import EnvSettings

VALUES = {"window": 2, "starts": "sequential", "stop_loss": 0.02, "interest": 0.001, "reward": "return"}


def assert_same_record(left, right):
    for name, value in vars(left).items():
        other = getattr(right, name)
        if isinstance(value, dict):
            assert value.keys() == other.keys(), name
            for column, numbers in value.items():
                assert np.array_equal(numbers, other[column]), (name, column)
        elif isinstance(value, np.ndarray):
            assert np.array_equal(value, other), name
        else:
            assert value == other, name


@pytest.mark.parametrize("portfolio", [False, True])
@pytest.mark.parametrize("reserved", [0, 1 << 20])
def test_records_of_a_batch_are_those_of_its_environments_alone(random_data, monkeypatch, portfolio, reserved):
    # Where nothing is reserved, the rooms of 2 grow while episodes are under way.
    monkeypatch.setattr(memory, "_RESERVED", reserved)
    options = EnvSettings.model_validate(VALUES | {"portfolio": portfolio, "episode_length": 23})
    count, rng = 3, np.random.default_rng(5)
    batch = MarketModel(random_data, options, None, count, [np.random.default_rng(i) for i in range(count)])
    alone = [MarketModel(random_data, options, None, None, [np.random.default_rng(i)]) for i in range(count)]
    batch.reset(range(count))
    for model in alone:
        model.reset([0])
    compared = 0
    for step in range(150):
        actions = rng.integers(0, 3, (count, 2) if portfolio else count)
        _, _, terminated, truncated = batch.step(actions)
        ended = terminated | truncated
        ended[0] |= step % 40 == 7  # it begins anew in the middle: episodes do not all end together
        for index, model in enumerate(alone):
            model.step(actions[index] if portfolio else int(actions[index]))
            if ended[index] or step % 11 == 0:
                assert_same_record(batch.episode_record(index, "seed"), model.episode_record(0, "seed"))
                compared += 1
            if ended[index]:
                model.reset([0])
        batch.reset(np.flatnonzero(ended).tolist())
    assert compared > 40


@pytest.mark.parametrize("portfolio", [False, True])
def test_record_of_fills_alone_has_everything_but_the_steps(random_data, portfolio):
    records = []
    for kept in ("fills", "steps"):
        options = EnvSettings.model_validate(VALUES | {"portfolio": portfolio, "record": kept, "borrow": 0.001})
        model = MarketModel(random_data, options, None, None, [np.random.default_rng(1)])
        model.reset([0])
        rng = np.random.default_rng(2)
        for _ in range(60):
            model.step(rng.integers(0, 3, 2) if portfolio else int(rng.integers(0, 3)))
        records.append(model.episode_record(0))
    fills, steps = records
    assert (fills.steps_table, fills.positions_table) == ({}, {})
    assert len(steps.steps_table["cash"]) == 60
    assert bool(steps.positions_table) == portfolio
    object.__setattr__(steps, "steps_table", {})
    object.__setattr__(steps, "positions_table", {})
    assert_same_record(fills, steps)
    assert fills.borrow > 0.0
    assert fills.interest != 0.0


def test_record_told_twice_is_the_same_and_its_columns_are_its_own(random_data):
    model = MarketModel(random_data, EnvSettings.model_validate(VALUES), None, None, [np.random.default_rng(1)])
    model.reset([0])
    for action in (2, 0, 2, 1):
        model.step(action)
    first = model.episode_record(0)
    for column in (*first.fills.values(), *first.trades.values()):
        column[:] = column[:1] if len(column) else column
    first.actions[:] = 7
    again = model.episode_record(0)
    assert again.actions.tolist() == [2, 0, 2, 1]
    assert not np.array_equal(again.fills["step"], first.fills["step"])
    for shared in (random_data.ts_close, random_data.mark):
        assert not any(np.shares_memory(column, shared) for column in first.steps_table.values())
