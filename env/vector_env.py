"""The market model as a Gymnasium vector environment: B accounts, one array each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from env.episode_record import EpisodeRecord
from env.episode_tape import EpisodeTape
from env.faces import RENDER_MODES, opened, rendered
from env.kernel import OBSERVATION_LIMIT
from env.market_data import MarketData
from env.market_model import MarketModel
from env.scaler import Scaler
from env.seeding import Stream
from env.settings import EnvSettings
from env.spaces import action_space, observation_space
from schemas.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame

Observations = NDArray[np.float32]
Infos = dict[str, Any]


class TradingVectorEnv(VectorEnv[Observations, NDArray[Any], NDArray[Any]]):
    """B ``TradingEnv`` in one: the same spaces, rules and numbers, bit by bit, with one numpy call for all of them.

    The series is held once. Every environment draws its own symbol and start row, or is given them.

    ## Spaces
    ``single_action_space`` and ``single_observation_space`` are those of ``TradingEnv``; ``action_space`` and
    ``observation_space`` are B of them, as gymnasium batches spaces. ``step`` takes actions (B,) or (B, dimensions)
    and returns observations float32 (B, size), rewards float64 (B,), terminations and truncations bool (B,).

    ## Autoreset
    gymnasium's NEXT_STEP: the step after an episode's end begins a new one there. It ignores that environment's action
    and returns the first observation, reward 0 and neither flag. Until then ``episode_record(index)`` tells the ended
    episode.

    ## Seeds
    ``reset(seed=n)`` gives environment i the seed n + i, as gymnasium does; a list gives each its own, and None goes on
    with its stream. Two batches seeded with near numbers share most of their streams: where several run side by side
    give each environment its own of ``streams``, for example ``SeedSequence([seed, global index])``. The same global
    index then has the same episodes, however the environments are spread. Seeds passed to ``reset`` are ignored.

    ## Infos
    Empty but for ``symbol`` and ``start_row`` of the environments that begin an episode and ``reason`` and ``value``
    of those that end one, as arrays (B,), each with its mask ``_symbol``, … .

    ## Arguments
    Args:
        data: ``MarketData``, or pandas DataFrames of bars (see ``MarketData.from_frame``).
        settings: ``EnvSettings``, a mapping of its fields, or None for the defaults.
        num_envs: B.
        scaler: Standardises the features; fitted on training data (``Scaler.fit``). None leaves them as they are.
        streams: One source of random starts for each environment; None: they are seeded by ``reset``.
        symbol: Trade this symbol in every episode; None draws one of them per episode. Not in a portfolio.
        render_mode: None, "ansi" or "rgb_array": what ``TradingEnv`` renders, of each environment.

    ``reset`` takes the options ``symbol`` and ``start_row`` (absolute), one for all or a sequence (B,) of one each, and
    ``reset_mask``, bool (B,): the environments that begin anew, while the others go on.

    Raises:
        InputError: Bad bars, symbol, seeds or options. SettingsError: bad settings. ActionError: an action out of the
        space; it names the environment's index and the value, and no environment has taken the step.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - gymnasium declares it so
        "render_modes": list(RENDER_MODES),
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        data: MarketData | DataFrame | Mapping[str, DataFrame],
        settings: EnvSettings | Mapping[str, Any] | None = None,
        *,
        num_envs: int,
        scaler: Scaler | None = None,
        streams: Sequence[np.random.SeedSequence] | None = None,
        symbol: str | None = None,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise InputError(f"num_envs: expected 1 or more, got {num_envs}; ask for one at least")
        if streams is not None and len(streams) != num_envs:
            raise InputError(f"streams: expected {num_envs}, one for each environment, got {len(streams)}")
        bars, settings = opened(data, settings, symbol, render_mode)
        self.num_envs = num_envs
        self.settings = settings
        self.symbol = symbol
        self.render_mode = render_mode
        self._streams = [Stream(source) for source in (streams if streams is not None else [None] * num_envs)]
        self.model = MarketModel(bars, settings, scaler, num_envs, [stream.rng for stream in self._streams])
        self._env_seeds: list[str | None] = [None] * num_envs
        symbols = len(bars.symbols) if settings.portfolio else 1
        self.single_action_space = action_space(settings, symbols)
        self.single_observation_space = observation_space(self.model.observation_size, OBSERVATION_LIMIT)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        # Environments whose episode ended, which the next step resets; and whether a step that failed has done so.
        self._ended: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._begun = False

    # -- episodes ---------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, Infos]:
        """Begin a new episode in every environment, or in those of ``reset_mask``; see the class."""
        chosen = dict(options or {})
        seeds = self._one_each("seed", [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed)
        mask = self._mask(chosen.pop("reset_mask", None))
        symbols = self._one_each("symbol", chosen.pop("symbol", self.symbol))
        start_rows = self._one_each("start_row", chosen.pop("start_row", None))
        if chosen:
            raise InputError(
                f"reset options: expected symbol, start_row or reset_mask, got {sorted(chosen)}; correct the name"
            )
        indices = np.flatnonzero(mask)
        for index in indices.tolist():
            self._streams[index].begin(seeds[index])
            self._begin([index], symbols[index], start_rows[index])
        self._ended = self._ended[~mask[self._ended]]
        return self.model.observations(), self._beginnings(indices)

    def _begin(self, indices: list[int], symbol: str | None, start_row: int | None, *, waits: bool = False) -> None:
        for index in indices:
            stream = self._streams[index]
            self._env_seeds[index] = stream.draw()
            self.model.rngs[index] = stream.rng
        self.model.reset(indices, symbol, start_row, waits=waits)

    def step(
        self, actions: Any
    ) -> tuple[Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Infos]:
        """Take one step in every environment whose episode is running, and begin one in the others."""
        if not self._ended.size:
            observations, rewards, terminated, truncated = self.model.step(actions)
            return (
                observations,
                rewards,
                terminated,
                truncated,
                self._endings(terminated, truncated),
            )
        begun = self._ended
        if not self._begun:
            self._begin(begun.tolist(), self.symbol, None, waits=True)
            self._begun = True
        observations, rewards, terminated, truncated = self.model.step(actions)
        self._begun = False
        self._ended = begun[:0]
        infos = self._beginnings(begun) | self._endings(terminated, truncated)
        return observations, rewards, terminated, truncated, infos

    def episode_record(self, index: int) -> EpisodeRecord:
        """Tell the current episode of environment ``index``, or after its end the last one, until its reset.

        Raises:
            InputError: Before the first reset.
        """
        return self.model.episode_record(index, self._env_seeds[index])

    def episode_tape(self, index: int) -> EpisodeTape:
        """Return what ``episode_record`` is made of, as views that change with the next step or reset.

        Raises:
            InputError: Before the first reset.
        """
        return self.model.episode_tape(index, self._env_seeds[index])

    def render(self) -> tuple[Any, ...] | None:
        """Return what ``TradingEnv.render`` returns, of each environment; None without a render mode.

        Raises:
            InputError: Before the first reset.
        """
        if self.render_mode is None:
            return None
        records = map(self.episode_record, range(self.num_envs))
        return tuple(rendered(self.render_mode, self.model.data, record) for record in records)

    # -- what goes out ----------------------------------------------------------------------------------------------

    def _beginnings(self, indices: NDArray[np.int64]) -> Infos:
        begun = [self.model.beginning(index) for index in indices.tolist()]
        infos: Infos = {}
        self._inform(infos, "symbol", indices, [symbol for symbol, _ in begun], object)
        self._inform(infos, "start_row", indices, [start_row for _, start_row in begun], np.int64)
        return infos

    def _endings(self, terminated: NDArray[np.bool_], truncated: NDArray[np.bool_]) -> Infos:
        ended = terminated | truncated
        infos: Infos = {}
        if np.count_nonzero(ended):
            self._ended = np.flatnonzero(ended)
            indices = self._ended.tolist()
            self._inform(infos, "reason", self._ended, list(map(self.model.reason, indices)), object)
            self._inform(infos, "value", self._ended, list(map(self.model.value, indices)), np.float64)
        return infos

    def _inform(self, infos: Infos, name: str, indices: NDArray[np.int64], values: Any, dtype: Any) -> None:
        """Add what ``_add_info`` of gymnasium's would, environment by environment: a column and its mask."""
        column = np.full(self.num_envs, None) if dtype is object else np.zeros(self.num_envs, dtype)
        mask = np.zeros(self.num_envs, dtype=np.bool_)
        column[indices], mask[indices] = values, True
        infos[name], infos[f"_{name}"] = column, mask

    # -- what came in -----------------------------------------------------------------------------------------------

    def _one_each(self, name: str, given: Any) -> list[Any]:
        """One value for all, or a sequence of one for each environment, as a list (B,)."""
        if given is None or isinstance(given, (str, int, np.integer)):
            return [given] * self.num_envs
        values = list(given) if isinstance(given, Iterable) else [given]
        if len(values) != self.num_envs:
            raise InputError(f"{name}: expected one, or {self.num_envs} of them, got {len(values)}; give each its own")
        return values

    def _mask(self, given: Any) -> NDArray[np.bool_]:
        if given is None:
            return np.ones(self.num_envs, dtype=bool)
        mask = np.asarray(given)
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise InputError(
                f"reset_mask: expected a bool array ({self.num_envs},) with a True in it, got {given!r}; mark the"
                " environments to reset"
            )
        return mask

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generators of the environments, as gymnasium's ``SyncVectorEnv`` has them."""
        return tuple(stream.rng for stream in self._streams)
