"""What a checkpoint holds, as whole tensors under names, and back: the same file whatever the processes.

model/{name}        parameters, each once where layers share them, and buffers
averaged/{name}     averaged parameters
optimizer/{name}    states of the optimizers
random/{name}       states of PyTorch's generators, of the main process
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from pipelines.training import zero
from pipelines.training.distribution import gathered, is_deepspeed, reshard, spread
from pipelines.training.optimizers import load_optimizer_tensors, optimizer_tensors

if TYPE_CHECKING:
    from pipelines.training.loop import Loop


def gather_state(loop: Loop) -> dict[str, torch.Tensor]:
    """Everything that a run goes on from, in the main process; in others, nothing that is sharded. To be called in all
    processes."""
    reshard(loop.prepared or loop.model)
    if is_deepspeed(loop.accelerator):
        weights, states = zero.state(loop.model, loop.optimizers[0])
    else:
        weights, states = model_tensors(loop.model), optimizer_tensors(loop.optimizers)
    tensors = {f"model/{name}": tensor for name, tensor in weights.items()}
    tensors |= {f"averaged/{name}": tensor for name, tensor in loop.averages.state().items()}
    tensors |= {f"optimizer/{name}": tensor for name, tensor in states.items()}
    tensors = gathered(tensors, keep=loop.accelerator.is_main_process)
    tensors["random/torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    return tensors


def load_state(loop: Loop, tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of `gather_state`, from the whole tensors in every process.

    Raises:
        RuntimeError, KeyError: they are of another model.
    """
    parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "averaged": {}, "optimizer": {}, "random": {}}
    for name, tensor in tensors.items():
        part, rest = name.split("/", 1)
        parts[part][rest] = tensor
    targets = model_tensors(loop.model)
    if different := sorted(targets.keys() ^ parts["model"].keys()):
        raise KeyError(f"{', '.join(different[:5])}: only on one side.")
    values = {name: spread(parts["model"][name], like) for name, like in targets.items()}
    loop.model.load_state_dict(values, strict=False)
    loop.averages.load(parts["averaged"])
    if is_deepspeed(loop.accelerator):
        zero.load_state(loop.model, loop.optimizers[0], parts["model"], parts["optimizer"])
    else:
        load_optimizer_tensors(loop.optimizers, parts["optimizer"])
    torch.set_rng_state(parts["random"]["torch"].cpu())
    if "cuda" in parts["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(parts["random"]["cuda"].cpu())


def model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers, by name; what layers share (tied embeddings) once."""
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    once = {name for name, _ in model.named_parameters()}
    return {name: tensor for name, tensor in model.state_dict().items() if name in once or name not in every}
