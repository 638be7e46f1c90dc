"""Who takes part in bench_train.py: the same work by Millrace's fast path, stock RLlib, Stable-Baselines3, a bare loop.

Everything is equal but the path: observation 323 (64 bars of 5 features, 3 numbers of the account), 3 actions, MLP of
two layers of 64 tanh units, separate for policy and value; batch, minibatch, epochs, steps between two updates, length
of an iteration; one process, one thread. Stable-Baselines3 has plain DQN where the others have double DQN, and keeps
whole observations.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from bare_check import check_gradients
from bare_loop import BareDQN, BarePPO, Market
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.vec_env import VecEnv

from env.bars import SymbolBars
from env.market_data import MarketData
from env.market_model import MarketModel
from env.scaler import Scaler
from env.settings import EnvSettings
from env.spaces import action_space, observation_space
from trainer.environments import ENV_ID, register
from trainer.fast_path import use_fast_path
from trainer.models import use_model
from trainer.settings import EnvConfig
from trainer.window_store import WindowStore
from trainer.windows import History, open_window

BARS, DAY = 3_000, 86_400_000_000
ENV = EnvSettings(window=64, position_features=("position", "unrealised_return", "time_in_position"))
STORE = "bench"
NEVER = 2**31 - 1

_MLP: dict[str, Any] = {"fcnet_hiddens": [64, 64], "fcnet_activation": "tanh", "vf_share_layers": False}
_REPLAY = {"type": "EpisodeReplayBuffer", "capacity": 51_200}


@dataclass(frozen=True)
class Work:
    """What is trained.

    Attributes:
        envs: Environments.
        iteration: Environment steps of an iteration of RLlib's: as many for the fast path as for stock.
        config: RLlib's config, without environment and network.
        sb3: Stable-Baselines3's algorithm, of a vector environment.
        bare: The bare loop of a market.
        model: What its network has beyond the MLP's two layers.
    """

    envs: int
    iteration: int
    config: Callable[[], AlgorithmConfig]
    sb3: Callable[[VecEnv], Any] | None = None
    bare: Callable[[Market], BarePPO | BareDQN] | None = None
    model: dict[str, Any] | None = None


def _ppo(batch: int, minibatch: int, epochs: int) -> Callable[[], AlgorithmConfig]:
    return lambda: PPOConfig().training(
        train_batch_size_per_learner=batch,
        minibatch_size=minibatch,
        num_epochs=epochs,
        lr=3e-4,
        gamma=0.99,
        lambda_=0.95,
        clip_param=0.2,
        vf_clip_param=math.inf,
        vf_loss_coeff=0.5,
        use_kl_loss=False,
        kl_coeff=0.0,
        grad_clip=0.5,
    )


def _sb3_ppo(batch: int, minibatch: int, epochs: int) -> Callable[[VecEnv], Any]:
    return lambda env: PPO(
        "MlpPolicy",
        env,
        n_steps=batch // env.num_envs,
        batch_size=minibatch,
        n_epochs=epochs,
        policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}, "activation_fn": torch.nn.Tanh},
        device="cpu",
        seed=1,
    )


def _a2c() -> AlgorithmConfig:
    return PPOConfig().training(
        train_batch_size_per_learner=512,
        minibatch_size=None,
        num_epochs=1,
        lr=7e-4,
        gamma=0.99,
        lambda_=1.0,
        clip_param=1e9,
        vf_clip_param=math.inf,
        vf_loss_coeff=0.5,
        use_kl_loss=False,
        kl_coeff=0.0,
        grad_clip=0.5,
    )


def _sb3_a2c(env: VecEnv) -> Any:
    return A2C(
        "MlpPolicy",
        env,
        n_steps=512 // env.num_envs,
        gae_lambda=1.0,
        use_rms_prop=False,
        normalize_advantage=True,
        policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}, "activation_fn": torch.nn.Tanh},
        device="cpu",
        seed=1,
    )


def _dqn() -> AlgorithmConfig:
    config = DQNConfig().training(
        lr=5e-4,
        gamma=0.99,
        train_batch_size=32,
        training_intensity=1.0,
        target_network_update_freq=2_000,
        num_steps_sampled_before_learning_starts=1_024,
        replay_buffer_config=_REPLAY,
        double_q=True,
        dueling=False,
        epsilon=0.05,
    )
    return config.env_runners(rollout_fragment_length=16)


def _sb3_dqn(env: VecEnv) -> Any:
    return DQN(
        "MlpPolicy",
        env,
        learning_rate=5e-4,
        buffer_size=_REPLAY["capacity"],
        learning_starts=1_024,
        batch_size=32,
        gamma=0.99,
        train_freq=16,
        gradient_steps=16 * env.num_envs // 32,
        target_update_interval=2_000,
        exploration_initial_eps=0.05,
        exploration_final_eps=0.05,
        max_grad_norm=40,
        policy_kwargs={"net_arch": [64, 64], "activation_fn": torch.nn.Tanh},
        device="cpu",
        seed=1,
    )


def _sac() -> AlgorithmConfig:
    config = SACConfig().training(
        gamma=0.99,
        train_batch_size_per_learner=64,
        training_intensity=1.0,
        num_steps_sampled_before_learning_starts=1_024,
        replay_buffer_config=_REPLAY,
    )
    return config.env_runners(rollout_fragment_length=16)


def _stream(config: AlgorithmConfig) -> AlgorithmConfig:
    config.training(train_batch_size_per_learner=512, lr=5e-4)
    return config.env_runners(rollout_fragment_length=16).learners(num_learners=0)


_BIG, _SB3, _SMALL = (16_384, 2_048, 1), (2_048, 64, 10), (2_048, 512, 1)

WORKS = {
    "ppo32": Work(32, 32_768, _ppo(*_BIG), _sb3_ppo(*_BIG), lambda market: BarePPO(market, *_BIG)),
    "ppo128": Work(128, 32_768, _ppo(*_BIG), _sb3_ppo(*_BIG), lambda market: BarePPO(market, *_BIG)),
    "ppo_sb3hp": Work(8, 4_096, _ppo(*_SB3), _sb3_ppo(*_SB3), lambda market: BarePPO(market, *_SB3)),
    "a2c": Work(32, 8_192, _a2c, _sb3_a2c),
    "dqn": Work(64, 4_096, _dqn, _sb3_dqn, lambda market: BareDQN(market, 16)),
    "sac": Work(32, 1_024, _sac),
    "appo": Work(32, 8_192, lambda: _stream(APPOConfig())),
    "impala": Work(32, 8_192, lambda: _stream(IMPALAConfig())),
    "ppo_conv": Work(32, 2_048, _ppo(*_SMALL), model={"kind": "conv"}),
    "ppo_lstm": Work(32, 2_048, _ppo(*_SMALL), model={"kind": "lstm"}),
    "ppo_transformer": Work(32, 2_048, _ppo(*_SMALL), model={"kind": "transformer"}),
}


@dataclass
class Contestant:
    """A path, ready to train.

    Attributes:
        path: fast, stock, sb3 or bare.
        note: What the fast path says of its choice.
        train: Trains on, for one iteration; returns environment steps.
        close: Afterwards.
        wall: Seconds a step, one number a turn.
        cpu: The same of this process's CPU time.
    """

    path: str
    note: str
    train: Callable[[], int]
    close: Callable[[], None] = lambda: None
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def turn(self, least_s: float, *, counts: bool = True) -> None:
        """Train for whole iterations, for so many seconds at least, and note what it took."""
        steps, wall, cpu = 0, time.perf_counter(), time.process_time()
        while not steps or time.perf_counter() - wall < least_s:
            steps += self.train()
        if counts:
            self.wall.append((time.perf_counter() - wall) / steps)
            self.cpu.append((time.process_time() - cpu) / steps)


@dataclass(frozen=True)
class Arena:
    """The market that all of them trade, and where RLlib's environments find it."""

    data: MarketData
    scaler: Scaler
    store: WindowStore

    @classmethod
    def open(cls) -> Arena:
        """Daily bars of a random walk, as the window of a run. Ray must be running."""
        rng = np.random.default_rng(1)
        close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, BARS)))
        open_ = close * np.exp(rng.normal(0.0, 0.003, BARS))
        high, low = np.maximum(open_, close) * 1.002, np.minimum(open_, close) / 1.002
        ts = np.arange(BARS, dtype=np.int64) * DAY
        bars = SymbolBars("WALK", 0, ts, ts + DAY, open_, high, low, close, rng.uniform(1e5, 1e6, BARS))
        facts = {"feed": "walk", "interval": "1d", "cluster_id": "none", "topic": "none", "topic_id": "none"}
        facts |= {"partitions": [0], "start_offsets": [0], "end_offsets": [1]}
        window = open_window(History((bars,), facts, {}), "train", (BARS + 1) * DAY, ENV)
        store = WindowStore(STORE)
        scaler = Scaler.fit(window.data)
        store.put(window)
        register()
        return cls(window.data, scaler, store)

    def environment(self, envs: int, settings: EnvSettings = ENV) -> EnvConfig:
        """What RLlib's environments are made of."""
        return EnvConfig(
            window_store=self.store.name,
            split="train",
            settings=settings.model_dump(mode="json"),
            scaler=self.scaler.to_dict(),
            seed=1,
            num_envs=envs,
        )


