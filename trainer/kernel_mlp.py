"""Multi-layer perceptrons by hand, on a processor: numpy forward and backward, on the parameters of torch's layers.

A product of small matrices takes less time than torch needs to dispatch it and to write down how to differentiate it.
The parameters stay torch's: what changes them there changes them here, and the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Floats = NDArray[np.float32]


def _tanh_slope(outputs: Floats, room: Floats) -> Floats:
    np.multiply(outputs, outputs, out=room)
    return np.subtract(np.float32(1.0), room, out=room)


def _relu(values: Floats, out: Floats) -> Floats:
    return np.maximum(values, np.float32(0.0), out=out)


def _relu_slope(outputs: Floats, room: Floats) -> Floats:
    return np.greater(outputs, 0.0, out=room, casting="unsafe")


# By the layer's class: the function itself, and its derivative by what it gave.
_ACTIVATIONS: dict[type, tuple[Callable[..., Floats], Callable[[Floats, Floats], Floats]]] = {
    nn.Tanh: (np.tanh, _tanh_slope),
    nn.ReLU: (_relu, _relu_slope),
}


KERNEL_ACTIVATIONS = ("tanh", "relu")
"""Their names in RLlib's ``model_config``."""


def is_chain(layers: Sequence[nn.Module]) -> bool:
    """Whether these are what a ``Chain`` can run: linear layers with biases, and tanh or relu behind each.

    Behind the last one there need be none.
    """
    return (
        bool(layers)
        and all(isinstance(layer, nn.Linear) and layer.bias is not None for layer in layers[::2])
        and all(_activation(layer) is not None for layer in layers[1::2])
    )


def _activation(layer: nn.Module) -> tuple[Callable[..., Floats], Callable[[Floats, Floats], Floats]] | None:
    return next((found for kind, found in _ACTIVATIONS.items() if isinstance(layer, kind)), None)


class Chain:
    """Linear layers one after the other, with tanh or relu behind them.

    What it returns are buffers, which its next call overwrites. It is not to be called by two threads.

    Args:
        layers: As ``is_chain`` says. Weights are laid out anew in memory, (in, out): products with few rows take half
            the time. Shapes, values and the parameter objects stay.
        gradients_of: Says where the gradients of a layer's weights (in, out) and bias (out,) are written; None where
            nothing is learned.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        gradients_of: Callable[[nn.Linear], tuple[Floats, Floats]] | None = None,
    ) -> None:
        self.linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
        for linear in self.linears:
            if not linear.weight.data.t().is_contiguous():
                linear.weight.data = linear.weight.data.t().contiguous().t()
        self._weights = [linear.weight.detach().numpy().T for linear in self.linears]
        self._biases = [linear.bias.detach().numpy() for linear in self.linears]
        self._activations = [
            _activation(layer) if layer is not None else None for _, layer in zip_longest(self.linears, layers[1::2])
        ]
        self._gradients = [gradients_of(linear) for linear in self.linears] if gradients_of else []
        self._room = 0
        self._outputs: list[Floats] = []
        self._slopes: list[Floats] = []
        self._factors: list[Floats] = []

    def forward(self, inputs: Floats) -> Floats:
        """Outputs (n, out) of inputs (n, in)."""
        self._make_room(len(inputs))
        out = self._outputs[0][: len(inputs)]
        np.matmul(inputs, self._weights[0], out=out)
        return self._rest(out)

    def last(self, count: int) -> Floats:
        """Outputs (count, out) of the first inputs of the last forward pass."""
        return self._outputs[-1][:count]

    def products(self, parts: Floats) -> Floats:
        """Products (k, out of the first layer) of the first m numbers of inputs, (k, m), for ``forward_shared``."""
        # Copied: rows that overlap in memory are none that BLAS takes.
        products: Floats = np.ascontiguousarray(parts) @ self._weights[0][: parts.shape[1]]
        return products

    def forward_shared(self, products: Floats, index: NDArray[np.int64], own: Floats) -> Floats:
        """Outputs (n, out) of inputs of which several begin with the same numbers.

        Args:
            products: Of what they begin with, (k, …).
            index: Which of these each has, (n,).
            own: The rest of each, (n, in - m).
        """
        self._make_room(len(own))
        out = self._outputs[0][: len(own)]
        np.matmul(own, self._weights[0][-own.shape[1] :], out=out)
        out += products[index]
        return self._rest(out)

    def _rest(self, values: Floats) -> Floats:
        """What comes after the product of the first layer."""
        for at, (bias, activation) in enumerate(zip(self._biases, self._activations, strict=True)):
            if at:
                out = self._outputs[at][: len(values)]
                values = np.matmul(values, self._weights[at], out=out)
            values += bias
            if activation is not None:
                activation[0](values, values)
        return values

    def backward(self, inputs: Floats, slope: Floats, *, to_inputs: bool = False) -> Floats:
        """Write the gradients of the parameters.

        Args:
            inputs: Those of the last forward pass, (n, in).
            slope: Derivative of the loss by the outputs, (n, out).
            to_inputs: Go on to the inputs.

        Returns:
            The derivative by the inputs (n, in), or without ``to_inputs`` by the first layer's outputs.
        """
        count = len(inputs)
        ones = np.ones(count, np.float32)
        for at in range(len(self.linears) - 1, -1, -1):
            activation = self._activations[at]
            if activation is not None:
                factor = activation[1](self._outputs[at][:count], self._factors[at][:count])
                slope = np.multiply(slope, factor, out=factor)
            before = self._outputs[at - 1][:count] if at else inputs
            weights, bias = self._gradients[at]
            np.matmul(before.T, slope, out=weights)
            np.matmul(ones, slope, out=bias)  # several times as fast as a sum over the first axis
            if at or to_inputs:
                # The product with a single column is one that BLAS takes many times as long for.
                multiply = np.multiply if slope.shape[1] == 1 else np.matmul
                slope = multiply(slope, self._weights[at].T, out=self._slopes[at][:count])
        return slope

    def _make_room(self, rows: int) -> None:
        if rows <= self._room:
            return
        self._room = rows
        self._outputs = [np.empty((rows, weights.shape[1]), np.float32) for weights in self._weights]
        self._factors = [np.empty((rows, weights.shape[1]), np.float32) for weights in self._weights]
        self._slopes = [np.empty((rows, weights.shape[0]), np.float32) for weights in self._weights]


def chances_of(logits: Floats) -> tuple[Floats, Floats]:
    """Chances of choices and their logarithms, from logits (n, choices); (choices, n) each.

    Choice by choice: operations along the short axis take several times as long.
    """
    logps = np.ascontiguousarray(logits.T)
    logps -= logps.max(axis=0)
    chances = np.exp(logps)
    total = chances.sum(axis=0)
    chances /= total
    logps -= np.log(total)
    return chances, logps


def as_array(tensor: torch.Tensor) -> NDArray[Any]:
    """A tensor on the processor, of which no gradient is wanted, as an array: without a copy."""
    values: NDArray[Any] = tensor.numpy()
    return values
