"""An RLlib env runner that acts in all of its environments at once: one forward a step, whole arrays a ``sample()``."""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.env.env_errors import StepFailedRecreateEnvError
from ray.rllib.env.env_runner import NUM_ENV_STEP_FAILURES_LIFETIME
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import ENV_STEP_TIMER, RLMODULE_INFERENCE_TIMER

from trainer.actor import Acted, Actor
from trainer.episode_log import Ended, EpisodeLog
from trainer.recorder import Recorder
from trainer.rllib_private import EnvRunnerBase, VectorContext
from trainer.rollout import EpisodeSummary

_FIRST_CAPACITY = 256

_logger = logging.getLogger(__name__)


class BatchedEnvRunner(EnvRunnerBase):
    """Samples as RLlib's ``SingleAgentEnvRunner`` does, several times faster; ``trainer.fast_path`` says when it can.

    Works on any gymnasium vector environment with array observations, whatever its autoreset mode. ``sample()`` gives
    one ``Rollout`` where the config's learner reads those, else ``SingleAgentEpisode``s, as RLlib's learners want
    them; by episodes (``num_episodes``) always the latter.

    Callbacks are called as by RLlib's runner, but for ``on_episode_step``. Where rollouts are given, ``on_episode_end``
    gets an ``EpisodeSummary`` of the whole episode. The order of an ended episode: ``on_episode_end`` with the
    environment as the episode left it, ``on_episode_created``, the reset, ``on_episode_start``.
    """

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        self._source = uuid.uuid4().hex
        self._reads_rollouts = bool(getattr(config.learner_class, "reads_rollouts", False))
        self._row = 0  # Steps of this runner's life; one more at every reset of all, so that nothing joins across it.
        self._actor: Actor | None = None
        self._recorder: Recorder | None = None
        self._ended: list[Ended] = []
        self._done: list[SingleAgentEpisode] = []
        self._chunks: dict[str, list[SingleAgentEpisode]] = {}
        self._young: dict[int, Any] = {}
        self._custom_data: dict[int, dict[str, Any]] = {}
        super().__init__(config=config, **kwargs)

    def make_env(self) -> None:
        """Make the environments, on the current window; the next ``sample()`` begins with a reset."""
        # A plain dict would lose the worker's number on its way to the creator of a vector environment.
        self.config.env_config = VectorContext(dict(self.config.env_config), self.worker_index, self.num_workers)
        super().make_env()
        base = self.env.unwrapped
        self._mode = base.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        # RLlib's wrapper makes B dicts a step; our own environment's infos are empty but where episodes begin and end.
        self._indexes = hasattr(base, "indexed")
        self._vector: Any = base if self._indexes else self.env
        self._log = EpisodeLog(self.num_envs)
        self._resetting: NDArray[np.bool_] = np.zeros(self.num_envs, dtype=np.bool_)
        if self.runner_seed is not None:
            self.env.action_space.seed(self.runner_seed)

    def get_metrics(self) -> Any:
        """Metrics since the last call, those of ended episodes included."""
        self.log_episodes(self._ended)
        self._ended.clear()
        return super().get_metrics()

    def collect(
        self,
        *,
        num_timesteps: int | None,
        num_episodes: int | None,
        explore: bool,
        random_actions: bool,
        force_reset: bool,
    ) -> list[Any]:
        """Sample; see ``SingleAgentEnvRunner.sample()``."""
        self._as_rollout = self._reads_rollouts and num_episodes is None
        self._wanted = num_episodes
        self._done, self._done_count = [], 0
        if force_reset or num_episodes is not None or self.needs_reset:
            self._reset_all()
        if num_episodes is not None:
            self.needs_reset = True
        capacity = math.ceil(num_timesteps / self.num_envs) if num_timesteps is not None else _FIRST_CAPACITY
        recorder = self._begin(capacity)
        acting = stepping = 0.0
        steps = forwards = 0
        while steps < num_timesteps if num_timesteps is not None else self._done_count < (num_episodes or 0):
            start = time.perf_counter()
            acted = self._act(explore, random_actions, steps)
            chosen = time.perf_counter()
            taken = self._step(recorder, acted)
            if taken is None:
                # As RLlib has it: what episodes in progress did is dropped, what has ended has ended.
                self._reset_all()
                recorder, steps = self._begin(capacity), 0
                continue
            steps, forwards = steps + taken, forwards + 1
            acting, stepping = acting + chosen - start, stepping + time.perf_counter() - chosen
        if forwards:
            self.metrics.log_value(RLMODULE_INFERENCE_TIMER, acting / forwards)
            self.metrics.log_value(ENV_STEP_TIMER, stepping / forwards)
        self.count_samples(steps, self._done_count)
        return self._samples(recorder)

    # -- steps --------------------------------------------------------------------------------------------------------

    def _act(self, explore: bool, random_actions: bool, steps: int) -> Acted:
        if random_actions:
            actions = np.asarray(self.env.action_space.sample())
            return Acted(actions, actions, {})
        if self._actor is None or self._actor.module is not self.module:
            self._actor = Actor(self.module, self.config, self.env.single_action_space, self.num_envs, self.device)
        # Steps of all runners, in RLlib's own reckoning.
        runners = self.config.num_env_runners or 1
        timestep = (self.num_env_steps_sampled_lifetime // runners + steps) * runners
        return self._actor.act(self._observations, explore, timestep)

    def _step(self, recorder: Recorder, acted: Acted) -> int | None:
        """Step all environments; end and begin their episodes.

        Returns:
            How many of them took the step: a vector environment may reset some instead. None: they failed.
        """
        results = self._try(lambda: self._vector.step(acted.for_env))
        if results is None:
            return None
        observations, rewards, terminateds, truncateds, infos = results
        resetting = self._resetting
        valid = None if self._mode is not AutoresetMode.NEXT_STEP else ~resetting
        recorder.write(acted, rewards, terminateds, truncateds, self.weights_seq_no, valid)
        self._row += 1
        self._log.add(rewards)
        if resetting.any():
            self._resetting = np.zeros(self.num_envs, dtype=np.bool_)
            self._start(np.flatnonzero(resetting), observations, infos)
        ended = terminateds | truncateds
        if ended.any():
            envs = np.flatnonzero(ended)
            self._end(recorder, envs, observations, infos)
            if self._wanted is not None and self._done_count >= self._wanted:
                pass  # The next sample() resets them all.
            elif self._mode is AutoresetMode.NEXT_STEP:
                self._resetting = ended
            else:
                if self._mode is AutoresetMode.DISABLED:
                    results = self._try(lambda: self._vector.reset(options={"reset_mask": ended}))
                    if results is None:
                        return None
                    observations, begun = results
                    # A reset of some tells nothing of the others.
                    infos = np.where(ended, begun, infos).tolist() if isinstance(infos, list) else begun
                self._start(envs, observations, infos)
        self._observations, self._infos = observations, infos if isinstance(infos, list) else None
        recorder.follow(observations, self._infos)
        return self.num_envs if valid is None else int(np.count_nonzero(valid))

    def _try(self, action: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...] | None:
        """Do something with the environments. None: it failed and they were made again, as the config allows."""
        try:
            return action()
        except Exception as error:
            self.metrics.log_value(NUM_ENV_STEP_FAILURES_LIFETIME, 1, reduce="lifetime_sum")
            if not self.config.restart_failed_sub_environments:
                raise
            if not isinstance(error, StepFailedRecreateEnvError):
                _logger.exception("env runner %s: its environments failed; making them again", self.worker_index)
            self.make_env()
            return None

    # -- episodes -----------------------------------------------------------------------------------------------------

    def _reset_all(self) -> None:
        self._row += 1
        self._recorder = None
        self._chunks, self._young, self._custom_data = {}, {}, {}
        for env in range(self.num_envs):
            self._create(env)
        observations, infos = self.reset_envs(self.runner_seed if self.needs_reset else None)
        self._resetting[:] = False
        self._observations, self._infos = observations, infos if isinstance(infos, list) else None
        self._start(np.arange(self.num_envs), observations, infos)
        self.needs_reset = False

    def _create(self, env: int) -> None:
        id_ = self._log.name(env)
        if self._as_rollout:
            self._young[env] = EpisodeSummary(id_)
        else:
            self._young[env] = SingleAgentEpisode(
                id_,
                observation_space=self.env.single_observation_space,
                action_space=self.env.single_action_space,
            )
        self._call("on_episode_created", env, self._young[env])

    def _start(self, envs: NDArray[np.int64], observations: NDArray[Any], infos: Any) -> None:
        """Episodes have been reset: the next step is their first."""
        self._log.begin(envs, self._row)
        if self._actor is not None:
            self._actor.begin(envs)
        for env in envs.tolist():
            episode = self._young.pop(env)
            if isinstance(episode, SingleAgentEpisode):
                episode.add_env_reset(observations[env], _info(infos, env))
                self._custom_data[env] = episode.custom_data
            else:
                episode.infos = _info(infos, env)
            self._call("on_episode_start", env, episode)

    def _end(self, recorder: Recorder, envs: NDArray[np.int64], observations: NDArray[Any], infos: Any) -> None:
        """Episodes have ended with the step that was written last."""
        finals, final_infos = observations[envs], [_info(infos, env) for env in envs.tolist()]
        if self._mode is AutoresetMode.SAME_STEP:
            finals = np.stack([info["final_obs"] for info in final_infos])
            final_infos = [info["final_info"] for info in final_infos]
        recorder.end(envs, finals)
        for env, final, info in zip(envs.tolist(), finals, final_infos, strict=True):
            self._done_count += 1
            self._ended.append(self._log.end(env, self._row))
            if self._as_rollout:
                self._call("on_episode_end", env, self._log.summary(env, recorder, self._first_row), chunks=[])
            else:
                id_ = self._log.ids[env]
                episode = self._fragment(recorder, env, recorder.steps + 1, (final, info))
                self._call("on_episode_end", env, episode, chunks=self._chunks.pop(id_, []))
                self._done.append(episode)
            self._create(env)
            if self._wanted is not None and self._done_count >= self._wanted:
                break

    def _fragment(
        self, recorder: Recorder, env: int, stop: int, final: tuple[NDArray[Any], dict[str, Any]] | None = None
    ) -> SingleAgentEpisode:
        begun = int(self._log.started[env]) - self._first_row
        fragment = recorder.episode(
            env, max(begun, 0), stop, id_=self._log.ids[env], t_started=max(-begun, 0), final=final
        )
        fragment.custom_data.update(self._custom_data.get(env, {}))
        return fragment

    def _call(self, callback: str, env: int, episode: Any, chunks: list[Any] | None = None) -> None:
        arguments = {
            "episode": episode,
            "env_runner": self,
            "metrics_logger": self.metrics,
            "env": self.env.unwrapped,
            "rl_module": self.module,
            "env_index": env,
        }
        if chunks is not None:
            arguments["prev_episode_chunks"] = chunks
        functions = getattr(self.config, f"callbacks_{callback}")
        make_callback(
            callback, callbacks_objects=self.callback_objects, callbacks_functions=functions, kwargs=arguments
        )

    # -- what a sample() brings ---------------------------------------------------------------------------------------

    def _begin(self, capacity: int) -> Recorder:
        if self._recorder is None:
            lookback = 0 if self._as_rollout else self.config.episode_lookback_horizon
            indexed = self._as_rollout and self._indexes
            self._recorder = Recorder(self.env.unwrapped, indexed=indexed, lookback=lookback)
        self._first_row = self._row
        self._recorder.begin(self._observations, self._infos, capacity)
        return self._recorder

    def _samples(self, recorder: Recorder) -> list[Any]:
        if self._as_rollout:
            rollout = recorder.rollout(self._source, self._first_row, self.weights_seq_no)
            self._log.keep(rollout)
            return [rollout]
        if self._wanted is not None:
            return self._done
        begun = self._log.started - self._first_row < recorder.steps
        ongoing = []
        for env in np.flatnonzero(begun & ~self._resetting).tolist():
            fragment = self._fragment(recorder, env, recorder.steps)
            self._chunks.setdefault(fragment.id_, []).append(fragment)
            ongoing.append(fragment)
        return self._done + ongoing


def _info(infos: Any, env: int) -> dict[str, Any]:
    """One environment's info, of a list of them or of gymnasium's dict of arrays with their masks."""
    if isinstance(infos, list):
        info: dict[str, Any] = infos[env]
        return info
    return {name: infos[name][env] for name in infos if f"_{name}" in infos and infos[f"_{name}"][env]}
