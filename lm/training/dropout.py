"""Dropout in stock transformers models, which have none of their own (Llama, Qwen3) or save its rate (GPT-2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

# What the layers of stock models call the last product of attention and of the feed-forward part.
OUTPUT_LAYERS = ("o_proj", "down_proj", "c_proj", "out_proj", "dense_4h_to_h", "fc2", "dense")


def add_dropout(model: PreTrainedModel, rate: float) -> None:
    """Have `model` drop, in training, a share of the embeddings and of what each layer adds to the residual stream
    (Srivastava et al. 2014; the places are those of Vaswani et al. 2017). The saved model is the stock one.

    Raises:
        ValueError: none of its layers has a name that is known.
    """
    if not rate:
        return

    outputs = _outputs(model)
    if not outputs:
        raise ValueError(
            f"{type(model).__name__} has no layers named {', '.join(OUTPUT_LAYERS)}, where dropout goes: set it to 0"
        )
    for module in (model.get_input_embeddings(), *outputs):
        module.register_forward_hook(_Drop(rate))


def has_dropout_places(model: PreTrainedModel) -> bool:
    """Whether `add_dropout` knows where to put it."""
    return bool(_outputs(model))


def _outputs(model: PreTrainedModel) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.rpartition(".")[2] in OUTPUT_LAYERS]


@dataclass(frozen=True)
class _Drop:
    """A forward hook that drops a share of a module's output while it is in training."""

    rate: float

    def __call__(self, module: nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        return F.dropout(output, self.rate) if module.training else output


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Inside, the model has no hooks of `add_dropout`, so that what draws can read its weights directly."""
    removed = [
        (module, key, hook)
        for module in model.modules()
        for key, hook in module._forward_hooks.items()
        if isinstance(hook, _Drop)
    ]
    for module, key, _ in removed:
        del module._forward_hooks[key]
    try:
        yield
    finally:
        for module, key, hook in removed:
            module._forward_hooks[key] = hook


def seed_step(parts: Sequence[int]) -> None:
    """Have torch's generators, which dropout draws from, depend on these numbers alone: (seed, step, process).

    A resumed run then drops what an uninterrupted one drops, whatever the processes drew before.
    """
    torch.manual_seed(int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0] >> np.uint64(1)))
