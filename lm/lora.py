"""Low-rank adapters for the linear layers of a trained model (LoRA), beside whole rows for its new tokens.

The model keeps its class. peft (Hu et al. 2021) wraps the linear layers of its backbone; the rows that new tokens have
in the embeddings and in the output layer become layers of their own. Everything else is frozen: it has no gradient, no
optimizer state, and no place in checkpoints.

peft's own way to train single rows copies the whole table in each forward pass, and makes a gradient for all of it;
here both are as large as the new rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lm.model import NEW_ROWS

# Scales the product of the factors by ALPHA / rank. Kept fixed, as here, the best learning rate hardly depends on the
# rank (Schulman et al. 2025, "LoRA without regret").
ALPHA = 32
ADAPTER = "default"
FILE_NAME = "trained.safetensors"


class NewEmbeddingRows(nn.Embedding):
    """The rows of ids `first`, `first` + 1, ... of an embedding table."""

    def __init__(self, table: nn.Embedding, first: int, count: int) -> None:
        padding = table.padding_idx
        own_padding = padding - first if padding is not None and first <= padding < first + count else None
        weight = table.weight[first : first + count].detach().clone().float()
        super().__init__(count, table.embedding_dim, own_padding, _weight=weight)
        self.first = first


class NewOutputRows(nn.Linear):
    """The rows of ids `first`, `first` + 1, ... of an output layer."""

    def __init__(self, layer: nn.Linear, first: int, count: int) -> None:
        super().__init__(layer.in_features, count, layer.bias is not None, device="meta")
        rows = slice(first, first + count)
        self.weight = nn.Parameter(layer.weight[rows].detach().clone().float())
        if layer.bias is not None:
            self.bias = nn.Parameter(layer.bias[rows].detach().clone().float())
        self.first = first


class AdaptedModel:
    """A causal LM whose linear layers have adapters, and whose new tokens have rows of their own.

    Attributes:
        model: of its own class, adapted in place; it computes what it computed before, until it is trained.
        num_layers: how many linear layers have an adapter.

    Args:
        model: a stock causal LM of transformers, already with a row for each token.
        rank: of the adapters.
        first, count: the new tokens' ids are `first`, ..., `first + count - 1`; none where `count` is 0.

    Raises:
        ValueError: its embeddings or its output layer compute more than a table or a product.
    """

    def __init__(self, model: PreTrainedModel, rank: int, first: int, count: int) -> None:
        from peft import LoraConfig, LoraModel

        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        if type(table) is not nn.Embedding or type(head) is not nn.Linear:
            raise ValueError(
                f"--lora_rank {rank}: the embeddings or the output layer of {type(model).__name__} compute more than a "
                "table or a product, so that the rows of new tokens cannot be trained alone: leave --lora_rank out"
            )
        is_tied = table.weight is head.weight
        transposed = any(isinstance(module, Conv1D) for module in model.modules())
        config = LoraConfig(
            r=rank, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", fan_in_fan_out=transposed
        )
        self._lora = LoraModel(model, config, ADAPTER)  # freezes all but the adapters
        self.model = model
        for parameter in trained_parameters(model).values():
            parameter.data = parameter.data.float()  # updates are smaller than the spacing of bfloat16
        self.num_layers = sum(name.endswith(f"lora_A.{ADAPTER}.weight") for name in trained_parameters(model))
        self._hooks = []
        if count:
            embeddings, outputs = NewEmbeddingRows(table, first, count), NewOutputRows(head, first, count)
            if is_tied:
                outputs.weight = embeddings.weight
            setattr(table, NEW_ROWS, embeddings)
            setattr(head, NEW_ROWS, outputs)
            self._hooks = [
                table.register_forward_hook(_with_new_embeddings),
                head.register_forward_hook(_with_new_logits),
            ]

    @torch.no_grad()
    def merge(self) -> PreTrainedModel:
        """Write adapters and new rows into the weights, in float32, and return the model: plain, and adapted no more.
        Rows that were not new stay bit by bit as they are."""
        self.model.float()
        with torch.autocast(self.model.device.type, enabled=False):
            plain: PreTrainedModel = self._lora.merge_and_unload()
        for hook in self._hooks:
            hook.remove()
        for layer in {plain.get_input_embeddings(), plain.get_output_embeddings()}:
            if (new := getattr(layer, NEW_ROWS, None)) is None:
                continue
            rows = slice(new.first, new.first + len(new.weight))
            layer.weight[rows] = new.weight
            if getattr(layer, "bias", None) is not None:
                layer.bias[rows] = new.bias
            delattr(layer, NEW_ROWS)
        plain.requires_grad_(True)
        for leftover in ("peft_config", "_hf_peft_config_loaded"):
            plain.__dict__.pop(leftover, None)
        return plain


def _with_new_embeddings(table: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    """A forward hook: embeddings (..., d) of ids (...), those of new tokens from the new rows."""
    new = table.new_rows
    places = inputs[0] - new.first
    is_new = (places >= 0) & (places < new.num_embeddings)
    return torch.where(is_new[..., None], new(places.clamp(0, new.num_embeddings - 1)), output)


def _with_new_logits(head: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    """A forward hook: logits (..., V) of hidden states (..., d), those of new tokens from the new rows."""
    new = head.new_rows
    return torch.cat([output[..., : new.first], new(inputs[0]), output[..., new.first + new.out_features :]], -1)


def frozen_in_bfloat16(model: PreTrainedModel) -> PreTrainedModel:
    """Keep the matrices of a model in bfloat16, and its vectors (norms, biases) in float32.

    Under bfloat16 autocast this computes the same as float32 matrices of the same values, which autocast rounds for
    each product, in half the memory.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16 if parameter.ndim > 1 else torch.float32)
    return model


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that have a gradient, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_trained(model: nn.Module, folder: Path) -> None:
    """Write the trained parameters, and nothing of the frozen ones, into a folder."""
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in trained_parameters(model).items()}
    save_file(tensors, folder / FILE_NAME)


@torch.no_grad()
def load_trained(model: nn.Module, folder: Path) -> None:
    """The inverse of `save_trained`, into a model with the same adapters."""
    tensors = load_file(folder / FILE_NAME)
    for name, parameter in trained_parameters(model).items():
        parameter.copy_(tensors[name])
