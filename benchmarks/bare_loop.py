"""PPO and double DQN as bare loops: the market model, numpy and nothing else. The limit that a framework can come near.

No framework, no autograd: the two-layer networks are run forward and backward by hand, with buffers made once, on one
flat array of parameters, which torch's fused Adam kernel updates in one call. Observations are never stored: a
transition is a row of the series and the account's few numbers, and minibatches are gathered from one view of the
series. Losses, clipping and schedules are those of ``train_contestants.py``; ``bare_check.py`` holds the gradients
against autograd's.

Both take the environment's own steps (``MarketModel``) and publish nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from env.kernel import OBSERVATION_LIMIT
from env.market_data import MarketData
from env.market_model import MarketModel
from env.scaler import Scaler
from env.settings import EnvSettings

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

CHUNK = 2_048  # rows of a forward pass over a whole roll-out: they stay in the processor's cache


class Parameters:
    """Weights of several networks in one flat array, with their gradient, and Adam."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], learning_rate: float) -> None:
        sizes = [int(np.prod(shape)) for shape in shapes]
        self.flat, self.gradient = np.zeros(sum(sizes), np.float32), np.zeros(sum(sizes), np.float32)
        bounds = np.cumsum([0, *sizes])
        self.values, self.gradients = (
            [array[a:b].reshape(shape) for a, b, shape in zip(bounds, bounds[1:], shapes, strict=False)]
            for array in (self.flat, self.gradient)
        )
        weights, gradient = torch.from_numpy(self.flat), torch.from_numpy(self.gradient)
        self._steps, self._rate = torch.tensor(0.0), learning_rate
        moments = [torch.zeros_like(weights)], [torch.zeros_like(weights)]
        self._tensors: Any = ([weights], [gradient], *moments, [], [self._steps])

    def step(self, largest_norm: float) -> None:
        """One step of Adam, down the gradient, clipped to a global norm."""
        norm = float(np.dot(self.gradient, self.gradient)) ** 0.5
        if norm > largest_norm:
            self.gradient *= largest_norm / (norm + 1e-6)
        self._steps += 1
        torch._fused_adam_(
            *self._tensors,
            lr=self._rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )


class Network:
    """Observation -> tanh -> tanh -> linear.

    Args:
        values: Six parameters: weights (in, out) and bias (out,) of each layer.
        gradients: Where their gradients go.
    """

    def __init__(self, values: list[Floats], gradients: list[Floats]) -> None:
        self.values, self.gradients = values, gradients
        self._buffers: dict[int, list[Floats]] = {}

    @staticmethod
    def shapes(inputs: int, outputs: int, hidden: int = 64) -> list[tuple[int, ...]]:
        """Of its parameters."""
        return [(inputs, hidden), (hidden,), (hidden, hidden), (hidden,), (hidden, outputs), (outputs,)]

    def initialise(self, rng: np.random.Generator) -> None:
        """Uniform within ± 1 / sqrt(inputs), as torch's ``Linear``."""
        for weights, bias in zip(self.values[::2], self.values[1::2], strict=True):
            bound = len(weights) ** -0.5
            weights[...] = rng.uniform(-bound, bound, weights.shape)
            bias[...] = rng.uniform(-bound, bound, bias.shape)

    def _room(self, rows: int) -> list[Floats]:
        if rows not in self._buffers:
            w1, _, w2, _, w3, _ = self.values
            widths = [w1.shape[1], w2.shape[1], w3.shape[1], w2.shape[1], w1.shape[1], w1.shape[1]]
            self._buffers[rows] = [np.empty((rows, width), np.float32) for width in widths]
        return self._buffers[rows]

    def forward(self, inputs: Floats) -> Floats:
        """Outputs (n, outputs): a buffer that the next call of n rows overwrites."""
        w1, b1, w2, b2, w3, b3 = self.values
        h1, h2, out, *_ = self._room(len(inputs))
        np.matmul(inputs, w1, out=h1)
        h1 += b1
        np.tanh(h1, out=h1)
        np.matmul(h1, w2, out=h2)
        h2 += b2
        np.tanh(h2, out=h2)
        np.matmul(h2, w3, out=out)
        out += b3
        return out

    def backward(self, inputs: Floats, slope: Floats, ran: int | None = None) -> None:
        """Gradients of the parameters.

        Args:
            inputs: Those of the last forward pass, or its first n.
            slope: The loss's derivative by the outputs, (n, outputs).
            ran: Rows of that forward pass, where it had more than n.
        """
        rows = len(inputs)
        h1, h2, _, *_ = (array[:rows] for array in self._room(ran or rows))
        *_, d2, d1, square = self._room(rows)
        _, _, w2, _, w3, _ = self.values
        g1, gb1, g2, gb2, g3, gb3 = self.gradients
        np.matmul(h2.T, slope, out=g3)
        np.sum(slope, axis=0, out=gb3)
        np.matmul(slope, w3.T, out=d2)
        np.multiply(h2, h2, out=square)
        np.subtract(1.0, square, out=square)
        d2 *= square
        np.matmul(h1.T, d2, out=g2)
        np.sum(d2, axis=0, out=gb2)
        np.matmul(d2, w2.T, out=d1)
        np.multiply(h1, h1, out=square)
        np.subtract(1.0, square, out=square)
        d1 *= square
        np.matmul(inputs.T, d1, out=g1)
        np.sum(d1, axis=0, out=gb1)


