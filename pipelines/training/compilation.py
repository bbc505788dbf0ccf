"""Compiled layers (torch.compile), tried out before training starts: a missing compiler shows early, and the time that
compiling takes is not training time."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from lm.data.batch_order import BatchOrder
from lm.training.losses import NextTokenLoss
from pipelines.machine.printing import say


def repeated_layers(model: Any) -> list[nn.Module]:
    """The blocks that the model is a stack of."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def compile_layers(accelerator: Accelerator, module: NextTokenLoss, order: BatchOrder) -> bool:
    """Compile each layer of the language model, and try them on two small batches of different shapes.

    The layers share one compilation, which takes sequences of any length. Where it fails in one process, no process
    compiles, and the reason is printed.

    Returns:
        whether the layers are compiled.
    """
    layers = repeated_layers(module.model)
    started, reason = time.monotonic(), "" if layers else f"{module.model.config.model_type} names no layers"
    try:
        for layer in layers:
            layer.compile(dynamic=True)
        _try(accelerator, module, order)
    except Exception as error:  # compilers, and the search for one, raise errors of many kinds
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
    module.zero_grad(set_to_none=True)
    failed = accelerator.reduce(torch.tensor(float(bool(reason)), device=accelerator.device), "sum")
    if failed > 0:
        for layer in layers:
            layer._compiled_call_impl = None
        say(accelerator, f"--compile does not work here and is left out ({reason or 'in another process'})")
        return False
    say(
        accelerator, f"compiled {len(layers)} layers in {time.monotonic() - started:.0f} s, before training time starts"
    )
    return True


def _try(accelerator: Accelerator, module: NextTokenLoss, order: BatchOrder) -> None:
    """Run forward and backward. Random state stays as it was; gradients are the caller's to clear."""
    device = accelerator.device
    cuda = [device] if device.type == "cuda" else []
    home = next(module.parameters()).device
    with torch.random.fork_rng(devices=cuda):
        for rows in (2, 3):
            _, micro_batches = next(BatchOrder(order.source, rows, order.seed, pack_length=order.pack_length).batches())
            with accelerator.autocast() if device.type == home.type else nullcontext():
                sums = module(**{name: tensor.to(home) for name, tensor in micro_batches[0].items()})
            sums["loss"].backward()
