"""Random streams: which starts an environment draws depends on its number over all runners, not on the spread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from ray.rllib.env.env_context import EnvContext

from env.kernel import OBSERVATION_LIMIT
from env.market_data import MarketData
from env.scaler import Scaler
from env.settings import EnvSettings
from schemas.errors import SettingsError
from schemas.payloads import WindowOpened
from trainer.environments import LineageTradingEnv, create_env, stream
from trainer.rllib_private import VectorContext
from trainer.settings import EnvConfig
from trainer.window_store import WindowStore, current_window
from trainer.windows import History, Window, open_window

SETTINGS = EnvSettings(window=4, episode_length=40)


@pytest.fixture(scope="module")
def store(ray_session: None, bars: Any) -> Iterator[str]:
    """The name of a store with 2,000 bars of a symbol in both splits: starts rarely coincide by chance."""
    facts = {"feed": "walk", "interval": "1d", "cluster_id": "c", "topic": "t", "topic_id": "i"}
    facts |= {"partitions": [0], "start_offsets": [0], "end_offsets": [1]}
    history = History(bars=(bars("AAA", 100_000),), facts=facts, refused={})
    opened = WindowStore("streams")
    for split in ("train", "test"):
        window = open_window(history, split, 50_000 * 86_400_000_000, SETTINGS)
        window.scale(Scaler.identity(), SETTINGS)
        opened.put(window)
    yield opened.name
    opened.close()


def env_config(store: str, envs: int, branch: Any = "train", seed: int = 7) -> dict[str, Any]:
    config = EnvConfig(
        window_store=store,
        split="test" if branch == "evaluation" else "train",
        settings=SETTINGS.model_dump(mode="json"),
        scaler=Scaler.identity().to_dict(),
        seed=seed,
        branch=branch,
        num_envs=envs,
    )
    return config.model_dump(mode="json")


def environments(store: str, runners: int, envs: int, branch: Any = "train", seed: int = 7) -> list[Any]:
    """The environments of all runners, made as RLlib makes them: one context a runner, one call an environment."""
    config = env_config(store, envs, branch, seed)
    made = []
    for worker in range(1, runners + 1):
        context = EnvContext(config, worker_index=worker, num_workers=runners)
        made += [create_env(context) for _ in range(envs)]
    return made


def vectors(store: str, runners: int, envs: int, branch: Any = "train") -> list[Any]:
    """The vector environments of all runners, made as the batched runner has them made."""
    config = env_config(store, envs, branch)
    contexts = [VectorContext(config, worker, runners) for worker in range(1, runners + 1)]
    return [create_env(context | {"num_envs": envs}) for context in contexts]


def infos(made: list[Any], resets: int = 1) -> list[tuple[Any, ...]]:
    """Symbol and start row of each environment's first resets."""
    found: list[list[Any]] = []
    for vector in made:
        told = [vector.reset(seed=5)[1] for _ in range(resets)]
        found += [[(one["symbol"][i], one["start_row"][i]) for one in told] for i in range(vector.num_envs)]
    return [tuple(one) for one in found]


def starts(envs: list[LineageTradingEnv], resets: int = 1) -> list[tuple[int, ...]]:
    # The seeds are those that RLlib and gymnasium would pass: they must not matter.
    return [tuple(env.reset(seed=5 + index)[1]["start_row"] for _ in range(resets)) for index, env in enumerate(envs)]


def test_two_runners_of_32_environments_start_at_64_different_rows(store: str) -> None:
    assert len(set(starts(environments(store, runners=2, envs=32)))) == 64


@pytest.mark.parametrize(("runners", "envs"), [(2, 4), (4, 2), (8, 1)])
def test_starts_do_not_depend_on_how_environments_are_spread_over_runners(store: str, runners: int, envs: int) -> None:
    assert starts(environments(store, runners, envs), 3) == starts(environments(store, 1, 8), 3)