def build(arena: Arena, name: str, path: str) -> Contestant:
    """A contestant for a work.

    Args:
        arena: The market.
        name: One of ``WORKS``.
        path: fast, stock, sb3 or bare.

    Raises:
        ValueError: The work has no such contestant.
    """
    work = WORKS[name]
    if path == "sb3" and work.sb3 is not None:
        model = work.sb3(MarketVecEnv(arena, work.envs))
        return Contestant(path, "", lambda: _learn(model, work.iteration))
    if path == "bare" and work.bare is not None:
        loop = work.bare(Market(arena.data, ENV, arena.scaler, work.envs, seed=1))
        check_gradients(loop)
        return Contestant(path, "", loop.iterate)
    if path not in ("fast", "stock"):
        raise ValueError(f"{name}: expected one of its contestants, got {path}")
    config = rllib_config(arena, work)
    note = use_fast_path(config).line if path == "fast" else ""
    algorithm = config.build_algo()
    return Contestant(path, note, lambda: sampled(algorithm.train()), algorithm.stop)


def rllib_config(arena: Arena, work: Work, settings: EnvSettings = ENV) -> AlgorithmConfig:
    """The work's complete config for RLlib."""
    environment = arena.environment(work.envs, settings).model_dump(mode="json")
    config = work.config().environment(ENV_ID, env_config=environment)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=work.envs)
    config.rl_module(model_config=_MLP | (work.model or {}))
    config.debugging(seed=1, log_level="ERROR")
    config.reporting(min_sample_timesteps_per_iteration=work.iteration, min_time_s_per_iteration=0)
    use_model(config, type(config).__name__.removesuffix("Config"), settings)
    return config