class Market:
    """B environments, and observations by row."""

    def __init__(self, data: MarketData, settings: EnvSettings, scaler: Scaler, num_envs: int, seed: int) -> None:
        rngs = [np.random.default_rng([seed, index]) for index in range(num_envs)]
        self.model = MarketModel(data, settings, scaler, num_envs, rngs)
        self.model.reset(range(num_envs))
        features = data.scaled(scaler, OBSERVATION_LIMIT)
        rows, columns = features.shape
        self.size, self.width, self._window = self.model.observation_size, settings.window * columns, settings.window
        self.accounts = self.size - self.width
        flat = torch.from_numpy(np.array(features)).reshape(-1)
        self._windows = torch.as_strided(flat, (rows - settings.window + 1, self.width), (columns, 1))

    def gather(self, rows: Ints, accounts: Floats, out: Floats) -> Floats:
        """Observations at rows (n,) with accounts (n, P), into ``out`` (n, size)."""
        first = torch.from_numpy(rows - (self._window - 1))
        torch.index_select(self._windows, 0, first, out=torch.from_numpy(out)[:, : self.width])
        out[:, self.width :] = accounts
        return out


def highest(values: Floats) -> Ints:
    """``argmax`` of each row: of few columns several times faster column by column."""
    best, at = values[:, 0].copy(), np.zeros(len(values), np.int64)
    for column in range(1, values.shape[1]):
        above = values[:, column] > best
        at[above] = column
        np.maximum(best, values[:, column], out=best)
    return at


