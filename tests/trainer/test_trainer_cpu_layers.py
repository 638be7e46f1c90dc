"""Quick layers compute what torch's do, forward and backward, and stay out of the way where they do not pay."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from trainer import cpu_layers
from trainer.cpu_layers import QuickLinear, QuickTanh, use_cpu_layers

PAY = cpu_layers._pay


@pytest.fixture(autouse=True)
def processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for which layers are changed, whatever this one is: both libraries compute on every one."""
    monkeypatch.setattr(cpu_layers, "_pay", lambda: True)


def network(inputs: int = 323) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3, bias=False))


@pytest.mark.parametrize("shape", [(2, 323), (64, 323), (600, 323), (20, 100, 323)])
def test_outputs_and_gradients_are_those_of_torch_but_for_rounding(shape: tuple[int, ...]) -> None:
    plain = network()
    quick = copy.deepcopy(plain)
    use_cpu_layers(quick)
    torch.manual_seed(2)
    inputs = torch.randn(shape)
    results = []
    for module in (plain, quick):
        given = inputs.clone().requires_grad_()
        output = module(given)
        loss = (output.square().mean(-1) - output[..., 0]).mean()
        loss.backward()
        results.append((output.detach(), given.grad, [parameter.grad for parameter in module.parameters()]))
        with torch.no_grad():
            assert torch.allclose(module(inputs), output, rtol=0, atol=1e-5)
    (output, to_inputs, to_parameters), (own_output, own_to_inputs, own_to_parameters) = results
    assert torch.allclose(output, own_output, rtol=0, atol=1e-5)
    assert torch.allclose(to_inputs, own_to_inputs, rtol=1e-4, atol=1e-7)
    for expected, got in zip(to_parameters, own_to_parameters, strict=True):
        assert torch.allclose(expected, got, rtol=1e-4, atol=1e-6)


def test_large_products_go_to_the_other_library(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[int, ...]] = []
    multiply = cpu_layers._multiply

    def counted(*arguments: torch.Tensor | None) -> torch.Tensor:
        called.append(tuple(arguments[0].shape))
        return multiply(*arguments)

    monkeypatch.setattr(cpu_layers, "_multiply", counted)
    module = network()
    use_cpu_layers(module)
    module(torch.randn(8, 323))
    assert called == []
    module(torch.randn(256, 323))
    assert called == [(256, 323)]


def test_a_module_keeps_its_parameters_its_names_and_its_copies() -> None:
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    parameters = list(module.parameters())
    use_cpu_layers(module)
    use_cpu_layers(module)
    assert [type(layer) for layer in module] == [QuickLinear, QuickTanh, QuickLinear, QuickTanh, QuickLinear]
    assert all(one is other for one, other in zip(parameters, module.parameters(), strict=True))
    assert module.state_dict().keys() == before.keys()
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin[0].weight.zero_()
    assert torch.equal(module[0].weight, before["0.weight"])


def test_double_precision_is_left_to_torch() -> None:
    module = network().double()
    expected = module(torch.ones(600, 323, dtype=torch.float64))
    use_cpu_layers(module)
    assert torch.equal(module(torch.ones(600, 323, dtype=torch.float64)), expected)


def test_a_torch_without_the_private_product_keeps_its_linear_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu_layers._product is not None, "torch.ops.mkldnn._linear_pointwise is gone: find its successor"
    monkeypatch.setattr(cpu_layers, "_product", None)
    module = network()
    use_cpu_layers(module)
    assert type(module[0]) is nn.Linear
    assert type(module[1]) is QuickTanh


@pytest.mark.parametrize(
    ("vendor", "capability", "pay"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
def test_layers_are_changed_on_amd_with_avx_512_alone(
    vendor: str, capability: str, pay: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    about = tmp_path / "cpuinfo"
    about.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(cpu_layers, "_ABOUT", about)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(cpu_layers, "_pay", PAY)
    module = network()
    use_cpu_layers(module)
    linear, tanh = (QuickLinear, QuickTanh) if pay else (nn.Linear, nn.Tanh)
    assert [type(layer) for layer in module] == [linear, tanh, linear, tanh, linear]


def test_a_system_that_does_not_tell_its_processor_keeps_torchs_layers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cpu_layers, "_ABOUT", tmp_path / "none")
    assert not PAY()
