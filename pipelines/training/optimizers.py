"""How both stages learn: optimizers, learning rate, time budget, averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipelines.training.distribution import local, spread
from pipelines.training.muon import Muon

FINAL_SHARE = 0.02  # of the learning rate, at the end
# Layers at the network's ends, by their names: what they map from or to is not a hidden space, so AdamW serves better.
OUTER_LAYERS = {"lm_head", "stem", "head", "to_pixels", "into", "out_of", "first", "last"}


@dataclass
class Budget:
    """How long a run lasts: `max_steps`, or `max_minutes` of training time.

    Training time is counted from the first step, validation and samples included, and goes on where a checkpoint
    left it. The learning rate follows `progress`.
    """

    max_steps: int | None = None
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.max_steps is None) == (self.max_minutes is None):
            raise ValueError(f"--max_steps {self.max_steps} and --max_minutes {self.max_minutes}: give one of the two")
        if (self.max_steps or self.max_minutes or 0) <= 0:
            raise ValueError("--max_steps and --max_minutes must be above zero")

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is over, in [0, 1]."""
        share = step / self.max_steps if self.max_steps else seconds / (60 * (self.max_minutes or 1))
        return min(1.0, share)


def learning_rate_share(
    progress: float, step: int, warmup_steps: int, schedule: str = "cosine", decay_share: float = 0.2
) -> float:
    """Share of the peak learning rate: linear warm-up over steps, then by the run's progress in [0, 1].

    `cosine` falls all the way. `constant_decay` keeps the peak, then falls by 1 - sqrt over the last `decay_share` of
    the run (Hägele et al. 2024, "Scaling laws and compute-optimal training beyond fixed training durations").
    """
    warmup = min(1.0, (step + 1) / max(1, warmup_steps))
    if schedule == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        share = 1 - math.sqrt(max(0.0, progress - (1 - decay_share)) / decay_share)
    return warmup * (FINAL_SHARE + (1 - FINAL_SHARE) * share)


def build_optimizers(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.95),
    muon_learning_rate: float | None = None,
) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the matrices and convolutions inside the network and AdamW for the rest.

    Weight decay applies to weights with two or more dimensions, never to embeddings, norms, biases or codebooks.

    Args:
        muon_learning_rate: None for AdamW alone.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    matrices, decayed, plain = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or id(parameter) in embeddings or name.endswith("codebook"):
            plain.append(parameter)
        elif muon_learning_rate and not OUTER_LAYERS & set(name.split(".")):
            matrices.append(parameter)
        else:
            decayed.append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)]
    if matrices and muon_learning_rate:
        optimizers.append(Muon(matrices, lr=muon_learning_rate, weight_decay=weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def set_learning_rate(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    """Set every group to `share` of its peak learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share


class AveragedWeights:
    """Exponential moving average of a model's parameters, in float32.

    The decay rises with the steps, (1 + step) / (10 + step), up to `decay`, so that short runs are not averaged with
    their random start. Where parameters are sharded, so are the averages.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"--ema_decay {decay} must be in [0, 1); 0 turns averaging off")
        self.decay = decay
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters: list[torch.Tensor] = list(model.parameters())
        self.averages = [parameter.detach().clone().float() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Fold in the parameters as they are after `step` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        parameters = [local(parameter).float() for parameter in self.parameters]
        torch._foreach_lerp_([local(average) for average in self.averages], parameters, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for one, other in zip(self.parameters, self.averages, strict=True):
            parameter, average = local(one), local(other)
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)

    def state(self) -> dict[str, torch.Tensor]:
        """Averages by parameter name."""
        return dict(zip(self.names, self.averages, strict=True))

    @torch.no_grad()
    def load(self, state: dict[str, torch.Tensor]) -> None:
        """The inverse of `state`, from whole tensors."""
        for name, average in self.state().items():
            local(average).copy_(local(spread(state[name], average)))


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """All tensors of the optimizers' states, by "{optimizer}.{parameter}.{name}"; sharded where parameters are."""
    tensors = {}
    for index, optimizer in enumerate(optimizers):
        for parameter, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                tensors[f"{index}.{parameter}.{name}"] = torch.as_tensor(value)
    return tensors


def load_optimizer_tensors(optimizers: list[torch.optim.Optimizer], tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of `optimizer_tensors`; groups and their settings stay those of the optimizers."""
    states: list[dict[int, dict[str, Any]]] = [{} for _ in optimizers]
    for key, value in tensors.items():
        index, parameter, name = key.split(".", 2)
        states[int(index)].setdefault(int(parameter), {})[name] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for place, values in state.items():
            for name, value in values.items():
                if value.shape == parameters[place].shape:
                    # Files keep no memory format, but fused AdamW walks weight and averages side by side.
                    state_of = torch.empty_like(parameters[place], dtype=value.dtype)
                    local(state_of).copy_(local(spread(value, parameters[place])))
                    values[name] = state_of
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
