"""The bare loops' gradients, made by hand, against torch's autograd: bench_train.py asks before it measures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from bare_loop import BareDQN, BarePPO, Parameters

CLOSE = 1e-4  # of the largest number


def check_gradients(loop: BarePPO | BareDQN) -> None:
    """Hold loss and gradient of a loop against autograd's.

    Raises:
        AssertionError: They differ.
    """
    check = _ppo if isinstance(loop, BarePPO) else _dqn
    loss, expected, weights = check(loop, np.random.default_rng(7))  # type: ignore[operator]
    expected.backward()
    truth = np.concatenate([weight.grad.numpy().reshape(-1) for weight in weights])
    assert np.abs(loop.parameters.gradient - truth).max() <= CLOSE * np.abs(truth).max()
    assert abs(loss - expected.item()) <= CLOSE * abs(expected.item())


def _leaves(parameters: Parameters) -> list[Any]:
    return [torch.from_numpy(value.copy()).requires_grad_() for value in parameters.values]


def _network(weights: list[Any], x: Any) -> Any:
    w1, b1, w2, b2, w3, b3 = weights
    return torch.tanh(torch.tanh(x @ w1 + b1) @ w2 + b2) @ w3 + b3


def _ppo(loop: BarePPO, rng: np.random.Generator) -> tuple[float, Any, list[Any]]:
    count, weights = loop.minibatch, _leaves(loop.parameters)
    inputs = rng.normal(size=(count, loop.market.size)).astype(np.float32)
    actions = rng.integers(0, 3, count)
    before, advantages, returns = rng.normal(0.0, 0.3, (3, count)).astype(np.float32)
    before -= np.float32(1.1)
    loss = loop.gradient(inputs, actions, before, advantages, returns)
    x, at, old, advantage, target = map(torch.from_numpy, (inputs, actions, before, advantages, returns))
    ratio = (torch.log_softmax(_network(weights[:6], x), -1).gather(1, at[:, None])[:, 0] - old).exp()
    clipped = torch.min(advantage * ratio, advantage * ratio.clamp(0.8, 1.2)).mean()
    return loss, 0.5 * ((_network(weights[6:], x)[:, 0] - target) ** 2).mean() - clipped, weights


def _dqn(loop: BareDQN, rng: np.random.Generator) -> tuple[float, Any, list[Any]]:
    count, weights = loop.BATCH, _leaves(loop.parameters)
    inputs = rng.normal(size=(2 * count, loop.market.size)).astype(np.float32)
    actions, targets = rng.integers(0, 3, count), rng.normal(size=(count, 3)).astype(np.float32)
    loss = loop.gradient(inputs, actions, targets)
    x, at, target = map(torch.from_numpy, (inputs, actions, targets))
    best = _network(weights, x[count:]).argmax(1, keepdim=True)
    chosen = _network(weights, x[:count]).gather(1, at[:, None])[:, 0]
    return loss, torch.nn.functional.smooth_l1_loss(chosen, target.gather(1, best)[:, 0]), weights
