"""What updates the weights in both stages, and its state as named tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pipelines.options.training import TrainingOptions
from pipelines.training.distribution import local, spread
from pipelines.training.muon import Muon


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
        model: a module that makes layers at the network's ends (from or to pixels, latents, codes or tokens) names them
            in its class attribute `outer_layers`. They are AdamW's, as are output embeddings of transformers' models.
        muon_learning_rate: None for AdamW alone.
    """
    outer = _outer_parameters(model) if muon_learning_rate else set()
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    matrices, decayed, plain = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or id(parameter) in embeddings or name.endswith("codebook"):
            plain.append(parameter)
        elif muon_learning_rate and id(parameter) not in outer:
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


def _outer_parameters(model: nn.Module) -> set[int]:
    """Ids of the parameters of the layers at the network's ends, which do not map a hidden space to another."""
    layers: list[nn.Module] = []
    for module in model.modules():
        layers += [module.get_submodule(name) for name in getattr(module, "outer_layers", ())]
        output = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
        layers += [] if output is None else [output]
    return {id(parameter) for layer in layers for parameter in layer.parameters()}


def optimizers_of(
    options: TrainingOptions, model: nn.Module, learning_rate: float, betas: tuple[float, float]
) -> list[torch.optim.Optimizer]:
    """The optimizers that `options` ask for (see `build_optimizers`)."""
    return build_optimizers(
        model,
        learning_rate=learning_rate,
        weight_decay=options.weight_decay,
        betas=betas,
        muon_learning_rate=options.muon_learning_rate if options.optimizer == "muon" else None,
    )


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """All tensors of the optimizers' states, by "{optimizer}.{parameter}.{name}"; sharded where parameters are."""
    tensors = {}
    for index, optimizer in enumerate(optimizers):
        for parameter, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                tensors[f"{index}.{parameter}.{name}"] = torch.as_tensor(value)
    return tensors


def check_optimizer_tensors(optimizers: list[torch.optim.Optimizer], tensors: dict[str, torch.Tensor]) -> None:
    """Raise ValueError unless `tensors` (of `optimizer_tensors`) are states of optimizers of these kinds, over
    parameters of these shapes. No tensors fit any optimizers: they have not taken a step. Where some of an optimizer's
    parameters have no states, others may have none at all: layers that learn one by one."""
    places: dict[int, set[int]] = {}
    for key, value in tensors.items():
        index, place, name = key.split(".", 2)
        places.setdefault(int(index), set()).add(int(place))
        if int(index) >= len(optimizers):
            raise ValueError(f"the states are of {int(index) + 1} optimizers, not {len(optimizers)}.")
        optimizer = optimizers[int(index)]
        shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
        known = ("momentum",) if isinstance(optimizer, Muon) else ("step", "exp_avg", "exp_avg_sq")
        fits = name in known and int(place) < len(shapes) and (name == "step" or value.shape == shapes[int(place)])
        if not fits:
            raise ValueError(f"optimizer {index} has no state {name!r} of shape {tuple(value.shape)} at {place}.")
    sizes = [sum(len(group["params"]) for group in optimizer.param_groups) for optimizer in optimizers]
    is_partial = any(len(found) < sizes[index] for index, found in places.items())
    if tensors and len(places) != len(optimizers) and not is_partial:
        raise ValueError(f"the states are of {len(places)} optimizers, not {len(optimizers)}.")


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
                    # Files keep no memory format; fused AdamW needs that of the weight in its averages.
                    state_of = torch.empty_like(parameters[place], dtype=value.dtype)
                    local(state_of).copy_(local(spread(value, parameters[place])))
                    values[name] = state_of
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
