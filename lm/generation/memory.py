"""How many rows a device has memory for, asked before it is used: a system that promises more than it has would rather
end the process than refuse."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

SHARE = 0.8  # of what is free; others take memory too
T = TypeVar("T")


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory has run out."""
    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in words or "can't allocate memory" in words


def in_batches(make: Callable[[slice], list[T]], count: int, size: int) -> list[T]:
    """What `make` makes of rows 0 .. count - 1, one for each, in batches of `size`.

    A batch that memory has no room for is halved and begun again, and those after it are as small.
    """
    made: list[T] = []
    while len(made) < count:
        batch = slice(len(made), min(len(made) + size, count))
        try:
            made += make(batch)
        except RuntimeError as error:
            size = (batch.stop - batch.start) // 2
            if not size or not out_of_memory(error):
                raise
    return made


def rows_that_fit(model: Any, prompt_length: int, num_new_tokens: int, num_choices: int) -> int | None:
    """Rows that may be drawn at once, at least 1; None where the free memory is not known."""
    free = available_memory(model.device)
    if free is None:
        return None
    return max(1, int(SHARE * free / bytes_of_row(model, prompt_length, num_new_tokens, num_choices)))


def bytes_of_row(model: Any, prompt_length: int, num_new_tokens: int, num_choices: int) -> int:
    """About what drawing one row takes beside the weights.

    Keys and values of all its tokens, and once more those of the prompt; what a layer computes for the prompt, above
    all its attention; and at each step, logits of `num_choices` codes on their way to a choice.
    """
    config, size = model.config, model.dtype.itemsize
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    a_token = 2 * config.num_hidden_layers * key_heads * head_size
    cache = a_token * (4 * (prompt_length + num_new_tokens) + 2 * size * prompt_length)  # float32 without compiled code
    reading = prompt_length * (8 * config.hidden_size + 4 * inner) * size + 3 * heads * prompt_length**2 * 4
    return cache + reading + 64 * num_choices


def available_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device, None where that is not known; on Linux, within the limit of a container."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, and unused
        return torch.cuda.mem_get_info(device)[0] + held
    if device.type != "cpu":
        return None
    found = [_meminfo(), _container()]
    known = [value for value in found if value is not None]
    return min(known) if known else _pages()


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _container(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What is left below a container's limit; memory that only caches files can be had back."""
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