class BarePPO:
    """PPO: clipped loss, generalised advantages, one pass of minibatches. A batch is T steps of B environments."""

    def __init__(
        self, market: Market, batch: int, minibatch: int, epochs: int, actions: int = 3, seed: int = 1
    ) -> None:
        self.market, self.envs = market, market.model.num_envs
        self.steps, self.minibatch, self.epochs = batch // self.envs, minibatch, epochs
        self.rng = np.random.default_rng(seed)
        shapes = [Network.shapes(market.size, outputs) for outputs in (actions, 1)]
        self.parameters = Parameters([*shapes[0], *shapes[1]], learning_rate=3e-4)
        values, gradients = self.parameters.values, self.parameters.gradients
        self.policy, self.value = Network(values[:6], gradients[:6]), Network(values[6:], gradients[6:])
        for network in (self.policy, self.value):
            network.initialise(self.rng)
        shape = self.steps, self.envs
        self.rows = np.zeros((self.steps + 1, self.envs), np.int64)
        self.accounts = np.zeros((self.steps + 1, self.envs, market.accounts), np.float32)
        self.actions, self.rewards = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        self.log_probabilities = np.zeros(shape, np.float32)
        self.ended, self.terminated = np.zeros(shape, bool), np.zeros(shape, bool)
        self._inputs = np.empty((max(minibatch, CHUNK), market.size), np.float32)
        self._places = np.arange(minibatch)

    def iterate(self) -> int:
        """Sample a batch and learn from it. Returns environment steps."""
        finals = self._sample()
        size = self.steps * self.envs
        rows = np.concatenate([self.rows.reshape(-1), *(rows for _, _, rows, _ in finals)])
        accounts = np.concatenate([self.accounts.reshape(-1, self.market.accounts), *(a for *_, a in finals)])
        values = self._values(rows, accounts)
        advantages = self._advantages(values, finals)
        returns = (advantages + values[:size].reshape(advantages.shape)).reshape(-1)
        advantages = advantages.reshape(-1)
        advantages = (advantages - advantages.mean()) / max(1e-4, float(advantages.std()))
        actions, before = self.actions.reshape(-1), self.log_probabilities.reshape(-1)
        for _ in range(self.epochs):
            order = self.rng.permutation(size)
            for begin in range(0, size - self.minibatch + 1, self.minibatch):
                chosen = order[begin : begin + self.minibatch]
                inputs = self.market.gather(rows[chosen], accounts[chosen], self._inputs[: self.minibatch])
                self.gradient(inputs, actions[chosen], before[chosen], advantages[chosen], returns[chosen])
                self.parameters.step(largest_norm=0.5)
        return size

    def _sample(self) -> list[tuple[int, Ints, Ints, Floats]]:
        model, width = self.market.model, self.market.width
        self.ended[:], self.terminated[:] = False, False
        uniform = self.rng.random((self.steps, self.envs, 1), np.float32)
        finals = []
        seen = model.observations()
        for step in range(self.steps):
            self.rows[step], self.accounts[step] = model.row, seen[:, width:]
            logits = self.policy.forward(seen)
            logits -= logits.max(axis=1, keepdims=True)
            weights = np.exp(logits)
            sums = np.cumsum(weights, axis=1)
            total = sums[:, -1:]
            # By the inverse of the distribution function.
            action = (uniform[step] * total > sums[:, :-1]).sum(axis=1)
            self.actions[step] = action
            self.log_probabilities[step] = logits[np.arange(self.envs), action] - np.log(total[:, 0])
            seen, rewards, terminated, truncated = model.step(action)
            self.rewards[step] = rewards
            ended = terminated | truncated
            if ended.any():
                envs = np.flatnonzero(ended)
                self.ended[step], self.terminated[step] = ended, terminated
                finals.append((step, envs, model.row[envs], seen[envs, width:]))
                model.reset(envs.tolist())
                seen = model.observations()
        self.rows[-1], self.accounts[-1] = model.row, seen[:, width:]
        return finals

    def _values(self, rows: Ints, accounts: Floats) -> Floats:
        values = np.empty(len(rows), np.float32)
        for begin in range(0, len(rows), CHUNK):
            part = slice(begin, begin + CHUNK)
            count = len(rows[part])
            inputs = self.market.gather(rows[part], accounts[part], self._inputs[:count])
            values[part] = self.value.forward(inputs)[:, 0]
        return values

    def _advantages(self, values: Floats, finals: list[tuple[int, Ints, Ints, Floats]]) -> Floats:
        gamma, decay = np.float32(0.99), np.float32(0.99 * 0.95)
        count = (self.steps + 1) * self.envs
        grid = values[:count].reshape(self.steps + 1, self.envs)
        following = grid[1:].copy()
        at = count
        for step, envs, *_ in finals:
            following[step, envs] = values[at : at + len(envs)]
            at += len(envs)
        following[self.terminated] = 0.0
        advantages: Floats = self.rewards + gamma * following - grid[:-1]
        carry = np.where(self.ended, np.float32(0.0), decay)
        for step in range(self.steps - 2, -1, -1):
            advantages[step] += carry[step] * advantages[step + 1]
        return advantages

    def gradient(self, inputs: Floats, actions: Ints, before: Floats, advantages: Floats, returns: Floats) -> float:
        """Gradient of PPO's loss into ``parameters.gradient``. Returns the loss."""
        count, places = len(inputs), self._places
        logits = self.policy.forward(inputs)
        logits -= logits.max(axis=1, keepdims=True)
        chances = np.exp(logits)
        total = chances.sum(axis=1)
        chances /= total[:, None]
        ratio = np.exp(logits[places, actions] - np.log(total) - before)
        plain = advantages * ratio
        limited = np.where(advantages > 0, np.float32(1.2), np.float32(0.8)) * advantages
        slope = np.where(plain < limited, plain, np.float32(0.0)) / np.float32(-count)
        chances *= -slope[:, None]
        chances[places, actions] += slope
        self.policy.backward(inputs, chances)
        error = self.value.forward(inputs)[:, 0] - returns
        self.value.backward(inputs, (error / np.float32(count))[:, None])
        return float(np.dot(error, error) * 0.5 - np.minimum(plain, limited).sum()) / count


