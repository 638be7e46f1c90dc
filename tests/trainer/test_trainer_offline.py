"""Recordings: episodes run again to the last bit, refused where they differ, and what BC and MARWIL make of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule

from env.scaler import Scaler
from env.settings import EnvSettings
from env.trading_env import TradingEnv
from eventlog.open_log import open_log
from schemas.errors import InputError, IntegrityError, SettingsError
from trainer.algorithm_checks import check_algorithm
from trainer.environments import settings_hash
from trainer.episode_export import RecordedEpisode, RecordedRun, export_episodes
from trainer.offline_data import MANIFEST, EpisodeReturns, Manifest, check_recording, read_columns, read_manifest
from trainer.settings import AlgorithmSettings, DataSettings
from trainer.windows import first_test_ts, open_window, read_history

ENV = EnvSettings(window=4, episode_length=40, reward_scale=100.0)
DATA = DataSettings(feed="walk")


@dataclass
class Recorded:
    """A run on record, and the observations and rewards that its episodes had."""

    bench: Any
    run: RecordedRun
    episodes: list[RecordedEpisode]
    observations: list[Any]
    rewards: list[Any]

    def export(self, folder: Path, episodes: list[RecordedEpisode] | None = None) -> Manifest:
        with open_log(self.bench.address) as log:
            return export_episodes(self.run, self.episodes if episodes is None else episodes, log, folder)


def momentum(observation: Any, rng: np.random.Generator) -> int:
    """The sign of the last bar's move, with a slip now and then: something to imitate."""
    slip = rng.random() < 0.1
    return int(rng.integers(3)) if slip else 2 * int(observation[15:20].sum() > 0)


def record_episodes(bench: Any, settings: EnvSettings, play: Callable[[Any, Any, Any], Any]) -> Recorded:
    """Twelve episodes of a player on two random walks, as the store would have them."""
    bench.send_walks("AAA", "BBB")
    with open_log(bench.address) as log:
        history = read_history(log, DATA)
    window = open_window(history, "train", first_test_ts(history, DATA), settings)
    scaler = Scaler.fit(window.data)
    env = TradingEnv(window.data, settings, scaler=scaler)
    rng = np.random.default_rng(3)
    found = Recorded(bench, RecordedRun("run", DATA, settings, [window.opened]), [], [], [])
    for number in range(12):
        observation, _ = env.reset(seed=number)
        observations, rewards, done = [observation], [], False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(play(env, observation, rng))
            observations.append(observation)
            rewards.append(reward)
            done = terminated or truncated
        record = env.episode_record()
        found.episodes.append(
            RecordedEpisode(
                episode_id=f"e{number}",
                symbol=str(record.symbol),
                start_row=record.start_row,
                window_id=window.opened.window_id,
                settings_hash=settings_hash(settings),
                scaler_version=scaler.version,
                steps=record.steps,
                total_reward=record.total_reward,
                final_value=record.final_value,
                actions=np.ravel(record.actions).astype(float).tolist(),
            )
        )
        found.observations.append(np.stack(observations))
        found.rewards.append(np.array(rewards, dtype=np.float32))
    return found


@pytest.fixture
def recorded(bench: Any) -> Recorded:
    return record_episodes(bench, ENV, lambda env, observation, rng: momentum(observation, rng))


@pytest.mark.parametrize(
    "change", [{"actions": "weights"}, {"portfolio": True}, {"actions": "weights", "portfolio": True}]
)
def test_all_kinds_of_actions_are_recorded(change: dict[str, Any], bench: Any, tmp_path: Path) -> None:
    def play(env: Any, observation: Any, rng: Any) -> Any:
        env.action_space.seed(int(rng.integers(2**31)))
        return env.action_space.sample()

    recorded = record_episodes(bench, ENV.model_copy(update=change), play)
    manifest = recorded.export(tmp_path / "out")
    assert manifest.discrete == ("actions" not in change)
    assert manifest.action_size == (2 if "portfolio" in change else 1)
    columns = read_columns(tmp_path / "out", manifest)
    assert np.array_equal(columns[Columns.OBS], np.concatenate([each[:-1] for each in recorded.observations]))
    # As the store has them: plain numbers, be they choices or not.
    actions = np.concatenate([np.array(episode.actions) for episode in recorded.episodes])
    assert np.array_equal(columns[Columns.ACTIONS].ravel(), actions.astype(columns[Columns.ACTIONS].dtype))


