"""How many rows a device has memory for.

Free memory is read before it is used, because Linux overcommits: a request that cannot be served succeeds, and the
process is killed later.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

SHARE = 0.8  # of the free memory; other processes need some too
T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """One of the batches that rows are divided into.

    Attributes:
        rows: which rows.
        number: how many batches came before it.
        expected: how many batches there are in all, if none to come is halved.
    """

    rows: slice
    number: int
    expected: int


def in_batches(work: Callable[[Batch], Iterable[T]], count: int, size: int) -> Iterator[T]:
    """Everything that `work` gives for rows 0 .. count - 1, taken in batches of at most `size`.

    A batch that runs out of memory is halved and begun again, and those after it are as small.

    Raises:
        RuntimeError: `work`'s own error, once a batch of one row runs out of memory.
    """
    first = number = 0
    while first < count:
        rows = slice(first, min(first + size, count))
        try:
            yield from work(Batch(rows, number, number + -(-(count - first) // size)))
        except RuntimeError as error:
            size = (rows.stop - rows.start) // 2
            if not size or not out_of_memory(error):
                raise
        else:
            first, number = rows.stop, number + 1


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory has run out."""
    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in words or "can't allocate memory" in words


def rows_that_fit(model: Any, prompt_length: int, num_new_tokens: int, num_choices: int) -> int | None:
    """Rows that may be drawn at once, at least 1; None where the free memory is not known."""
    free = available_memory(model.device)
    if free is None:
        return None
    return max(1, int(SHARE * free / bytes_of_row(model, prompt_length, num_new_tokens, num_choices)))


def bytes_of_row(model: Any, prompt_length: int, num_new_tokens: int, num_choices: int) -> int:
    """About how many bytes drawing one row takes beside the weights.

    Keys and values of all its tokens, and a second copy of the prompt's; the activations of one layer over the prompt,
    mostly its attention; and at each step, the logits of `num_choices` codes and what sampling makes of them.
    """
    config, size = model.config, model.dtype.itemsize
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    token_numbers = 2 * config.num_hidden_layers * key_heads * head_size
    cache = token_numbers * (
        4 * (prompt_length + num_new_tokens) + 2 * size * prompt_length
    )  # float32 in DirectStepper
    prompt = prompt_length * (8 * config.hidden_size + 4 * inner) * size + 3 * heads * prompt_length**2 * 4
    return cache + prompt + 64 * num_choices


def available_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device, None where that is not known; on Linux, within a container's limit."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's cache
        return torch.cuda.mem_get_info(device)[0] + held
    if device.type != "cpu":
        return None
    limits = [limit for limit in (_meminfo(), _container()) if limit is not None]
    return min(limits) if limits else _pages()


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _container(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What is left below a container's limit; the page cache counts as free, since the kernel can drop it."""
    try:
        limit, used = (folder / "memory.max").read_text().strip(), int((folder / "memory.current").read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
        files = sum(int(line.split()[1]) for line in lines if line.split()[0] in ("inactive_file", "active_file"))
    except (OSError, ValueError, IndexError):
        return None
    return None if limit == "max" else max(0, int(limit) - used + files)


def _pages() -> int | None:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
