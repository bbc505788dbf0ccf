"""One process or many: what Accelerate wraps around the model, and whole tensors out of shards.

One process and DDP leave a model's parameters as they are. FSDP2 makes each a DTensor, of which every process holds a
shard: what works on single numbers works on `local` shards, what leaves the run is `gathered` first, on all processes
together.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether every weight is split over the processes (FSDP2)."""
    return accelerator.distributed_type == DistributedType.FSDP


def refuse_deepspeed() -> None:
    """Raise ValueError where Accelerate is configured for DeepSpeed, before it looks for that package."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise ValueError(
            "Accelerate is configured for DeepSpeed, which training does not support: launch with --config_file "
            "configs/fsdp2.yaml (FSDP2), which shards weights, gradients and optimizer states likewise"
        )


def shard_on_cpu(accelerator: Accelerator) -> None:
    """Use FSDP on CPUs where it is configured: PyTorch's works with gloo; Accelerate would silently use DDP."""
    configured = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not configured or accelerator.distributed_type != DistributedType.MULTI_CPU:
        return
    plugin = FullyShardedDataParallelPlugin()
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    accelerator.state.fsdp_plugin = plugin
    for state in (accelerator.state, PartialState()):  # the first copies from the second when it is made
        state.distributed_type = DistributedType.FSDP


def check_distribution(accelerator: Accelerator, *, plain: bool = False) -> None:
    """Raise ValueError for a configuration of Accelerate that training does not support.

    Args:
        plain: for a model that has to be whole in every process (stage 1).
    """
    kind = accelerator.distributed_type
    if kind in PLAIN:
        return
    name = str(kind.value)
    if plain or kind != DistributedType.FSDP:
        what = "stage 1" if plain else "training"
        raise ValueError(
            f"Accelerate is configured for {name}, and {what} runs in one process or under DDP: launch with "
            "--config_file configs/ddp.yaml"
        )
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"Accelerate is configured for FSDP version {plugin.fsdp_version}: set fsdp_version: 2, as "
            "configs/fsdp2.yaml does"
        )
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "fsdp_cpu_ram_efficient_loading: true leaves all processes but the first without the image tokenizer: "
            "set it to false, as configs/fsdp2.yaml does"
        )


def prepare(accelerator: Accelerator, module: nn.Module, optimizers: list[torch.optim.Optimizer]) -> nn.Module:
    """Prepare `module` for training with Accelerate, and return what to call in its place. Under FSDP2 its
    parameters, and those in `optimizers`, become shards."""
    if is_sharded(accelerator):  # the optimizers go on with the new parameters in their own groups
        return accelerator.prepare(module, *optimizers)[0]
    return accelerator.prepare(module)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that lies in this process, on the same storage."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def spread(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Distribute a whole tensor, which every process holds, over the processes as `like` is distributed."""
    if not isinstance(like, DTensor):
        return value
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def gathered(tensors: Mapping[str, torch.Tensor], keep: bool) -> dict[str, torch.Tensor]:
    """Whole tensors; those that were sharded on the CPU, and only where `keep` (in the main process).

    To be called in all processes. One tensor is whole at a time, beside the memory that the result takes.
    """
    found = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            whole = tensor.full_tensor()
            if keep:
                found[name] = whole.cpu()
        elif keep:
            found[name] = tensor
    return found


def all_finite(accelerator: Accelerator, parameters: Iterable[torch.Tensor]) -> bool:
    """Whether no parameter has a NaN or an infinity, in any process."""
    fine = all(bool(torch.isfinite(local(parameter)).all()) for parameter in parameters)
    if accelerator.num_processes == 1:
        return fine
    return bool(accelerator.reduce(torch.tensor(float(not fine), device=accelerator.device), "sum") == 0)


def reshard(root: nn.Module) -> None:
    """Drop whole weights that FSDP2 keeps after a forward without a backward: the shards may have changed since."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_copy(model: Any, weights: Mapping[str, torch.Tensor]) -> Any:
    """A model of the same class, as transformers makes it, with these weights, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        plain = type(model)(copy.deepcopy(model.config))
    plain.load_state_dict(weights)
    plain.tie_weights()
    return plain.eval()
