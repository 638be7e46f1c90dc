"""Torch encoders that read an observation as what it is: a window of bars, and the state of the account.

Each makes one vector of the window (convolution, LSTM or transformer), puts the account's features beside it, and
passes both through the same hidden layers that RLlib's MLP encoder has: ``fcnet_hiddens``. So heads, losses and
learners see no difference, and none of them keeps a state between steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ENCODER_OUT, Encoder
from ray.rllib.core.models.configs import ModelConfig
from ray.rllib.core.models.torch.base import TorchModel
from ray.rllib.models.utils import get_activation_fn
from torch import nn


@dataclass
class WindowEncoderConfig(ModelConfig):
    """What a window encoder is built of. Heads ask it for ``output_dims``.

    Attributes:
        kind: ``conv``, ``lstm`` or ``transformer``.
        window: W, bars in an observation.
        bar_features: F, numbers of a bar. An observation has W · F + P numbers, the last P of them on the account.
        fcnet_hiddens: Sizes of the layers behind window and account; the last is the encoder's output.
        fcnet_activation: Their activation, and that between convolutions.
        conv_channels: Channels of each convolution over the window.
        conv_kernel: Bars that a convolution sees at once.
        lstm_cell_size: Size of the LSTM's state, which begins at zero with each window.
        transformer_layers: Layers of self-attention.
        transformer_heads: Heads of each.
        transformer_size: Size of a bar's embedding.
    """

    kind: str = "conv"
    window: int = 1
    bar_features: int = 1
    fcnet_hiddens: list[int] = field(default_factory=lambda: [64, 64])
    fcnet_activation: str = "relu"
    conv_channels: list[int] = field(default_factory=lambda: [32, 32])
    conv_kernel: int = 3
    lstm_cell_size: int = 64
    transformer_layers: int = 2
    transformer_heads: int = 4
    transformer_size: int = 32

    @property
    def output_dims(self) -> tuple[int, ...]:
        """Shape of the encoder's output for one observation."""
        return (self.fcnet_hiddens[-1],)

    @property
    def account_features(self) -> int:
        """P, numbers behind the window."""
        size: int = self.input_dims[0]
        return size - self.window * self.bar_features

    def build(self, framework: str = "torch") -> WindowEncoder:
        """The encoder, with fresh weights."""
        return WindowEncoder(self)


class WindowEncoder(TorchModel, Encoder):
    """Observations (…, W · F + P) to vectors (…, ``fcnet_hiddens[-1]``)."""

    def __init__(self, config: WindowEncoderConfig) -> None:
        TorchModel.__init__(self, config)
        Encoder.__init__(self, config)
        activation = get_activation_fn(config.fcnet_activation, framework="torch") or nn.Identity
        self.bars, size = _BUILDERS[config.kind](config, activation)
        layers: list[Any] = []
        size += config.account_features
        for hidden in config.fcnet_hiddens:
            layers += [nn.Linear(size, hidden), activation()]
            size = hidden
        self.trunk = nn.Sequential(*layers)
        self._window, self._features = config.window, config.bar_features
        self._split = config.window * config.bar_features

    def _forward(self, inputs: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        observations = inputs[Columns.OBS]
        lead = observations.shape[:-1]
        flat = observations.reshape(-1, observations.shape[-1])
        window = flat[:, : self._split].reshape(-1, self._window, self._features)
        encoded = self.trunk(torch.cat([self.bars(window), flat[:, self._split :]], dim=-1))
        return {ENCODER_OUT: encoded.reshape(*lead, -1)}


class ConvWindow(nn.Module):
    """1-D convolutions along the window, each halving it; (N, W, F) to (N, C · W')."""

    def __init__(self, config: WindowEncoderConfig, activation: Any) -> None:
        super().__init__()
        layers: list[Any] = []
        channels = config.bar_features
        for wanted in config.conv_channels:
            layers += [nn.Conv1d(channels, wanted, config.conv_kernel, 2, config.conv_kernel // 2), activation()]
            channels = wanted
        self.layers = nn.Sequential(*layers)

    def forward(self, window: Any) -> Any:
        """Vectors of windows."""
        return self.layers(window.transpose(1, 2)).flatten(1)


class LstmWindow(nn.Module):
    """An LSTM from the window's first bar to its last; (N, W, F) to its last state (N, H)."""

    def __init__(self, config: WindowEncoderConfig) -> None:
        super().__init__()
        self.lstm = nn.LSTM(config.bar_features, config.lstm_cell_size, batch_first=True)

    def forward(self, window: Any) -> Any:
        """Vectors of windows."""
        return self.lstm(window)[1][0][-1]


class TransformerWindow(nn.Module):
    """Self-attention between the bars of the window; (N, W, F) to the last bar's vector (N, D).

    Pre-norm layers (Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture"), which need no warm-up
    of the learning rate, learned positions, and no dropout: roll-out and update must see the same policy.
    """

    def __init__(self, config: WindowEncoderConfig) -> None:
        super().__init__()
        size = config.transformer_size
        self.embed = nn.Linear(config.bar_features, size)
        self.position = nn.Parameter(0.02 * torch.randn(config.window, size))
        layer = nn.TransformerEncoderLayer(
            size, config.transformer_heads, 2 * size, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, config.transformer_layers, norm=nn.LayerNorm(size), enable_nested_tensor=False
        )

    def forward(self, window: Any) -> Any:
        """Vectors of windows."""
        return self.layers(self.embed(window) + self.position)[:, -1]


def _conv(config: WindowEncoderConfig, activation: Any) -> tuple[nn.Module, int]:
    module = ConvWindow(config, activation)
    with torch.no_grad():
        size = module(torch.zeros(1, config.window, config.bar_features)).shape[1]
    return module, int(size)


def _lstm(config: WindowEncoderConfig, activation: Any) -> tuple[nn.Module, int]:
    return LstmWindow(config), config.lstm_cell_size


def _transformer(config: WindowEncoderConfig, activation: Any) -> tuple[nn.Module, int]:
    return TransformerWindow(config), config.transformer_size


_BUILDERS = {"conv": _conv, "lstm": _lstm, "transformer": _transformer}
