"""Networks by hand against torch's autograd, Adam on one array against torch's, and what the kernel layer refuses."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from test_trainer_lean_dqn import make as make_dqn
from test_trainer_lean_ppo import make as make_ppo
from torch import nn

from env.market_data import MarketData
from env.scaler import Scaler
from env.settings import EnvSettings
from schemas.errors import SettingsError
from trainer.kernel_adam import FlatAdam
from trainer.kernel_dqn import KernelDQNLearner
from trainer.kernel_mlp import Chain, is_chain
from trainer.kernel_ppo import KernelPPOLearner
from trainer.observation_source import ObservationSource
from trainer.places import places_of
from trainer.rollout import IndexedObservations

SIZES = st.integers(1, 9)


def make_layers(sizes: list[int], activation: type[nn.Module], ends: bool, seed: int = 1) -> list[nn.Module]:
    """Linear layers with activations between them; with ``ends`` behind the last one as well."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
    return layers if ends else layers[:-1]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(SIZES, min_size=2, max_size=4),
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    activation=st.sampled_from([nn.Tanh, nn.ReLU]),
    ends=st.booleans(),
)
def test_a_chain_computes_what_torch_does(sizes: list[int], rows: list[int], activation: Any, ends: bool) -> None:
    layers = make_layers(sizes, activation, ends)
    theirs = copy.deepcopy(nn.Sequential(*layers))
    assert is_chain(layers)
    gradients: dict[nn.Linear, Any] = {}

    def gradients_of(layer: nn.Linear) -> Any:
        shape = layer.weight.shape
        return gradients.setdefault(layer, (np.full(shape[::-1], 9.0, "f"), np.full(shape[0], 9.0, "f")))

    chain = Chain(layers, gradients_of)
    # One after the other, because they share what they are computed in.
    for count in rows:
        inputs = torch.randn(count, sizes[0], requires_grad=True)
        slope = torch.randn(count, sizes[-1])
        outputs = theirs(inputs)
        given_inputs = inputs.detach().numpy()
        assert chain.forward(given_inputs) == pytest.approx(outputs.detach().numpy(), abs=1e-5)
        theirs.zero_grad()
        outputs.backward(slope)
        to_inputs = chain.backward(given_inputs, slope.numpy(), to_inputs=True)
        assert inputs.grad is not None
        assert to_inputs == pytest.approx(inputs.grad.numpy(), abs=1e-4)
        for own, other in zip(chain.linears, [one for one in theirs if isinstance(one, nn.Linear)], strict=True):
            weights, bias = gradients[own]
            assert weights.T == pytest.approx(other.weight.grad.numpy(), abs=1e-4)
            assert bias == pytest.approx(other.bias.grad.numpy(), abs=1e-4)


def test_a_chain_sees_what_becomes_of_torchs_parameters() -> None:
    layers = make_layers([5, 4, 3], nn.Tanh, ends=False)
    module, inputs = nn.Sequential(*layers), torch.randn(6, 5)
    chain = Chain(layers)
    state = {name: torch.randn_like(value) for name, value in module.state_dict().items()}
    module.load_state_dict(state)
    with torch.no_grad():
        assert chain.forward(inputs.numpy()) == pytest.approx(module(inputs).numpy(), abs=1e-5)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    "layers",
    [
        [],
        [nn.Tanh()],
        [nn.Linear(2, 2, bias=False)],
        [nn.Linear(2, 2), nn.SiLU(), nn.Linear(2, 2)],
        [nn.Linear(2, 2), nn.LayerNorm(2), nn.Tanh()],
    ],
)
def test_other_layers_are_no_chain(layers: list[nn.Module]) -> None:
    assert not is_chain(layers)


