"""Models by setting: shapes, gradients, one iteration with every family of algorithms, checkpoints, refusals."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule

from env.settings import EnvSettings
from schemas.errors import SettingsError
from trainer.algorithm import new_config
from trainer.models import KINDS, use_model
from trainer.rllib_private import act_forward, policy_layers
from trainer.settings import AlgorithmSettings

WINDOW, FEATURES, ACCOUNT = 8, 5, 4
ENV = EnvSettings(window=WINDOW)
SPACE = gym.spaces.Box(-10.0, 10.0, (WINDOW * FEATURES + ACCOUNT,), np.float32)
CHOICES = gym.spaces.Discrete(3)
WEIGHTS = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

WINDOW_KINDS = [kind for kind in KINDS if kind != "mlp"]
ACTION_SPACES = {"SAC continuous": WEIGHTS}
CASES = ["PPO", "A2C", "APPO", "IMPALA", "MARWIL", "BC", "DQN", "SAC", "SAC continuous"]


def config_of(name: str, kind: str, **model: Any) -> Any:
    tables: dict[str, Any] = {"rl_module": {"model_config": {"kind": kind, **model}}}
    config = new_config(AlgorithmSettings(name=name, **tables))
    use_model(config, name, ENV)
    return config


def module_of(case: str, kind: str, **model: Any) -> Any:
    spaces = {"default_policy": (SPACE, ACTION_SPACES.get(case, CHOICES))}
    torch.manual_seed(3)
    config = config_of(case.split()[0], kind, **model)
    return config.get_rl_module_spec(spaces={"default_policy": spaces["default_policy"]}).build()


def batch_of(case: str, size: int = 6) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    observations = [torch.tensor(rng.normal(size=(size, *SPACE.shape)).astype(np.float32)) for _ in range(2)]
    batch = {Columns.OBS: observations[0], Columns.NEXT_OBS: observations[1]}
    continuous = case in ACTION_SPACES
    batch[Columns.ACTIONS] = (
        torch.tensor(rng.uniform(-1, 1, (size, 2)).astype(np.float32))
        if continuous
        else (torch.tensor(rng.integers(0, 3, size)))
    )
    return batch


@pytest.mark.parametrize("kind", WINDOW_KINDS)
@pytest.mark.parametrize("case", CASES)
def test_gradients_reach_every_parameter_that_an_update_trains(case: str, kind: str) -> None:
    module, batch = module_of(case, kind), batch_of(case)
    if hasattr(module, "make_target_networks"):
        module.make_target_networks()
    outputs = module.forward_train(batch)
    loss = sum(value.square().mean() for value in outputs.values() if value.requires_grad)
    if hasattr(module, "compute_values"):
        loss = loss + module.compute_values(batch).square().mean()
    loss.backward()
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad and "target" not in name}
    assert any("bars" in name for name in trained)
    silent = [name for name, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize("kind", WINDOW_KINDS)
def test_an_encoder_keeps_leading_dimensions_and_sees_bars_and_account(kind: str) -> None:
    module = module_of("DQN", kind)
    observations = batch_of("DQN")[Columns.OBS]

    def encoded(values: Any) -> Any:
        with torch.no_grad():
            return module.encoder({Columns.OBS: values})["encoder_out"]

    out = encoded(observations)
    assert out.shape == (6, 64)
    assert torch.allclose(encoded(observations.reshape(2, 3, -1)).reshape(6, 64), out, atol=1e-6)
    for column in (0, WINDOW * FEATURES - 1, WINDOW * FEATURES, SPACE.shape[0] - 1):
        changed = observations.clone()
        changed[:, column] += 3.0
        assert not torch.allclose(encoded(changed), out), f"column {column} is not seen"


def test_a_bar_lies_in_consecutive_numbers_oldest_bar_first() -> None:
    module = module_of("DQN", "lstm")
    seen: list[Any] = []
    module.encoder.bars.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    flat = torch.arange(SPACE.shape[0], dtype=torch.float32)[None]
    module.encoder({Columns.OBS: flat})
    assert seen[0].tolist() == np.arange(WINDOW * FEATURES).reshape(1, WINDOW, FEATURES).tolist()


@pytest.mark.parametrize(
    ("kind", "model", "wanted"),
    [
        ("conv", {"conv_channels": [7], "conv_kernel": 5}, (7, FEATURES, 5)),
        ("lstm", {"lstm_cell_size": 9}, (36, FEATURES)),
        ("transformer", {"transformer_size": 12, "transformer_heads": 3, "transformer_layers": 1}, (WINDOW, 12)),
    ],
)
def test_sizes_are_those_of_the_settings(kind: str, model: dict[str, Any], wanted: tuple[int, ...]) -> None:
    module = module_of("DQN", kind, **model, fcnet_hiddens=[11])
    assert next(module.encoder.bars.parameters()).shape == wanted
    assert module.encoder.trunk[0].out_features == 11


def test_dueling_and_double_q_work_with_an_encoder_of_windows() -> None:
    module, batch = module_of("DQN", "conv"), batch_of("DQN")
    module.make_target_networks()
    assert module.uses_dueling
    assert module.uses_double_q
    outputs = module.forward_train(batch)
    assert outputs["qf_preds"].shape == (6, 3)
    # A target network begins as a copy.
    assert torch.equal(module.forward_target(batch)["qf_preds"], module.compute_q_values(batch)["qf_preds"])


def test_the_value_function_shares_the_encoder_as_vf_share_layers_says() -> None:
    def parameters(shared: bool) -> set[str]:
        return {
            name.split(".bars")[0] for name, _ in module_of("PPO", "conv", vf_share_layers=shared).named_parameters()
        }

    assert "encoder.encoder" in parameters(True)
    assert {"encoder.actor_encoder", "encoder.critic_encoder"} <= parameters(False)


def test_what_a_user_leaves_out_of_model_config_keeps_our_default() -> None:
    config = config_of("PPO", "conv")
    assert config.model_config["fcnet_hiddens"] == [64, 64]
    assert config.rl_module_spec.catalog_class.__name__ == "WindowPPOCatalog"
    assert config_of("PPO", "mlp").rl_module_spec.catalog_class is None


class OwnModule(TorchRLModule):
    """A user's."""

    def setup(self) -> None:
        self.head = torch.nn.Linear(self.observation_space.shape[0], self.action_space.n)
        self.wanted = self.model_config["anything"]

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.head(batch[Columns.OBS])}


