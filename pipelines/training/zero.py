"""State of a run under DeepSpeed's ZeRO, stages 1 and 2, as whole tensors: nothing of DeepSpeed's own is unpickled.

DeepSpeed keeps exact (float32) weights and the moments of AdamW in flat pieces, one in each process. Its `safe_get` and
`safe_set` functions translate from and to whole tensors, here under the names that plain PyTorch gives them, so a run
may go on without DeepSpeed, and the other way round.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

MOMENTS = ("exp_avg", "exp_avg_sq")


def remember_order(optimizer: torch.optim.Optimizer) -> None:
    """Note the parameters' places before DeepSpeed puts one flat piece for each group there."""
    optimizer.whole_groups = [list(group["params"]) for group in optimizer.param_groups]  # type: ignore[attr-defined]


def state(model: nn.Module, optimizer: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights by name, and the optimizer's state as `optimizer_tensors` names it. To be called in all processes."""
    functions = importlib.import_module("deepspeed.utils")
    weights = dict(model.state_dict())
    for name, _ in model.named_parameters(remove_duplicate=False):
        del weights[name]
    weights |= {name: functions.safe_get_full_fp32_param(p).cpu() for name, p in model.named_parameters()}
    states = {}
    link(optimizer)
    for place, parameter in enumerate(parameter for group in optimizer.whole_groups for parameter in group):
        for name in MOMENTS:
            states[f"0.{place}.{name}"] = functions.safe_get_full_optimizer_state(parameter, name).cpu()
        states[f"0.{place}.step"] = next(iter(optimizer.state.values()))["step"].detach().cpu().clone()
    return weights, states


@torch.no_grad()
def load_state(
    model: nn.Module, optimizer: Any, weights: dict[str, torch.Tensor], states: dict[str, torch.Tensor]
) -> None:
    """The inverse of `state`; the model itself has the weights already."""
    functions = importlib.import_module("deepspeed.utils")
    for group in optimizer.param_groups:  # empty until a first step
        (piece,) = group["params"]
        step = states["0.0.step"].to(piece.device)
        optimizer.state[piece] = {"step": step.clone(), **{name: torch.zeros_like(piece) for name in MOMENTS}}
    link(optimizer)
    for name, parameter in model.named_parameters():
        functions.safe_set_full_fp32_param(parameter, weights[name].to(parameter.device))
    for place, parameter in enumerate(parameter for group in optimizer.whole_groups for parameter in group):
        for name in MOMENTS:
            value = states[f"0.{place}.{name}"].to(parameter.device)
            functions.safe_set_full_optimizer_state(parameter, value, name)


def link(optimizer: Any) -> None:
    """Tell each parameter where its moments lie: DeepSpeed 0.19 does so after the first group's first step, when the
    other groups have none yet."""
    for group, parameters in zip(optimizer.param_groups, optimizer.whole_groups, strict=True):
        (piece,) = group["params"]
        for parameter in parameters:
            if parameter._hp_mapping is not None:  # this process has some of it
                parameter._hp_mapping.set_optim_state_fragment(piece, optimizer.state[piece])
