"""The market model as a Gymnasium environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from env.episode_record import EpisodeRecord
from env.market_data import MarketData
from env.market_model import OBSERVATION_LIMIT, MarketModel
from env.scaler import Scaler
from env.seeding import Stream
from env.settings import EnvSettings
from env.spaces import action_space, observation_space
from schemas.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame

_OPTIONS = ("symbol", "start_row")


class TradingEnv(gym.Env[NDArray[np.float32], np.int64]):
    """Trade one symbol an episode: choose a target position at each close, and own it from the next open.

    ## Action space
    ``Discrete(len(settings.targets))``. Action i asks for ``settings.targets[i]`` times the equity; with the default
    targets 0 is all short, 1 flat, 2 all long. An order is sent only when the chosen target changes: a held one
    drifts with the market. A reversal is one fill of the difference.

    ## Observation space
    ``Box(-10, 10, (window * F + 3,), float32)``, with F = 5 features a bar. It holds what is known at the close of the
    current bar, and is clipped to ±10.

    | Index                | Observation                                          | Unit                       |
    |----------------------|------------------------------------------------------|----------------------------|
    | 0 … window·F − 1     | ``window`` bars, oldest first, each F features:      | scaled by ``scaler``       |
    | · i·F + 0            | open over the previous close                         | log return                 |
    | · i·F + 1            | high over the previous close                         | log return                 |
    | · i·F + 2            | low over the previous close                          | log return                 |
    | · i·F + 3            | close over the previous close                        | log return                 |
    | · i·F + 4            | volume over the previous volume                      | log ratio                  |
    | window·F             | exposure: position × close / equity                  | multiple of equity, signed |
    | window·F + 1         | return of equity since before the open trade; else 0 | fraction                   |
    | window·F + 2         | n / (n + window) after n bars in the trade; else 0   | 0 to 1                     |

    A missing bar has features 0, and the last price stays.

    ## Rewards
    Log return of equity over the step, marked at the close, after all costs, times ``settings.reward_scale``. Their
    unscaled sum is ln(final / initial equity), unless the account is ruined: the last one is then ln(1e-6).

    ## Starting state
    ``settings.initial_cash`` and no position, at a symbol and a row drawn from the environment's stream.

    ## Episode end
    Terminated: equity at or below 0 at an open or a close. Truncated: after ``settings.episode_length`` steps, or at
    the end of the data; the open position is marked, not closed.

    ## Seeds
    ``reset(seed=n)`` starts the environment's stream again from n; ``reset()`` goes on with it. When ``stream`` is
    given, the environment keeps to it and a seed passed to ``reset`` is ignored: runners of distributed libraries
    pass seeds in which most streams of two runners are equal.

    ## Arguments
    Args:
        data: Bars, or a pandas DataFrame of bars of one symbol (see ``MarketData.from_frame``).
        settings: ``EnvSettings``, a mapping of its fields, or None for the defaults.
        scaler: Standardises the features; fitted on training data (``Scaler.fit``). None leaves them as they are.
        stream: Source of the random starts of this environment, as one of many.
        symbol: Trade this symbol in every episode; None draws one of them per episode.
        render_mode: None, or "ansi": ``render()`` returns the state as one line of text.

    ``reset`` takes the options ``symbol`` and ``start_row`` (absolute), to choose an episode instead of drawing it.
    ``info`` is empty but for the symbol and start row after a reset, and the reason and equity after the last step.

    Raises:
        InputError: Bad bars, symbol or options. SettingsError: bad settings. ActionError: an action out of the space.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - gymnasium declares it so
        "render_modes": ["ansi"],
        "render_fps": 1,
    }

    def __init__(
        self,
        data: MarketData | DataFrame,
        settings: EnvSettings | Mapping[str, Any] | None = None,
        *,
        scaler: Scaler | None = None,
        stream: np.random.SeedSequence | None = None,
        symbol: str | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise InputError(f"render_mode: expected None or 'ansi', got {render_mode!r}; choose one of these")
        bars = data if isinstance(data, MarketData) else MarketData.from_frame(data)
        if not isinstance(settings, EnvSettings):
            settings = EnvSettings.from_mapping(settings or {})
        if symbol is not None:
            bars.number(symbol)  # raises for an unknown one
        self.settings = settings
        self.symbol = symbol
        self.render_mode = render_mode
        self._stream = Stream(stream)
        self._np_random, self._np_random_seed = self._stream.rng, self._stream.seed
        self._env_seed: str | None = None
        self._model = MarketModel(bars, settings, scaler, None, [self._stream.rng])
        self._size = self._model.observation_size
        self._reward_scale = settings.reward_scale
        self.action_space = action_space(settings, len(bars.symbols) if settings.portfolio else 1)
        self.observation_space = observation_space(self._size, OBSERVATION_LIMIT)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin a new episode; see the class for seeds and options."""
        unknown = set(options or {}) - set(_OPTIONS)
        if unknown:
            raise InputError(
                f"reset options: expected {' or '.join(_OPTIONS)}, got {sorted(unknown)}; correct the name"
            )
        self._stream.rng = self.np_random  # which may have been set from outside, as gymnasium allows
        self._stream.begin(seed)
        self._np_random, self._np_random_seed = self._stream.rng, self._stream.seed
        chosen = options or {}
        self._env_seed = self._stream.draw()
        self._model.rngs[0] = self._stream.rng
        self._model.reset([0], chosen.get("symbol", self.symbol), chosen.get("start_row"))
        symbol, start_row = self._model.beginning(0)
        return self._observation(), {"symbol": symbol, "start_row": start_row}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one step: order at this close, fill at the next open, mark at the next close."""
        reward, terminated, truncated = self._model.step(action)
        info: dict[str, Any] = {}
        if terminated or truncated:
            info = {"reason": self._model.reason(0), "value": self._model.equity}
        return self._observation(), reward * self._reward_scale, terminated, truncated, info

    def render(self) -> str | None:  # type: ignore[override]
        """Return the state as one line of text in mode "ansi", else None."""
        if self.render_mode is None:
            return None
        record = self.episode_record()
        return (
            f"{record.symbol} row {record.start_row + record.steps} position {record.open_quantity:+.4f}"
            f" equity {record.final_value:,.2f}"
        )

    def episode_record(self) -> EpisodeRecord:
        """Tell the current episode, or after its end the last one, until the next reset.

        This is the protocol by which event callbacks get trades, fills and steps out of an environment.

        Raises:
            InputError: Before the first reset.
        """
        return self._model.episode_record(0, self._env_seed)

    def _observation(self) -> NDArray[np.float32]:
        out = np.empty(self._size, dtype=np.float32)
        self._model.observations(out)
        return out
