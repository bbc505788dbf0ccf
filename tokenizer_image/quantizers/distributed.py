"""Sums, broadcasts and samples over the process group, which keep a codebook the same on every rank."""

from __future__ import annotations

import torch
import torch.distributed as dist


class NotFiniteError(ValueError):
    """Latents have NaN or infinity because training has diverged; the codebook was left as it was."""


def world_size() -> int:
    """Number of ranks at the time of the call: the process group may be created after the quantizer."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce(*tensors: torch.Tensor) -> None:
    """Sum each tensor over all ranks, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def broadcast(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` of rank 0, on every rank."""
    if world_size() > 1:
        tensor = tensor.contiguous()
        dist.broadcast(tensor, 0)
    return tensor


def mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The mean of `value` over all ranks. Its gradient is that of this rank's value alone: data parallelism averages
    gradients over ranks, which makes it the gradient of the mean."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    all_reduce(total)
    return value + (total / world_size() - value).detach()


def check_finite(latents: torch.Tensor) -> None:
    """Raise NotFiniteError, on every rank, if any rank's latents have NaN or infinity. For train mode.

    Call it before any update, so that no part of a codebook is updated if the step is refused.
    """
    total = latents.detach().sum(dtype=torch.float32)  # a sum with NaN or infinity in it is not finite
    all_reduce(total)
    if not bool(torch.isfinite(total)):
        raise NotFiniteError("latents with NaN or infinity: the codebook was left as it was")


def sample_rows(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """`count` random rows of all ranks' vectors (N, D), the same on every rank; with repeats only if N < count."""
    rows = _sample(vectors, count)
    if world_size() == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(gathered, rows.contiguous())
    order = broadcast(torch.randperm(count * world_size(), device=rows.device)[:count])
    return torch.cat(gathered)[order]


def _sample(vectors: torch.Tensor, count: int) -> torch.Tensor:
    if count <= len(vectors):
        return vectors[torch.randperm(len(vectors), device=vectors.device)[:count]].float()
    return vectors[torch.randint(len(vectors), (count,), device=vectors.device)].float()
