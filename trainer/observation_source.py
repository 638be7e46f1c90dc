"""Observations out of a window: the learner's and the buffer's side of index sharing.

A transition carries a place, a symbol and the account's few features; the market's part of the observation is gathered
here, from this process's view of the window (Ray shares the arrays of one node), or from the GPU's copy.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from env.kernel import OBSERVATION_LIMIT
from env.market_data import MarketData
from env.scaler import Scaler
from env.settings import EnvSettings
from schemas.errors import WindowError
from trainer.places import places_of
from trainer.rollout import IndexedObservations
from trainer.settings import EnvConfig
from trainer.window_store import current_window


class ObservationSource:
    """One window's scaled features, of which any observation of it can be made.

    It belongs to one window for ever. Where a rollout names another one, ask for ``current()`` again.

    Args:
        window_id: The window.
        data: Its bars.
        scaler: The policy's.
        settings: Of the market model: bars in an observation, W, and whether the symbols are one portfolio.
        device: Where observations are made. On a GPU the features lie there, once, and indices travel.
    """

    def __init__(
        self,
        window_id: str,
        data: MarketData,
        scaler: Scaler,
        settings: EnvSettings,
        device: str | torch.device = "cpu",
    ) -> None:
        self.window_id = window_id
        self._places = places_of(data, settings)
        self.symbols = self._places.names
        self.device = torch.device(device)
        features = self._places.bars.scaled(scaler, OBSERVATION_LIMIT)
        rows, columns = features.shape
        self._before = settings.window - 1
        self.market_size = settings.window * columns
        """Numbers at the front of an observation that are the market's."""
        with warnings.catch_warnings():
            # Ray's shared arrays are read-only, of which torch warns; nothing here writes into them.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            flat = torch.from_numpy(features.reshape(-1)).to(self.device)
        self.windows = torch.as_strided(flat, (max(rows - self._before, 0), self.market_size), (columns, 1))
        """The market's part of every observation, float32 (bars - W + 1, market_size): row i is the one of bars i to
        i + W - 1, without a copy of any."""

    @classmethod
    def current(cls, env_config: Mapping[str, Any], device: str | torch.device = "cpu") -> Self:
        """The source of the run's current window.

        Args:
            env_config: RLlib's ``env_config`` of our environment: an ``EnvConfig`` as a mapping.
            device: Where observations are made.

        Raises:
            WindowError: the run's window is not open in this Ray session.
        """
        config = EnvConfig.model_validate(dict(env_config))
        opened, data = current_window(config.window_store, config.split)
        settings = EnvSettings.from_mapping(config.settings)
        return cls(opened["window_id"], data, Scaler.from_dict(config.scaler), settings, device)

    def numbers(self, names: Sequence[str]) -> NDArray[np.int16]:
        """This window's numbers of symbols that another window counts, int16 (len(names),); -1 where it has none."""
        known = {name: number for number, name in enumerate(self.symbols)}
        return np.array([known.get(name, -1) for name in names], dtype=np.int16)

    def gather(
        self,
        rows: NDArray[np.int64],
        symbols: NDArray[np.int16],
        accounts: NDArray[np.float32],
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Make observations.

        Args:
            rows: Places, int64 (n,).
            symbols: This window's numbers of their symbols, int16 (n,).
            accounts: The account's features, float32 (n, P).
            out: Written into and returned where given, float32 (n, size) on this source's device.

        Returns:
            float32 (n, market_size + P), on this source's device.

        Raises:
            WindowError: A place is not in this window.
        """
        first = torch.from_numpy(self.numbers_of(rows, symbols)).to(self.device)
        if out is None:
            out = torch.empty((len(rows), self.market_size + accounts.shape[1]), device=self.device)
        torch.index_select(self.windows, 0, first, out=out[:, : self.market_size])
        out[:, self.market_size :] = torch.from_numpy(np.ascontiguousarray(accounts))
        return out

    def numbers_of(self, rows: NDArray[np.int64], symbols: NDArray[np.int16]) -> NDArray[np.int64]:
        """Which of ``windows`` each observation begins with, int64 (n,).

        Args:
            rows: Places, int64 (n,).
            symbols: This window's numbers of their symbols, int16 (n,).

        Raises:
            WindowError: A place is not in this window.
        """
        found, held = self._places.find(rows, symbols)
        if not held.all():
            index = int(np.argmin(held))
            name = self.symbols[symbols[index]] if symbols[index] >= 0 else "a symbol"
            raise WindowError(
                f"window {self.window_id}: expected bars that it holds, got place {rows[index]} of {name} (a row, of a "
                "portfolio a time in µs); drop what left the window before gathering"
            )
        return found - self._before

    def whole(self, observations: IndexedObservations) -> torch.Tensor:
        """Observations of a rollout, flattened over its leading axes, float32 (n, size), on this source's device.

        Raises:
            WindowError: A place of theirs is not in this window.
        """
        return self.gather(*self.flat(observations))

    def flat(
        self, observations: IndexedObservations
    ) -> tuple[NDArray[np.int64], NDArray[np.int16], NDArray[np.float32]]:
        """Rows (n,), this window's symbol numbers (n,) and accounts (n, P) of observations of any window."""
        symbols = observations.symbols
        if observations.symbol_names != self.symbols:
            symbols = self.numbers(observations.symbol_names)[symbols]
        accounts = observations.accounts
        return observations.rows.reshape(-1), symbols.reshape(-1), accounts.reshape(-1, accounts.shape[-1])


def current_first_rows(env_config: Mapping[str, Any]) -> dict[str, int]:
    """Places of the first observations that the run's current window can give, by the names of ``symbols``.

    Raises:
        WindowError: the run's window is not open in this Ray session.
    """
    config = EnvConfig.model_validate(dict(env_config))
    _, data = current_window(config.window_store, config.split)
    places = places_of(data, EnvSettings.from_mapping(config.settings))
    return dict(zip(places.names, places.first.tolist(), strict=True))
