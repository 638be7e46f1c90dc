"""From observations to actions, for all environments of a runner at once: what RLlib's connectors do one by one."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import tree  # type: ignore[import-untyped]
from gymnasium.spaces import Box
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical
from ray.rllib.utils.spaces.space_utils import clip_action, unsquash_action

from trainer.cpu_layers import use_cpu_layers
from trainer.kernel_mlp import Chain, as_array, chances_of, is_chain
from trainer.kernel_networks import QNetwork, q_network
from trainer.rllib_private import act_forward, policy_layers

Path = tuple[str, ...]
"""Where a column of the module's output is, which may be nested: ("action_logp",), ("state_out", "h")."""


class Acted(NamedTuple):
    """What a module chose for B environments.

    Attributes:
        actions: As the module chose them: (B, …).
        for_env: The same, brought into the environment's space as the config says: (B, …).
        extras: The module's other outputs, (B, …) each; to be copied before the next call, which may overwrite them.
    """

    actions: NDArray[Any]
    for_env: NDArray[Any]
    extras: dict[Path, NDArray[Any]]


class Actor:
    """An RLModule that acts in B environments, with its states where it has any.

    Args:
        module: RLlib's module, inference only.
        config: Of the runner: ``normalize_actions`` and ``clip_actions`` are heeded.
        action_space: Of one environment.
        num_envs: B.
        device: Where the module is.
    """

    def __init__(self, module: Any, config: Any, action_space: Any, num_envs: int, device: Any) -> None:
        self.module = module
        module.eval()
        use_cpu_layers(module)
        self._action_space, self._device = action_space, torch.device(device or "cpu")
        self._layers = policy_layers(module)
        self._choices, self._values = self._by_hand() if self._device.type == "cpu" else (None, None)
        to_space = unsquash_action if config.normalize_actions else clip_action if config.clip_actions else None
        # RLlib's functions leave all but a Box as it is, at some cost a step.
        self._to_space = to_space if isinstance(action_space, Box) else None
        self._places = np.arange(num_envs)
        initial = tree.map_structure(self._tensor, module.get_initial_state())
        self._initial = initial or None
        self._state = initial and tree.map_structure(lambda leaf: leaf.repeat(num_envs, *[1] * leaf.dim()), initial)

    def _by_hand(self) -> tuple[Chain | None, QNetwork | None]:
        """The network of a policy over choices, or of their values, where its layers are such; else two None."""
        if is_chain(self._layers) and self.module.get_exploration_action_dist_cls() is TorchCategorical:
            return Chain(self._layers), None
        return None, q_network(self.module)

    def begin(self, indices: NDArray[np.int64] | list[int]) -> None:
        """New episodes: the states of these environments begin again."""
        if self._initial is not None:
            with torch.inference_mode():
                for state, initial in zip(tree.flatten(self._state), tree.flatten(self._initial), strict=True):
                    state[indices] = initial

    def act(self, observations: NDArray[Any], explore: bool, timestep: int) -> Acted:
        """Choose actions.

        Args:
            observations: (B, …).
            explore: Explore, or act as well as the module can.
            timestep: Steps of all runners so far, for schedules of exploration.
        """
        if self._values is not None:
            return self._choose_by_value(self._values, np.asarray(observations, np.float32), explore, timestep)
        if self._choices is not None and explore:
            return self._draw(self._choices, np.asarray(observations, np.float32))
        with torch.inference_mode():
            output = self._forward(self._tensor(observations), explore, timestep)
            if Columns.ACTIONS not in output:
                output |= self._choose(output[Columns.ACTION_DIST_INPUTS], explore)
            actions = output.pop(Columns.ACTIONS).cpu().numpy()
            extras: dict[Path, NDArray[Any]] = {}
            for name, column in output.items():
                # Only states are nested.
                leaves = [((), column)] if isinstance(column, torch.Tensor) else tree.flatten_with_path(column)
                extras |= {(name, *path): leaf.cpu().numpy() for path, leaf in leaves}
        for_env = actions if self._to_space is None else self._to_space(actions, self._action_space)
        return Acted(actions, for_env, extras)

    def _forward(self, observations: torch.Tensor, explore: bool, timestep: int) -> dict[str, Any]:
        if self._layers:
            for layer in self._layers:
                observations = layer(observations)
            return {Columns.ACTION_DIST_INPUTS: observations}
        batch: dict[str, Any] = {Columns.OBS: observations}
        if self._initial is not None:
            # A stateful module wants an axis of time.
            batch = {Columns.OBS: observations.unsqueeze(1), Columns.STATE_IN: self._state}
        output = dict(act_forward(self.module, batch, explore, timestep))
        if self._initial is not None:
            self._state = output.pop(Columns.STATE_OUT)
            output = {name: tree.map_structure(lambda leaf: leaf.squeeze(1), column) for name, column in output.items()}
            output[Columns.STATE_OUT] = self._state
        return output

    def _draw(self, policy: Chain, observations: NDArray[np.float32]) -> Acted:
        """Choices with their chances: the same draws as of RLlib's TorchCategorical, at a fraction of its cost.

        That draws as ``torch.multinomial``, which looks where a chance over an exponential variable is highest.
        """
        logits = policy.forward(observations)
        chances, logps = chances_of(logits)
        chosen = (chances / as_array(torch.empty(logits.shape).exponential_()).T).argmax(axis=0)
        extras: dict[Path, NDArray[Any]] = {
            (Columns.ACTION_DIST_INPUTS,): logits,
            (Columns.ACTION_LOGP,): logps[chosen, self._places],
        }
        return Acted(chosen, chosen, extras)

    def _choose_by_value(
        self, network: QNetwork, observations: NDArray[np.float32], explore: bool, timestep: int
    ) -> Acted:
        """The best of choices, or now and then any: the same draws as of RLlib's DQN module."""
        values = network.forward(observations)
        chosen = values.argmax(axis=1)
        if explore:
            schedule = self.module.epsilon_schedule
            schedule.update(timestep)
            any_of_them = ((values != 0.0) / as_array(torch.empty(values.shape).exponential_())).argmax(axis=1)
            now_and_then = as_array(torch.rand(len(values))) < float(schedule.get_current_value())
            chosen = np.where(now_and_then, any_of_them, chosen)
        return Acted(chosen, chosen, {})

    def _choose(self, inputs: torch.Tensor, explore: bool) -> dict[str, torch.Tensor]:
        if not explore:
            deterministic = self.module.get_inference_action_dist_cls().from_logits(inputs).to_deterministic()
            actions = deterministic.sample()
            return {Columns.ACTIONS: actions, Columns.ACTION_LOGP: deterministic.logp(actions)}
        distribution = self.module.get_exploration_action_dist_cls()
        if distribution is TorchCategorical:  # as ``_draw``
            logp = torch.log_softmax(inputs, -1)
            chosen = (logp.exp() / torch.empty_like(logp).exponential_()).argmax(-1, keepdim=True)
            return {Columns.ACTIONS: chosen.squeeze(-1), Columns.ACTION_LOGP: logp.gather(-1, chosen).squeeze(-1)}
        sampled = distribution.from_logits(inputs)
        actions = sampled.sample()
        return {Columns.ACTIONS: actions, Columns.ACTION_LOGP: sampled.logp(actions)}

    def _tensor(self, values: Any) -> torch.Tensor:
        tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.asarray(values))
        # As RLlib's NumpyToTensor does.
        return tensor.to(self._device, torch.float32 if tensor.dtype == torch.float64 else None)