def test_adam_on_one_array_is_torchs_and_leaves_its_state() -> None:
    layers = make_layers([5, 4, 3], nn.Tanh, ends=False)
    ours = nn.Sequential(*layers)
    theirs = copy.deepcopy(ours)
    optimizers = [torch.optim.Adam(module.parameters(), lr=1e-2, weight_decay=0.1) for module in (ours, theirs)]
    flat = FlatAdam(optimizers[0])
    assert flat.covers([layers[0], layers[2]])  # type: ignore[list-item]
    assert not flat.covers([layers[0], layers[0]])  # type: ignore[list-item]
    rng = torch.Generator().manual_seed(3)

    def step(flat_steps: bool) -> None:
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.grad = torch.randn(other.shape, generator=rng)
            own.grad = other.grad.clone()
        norm = float(torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5))
        if flat_steps:
            for layer, name in ((layers[0], "0"), (layers[2], "2")):
                weights, bias = flat.gradients_of(layer)  # type: ignore[arg-type]
                weights[...] = ours.get_parameter(f"{name}.weight").grad.T.numpy()  # type: ignore[union-attr]
                bias[...] = ours.get_parameter(f"{name}.bias").grad.numpy()  # type: ignore[union-attr]
            assert flat.norm() == pytest.approx(norm, rel=1e-6)
            flat.step(flat.norm(), 0.5)
        else:
            torch.nn.utils.clip_grad_norm_(ours.parameters(), 0.5)
            optimizers[0].step()
        optimizers[1].step()
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(own, other, rtol=0, atol=1e-6)

    for _ in range(2):
        flat.begin()
        step(flat_steps=True)
        step(flat_steps=True)
        flat.finish()
        # Torch goes on from there, then a checkpoint, then another rate: all are taken over.
        step(flat_steps=False)
        optimizers[0].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] *= 3.0
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    for number, state in states[1].items():
        assert float(states[0][number]["step"]) == float(state["step"]) == 6.0
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.allclose(states[0][number][name], state[name], rtol=0, atol=1e-6)


def test_what_is_not_done_by_hand_is_refused_by_name() -> None:
    quiet = {"use_kl_loss": False}
    for make, training in (
        (make_ppo, {"continuous": True, **quiet}),
        (make_ppo, {}),
        (make_dqn, {"num_atoms": 7, "v_min": -1.0, "v_max": 1.0}),
    ):
        learner: Any = KernelPPOLearner if make is make_ppo else KernelDQNLearner
        with pytest.raises(SettingsError, match="expected numbered actions, and a loss of expected values"):
            make(learner, **training)
    with pytest.raises(SettingsError, match="KernelPPOLearner: expected a processor, and steps of Adam clipped by"):
        make_ppo(KernelPPOLearner, grad_clip=1.0, grad_clip_by="value", **quiet)
    with pytest.raises(SettingsError, match="expected RLlib's own module with an MLP of tanh or relu, got DefaultPPO"):
        make_ppo(KernelPPOLearner, model={"fcnet_activation": "swish"}, **quiet)


@pytest.mark.parametrize("shared", [False, True])
def test_one_encoder_may_serve_policy_and_value_function(shared: bool) -> None:
    learner = make_ppo(
        KernelPPOLearner, model={"vf_share_layers": shared, "head_fcnet_hiddens": [5]}, use_kl_loss=False
    )
    module = learner.module[DEFAULT_MODULE_ID]
    seen = torch.randn(7, 6)
    logits, values = learner._network.forward(seen.numpy())
    with torch.no_grad():
        assert logits == pytest.approx(module._forward_train({"obs": seen})["action_dist_inputs"].numpy(), abs=1e-5)
        assert values == pytest.approx(module.compute_values({"obs": seen}).numpy(), abs=1e-5)


@pytest.mark.parametrize("portfolio", [False, True])
@pytest.mark.parametrize("count", [50, 5_000])
def test_values_of_observations_that_share_windows_are_those_of_each_alone(
    market: MarketData, portfolio: bool, count: int
) -> None:
    settings = EnvSettings(window=4, portfolio=portfolio)
    source = ObservationSource("w1", market, Scaler.fit(market), settings)
    rng = np.random.default_rng(2)
    size = source.market_size + 3
    config = PPOConfig().training(use_kl_loss=False).rl_module(model_config={"fcnet_hiddens": [16]})
    config.learners(learner_class=KernelPPOLearner)
    space = gym.spaces.Box(-10, 10, (size,), np.float32)
    learner: Any = config.build_learner(spaces={DEFAULT_MODULE_ID: (space, gym.spaces.Discrete(3))})
    learner._sources["w1"] = source
    places = places_of(market, settings)
    symbols = rng.integers(0, len(places.names), count).astype(np.int16)
    if portfolio:
        times = market.on_common_clock().ts_close
        rows = rng.choice(times[times >= places.first[0]], count)
    else:
        rows = places.first[symbols] + rng.integers(0, 250, count)
    seen = IndexedObservations("w1", places.names, rows, symbols, rng.normal(size=(count, 3)).astype(np.float32))
    assert (2 * len(source.windows) <= count) == (count == 5_000)
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    with torch.no_grad():
        truth = module.compute_values({"obs": source.whole(seen)}).numpy()
    assert learner._values(seen, module) == pytest.approx(truth, abs=1e-5)
