"""RLlib's networks of several parts, by hand: a policy with a value function, and a Q-network."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.kernel_mlp import Chain, Floats, is_chain
from trainer.rllib_private import ActorCriticLayers, QLayers, q_layers


class ActorCritic:
    """The networks of a policy over n choices and of a value function.

    Args:
        layers: Of both; they may have one encoder.
        gradients_of: As of ``Chain``.
    """

    def __init__(self, layers: ActorCriticLayers, gradients_of: Any) -> None:
        self._shared = layers.critic is layers.actor
        self._actor, self._pi, self._vf = (Chain(part, gradients_of) for part in (layers.actor, layers.pi, layers.vf))
        self._critic = self._actor if self._shared else Chain(layers.critic, gradients_of)
        chains = [self._actor, self._pi, self._vf, *([] if self._shared else [self._critic])]
        self.linears = [linear for chain in chains for linear in chain.linears]

    def forward(self, observations: Floats, *, judged: bool = False) -> tuple[Floats, Floats]:
        """Logits (n, choices) and values (n,): buffers, until the next call.

        Args:
            observations: float32 (n, size).
            judged: They are the first ones of the last call of ``values``, and the parameters are as they were.
        """
        self._judged = self._critic.last(len(observations)) if judged else self._critic.forward(observations)
        self._acted = self._judged if self._shared else self._actor.forward(observations)
        return self._pi.forward(self._acted), self._vf.forward(self._judged)[:, 0]

    def values(self, observations: Floats) -> Floats:
        """Values (n,): a buffer, until the next call."""
        return self._vf.forward(self._critic.forward(observations))[:, 0]

    def products(self, parts: Floats) -> Floats:
        """As of ``Chain``, of the value function."""
        return self._critic.products(parts)

    def values_shared(self, products: Floats, index: NDArray[np.int64], own: Floats) -> Floats:
        """Values (n,) of observations of which several begin with the same numbers, see ``Chain.forward_shared``."""
        return self._vf.forward(self._critic.forward_shared(products, index, own))[:, 0]

    def backward(self, observations: Floats, to_logits: Floats, to_values: Floats) -> None:
        """Write all gradients.

        Args:
            observations: Those of the last ``forward``, (n, size).
            to_logits: Derivative of the loss by the logits, (n, choices).
            to_values: By the values, (n,).
        """
        to_actor = self._pi.backward(self._acted, to_logits, to_inputs=True)
        to_critic = self._vf.backward(self._judged, to_values[:, np.newaxis], to_inputs=True)
        if self._shared:
            to_actor += to_critic
        else:
            self._critic.backward(observations, to_critic)
        self._actor.backward(observations, to_actor)


class QNetwork:
    """Values of n choices, dueling or not.

    Args:
        layers: Encoder and heads.
        gradients_of: As of ``Chain``.
    """

    def __init__(self, layers: QLayers, gradients_of: Any = None) -> None:
        self._encoder, self._af = Chain(layers.encoder, gradients_of), Chain(layers.af, gradients_of)
        self._vf = Chain(layers.vf, gradients_of) if layers.vf else None
        chains = [self._encoder, self._af, *([self._vf] if self._vf else [])]
        self.linears = [linear for chain in chains for linear in chain.linears]

    def forward(self, observations: Floats) -> Floats:
        """Values (n, choices): a buffer, until the next call."""
        self._encoded = self._encoder.forward(observations)
        values = self._af.forward(self._encoded)
        if self._vf is not None:
            values -= values.mean(axis=1, keepdims=True)
            values += self._vf.forward(self._encoded)
        return values

    def backward(self, observations: Floats, slope: Floats) -> None:
        """Write all gradients.

        Args:
            observations: Those of the last ``forward``, (n, size).
            slope: Derivative of the loss by the values, (n, choices).
        """
        if self._vf is None:
            self._encoder.backward(observations, self._af.backward(self._encoded, slope, to_inputs=True))
            return
        to_value = slope.sum(axis=1, keepdims=True)
        to_encoder = self._vf.backward(self._encoded, to_value, to_inputs=True)
        to_value /= np.float32(slope.shape[1])
        to_encoder += self._af.backward(self._encoded, slope - to_value, to_inputs=True)
        self._encoder.backward(observations, to_encoder)


def q_network(module: Any, gradients_of: Any = None, *, target: bool = False) -> QNetwork | None:
    """The Q-network of an RLModule, or its target network, where it is one of RLlib's that can be run; else None."""
    layers = q_layers(module, target=target)
    if layers is None or not all(is_chain(part) for part in layers if part):
        return None
    return QNetwork(layers, gradients_of)
