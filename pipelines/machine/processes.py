"""What the processes of one run tell each other: values and tensors of the main one, and whether all see its disk."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

T = TypeVar("T")


def from_main(value: T) -> T:
    """The main process's value, in all of them; to be called in all. In one process, the value itself."""
    if not _are_several():
        return value
    shared: list[Any] = [value]
    broadcast_object_list(shared)
    return shared[0]


def tensors_from_main(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The main process's tensors, on the CPU of all; to be called in all. Those of other processes do not matter."""
    if not _are_several():
        return dict(tensors)
    is_main = torch.distributed.get_rank() == 0
    on_gpu = torch.distributed.get_backend() == "nccl"
    shared: dict[str, torch.Tensor] = {}
    for name, shape, dtype in from_main([(name, tuple(one.shape), one.dtype) for name, one in tensors.items()]):
        tensor = tensors[name].cpu().contiguous() if is_main else torch.empty(shape, dtype=dtype)
        if tensor.numel():
            moved = tensor.cuda() if on_gpu else tensor
            torch.distributed.broadcast(moved, 0)
            tensor = moved.cpu()
        shared[name] = tensor
    return shared


def _are_several() -> bool:
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def from_all(accelerator: Accelerator, value: T) -> list[T]:
    """Every process's value, in the order of the processes; to be called in all."""
    return list(gather_object([value])) if accelerator.num_processes > 1 else [value]


def all_see(folder: Path, accelerator: Accelerator) -> bool:
    """Whether a folder is on a disk that all processes see, not one of each node's own; to be called in all."""
    if accelerator.num_processes == 1:
        return True
    mark = folder / from_main(f".seen-{uuid.uuid4().hex[:12]}")
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    accelerator.wait_for_everyone()
    seen = from_all(accelerator, mark.exists())  # comes back once all have looked
    if accelerator.is_main_process:
        mark.unlink()
    return all(seen)
