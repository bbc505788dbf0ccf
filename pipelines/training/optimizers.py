"""What updates the weights in both stages, and its state as named tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pipelines.options.training import TrainingOptions
from pipelines.training.distribution import local, spread
from pipelines.training.muon import Muon

LEAST_EIGHT_BIT, BLOCK = 4096, 256  # numbers of a parameter whose states have 8 bits; that share a scale
EIGHT_BIT_MAPS = {"qmap1": "dynamic", "qmap2": "udynamic"}  # from integers to numbers, with bitsandbytes' names
EIGHT_BIT_STATES = "__bnb_optimizer_quant_state__"  # in which bitsandbytes wraps them in its state_dict


def build_optimizers(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.95),
    muon_learning_rate: float | None = None,
    eight_bits: bool = False,
) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the matrices and convolutions inside the network and AdamW for the rest.

    Weight decay applies to weights with two or more dimensions, never to embeddings, norms, biases or codebooks.

    Args:
        model: a module that makes layers at the network's ends (from or to pixels, latents, codes or tokens) names them
            in its attribute `outer_layers`. They are AdamW's, as are output embeddings of transformers' models.
        muon_learning_rate: None for AdamW alone.
        eight_bits: AdamW keeps its states block by block in 8 bits (Dettmers et al. 2022), by bitsandbytes; those of
            parameters of fewer than `LEAST_EIGHT_BIT` numbers stay in float32.
    """
    matrices, decayed, plain = _parameter_groups(model, with_muon=bool(muon_learning_rate))
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if eight_bits:
        from bitsandbytes.optim import AdamW8bit

        optimizers: list[torch.optim.Optimizer] = [
            AdamW8bit(groups, lr=learning_rate, betas=betas, min_8bit_size=LEAST_EIGHT_BIT)
        ]
    else:
        optimizers = [torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)]
    if matrices and muon_learning_rate:
        optimizers.append(Muon(matrices, lr=muon_learning_rate, weight_decay=weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _parameter_groups(
    model: nn.Module, *, with_muon: bool
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Parameters that learn: Muon's, AdamW's with weight decay, and AdamW's without."""
    outer = _outer_parameters(model) if with_muon else set()
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    matrices, decayed, plain = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or id(parameter) in embeddings or name.endswith("codebook"):
            plain.append(parameter)
        elif with_muon and id(parameter) not in outer:
            matrices.append(parameter)
        else:
            decayed.append(parameter)
    return matrices, decayed, plain


def optimizer_bytes(options: TrainingOptions, model: nn.Module) -> float:
    """What the states of `optimizers_of` take, once there was a step."""
    matrices, *others = _parameter_groups(model, with_muon=options.optimizer == "muon")
    total = 4.0 * sum(parameter.numel() for parameter in matrices)  # Muon's momentum
    for parameter in (parameter for group in others for parameter in group):
        in_8_bits = options.optimizer == "adamw8bit" and parameter.numel() >= LEAST_EIGHT_BIT
        total += (2 + 8 / BLOCK if in_8_bits else 8) * parameter.numel()
    return total


def _outer_parameters(model: nn.Module) -> set[int]:
    """Ids of the parameters of the layers at the network's ends, which do not map a hidden space to another."""
    layers: list[nn.Module] = []
    for module in model.modules():
        layers += [module.get_submodule(name) for name in getattr(module, "outer_layers", ())]
        output = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
        layers += [] if output is None else [output]
    return {id(parameter) for layer in layers for parameter in layer.parameters()}


def optimizers_of(
    options: TrainingOptions,
    model: nn.Module,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> list[torch.optim.Optimizer]:
    """The optimizers that `options` ask for, with what a script has settled (see `build_optimizers`)."""
    return build_optimizers(
        model,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        betas=betas,
        muon_learning_rate=options.muon_learning_rate if options.optimizer == "muon" else None,
        eight_bits=options.optimizer == "adamw8bit",
    )


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """All tensors of the optimizers' states, by "{optimizer}.{parameter}.{name}"; sharded where parameters are."""
    tensors = {}
    for index, optimizer in enumerate(optimizers):
        for parameter, values in optimizer.state_dict()["state"].items():
            for name, value in (values | values.get(EIGHT_BIT_STATES, {})).items():
                if name == EIGHT_BIT_STATES or name in EIGHT_BIT_MAPS:  # the maps are the same for all
                    continue
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
        known, of_other_shapes = _state_names(optimizer)
        fits = int(place) < len(shapes) and (
            name in of_other_shapes or (name in known and value.shape == shapes[int(place)])
        )
        if not fits:
            raise ValueError(f"optimizer {index} has no state {name!r} of shape {tuple(value.shape)} at {place}.")
    sizes = [sum(len(group["params"]) for group in optimizer.param_groups) for optimizer in optimizers]
    is_partial = any(len(found) < sizes[index] for index, found in places.items())
    if tensors and len(places) != len(optimizers) and not is_partial:
        raise ValueError(f"the states are of {len(places)} optimizers, not {len(optimizers)}.")


def _state_names(optimizer: torch.optim.Optimizer) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of an optimizer's states that have their parameter's shape, and of all others."""
    if isinstance(optimizer, Muon):
        return ("momentum",), ()
    if _has_eight_bits(optimizer):
        return ("state1", "state2"), ("step", "absmax1", "absmax2")
    return ("exp_avg", "exp_avg_sq"), ("step",)


def _has_eight_bits(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer).__module__.startswith("bitsandbytes.")


def load_optimizer_tensors(optimizers: list[torch.optim.Optimizer], tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of `optimizer_tensors`; groups and their settings stay those of the optimizers."""
    states: list[dict[int, dict[str, Any]]] = [{} for _ in optimizers]
    for key, value in tensors.items():
        index, parameter, name = key.split(".", 2)
        states[int(index)].setdefault(int(parameter), {})[name] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if _has_eight_bits(optimizer):
            _load_eight_bits(optimizer, parameters, state)
            continue
        for place, values in state.items():
            for name, value in values.items():
                if value.shape == parameters[place].shape:
                    # Files keep no memory format; fused AdamW needs that of the weight in its averages.
                    state_of = torch.empty_like(parameters[place], dtype=value.dtype)
                    local(state_of).copy_(local(spread(value, parameters[place])))
                    values[name] = state_of
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _load_eight_bits(optimizer: Any, parameters: list[nn.Parameter], states: dict[int, dict[str, Any]]) -> None:
    """Give an optimizer of bitsandbytes its states, by the place of each parameter, in the form that its steps read."""
    optimizer.fill_qmap()
    for place, values in states.items():
        parameter = parameters[place]
        state = {name: value.to(parameter.device) for name, value in values.items() if name != "step"}
        if "absmax1" in state:
            state |= {name: optimizer.name2qmap[kind].to(parameter.device) for name, kind in EIGHT_BIT_MAPS.items()}
        optimizer.state[parameter] = {"step": int(values["step"]), **state}