class BareDQN:
    """Double DQN on a ring of rows: a round is ``fragment`` steps of B environments, then one update per 32 steps."""

    RATE, GAMMA, EPSILON, CAPACITY, SYNC, BATCH = 5e-4, 0.99, 0.05, 51_200, 2_000, 32

    def __init__(self, market: Market, fragment: int, actions: int = 3, seed: int = 1) -> None:
        self.market, self.envs, self.fragment, self.choices = market, market.model.num_envs, fragment, actions
        if self.CAPACITY % self.envs:
            raise ValueError(f"bare DQN: expected environments that divide {self.CAPACITY}, got {self.envs}")
        self.rng = np.random.default_rng(seed)
        self.parameters = Parameters(Network.shapes(market.size, actions), self.RATE)
        self.network = Network(self.parameters.values, self.parameters.gradients)
        self.network.initialise(self.rng)
        self.target = Network([value.copy() for value in self.parameters.values], [])
        self.rows, self.actions = np.zeros(self.CAPACITY, np.int64), np.zeros(self.CAPACITY, np.int64)
        self.rewards, self.continues = np.zeros(self.CAPACITY, np.float32), np.zeros(self.CAPACITY, np.float32)
        self.accounts, self.next_accounts = np.zeros((2, self.CAPACITY, market.accounts), np.float32)
        self.steps = self._synced = 0
        self._seen = market.model.observations()
        self.updates = fragment * self.envs // self.BATCH
        self._inputs = np.empty((self.updates, 2 * self.BATCH, market.size), np.float32)
        self._next = np.empty((self.updates * self.BATCH, market.size), np.float32)
        self._slope, self._places = np.zeros((self.BATCH, actions), np.float32), np.arange(self.BATCH)

    def iterate(self) -> int:
        """Sample a fragment, and learn from the ring. Returns environment steps."""
        self._sample()
        self._learn()
        if self.steps - self._synced >= self.SYNC:
            self._synced = self.steps
            for mine, value in zip(self.target.values, self.network.values, strict=True):
                mine[...] = value
        return self.fragment * self.envs

    def _sample(self) -> None:
        model, width = self.market.model, self.market.width
        shape = self.fragment, self.envs
        explores, drawn = self.rng.random(shape) < self.EPSILON, self.rng.integers(0, self.choices, shape)
        seen = self._seen
        for step in range(self.fragment):
            begin = self.steps % self.CAPACITY
            place = slice(begin, begin + self.envs)
            action = np.where(explores[step], drawn[step], highest(self.network.forward(seen)))
            self.rows[place], self.accounts[place], self.actions[place] = model.row, seen[:, width:], action
            seen, self.rewards[place], terminated, truncated = model.step(action)
            self.next_accounts[place] = seen[:, width:]
            np.multiply(~terminated, np.float32(self.GAMMA), out=self.continues[place])
            ended = terminated | truncated
            if ended.any():
                model.reset(np.flatnonzero(ended).tolist())
                seen = model.observations()
            self.steps += self.envs
        self._seen = seen

    def _learn(self) -> None:
        market, batch = self.market, self.BATCH
        drawn = self.rng.integers(0, min(self.steps, self.CAPACITY), self.updates * batch)
        # All minibatches of the round at once, and their targets, which do not change within it.
        rows = np.stack([self.rows[drawn], self.rows[drawn] + 1]).reshape(2, self.updates, batch)
        accounts = np.stack([self.accounts[drawn], self.next_accounts[drawn]])
        accounts = accounts.reshape(2, self.updates, batch, market.accounts).swapaxes(0, 1)
        inputs = self._inputs
        flat = inputs.reshape(-1, market.size)
        market.gather(rows.swapaxes(0, 1).reshape(-1), accounts.reshape(-1, market.accounts), flat)
        np.copyto(self._next.reshape(self.updates, batch, -1), inputs[:, batch:])
        targets = self.target.forward(self._next) * self.continues[drawn, None] + self.rewards[drawn, None]
        targets = targets.reshape(self.updates, batch, -1)
        actions = self.actions[drawn].reshape(self.updates, batch)
        for update in range(self.updates):
            self.gradient(inputs[update], actions[update], targets[update])
            self.parameters.step(largest_norm=40.0)

    def gradient(self, inputs: Floats, actions: Ints, targets: Floats) -> float:
        """Gradient of the Huber loss into ``parameters.gradient``. Returns the loss.

        Args:
            inputs: Observations, and below them the next ones (2 n, size).
            actions: (n,)
            targets: What each next action would be worth, (n, actions).
        """
        count, places = len(actions), self._places
        values = self.network.forward(inputs)
        error = values[places, actions] - targets[places, highest(values[count:])]
        self._slope[:] = 0.0
        self._slope[places, actions] = np.clip(error, -1.0, 1.0) / count
        self.network.backward(inputs[:count], self._slope, ran=len(inputs))
        size = np.abs(error)
        return float(np.where(size < 1.0, 0.5 * size * size, size - 0.5).mean())
