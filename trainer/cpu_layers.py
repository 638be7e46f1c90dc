"""Linear and tanh layers that are quick on a CPU: the same functions by other libraries than those that torch chooses.

Torch multiplies float32 matrices with Intel's MKL, which uses half of an AMD processor with AVX-512, and its tanh takes
several times as long there as numpy's. oneDNN, which torch carries too, and numpy give the same numbers but for
rounding. On Intel's own processors, and without AVX-512, torch's are as quick or quicker, and stay.
``docs/training.md`` has figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

# Multiplications of a product, and numbers of a tanh, from which on the other library pays for being called.
_LEAST_PRODUCT = 2_000_000
_LEAST_TANH = 1_024
_LEAST_TANH_GRADIENT = 8_192

_ABOUT = Path("/proc/cpuinfo")


def use_cpu_layers(module: nn.Module) -> None:
    """Make the linear and tanh layers of a module quick ones. Parameters, states and names stay as they are.

    On another device, on other types than float32, where the sizes are small or a compiler looks at them, they do
    what they did. On a processor where torch's own pay, nothing is changed.
    """
    if not _pay():
        return
    for layer in module.modules():
        if type(layer) is nn.Linear and _product is not None:
            layer.__class__ = QuickLinear
        elif type(layer) is nn.Tanh:
            layer.__class__ = QuickTanh


def _pay() -> bool:
    """Whether this is an AMD processor with AVX-512. By name, not by a clock: equal seeds must give equal numbers."""
    is_amd = _ABOUT.exists() and "AuthenticAMD" in _ABOUT.read_text()
    return is_amd and torch.backends.cpu.get_cpu_capability() == "AVX512"


class QuickLinear(nn.Linear):
    """``nn.Linear`` by oneDNN."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        """``input @ weight.T + bias``, (…, in) to (…, out)."""
        if input.numel() * self.out_features < _LEAST_PRODUCT or not _is_ours(input):
            return super().forward(input)
        if torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad):
            result: torch.Tensor = _Linear.apply(input, self.weight, self.bias)
            return result
        return _multiply(input, self.weight, self.bias)


class QuickTanh(nn.Tanh):
    """``nn.Tanh`` by numpy."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        """Element by element."""
        with_gradient = torch.is_grad_enabled() and input.requires_grad
        if input.numel() < (_LEAST_TANH_GRADIENT if with_gradient else _LEAST_TANH) or not _is_ours(input):
            return super().forward(input)
        result: torch.Tensor = _Tanh.apply(input) if with_gradient else _tanh(input)
        return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        return _multiply(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, weight.shape[0])
        to_inputs, to_weight, to_bias = ctx.needs_input_grad
        small = gradient.numel() * weight.shape[1] < _LEAST_PRODUCT
        multiply = _plain if small else _multiply
        return (
            multiply(gradient, weight.t(), None).reshape(inputs.shape) if to_inputs else None,
            multiply(gradient.t(), inputs.reshape(-1, weight.shape[1]).t(), None) if to_weight else None,
            gradient.sum(0) if to_bias else None,
        )


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor) -> torch.Tensor:
        result = _tanh(inputs.detach())
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (result,) = ctx.saved_tensors
        backward: torch.Tensor = torch.ops.aten.tanh_backward(gradients[0], result)
        return backward


def _is_ours(values: torch.Tensor) -> bool:
    return values.device.type == "cpu" and values.dtype == torch.float32 and not torch.compiler.is_compiling()


# A private name of torch: without it, layers stay as they are.
_product = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def _multiply(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    result: torch.Tensor = _product(inputs, weight, bias, "none", [], "")  # type: ignore[misc]
    return result


def _plain(inputs: torch.Tensor, weight: torch.Tensor, bias: None) -> torch.Tensor:
    return inputs @ weight.t()


def _tanh(values: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.tanh(values.numpy()))
