"""A gradient step of ``torch.optim.Adam`` in a few calls: clip by the global norm, then one fused kernel.

``Optimizer.step`` spends more time in its hooks, checks and groupings than in the arithmetic of a small network. The
state stays where Adam keeps it, in Adam's layout, so that checkpoints are the same.
"""

from __future__ import annotations

from typing import Any

import torch

# Options of Adam with which the kernel would do something else.
_OTHER = ("amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay")


def is_plain_adam(optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``step`` does what the optimizer's own step would."""
    return type(optimizer) is torch.optim.Adam and not any(
        group.get(name) for group in optimizer.param_groups for name in _OTHER
    )


def gradients_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The gradients that there are."""
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def global_norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Their norm as one vector."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def clip(gradients: list[torch.Tensor], norm: float, most: float) -> None:
    """Scale them to a norm of ``most`` where they have more; as RLlib's ``clip_gradients`` by "global_norm"."""
    if norm + 1e-6 > most:
        torch._foreach_mul_(gradients, most / (norm + 1e-6))


def step(optimizer: torch.optim.Adam) -> None:
    """One step of a plain Adam."""
    for group in optimizer.param_groups:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            continue
        states = [_state(optimizer, parameter) for parameter in parameters]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        fused_step(
            group,
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            steps,
        )


def fused_step(
    group: dict[str, Any],
    parameters: list[torch.Tensor],
    gradients: list[torch.Tensor],
    averages: list[torch.Tensor],
    squares: list[torch.Tensor],
    steps: list[torch.Tensor],
) -> None:
    """Torch's kernel, with the settings of a group; the counts of steps include this one."""
    beta1, beta2 = group["betas"]
    with torch.no_grad():
        torch._fused_adam_(
            parameters,
            gradients,
            averages,
            squares,
            [],
            steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


def _state(optimizer: torch.optim.Adam, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    elif state["step"].device != parameter.device:  # RLlib's Adam counts on the CPU
        state["step"] = state["step"].to(parameter.device)
    return state