def test_a_module_of_the_users_is_named_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    package = types.ModuleType("my_models")
    package.OwnModule = OwnModule  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_models", package)
    tables: dict[str, Any] = {
        "rl_module": {"rl_module_spec": "class:my_models.OwnModule", "model_config": {"anything": 4, "kind": "mine"}}
    }
    config = new_config(AlgorithmSettings(name="BC", **tables))
    use_model(config, "BC", ENV)
    assert isinstance(config.rl_module_spec, RLModuleSpec)
    module = config.get_rl_module_spec(spaces={"default_policy": (SPACE, CHOICES)}).build()
    assert isinstance(module, OwnModule)
    assert module.wanted == 4


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"kind": "convolution"}, ["kind 'convolution'", "expected one of mlp, conv, lstm, transformer", "'conv'?"]),
        ({"fcnet_hidden": [8]}, ["model_config.fcnet_hidden", "did you mean 'fcnet_hiddens'?"]),
        ({"kind": "lstm", "use_lstm": True}, ["expected kind 'lstm' or use_lstm, got both"]),
        ({"kind": "transformer", "transformer_size": 30}, ["transformer_size 30", "multiple of transformer_heads, 4"]),
        ({"window": 5}, ["model_config.window: set by the run itself; use [env]"]),
    ],
)
def test_a_model_that_cannot_be_is_refused_in_one_line(model: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        new_config(AlgorithmSettings(name="PPO", rl_module={"model_config": model}))  # type: ignore[call-arg]
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_portfolio_is_no_window_of_one_series() -> None:
    config = new_config(AlgorithmSettings(name="PPO", rl_module={"model_config": {"kind": "conv"}}))  # type: ignore[call-arg]
    with pytest.raises(SettingsError, match=r"kind 'conv': expected env.portfolio = false"):
        use_model(config, "PPO", EnvSettings(portfolio=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DQN", "PPO"])
@pytest.mark.parametrize("kind", WINDOW_KINDS)
def test_each_kind_trains_and_goes_on_from_its_checkpoint(kind: str, name: str, bench: Any, ray_session: None) -> None:
    bench.send_walks("AAA", "BBB")
    model = {"kind": kind, "fcnet_hiddens": [16], "conv_channels": [4], "lstm_cell_size": 8, "transformer_size": 8}
    tables = {"rl_module": {"model_config": model}}
    first = bench.train(bench.job(name, tables=tables, train={"iterations": 1}))
    assert first.result is not None
    assert (first.result.status, first.result.iterations) == ("completed", 1)
    again = bench.train(bench.job(name, tables=tables, train={"iterations": 2}, resume_from=first.result.checkpoint))
    assert again.result is not None
    assert (again.result.status, again.result.iterations) == ("completed", 2)
    assert len(again.agent("test")) >= 2


PLAIN = [
    ("PPO", {}),
    ("A2C", {"vf_share_layers": True}),
    ("APPO", {}),
    ("IMPALA", {"fcnet_hiddens": [7]}),
    ("MARWIL", {}),
]


@pytest.mark.parametrize(("case", "model"), PLAIN)
def test_the_layers_of_a_plain_policy_say_what_its_module_says(case: str, model: dict[str, Any]) -> None:
    module, seen = module_of(case, "mlp", **model), batch_of(case)
    layers = policy_layers(module)
    values = seen[Columns.OBS]
    for layer in layers:
        values = layer(values)
    assert layers
    for explore in (True, False):
        assert torch.equal(values, act_forward(module, seen, explore, 0)[Columns.ACTION_DIST_INPUTS])


def test_a_policy_with_more_than_layers_has_no_layers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for case in ("DQN", "SAC", "BC"):
        assert policy_layers(module_of(case, "mlp")) == []
    for kind in WINDOW_KINDS:
        assert policy_layers(module_of("PPO", kind)) == []
    monkeypatch.setitem(ACTION_SPACES, "PPO", WEIGHTS)  # their spreads are clipped behind the layers
    assert policy_layers(module_of("PPO", "mlp")) == []


@pytest.mark.parametrize("name", ["_forward", "_forward_exploration", "_forward_inference"])
def test_a_users_own_forward_is_not_passed_over(name: str) -> None:
    class Mine(DefaultPPOTorchRLModule):
        pass

    setattr(Mine, name, lambda self, batch, **how: {})
    module = module_of("PPO", "mlp")
    assert policy_layers(module)
    module.__class__ = Mine
    assert policy_layers(module) == []
    other = module_of("PPO", "mlp")
    setattr(other, name, getattr(other, name))  # as torch.compile does it
    assert policy_layers(other) == []
