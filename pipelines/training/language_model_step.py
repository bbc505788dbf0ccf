"""One step of stage 2: micro-batches to gradients to new weights, the same on any number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor

from lm.sequences import IGNORED
from lm.training.flops import forward_flops
from lm.training.losses import NextTokenLoss, balance, label_weights
from lm.vocabulary import MultimodalVocabulary
from pipelines.training.distribution import is_deepspeed
from pipelines.training.throughput import peak_flops

Batch = dict[str, torch.Tensor]


@dataclass
class Learned:
    """What a step measured, over all processes: the loss and other `figures` to log, tokens read (padding left out)
    and floating-point operations (forward and backward)."""

    loss: torch.Tensor
    figures: dict[str, torch.Tensor | float]
    tokens: float
    flops: float


@dataclass
class Learner:
    """Learns from batches.

    Attributes:
        module: the loss, which `prepared` wraps.
        shares: what text and codes count in the loss, with sum 1.
    """

    accelerator: Accelerator
    module: NextTokenLoss
    prepared: nn.Module
    optimizers: list[torch.optim.Optimizer]
    vocabulary: MultimodalVocabulary
    shares: tuple[float, float]
    max_grad_norm: float

    def step(self, micro_batches: Sequence[Batch]) -> Learned:
        """Forward, backward and the optimizers, on this process's micro-batches."""
        accelerator, offset, device = self.accelerator, self.vocabulary.image_offset, self.accelerator.device
        # Means over all ranks and micro-batches: a mean of their means is wrong where captions differ in length.
        wide = torch.float32 if device.type == "mps" else torch.float64  # mps has nothing wider
        labels = accelerator.reduce(label_weights(micro_batches, offset).to(device, wide), "sum").tolist()
        divisor = balance(micro_batches, offset, labels, self.shares)
        found = torch.zeros(6, device=device)  # loss, z-loss, nats of text, nats of codes, tokens, FLOPs
        for index, batch in enumerate(micro_batches):
            sums = self._backward(batch, divisor, last=index == len(micro_batches) - 1)
            read, flops = self._counts(batch)
            parts = [sums["loss"].detach() / divisor, sums["z_loss"] / divisor, sums["text_nats"], sums["image_nats"]]
            found += torch.stack([*parts, *found.new_tensor([read, flops])])
        norm = self._update()
        loss, z_loss, *nats, tokens, flops = accelerator.reduce(found, "sum")
        figures: dict[str, torch.Tensor | float] = {"grad_norm": norm}
        if self.module.z_loss_weight:
            figures["z_loss"] = z_loss
        if all(labels):
            figures |= {"nats_per_text_token": nats[0] / labels[0], "nats_per_code": nats[1] / labels[1]}
        return Learned(loss, figures, float(tokens), float(flops))

    def _backward(self, batch: Batch, divisor: float, last: bool) -> dict[str, torch.Tensor]:
        """Add to the gradients; processes share them after the last micro-batch."""
        accelerator = self.accelerator
        if is_deepspeed(accelerator):  # it takes the optimizer's step itself, in the backward of the last one
            accelerator.gradient_state._set_sync_gradients(last)
        scale = accelerator.num_processes / divisor * accelerator.gradient_accumulation_steps
        with nullcontext() if last else accelerator.no_sync(self.prepared):
            sums = self.prepared(**{name: tensor.to(accelerator.device) for name, tensor in batch.items()})
            accelerator.backward(sums["loss"] * scale)
        return sums

    def _update(self) -> torch.Tensor | float:
        """Clip the gradients by their norm over all weights and processes, and step; the norm."""
        if is_deepspeed(self.accelerator):
            return self.accelerator.deepspeed_engine_wrapped.get_global_grad_norm() or 0.0
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.max_grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _counts(self, batch: Batch) -> tuple[float, float]:
        """Tokens that are not padding, and FLOPs, of a micro-batch."""
        # Some tokenizers pad with eos, which counts where it is learned.
        tokens = (batch["input_ids"] != self.vocabulary.pad_id) | (batch["labels"] != IGNORED)
        config, ranges = self.module.model.config, self.module.id_ranges
        flops = forward_flops(config, ranges, batch, plain_head=self.module.has_plain_head)
        return float(tokens.sum()), 3 * flops


def total_peak(accelerator: Accelerator) -> float:
    """FLOPs a second that all processes together could reach in matrix products."""
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    peak = torch.tensor(peak_flops(accelerator.device, dtype), device=accelerator.device)
    return float(accelerator.reduce(peak, "sum"))


def describe_model(model: Any, vocabulary: MultimodalVocabulary) -> str:
    """How large the model is."""
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    layers = {id(layer.weight): layer.weight.numel()
              for layer in (model.get_input_embeddings(), model.get_output_embeddings())}  # fmt: skip
    return (
        f"{model.config.model_type}: {parameters / 1e6:.2f}M parameters "
        f"({(parameters - sum(layers.values())) / 1e6:.2f}M without embeddings), "
        f"{vocabulary.size} token ids ({vocabulary.num_codes} image codes)"
    )