def sampled(result: dict[str, Any]) -> int:
    """Environment steps of an iteration."""
    return int(result["env_runners"]["num_env_steps_sampled"])


def _learn(model: Any, steps: int) -> int:
    before = model.num_timesteps
    model.learn(steps, reset_num_timesteps=False)
    return int(model.num_timesteps - before)


class MarketVecEnv(VecEnv):
    """The market model as Stable-Baselines3's vector environment: reset at once, the last observation in the info."""

    def __init__(self, arena: Arena, envs: int) -> None:
        rngs = [np.random.default_rng([1, index]) for index in range(envs)]
        self._model = MarketModel(arena.data, ENV, arena.scaler, envs, rngs)
        self._actions: Any = None
        super().__init__(envs, observation_space(self._model.observation_size, 10.0), action_space(ENV, 1))

    def reset(self) -> Any:
        """Begin an episode in each."""
        self._model.reset(range(self.num_envs))
        return self._model.observations()

    def step_async(self, actions: Any) -> None:
        """Keep the actions."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, Any, Any, list[dict[str, Any]]]:
        """Step all."""
        model = self._model
        seen, rewards, terminated, truncated = model.step(self._actions)
        ended = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if ended.any():
            envs = np.flatnonzero(ended).tolist()
            for env in envs:
                infos[env] = {"terminal_observation": seen[env], "TimeLimit.truncated": bool(truncated[env])}
            model.reset(envs)
            seen = model.observations()
        return seen, rewards.astype(np.float32), ended, infos

    def close(self) -> None:
        """Nothing to close."""

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Seeded when made."""
        return [seed] * self.num_envs

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """It is not."""
        return [False] * self.num_envs

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of this environment, for each."""
        return [getattr(self, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused."""
        raise NotImplementedError(attr_name)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Refused."""
        raise NotImplementedError(method_name)
