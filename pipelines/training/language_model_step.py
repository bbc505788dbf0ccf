"""Stage 2's training step and its validation: the same figures on any number of processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor

from lm.data.sequence_source import SequenceSource
from lm.sequences import FORMATS, IGNORED, collate
from lm.training.flops import forward_flops
from lm.training.losses import NextTokenLoss, balance, label_weights
from pipelines.training.sequences import first_choices

VALIDATION_ROWS = 64  # per batch

Batch = dict[str, torch.Tensor]


@dataclass
class StepFigures:
    """What a step measured, over all processes.

    Attributes:
        loss: scalar.
        metrics: other figures to log.
        tokens: read, padding left out.
        flops: floating-point operations, forward and backward.
    """

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor | float]
    tokens: float
    flops: float


def train_step(
    accelerator: Accelerator,
    loss_module: NextTokenLoss,
    prepared: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    micro_batches: Sequence[Batch],
    *,
    loss_shares: tuple[float, float],
    pad_id: int,
    max_grad_norm: float,
) -> StepFigures:
    """Learn from this process's micro-batches.

    Args:
        prepared: what Accelerate has wrapped around `loss_module`.
        micro_batches: of (B, L) tensors, as `lm.sequences.collate` makes them; their loss weights are changed.
        loss_shares: what text and image codes count in the loss, with sum 1.
        pad_id: the token id of padding.
        max_grad_norm: gradients are clipped to this norm, over all weights and processes.
    """
    device, image_offset = accelerator.device, loss_module.id_ranges[0][1]

    # Means over all ranks and micro-batches: a mean of their means is wrong where captions differ in length.
    dtype = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
    labels = accelerator.reduce(label_weights(micro_batches, image_offset).to(device, dtype), "sum").tolist()
    divisor = balance(micro_batches, image_offset, labels, loss_shares)
    # DDP and FSDP average gradients over processes, and `accelerator.backward` divides by its own accumulation steps.
    scale = accelerator.num_processes * accelerator.gradient_accumulation_steps / divisor

    totals = torch.zeros(6, device=device)  # loss, z-loss, nats of text, nats of codes, tokens, FLOPs
    for index, batch in enumerate(micro_batches):
        is_last = index == len(micro_batches) - 1
        with nullcontext() if is_last else accelerator.no_sync(prepared):  # gradients are shared once
            sums = prepared(**{name: tensor.to(device) for name, tensor in batch.items()})
            accelerator.backward(sums["loss"] * scale)
        losses = [sums["loss"].detach() / divisor, sums["z_loss"] / divisor, sums["text_nats"], sums["image_nats"]]
        totals += torch.stack([*losses, *totals.new_tensor(_tokens_and_flops(loss_module, batch, pad_id))])
    norm = torch.nn.utils.clip_grad_norm_(loss_module.parameters(), max_grad_norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()

    loss, z_loss, text_nats, image_nats, tokens, flops = accelerator.reduce(totals, "sum")
    metrics: dict[str, torch.Tensor | float] = {"grad_norm": norm.full_tensor() if isinstance(norm, DTensor) else norm}
    if loss_module.z_loss_weight:
        metrics["z_loss"] = z_loss
    if all(labels):
        metrics |= {"nats_per_text_token": text_nats / labels[0], "nats_per_code": image_nats / labels[1]}
    return StepFigures(loss, metrics, float(tokens), float(flops))


def _tokens_and_flops(loss_module: NextTokenLoss, batch: Batch, pad_id: int) -> tuple[float, float]:
    """Tokens of a micro-batch that are not padding, and floating-point operations, forward and backward."""
    # Some tokenizers pad with eos, which counts where it is a label.
    tokens = (batch["input_ids"] != pad_id) | (batch["labels"] != IGNORED)
    config, ranges = loss_module.model.config, loss_module.id_ranges
    # A backward pass has two products for each of the forward's; frozen weights take part in one of them.
    passes = 2 if loss_module.is_adapted else 3
    return float(tokens.sum()), passes * forward_flops(config, ranges, batch, plain_head=loss_module.has_plain_head)


# ---- validation


def validate(loss_module: NextTokenLoss, source: SequenceSource, accelerator: Accelerator) -> dict[str, float]:
    """Mean nats per image code and per text token, of what is learned, over the validation rows in every format.

    Pictures count with their captions where those are learned from, not alone. Where several formats teach text, the
    figure is of all together, and one of each beside it. Processes share the rows; all get the same figures.
    """
    names = list(source.mixture)
    drawn = [name for name in names if FORMATS[name].draws]
    if any(FORMATS[name].drops_captions for name in drawn):
        drawn = [name for name in drawn if not FORMATS[name].draws_alone]
    names = [name for name in names if name in drawn or FORMATS[name].writes]
    totals: dict[str, dict[str, float]] = {}
    rows, keys = range(len(source.cache)), ("image_nats", "image_tokens", "text_nats", "text_tokens")
    rank, world = accelerator.process_index, accelerator.num_processes
    with torch.no_grad():  # not inference_mode: FSDP2 would go on with the tensors that it gathers here
        for name, start in product(names, range(0, len(rows), VALIDATION_ROWS * world)):
            part = rows[start : start + VALIDATION_ROWS * world]
            share = part[rank::world]  # may be empty; all processes must still call a sharded module together
            rows_read = share or part[:1]
            items = source.items(rows_read, first_choices(source, name, rows_read))
            batch = collate([source.sequence(item) for item in items], source.vocabulary.pad_id)
            sums = loss_module(**{key: tensor.to(accelerator.device) for key, tensor in batch.items()})
            found = totals.setdefault(name, dict.fromkeys(keys, 0.0))
            for key in keys if share else ():
                found[key] += float(sums[key])
    for found in totals.values():
        sums = accelerator.reduce(torch.tensor(list(found.values()), device=accelerator.device), "sum")
        found.update(zip(keys, sums.tolist(), strict=True))
    written = {name: found for name, found in totals.items() if found["text_tokens"]}
    figures = {}
    if drawn:
        figures["nats_per_code"] = _mean([totals[name] for name in drawn if name in totals], "image")
    if written:
        figures["nats_per_text_token"] = _mean(written.values(), "text")
    if len(written) > 1:
        figures |= {f"nats_per_text_token_{name}": _mean([found], "text") for name, found in written.items()}
    return figures


def mean_loss(figures: dict[str, float], shares: tuple[float, float]) -> float:
    """What training makes small, of `validate`'s figures: text and codes by their shares."""
    return shares[0] * figures.get("nats_per_text_token", 0.0) + shares[1] * figures.get("nats_per_code", 0.0)


def _mean(totals: Iterable[dict[str, float]], kind: str) -> float:
    found = list(totals)
    return sum(one[f"{kind}_nats"] for one in found) / max(1.0, sum(one[f"{kind}_tokens"] for one in found))
