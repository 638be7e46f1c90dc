"""The scaler: standardises features for a policy, to which it belongs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from schemas.errors import InputError

if TYPE_CHECKING:
    from env.features import Recipe
    from env.market_data import MarketData

_SMALLEST_STD = 1e-8


@dataclass(frozen=True, eq=False)
class Scaler:
    """Standardises features. It belongs to the policy: fit it on training data alone and keep it with the policy.

    Attributes:
        mean: Mean per feature, float32 (F,); 0 for a feature that declares ``scaled=False``.
        std: Standard deviation (ddof 0) per feature, float32 (F,), above 0; 1 for such a feature.
        recipe: Identity of the features that it was fitted on; empty for one that was made by hand.
        version: Hash of the above: equal numbers, equal version.
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    recipe: str
    version: str

    @classmethod
    def of(cls, mean: Any, std: Any, recipe: str = "") -> Self:
        """Make a scaler from means and deviations (F,); a deviation of 0 counts as 1: a constant is only centred.

        Raises:
            InputError: Shapes differ, or a number is not finite or a deviation is negative.
        """
        centre, spread = np.array(mean, dtype=np.float32), np.array(std, dtype=np.float32)
        if centre.ndim != 1 or centre.shape != spread.shape:
            raise InputError(f"scaler: expected mean and std of one shape (F,), got {centre.shape} and {spread.shape}")
        if not np.isfinite(centre).all() or not np.isfinite(spread).all() or (spread < 0).any():
            raise InputError(f"scaler: expected finite mean and std not below 0, got mean {centre}, std {spread}")
        spread[spread < _SMALLEST_STD] = 1.0
        digest = hashlib.sha256(recipe.encode() + centre.tobytes() + spread.tobytes())
        return cls(centre, spread, recipe, digest.hexdigest()[:16])

    @classmethod
    def fit(cls, data: MarketData) -> Self:
        """Fit on the bars of ``data``, which must end before the stretch that is traded.

        Missing bars do not count, nor do the first bars of a symbol, before which there are too few for a feature.
        """
        rows = data.tradable.copy()
        for start, stop in zip(data.offsets[:-1] + data.first_valid, data.offsets[1:], strict=True):
            rows[start : min(start + data.lookback, stop)] = False
        features = data.features[rows] if rows.any() else data.features
        return cls.fit_features(features, data.recipe.scaled, data.recipe.identity)

    @classmethod
    def fit_features(
        cls, features: NDArray[np.floating[Any]], scaled: Sequence[bool] | None = None, recipe: str = ""
    ) -> Self:
        """Fit on a feature array (n, F); ``scaled`` says which of the F are, None that all are."""
        wanted = np.ones(features.shape[1], dtype=np.bool_) if scaled is None else np.array(scaled)
        mean = np.where(wanted, features.mean(axis=0, dtype=np.float64), 0.0)
        std = np.where(wanted, features.std(axis=0, dtype=np.float64), 1.0)
        return cls.of(mean, std, recipe)

    @classmethod
    def identity(cls, size: int = 5) -> Self:
        """Leave ``size`` features (the default ones unless given) as they are."""
        return cls.of(np.zeros(size), np.ones(size))

    def apply(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (features - mean) / std, float32, of the same shape (…, F)."""
        if features.shape[-1] != self.mean.size:
            raise InputError(
                f"scaler {self.version}: expected {self.mean.size} features, got {features.shape[-1]};"
                " fit it on data with the same features"
            )
        return (features - self.mean) / self.std

    def require(self, recipe: str) -> None:
        """Raise InputError if the scaler was fitted on other features than those of ``recipe``."""
        if self.recipe and self.recipe != recipe:
            raise InputError(
                f"scaler {self.version}: expected features {self.recipe!r}, on which it was fitted, got {recipe!r};"
                " fit a scaler on data with the same features"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and strings, for a checkpoint or a record."""
        return {
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "recipe": self.recipe,
            "version": self.version,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` wrote.

        Raises:
            InputError: A key is missing, or the numbers do not have the version that is written beside them.
        """
        missing = {"mean", "std", "recipe", "version"} - set(values)
        if missing:
            raise InputError(
                f"scaler: expected mean, std, recipe and version, got {sorted(values)}; write it with to_dict()"
            )
        scaler = cls.of(values["mean"], values["std"], values["recipe"])
        if scaler.version != values["version"]:
            raise InputError(
                f"scaler: expected version {scaler.version} for these numbers and recipe {scaler.recipe!r},"
                f" got {values['version']}; take the scaler from the policy's own checkpoint"
            )
        return scaler


class ScaledOnce:
    """What has features, and keeps them scaled for all environments of its process that ask alike.

    Attributes:
        features: Raw features, float32 (N, k · F): F of the recipe for each of k symbols.
        recipe: What the F are.
    """

    features: NDArray[np.float32]
    recipe: Recipe
    _scaled: tuple[str, float, NDArray[np.float32]] | None = None

    def scaled(self, scaler: Scaler | None, limit: float) -> NDArray[np.float32]:
        """Return the features scaled and clipped to ± limit, float32 (N, k · F); one scaler (F,) serves all symbols.

        Raises:
            InputError: The scaler was fitted on other features.
        """
        version = "" if scaler is None else scaler.version
        if self._scaled is None or self._scaled[:2] != (version, limit):
            features = self.features
            if scaler is not None:
                scaler.require(self.recipe.identity)
                parts = features.reshape(len(features), -1, len(self.recipe.names))
                features = scaler.apply(parts).reshape(features.shape)
            self._scaled = (version, limit, np.clip(features, -limit, limit).astype(np.float32, copy=False))
        return self._scaled[2]