@pytest.mark.parametrize("branch", ["train", "evaluation"])
def test_environments_as_arrays_begin_where_they_begin_one_by_one(store: str, branch: Any) -> None:
    alone = environments(store, 2, 3, branch)
    told = [tuple(env.reset()[1].values() for _ in range(3)) for env in alone]
    assert infos(vectors(store, 2, 3, branch), 3) == [tuple(map(tuple, one)) for one in told]


def test_arrays_begin_anew_one_by_one_as_they_end(store: str) -> None:
    expected = infos(vectors(store, 1, 3), 2)
    [vector] = vectors(store, 1, 3)
    vector.reset()
    _, told = vector.reset(options={"reset_mask": np.array([False, True, False])})
    assert (told["symbol"][1], told["start_row"][1]) == expected[1][1]
    assert vector.episode_record(1).env_seed.endswith("#1")
    assert vector.episode_record(0).env_seed.endswith("#0")


def test_environments_share_the_scaled_features_of_the_window(store: str) -> None:
    _, data = current_window(store, "train")
    scaled = data.scaled(Scaler.identity(), OBSERVATION_LIMIT)
    # Ray's arrays cannot be written: these are its own, not made here.
    assert not scaled.flags.writeable


def test_a_store_gives_the_window_back_as_it_lies_in_shared_memory(store: str) -> None:
    opened, data = current_window(store, "train")
    again = WindowStore("shared")
    try:
        given = again.put(Window(data, WindowOpened(**opened)))
        _, lies = current_window("windows-shared", "train")
        assert np.shares_memory(given.data.open, lies.open)
        assert np.shares_memory(given.data.features, lies.features)
        assert (given.data.open == data.open).all()
    finally:
        again.close()


def test_rllibs_own_runner_cannot_make_arrays_without_the_workers_number(store: str) -> None:
    with pytest.raises(SettingsError, match=r'gym_env_vectorize_mode.*leave train.fast_path at "auto"'):
        create_env(env_config(store, 2) | {"num_envs": 2})  # type: ignore[arg-type]


def test_the_local_runner_counts_as_the_first(store: str) -> None:
    remote = environments(store, 1, 2)
    config = EnvConfig(
        window_store=store,
        split="train",
        settings=SETTINGS.model_dump(mode="json"),
        scaler=Scaler.identity().to_dict(),
        seed=7,
        num_envs=2,
    )
    context = EnvContext(config.model_dump(mode="json"), worker_index=0, num_workers=0)
    assert starts([create_env(context) for _ in range(2)], 3) == starts(remote, 3)


def test_another_seed_gives_other_starts(store: str) -> None:
    assert starts(environments(store, 1, 4), 3) != starts(environments(store, 1, 4, seed=8), 3)


def test_evaluation_draws_from_a_branch_of_its_own() -> None:
    assert stream(7, 3, "train").generate_state(4).tolist() == stream(7, 3, "train").generate_state(4).tolist()
    assert stream(7, 3, "train").generate_state(4).tolist() != stream(7, 3, "evaluation").generate_state(4).tolist()


def test_evaluation_environments_take_turns_over_the_symbols(bars: Any) -> None:
    data = MarketData([bars(symbol, 300) for symbol in ("AAA", "BBB", "CCC")])
    envs = [
        LineageTradingEnv(data, SETTINGS, lineage=None, turn=(index, 2))  # type: ignore[arg-type]
        for index in range(2)
    ]
    symbols = [[env.reset()[1]["symbol"] for _ in range(3)] for env in envs]
    assert symbols == [["AAA", "CCC", "BBB"], ["BBB", "AAA", "CCC"]]


def test_an_environment_knows_its_lineage(store: str) -> None:
    env = environments(store, 1, 1, branch="evaluation")[0]
    assert env.lineage.split == "test"
    assert env.lineage.scaler_version == Scaler.identity().version
    assert len(env.lineage.window_id) == len(env.lineage.data_hash) == 32