def test_a_recording_holds_what_the_agent_saw_and_got(recorded: Recorded, tmp_path: Path) -> None:
    manifest = recorded.export(tmp_path / "out")
    assert (manifest.episodes, manifest.steps) == (12, sum(len(rewards) for rewards in recorded.rewards))
    columns = read_columns(tmp_path / "out", read_manifest(tmp_path / "out"))
    assert np.array_equal(columns[Columns.OBS], np.concatenate([each[:-1] for each in recorded.observations]))
    assert np.array_equal(columns[Columns.NEXT_OBS], np.concatenate([each[1:] for each in recorded.observations]))
    assert np.array_equal(columns[Columns.REWARDS], np.concatenate(recorded.rewards))
    assert columns[Columns.ACTIONS].tolist() == [int(a) for episode in recorded.episodes for a in episode.actions]
    assert columns[Columns.TRUNCATEDS].sum() == 12
    assert not columns[Columns.TERMINATEDS].any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"total_reward": 0.5}, "expected total_reward 0.5 as recorded, got"),
        ({"final_value": 1.0}, "expected final_value 1.0 as recorded, got"),
        ({"steps": 39}, "expected steps 39 as recorded, got 40"),
        ({"settings_hash": "another"}, "expected settings_hash"),
        ({"scaler_version": "another"}, "expected scaler_version"),
    ],
)
def test_an_episode_that_does_not_come_out_as_recorded_stops_the_export(
    change: dict[str, Any], words: str, recorded: Recorded, tmp_path: Path
) -> None:
    changed = [recorded.episodes[0], replace(recorded.episodes[1], **change)]
    with pytest.raises(IntegrityError, match=f"episode e1: {words}"):
        recorded.export(tmp_path / "out", changed)
    # What was begun is no recording.
    with pytest.raises(InputError, match="expected a folder with manifest.json"):
        read_manifest(tmp_path / "out")


def test_an_export_never_writes_over_anything(recorded: Recorded, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="expected a new or an empty one"):
        recorded.export(tmp_path)
    with pytest.raises(InputError, match="expected ended episodes of its training split, got none"):
        recorded.export(tmp_path / "out", [])
    assert not (tmp_path / "out").exists()


def test_a_recording_is_of_one_environment_and_the_error_names_the_setting(recorded: Recorded, tmp_path: Path) -> None:
    recorded.export(tmp_path / "out")
    algorithm = AlgorithmSettings(name="BC", offline_data={"input_": str(tmp_path / "out")})  # type: ignore[call-arg]
    check_algorithm(algorithm, ENV, DataSettings())
    with pytest.raises(SettingsError, match=r"made with \[env\] window = 4 \(here 8\); train with the settings"):
        check_algorithm(algorithm, ENV.model_copy(update={"window": 8}), DataSettings())
    with pytest.raises(InputError, match="expected a folder with manifest.json, there is none; `millrace export"):
        check_recording(str(tmp_path / "nowhere"), ENV)


