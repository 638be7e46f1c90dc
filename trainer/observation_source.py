"""Observations out of a window: the learner's and the buffer's side of index sharing.

A transition carries an absolute row, a symbol and the account's few features; the market's part of the observation is
gathered here, from this process's view of the window (Ray shares the arrays of one node), or from the GPU's copy.
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
        window: Bars in an observation, W.
        device: Where observations are made. On a GPU the features lie there, once, and indices travel.
    """

    def __init__(
        self, window_id: str, data: MarketData, scaler: Scaler, window: int, device: str | torch.device = "cpu"
    ) -> None:
        self.window_id = window_id
        self.symbols: tuple[str, ...] = data.symbols
        self.device = torch.device(device)
        self._window = window
        features = data.scaled(scaler, OBSERVATION_LIMIT)
        rows, columns = features.shape
        self.market_size = window * columns
        """Numbers at the front of an observation that are the market's."""
        with warnings.catch_warnings():
            # Ray's shared arrays are read-only, of which torch warns; nothing here writes into them.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            flat = torch.from_numpy(features.reshape(-1)).to(self.device)
        # Row i is the window of bars i … i + W - 1, without a copy of any.
        self._windows = torch.as_strided(flat, (max(rows - window + 1, 0), self.market_size), (columns, 1))
        # An absolute row + this is the first bar of its observation, as a row of the above.
        self._shift = data.offsets[:-1] - data.base_rows - (window - 1)
        # Absolute rows of the first and last observations: features before the first want bars that are not here.
        self._first = first_rows(data, window)
        self._last = data.base_rows + np.diff(data.offsets) - 1
        self._shift_tensor = torch.from_numpy(self._shift).to(self.device)

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
        return cls(opened["window_id"], data, Scaler.from_dict(config.scaler), settings.window, device)

    def numbers(self, names: Sequence[str]) -> NDArray[np.int16]:
        """This window's numbers of symbols that another window counts, int16 (len(names),); -1 where it has none."""
        known = {name: number for number, name in enumerate(self.symbols)}
        return np.array([known.get(name, -1) for name in names], dtype=np.int16)

    def holds(self, rows: NDArray[np.int64], symbols: NDArray[np.int16]) -> NDArray[np.bool_]:
        """Whether all the bars of the observations are in this window.

        Args:
            rows: Absolute rows, int64 (…).
            symbols: This window's numbers of symbols, int16 (…); -1 is never held.

        Returns:
            bool (…).
        """
        known = symbols >= 0
        number = np.where(known, symbols, 0)
        return np.asarray(known & (rows >= self._first[number]) & (rows <= self._last[number]))

    def gather(
        self,
        rows: NDArray[np.int64],
        symbols: NDArray[np.int16],
        accounts: NDArray[np.float32],
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Make observations.

        Args:
            rows: Absolute rows, int64 (n,).
            symbols: This window's numbers of their symbols, int16 (n,).
            accounts: The account's features, float32 (n, P).
            out: Written into and returned where given, float32 (n, size) on this source's device.

        Returns:
            float32 (n, market_size + P), on this source's device.

        Raises:
            WindowError: A row is not in this window.
        """
        held = self.holds(rows, symbols)
        if not held.all():
            index = int(np.argmin(held))
            name = self.symbols[symbols[index]] if symbols[index] >= 0 else "a symbol"
            raise WindowError(
                f"window {self.window_id}: expected rows that it holds, got row {rows[index]} of {name}; drop what "
                "left the window before gathering"
            )
        if out is None:
            out = torch.empty((len(rows), self.market_size + accounts.shape[1]), device=self.device)
        if self.device.type == "cpu":
            first = torch.from_numpy(rows + self._shift[symbols])
        else:
            numbers = torch.from_numpy(symbols).to(self.device, torch.int64)
            first = torch.from_numpy(rows).to(self.device) + self._shift_tensor[numbers]
        torch.index_select(self._windows, 0, first, out=out[:, : self.market_size])
        out[:, self.market_size :] = torch.from_numpy(np.ascontiguousarray(accounts))
        return out

    def whole(self, observations: IndexedObservations) -> torch.Tensor:
        """Observations of a rollout, flattened over its leading axes, float32 (n, size), on this source's device.

        Raises:
            WindowError: A row of theirs is not in this window.
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


def first_rows(data: MarketData, window: int) -> NDArray[np.int64]:
    """Absolute row of the first observation of ``window`` bars that the data can give, by symbol: int64 (S,)."""
    rows: NDArray[np.int64] = data.base_rows + data.first_valid + data.lookback + window - 1
    return rows


def current_first_rows(env_config: Mapping[str, Any]) -> dict[str, int]:
    """The same of the run's current window, by the symbols' names.

    Raises:
        WindowError: the run's window is not open in this Ray session.
    """
    config = EnvConfig.model_validate(dict(env_config))
    _, data = current_window(config.window_store, config.split)
    rows = first_rows(data, EnvSettings.from_mapping(config.settings).window)
    return dict(zip(data.symbols, rows.tolist(), strict=True))
