"""``torch.optim.Adam`` on one array: all parameters of an optimizer, their gradients and its moments, each end to end.

A step is three calls then, whatever the number of layers. The optimizer's state stays where it keeps it and is what it
would be, so that checkpoints are the same.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer.kernel_mlp import Floats
from trainer.lean_adam import clip, fused_step

_MOMENTS = ("exp_avg", "exp_avg_sq")


class FlatAdam:
    """A plain Adam (``trainer.lean_adam.is_plain_adam``) with one group of parameters, on the processor.

    Parameters lie in memory as (in, out) where they have two axes, which is how ``kernel_mlp.Chain`` wants weights.
    Between ``begin`` and ``finish`` nobody else steps or replaces the optimizer's state.

    Args:
        optimizer: The optimizer. Its parameters keep their values and are the same objects.
    """

    def __init__(self, optimizer: torch.optim.Adam) -> None:
        self._optimizer = optimizer
        [group] = optimizer.param_groups
        self._group: dict[str, Any] = group
        self._parameters: list[nn.Parameter] = list(group["params"])
        bounds = np.cumsum([0, *(parameter.numel() for parameter in self._parameters)]).tolist()
        self._bounds = list(pairwise(bounds))
        self._values, self._gradient = torch.zeros(bounds[-1]), torch.zeros(bounds[-1])
        self._moments = {name: torch.zeros(bounds[-1]) for name in _MOMENTS}
        self._own = {name: self._parts(flat) for name, flat in self._moments.items()}
        self._steps, self._made = torch.zeros(()), 0
        for parameter, values in zip(self._parameters, self._parts(self._values), strict=True):
            values.copy_(parameter.data)
            parameter.data = values
        parts = self._parts(self._gradient)
        self._gradients = dict(zip(self._parameters, (part.numpy() for part in parts), strict=True))
        self.gradient: Floats = self._gradient.numpy()
        """Of all parameters, (n,), to be written before a step."""

    def gradients_of(self, layer: nn.Linear) -> tuple[Floats, Floats]:
        """Where the gradients of a layer's weights (in, out) and of its bias (out,) are written."""
        return self._gradients[layer.weight].T, self._gradients[layer.bias]

    def covers(self, layers: list[nn.Linear]) -> bool:
        """Whether these layers have all of its parameters, each once."""
        theirs = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
        return len(theirs) == len(self._parameters) and set(theirs) == set(self._parameters)

    def begin(self) -> None:
        """Steps follow: take over what somebody has replaced, as a checkpoint does."""
        [self._group] = self._optimizer.param_groups
        states = [self._optimizer.state[parameter] for parameter in self._parameters]
        for name, parts in self._own.items():
            for state, part in zip(states, parts, strict=True):
                if state.get(name) is not part:
                    part.copy_(state[name]) if name in state else part.zero_()
                    state[name] = part
        for state in states:
            state.setdefault("step", torch.zeros((), dtype=torch.float32))
        self._steps.copy_(states[0]["step"])
        self._made = 0

    def norm(self) -> float:
        """Of the gradient."""
        return math.sqrt(float(np.dot(self.gradient, self.gradient)))

    def step(self, norm: float, most: float | None) -> None:
        """Clip the gradient to a norm of ``most``, and step.

        Args:
            norm: Its norm.
            most: None: it is not clipped.
        """
        if most:
            clip([self._gradient], norm, most)
        self._steps += 1
        self._made += 1
        averages, squares = self._moments.values()
        fused_step(self._group, [self._values], [self._gradient], [averages], [squares], [self._steps])

    def finish(self) -> None:
        """Tell the optimizer how many steps were made since ``begin``."""
        torch._foreach_add_([self._optimizer.state[parameter]["step"] for parameter in self._parameters], self._made)
        self._made = 0

    def hand_over(self) -> dict[Any, torch.Tensor]:
        """Gradients by parameter, for code of torch's that makes this step instead; ``begin`` comes after it."""
        self.finish()
        return dict(zip(self._parameters, self._parts(self._gradient), strict=True))

    def _parts(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """An array for all parameters, cut into theirs."""
        return [
            flat[first:last].view(*reversed(parameter.shape)).t() if parameter.dim() == 2 else flat[first:last]
            for (first, last), parameter in zip(self._bounds, self._parameters, strict=True)
        ]