def test_a_changed_file_or_one_with_other_columns_is_refused_unread(recorded: Recorded, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    manifest = recorded.export(folder)
    [name] = manifest.files
    # A stranger's file under a manifest that fits it: its column would be unpickled by Ray Data.
    other = pa.table({Columns.OBS: pa.array([b"\x80\x04."]), Columns.ACTIONS: pa.array([1])})
    pq.write_table(other, folder / name)
    with pytest.raises(InputError, match="it was changed, export it again"):
        read_columns(folder, manifest)
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    with pytest.raises(InputError, match="expected the columns"):
        read_columns(folder, manifest.model_copy(update={"files": {name: digest}}))
    (folder / MANIFEST).write_text('{"format": "something"}')
    with pytest.raises(InputError, match="cannot be read"):
        read_manifest(folder)


def test_value_targets_are_discounted_returns_with_a_bootstrap_behind_a_cut() -> None:
    rng = np.random.default_rng(1)
    lengths, gamma = (3, 1, 5), 0.8
    ends = np.cumsum(lengths) - 1
    rewards = rng.normal(size=9).astype(np.float32)
    terminated, truncated = np.zeros(9, dtype=bool), np.zeros(9, dtype=bool)
    truncated[ends[[0, 2]]] = True
    terminated[ends[1]] = True
    observations = rng.normal(size=(9, 2)).astype(np.float32)
    columns = {
        Columns.REWARDS: rewards,
        Columns.TERMINATEDS: terminated,
        Columns.TRUNCATEDS: truncated,
        Columns.NEXT_OBS: observations,
    }
    returns = EpisodeReturns(columns, gamma)
    assert np.array_equal(returns.last_observations, observations[ends])
    values = np.array([2.0, 100.0, -3.0])
    wanted = []
    for number, (length, end) in enumerate(zip(lengths, ends, strict=True)):
        for row in range(end - length + 1, end + 1):
            steps = np.arange(end - row + 1)
            target = float((gamma**steps * rewards[row : end + 1]).sum())
            wanted.append(target + (0.0 if terminated[end] else gamma ** (end - row + 1) * values[number]))
    assert returns.targets(values) == pytest.approx(np.array(wanted), abs=1e-6)


def accuracy(checkpoint: Path, columns: dict[str, Any]) -> float:
    """Share of recorded actions that the greedy policy of a checkpoint takes, too."""
    module = RLModule.from_checkpoint(checkpoint / "learner_group" / "learner" / "rl_module" / "default_policy")
    with torch.no_grad():
        logits = module.forward_inference({Columns.OBS: torch.from_numpy(columns[Columns.OBS].copy())})
    return float((logits[Columns.ACTION_DIST_INPUTS].argmax(-1).numpy() == columns[Columns.ACTIONS]).mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BC", "MARWIL"])
def test_imitation_learns_the_player_reproducibly_and_trades_the_test(
    name: str, recorded: Recorded, tmp_path: Path, ray_session: None
) -> None:
    recorded.export(tmp_path / "out")
    columns = read_columns(tmp_path / "out", read_manifest(tmp_path / "out"))
    chance = np.bincount(columns[Columns.ACTIONS]).max() / len(columns[Columns.ACTIONS])
    base = recorded.bench.job("PPO", train={"iterations": 40})
    algorithm = AlgorithmSettings(
        name=name,
        offline_data={"input_": str(tmp_path / "out")},
        training={"train_batch_size_per_learner": 64, "lr": 3e-3},
    )  # type: ignore[call-arg]
    reached: list[float] = []
    for _ in range(2):
        run = recorded.bench.train(type(base)(**{**vars(base), "algorithm": algorithm, "env": ENV}))
        assert run.result is not None
        assert run.result.status == "completed"
        assert {episode.symbol for episode in run.agent("test")} == {"AAA", "BBB"}
        assert run.agent("train") == []
        reached.append(accuracy(run.result.checkpoint, columns))
    assert reached[0] == reached[1]
    assert reached[0] > chance + 0.15, (reached, chance)


def in_or_out(env: Any, observation: Any, rng: np.random.Generator) -> Any:
    """Nearly all in after a bar that rose, nearly out after one that fell, give or take a little."""
    weight = 0.9 if observation[15:20].sum() > 0 else 0.1
    return np.array([np.clip(weight + 0.02 * rng.normal(), 0.0, 1.0)], dtype=np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BC", "MARWIL"])
def test_imitation_of_weights_takes_the_players_weights(
    name: str, bench: Any, tmp_path: Path, ray_session: None
) -> None:
    # From 0 to 1: RLlib's modules speak of that as from -1 to 1.
    settings = ENV.model_copy(update={"actions": "weights", "short": False})
    record_episodes(bench, settings, in_or_out).export(tmp_path / "out")
    base = bench.job("PPO", train={"iterations": 60})
    algorithm = AlgorithmSettings(
        name=name,
        offline_data={"input_": str(tmp_path / "out")},
        training={"train_batch_size_per_learner": 64, "lr": 3e-3},
    )  # type: ignore[call-arg]
    run = bench.train(type(base)(**{**vars(base), "algorithm": algorithm, "env": settings}))
    ids = {episode.episode_id for episode in run.agent("test")}
    taken = [data.actions for data in run.of("episode.actions") if data.episode_id in ids]
    weights = np.concatenate([np.ravel(each) for each in taken])
    print(name, np.quantile(weights, [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]))
    nearest = np.where(weights > 0.5, 0.9, 0.1)
    assert np.abs(weights - nearest).mean() < 0.1
    assert 0.2 < (weights > 0.5).mean() < 0.8


@pytest.mark.slow
def test_a_recording_of_another_scaler_is_refused(
    recorded: Recorded, tmp_path: Path, ray_session: None, new_bench: Callable[[], Any]
) -> None:
    recorded.export(tmp_path / "out")
    other = new_bench()
    other.send_walks("AAA", "BBB", count=200)
    base = other.job("PPO")
    algorithm = AlgorithmSettings(name="BC", offline_data={"input_": str(tmp_path / "out")})  # type: ignore[call-arg]
    with pytest.raises(SettingsError, match="this run's scaler is another one; train on the same"):
        other.train(type(base)(**{**vars(base), "algorithm": algorithm, "env": ENV}))
