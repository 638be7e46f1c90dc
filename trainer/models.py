"""Models by setting: ``[algorithm.rl_module.model_config] kind = "conv"``, or an ``RLModule`` of the user's.

RLlib hands ``model_config`` to whatever builds the networks and reads of it what it knows (its ``DefaultModelConfig``).
``kind`` and the sizes below it are read by the catalogs of this file, which are RLlib's own with another encoder: so
every algorithm keeps its module class, its heads and its target networks.
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, fields
from typing import Any

from gymnasium.spaces import Box
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.bc.bc_catalog import BCCatalog
from ray.rllib.algorithms.dqn.dqn_catalog import DQNCatalog
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.algorithms.sac.sac_catalog import SACCatalog
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.catalog import Catalog
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec

from env.settings import EnvSettings
from schemas.errors import SettingsError
from trainer.encoders import WindowEncoderConfig

KINDS = ("mlp", "conv", "lstm", "transformer")
"""``mlp`` is RLlib's own encoder; the others read the window as a sequence of bars."""

_SIZES = (
    "conv_channels",
    "conv_kernel",
    "lstm_cell_size",
    "transformer_layers",
    "transformer_heads",
    "transformer_size",
    "fcnet_hiddens",
    "fcnet_activation",
)
_GEOMETRY = ("window", "bar_features")


def encoder_config(observation_space: Box, model_config: dict[str, Any]) -> WindowEncoderConfig:
    """The encoder that a ``model_config`` describes.

    Args:
        observation_space: Shape (W · F + P,).
        model_config: With ``kind``, ``window`` and ``bar_features``; sizes left out have their defaults.
    """
    given = {name: model_config[name] for name in (*_SIZES, *_GEOMETRY) if name in model_config}
    return WindowEncoderConfig(input_dims=observation_space.shape, kind=model_config["kind"], **given)


class _WindowCatalog:
    """Beside one of RLlib's catalogs: its encoder becomes a window encoder, of the same output size."""

    def __init__(self, observation_space: Box, action_space: Any, model_config_dict: Any, **kwargs: Any) -> None:
        super().__init__(observation_space, action_space, model_config_dict, **kwargs)  # type: ignore[call-arg]
        self.window_encoder_config = encoder_config(observation_space, model_config_dict)

    def build_encoder(self, framework: str) -> Any:
        """The encoder of a network that sees observations alone."""
        return self.window_encoder_config.build(framework)


class WindowBCCatalog(_WindowCatalog, BCCatalog):
    """BC."""


class WindowDQNCatalog(_WindowCatalog, DQNCatalog):
    """DQN: double, dueling and distributional as the config says."""


class WindowPPOCatalog(_WindowCatalog, PPOCatalog):
    """PPO, A2C, APPO, IMPALA and MARWIL; ``vf_share_layers`` shares the encoder with the value function."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.actor_critic_encoder_config.base_encoder_config = self.window_encoder_config


class WindowSACCatalog(_WindowCatalog, SACCatalog):
    """SAC and CQL. A Q-network over continuous actions encodes observation and action apart, then fuses them."""

    def build_qf_encoder(self, framework: str) -> Any:
        """The encoder of a Q-network."""
        encoder = super().build_qf_encoder(framework)
        if isinstance(self.action_space, Box):
            encoder.base_encoders[Columns.OBS] = self.build_encoder(framework)
        return encoder


_CATALOGS: dict[str, type[Catalog]] = {
    "A2C": WindowPPOCatalog,
    "APPO": WindowPPOCatalog,
    "BC": WindowBCCatalog,
    "CQL": WindowSACCatalog,
    "DQN": WindowDQNCatalog,
    "IMPALA": WindowPPOCatalog,
    "MARWIL": WindowPPOCatalog,
    "PPO": WindowPPOCatalog,
    "SAC": WindowSACCatalog,
}


def check_model(config: AlgorithmConfig, given: Any) -> None:
    """Refuse a ``model_config`` of which something would be ignored: RLlib reads what it knows and no more.

    Args:
        config: With the user's tables applied.
        given: What the user has set as ``model_config``, or an empty mapping.

    Raises:
        SettingsError: an unknown name (the nearest known one is suggested), kind or combination.
    """
    if has_own_module(config):
        return  # Its own settings are its own.
    model = asdict(given) if isinstance(given, DefaultModelConfig) else dict(given)
    where = "algorithm.rl_module.model_config"
    for name in _GEOMETRY:
        if name in model:
            raise SettingsError(f"{where}.{name}: set by the run itself; use [env]")
    known = sorted({"kind", *_SIZES, *(item.name for item in fields(DefaultModelConfig))})
    for name in model:
        if name not in known:
            raise SettingsError(f"{where}.{name}: no such setting of a model{_near(name, known)}")
    kind = config.model_config.get("kind", "mlp")
    if kind not in KINDS:
        raise SettingsError(f"{where}.kind {kind!r}: expected one of {', '.join(KINDS)}{_near(str(kind), KINDS)}")
    if kind != "mlp" and config.model_config.get("use_lstm"):
        raise SettingsError(
            f"{where}: expected kind {kind!r} or use_lstm, got both; kind reads each window anew, use_lstm is RLlib's "
            "LSTM over the steps of an episode"
        )
    sizes = asdict(WindowEncoderConfig()) | config.model_config
    if kind == "transformer" and sizes["transformer_size"] % sizes["transformer_heads"]:
        raise SettingsError(
            f"{where}.transformer_size {sizes['transformer_size']}: expected a multiple of transformer_heads, "
            f"{sizes['transformer_heads']}"
        )


def use_model(config: AlgorithmConfig, algorithm: str, env: EnvSettings) -> None:
    """Give the config the catalog of its model's kind; does nothing for RLlib's own encoder or a user's module.

    Args:
        config: Complete but for this.
        algorithm: ``algorithm.name``.
        env: Says how an observation is laid out.

    Raises:
        SettingsError: observations of a portfolio are no window of one series.
    """
    if has_own_module(config) or config.model_config.get("kind", "mlp") == "mlp":
        return
    if env.portfolio:
        raise SettingsError(
            f"algorithm.rl_module.model_config.kind {config.model_config['kind']!r}: expected env.portfolio = false, "
            'got true; an encoder of windows reads the bars of one symbol, so choose kind = "mlp"'
        )
    geometry = {"window": env.window, "bar_features": len(env.features)}
    config.rl_module(rl_module_spec=RLModuleSpec(catalog_class=_CATALOGS[algorithm], model_config=geometry))


def has_own_module(config: AlgorithmConfig) -> bool:
    """Whether the user has named an ``RLModule`` or a catalog."""
    own = config.rl_module_spec
    default = config.get_default_rl_module_spec()
    return (own.module_class, own.catalog_class) != (default.module_class, default.catalog_class)


def as_module_spec(value: Any) -> Any:
    """``rl_module_spec = "class:package.module.Name"`` names an ``RLModule``; RLlib wants a spec around it."""
    return RLModuleSpec(module_class=value) if isinstance(value, type) and issubclass(value, RLModule) else value


def _near(name: str, known: Any) -> str:
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""
