"""The market model as a Gymnasium environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
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

_OPTIONS = ("symbol", "start_row")


class TradingEnv(gym.Env[NDArray[np.float32], Any]):
    """Trade one symbol, or a portfolio: act at each close, and own what you asked for from the next open.

    ## Description
    An account trades on bars. At the close of a bar the agent sees the last bars and its account, and acts; its orders
    fill from the open of the next bar, under the costs, limits and protective orders of the settings, and the account
    is marked at that bar's close. docs/env.md has the exact rules, with every formula.

    ## Action space
    | settings.actions | One symbol          | Portfolio of S symbols     | An action                                  |
    |------------------|---------------------|----------------------------|--------------------------------------------|
    | "targets"        | Discrete(n)         | MultiDiscrete([n] * S)     | i: hold targets[i] times the equity        |
    | "hold_buy_sell"  | Discrete(3)         | MultiDiscrete([3] * S)     | 0 hold, 1 largest of targets, 2 smallest   |
    | "weights"        | Box(-L, L, (1,))    | Box(-L, L, (S,))           | weight in equity, L = leverage             |
    | "quantities"     | Box(-Q, Q, (1,))    | Box(-Q, Q, (S,))           | units to buy (+) or sell, Q = max_quantity |

    The default is Discrete(3): 0 all short, 1 flat, 2 all long. A chosen target sends an order once and then drifts
    with the market; a weight is brought about at every step. Weights from 0 on with ``short=False``. With
    ``protect_by_action`` the distances of the protective orders that are set follow each symbol's weight or quantity.

    ## Observation space
    ``Box(-10, 10, (size,), float32)``: what is known at the close of the current bar, clipped to ±10. With w = window,
    F features a bar and one symbol, size = w·F + 5; the numbers below are those of the default settings.

    | Index     | Observation                                                          | Unit                       |
    |-----------|----------------------------------------------------------------------|----------------------------|
    | 0 … 159   | 32 bars, oldest first, 5 features each:                              | scaled by ``scaler``       |
    | · i·5 + 0 | open over the previous close                                         | log ratio                  |
    | · i·5 + 1 | high over the previous close                                         | log ratio                  |
    | · i·5 + 2 | low over the previous close                                          | log ratio                  |
    | · i·5 + 3 | close over the previous close                                        | log ratio                  |
    | · i·5 + 4 | volume over the previous volume                                      | log ratio                  |
    | 160       | position: units × close / equity                                     | multiple of equity, signed |
    | 161       | unrealised return of the open trade on its average cost; 0 when flat | fraction                   |
    | 162       | n / (n + window) after n bars in the trade; 0 when flat              | 0 to 1                     |
    | 163       | drawdown: 1 − equity / highest equity of the episode                 | 0 to 1                     |
    | 164       | cash / equity                                                        | multiple of equity         |

    In a portfolio a bar has the F features of each symbol in turn, and the first three of the position features are S
    numbers each: size = w·S·F + 3·S + 2. A missing bar stands at the last price without volume.

    ## Rewards
    By default the log return of equity over the step, after all costs; their sum is ln(final / initial equity), unless
    the account is ruined: the last one is then ln(1e-6). Others by ``settings.reward``. Times ``reward_scale``; the
    record keeps them unscaled.

    ## Starting state
    ``initial_cash`` and no position, at a symbol and a row drawn from the environment's stream, or as
    ``settings.starts`` says.

    ## Episode end
    Terminated: the account is ruined, its equity at or below 1e-6 of that of the close before. Truncated: after
    ``episode_length`` steps, or at the end of the data; positions are then marked, or closed (``liquidate_at_end``).

    ## Information
    Empty but for ``symbol`` ("portfolio" for one) and ``start_row`` after a reset, and ``reason`` and ``value`` (the
    equity) after the last step. ``episode_record()`` has everything else.

    ## Seeds
    ``reset(seed=n)`` starts the environment's stream again from n; ``reset()`` goes on with it. When ``stream`` is
    given, the environment keeps to it and a seed passed to ``reset`` is ignored: runners of distributed libraries
    pass seeds in which most streams of two runners are equal.

    ## Arguments
    Args:
        data: ``MarketData``, or pandas DataFrames of bars (see ``MarketData.from_frame``).
        settings: ``EnvSettings``, a mapping of its fields, or None for the defaults.
        scaler: Standardises the features; fitted on training data (``Scaler.fit``). None leaves them as they are.
        stream: Source of the random starts of this environment, as one of many.
        symbol: Trade this symbol in every episode; None draws one of them per episode. Not in a portfolio.
        render_mode: None; "ansi": ``render()`` returns the state as one line of text; "rgb_array": a picture of the
            episode so far, uint8 (400, 640, 3).

    ``reset`` takes the options ``symbol`` and ``start_row`` (absolute), to choose an episode instead of drawing it.

    Raises:
        InputError: Bad bars, symbol or options. SettingsError: bad settings. ActionError: an action that is NaN or out
        of the space; the step is not taken then.

    ## Version history
    v0: initial version.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - gymnasium declares it so
        "render_modes": list(RENDER_MODES),
        "render_fps": 10,
    }

    def __init__(
        self,
        data: MarketData | DataFrame | Mapping[str, DataFrame],
        settings: EnvSettings | Mapping[str, Any] | None = None,
        *,
        scaler: Scaler | None = None,
        stream: np.random.SeedSequence | None = None,
        symbol: str | None = None,
        render_mode: str | None = None,
    ) -> None:
        bars, settings = opened(data, settings, symbol, render_mode)
        self.settings = settings
        self.symbol = symbol
        self.render_mode = render_mode
        self._stream = Stream(stream)
        self._np_random, self._np_random_seed = self._stream.rng, self._stream.seed
        self._env_seed: str | None = None
        self.model = MarketModel(bars, settings, scaler, None, [self._stream.rng])
        self.action_space = action_space(settings, len(bars.symbols) if settings.portfolio else 1)
        self.observation_space = observation_space(self.model.observation_size, OBSERVATION_LIMIT)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin a new episode; see the class for seeds and options."""
        chosen = options or {}
        if unknown := set(chosen) - set(_OPTIONS):
            raise InputError(
                f"reset options: expected {' or '.join(_OPTIONS)}, got {sorted(unknown)}; correct the name"
            )
        self._stream.rng = self.np_random  # which may have been set from outside, as gymnasium allows
        self._stream.begin(seed)
        self._np_random, self._np_random_seed = self._stream.rng, self._stream.seed
        self._env_seed = self._stream.draw()
        self.model.rngs[0] = self._stream.rng
        self.model.reset([0], chosen.get("symbol", self.symbol), chosen.get("start_row"))
        symbol, start_row = self.model.beginning(0)
        return self.model.observations(), {"symbol": symbol, "start_row": start_row}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one step: order at this close, fill from the next open on, mark at the next close."""
        observation, reward, terminated, truncated = self.model.step(action)
        info: dict[str, Any] = {}
        if terminated or truncated:
            info = {"reason": self.model.reason(0), "value": self.model.value(0)}
        return observation, reward, terminated, truncated, info

    def render(self) -> Any:
        """Return the state as one line of text ("ansi"), the episode so far as a picture ("rgb_array"), or None.

        Raises:
            InputError: Before the first reset.
        """
        return rendered(self.render_mode, self.model.data, self.episode_record())

    def episode_record(self) -> EpisodeRecord:
        """Tell the current episode, or after its end the last one, until the next reset.

        This is the protocol by which event callbacks get trades, fills and steps out of an environment.

        Raises:
            InputError: Before the first reset.
        """
        return self.model.episode_record(0, self._env_seed)

    def episode_tape(self) -> EpisodeTape:
        """Return what ``episode_record`` is made of, as views that change with the next step or reset.

        Raises:
            InputError: Before the first reset.
        """
        return self.model.episode_tape(0, self._env_seed)
