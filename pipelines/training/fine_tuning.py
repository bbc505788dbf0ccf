"""Stage 2 from a trained model by adapters (--lora_rank): which rows are new, and what is frozen in which type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from lm.lora import AdaptedModel, frozen_in_bfloat16, trained_parameters
from lm.pretrained import ids_taken, load_configuration
from lm.training.dropout import without_dropout
from lm.transfer import OWN_TOKENS
from lm.vocabulary import MultimodalVocabulary
from pipelines.options.language_model import LanguageModelOptions
from pipelines.training.distribution import is_sharded
from pipelines.training.vocabulary import given_tokenizer


def check_adapters(options: LanguageModelOptions, accelerator: Accelerator) -> None:
    """Raise ValueError where the processes cannot train what the options ask for."""
    if not is_sharded(accelerator):
        return
    given = f"--lora_rank {options.lora_rank}" if options.lora_rank else f"--optimizer {options.optimizer}"
    if options.lora_rank or options.optimizer == "adamw8bit":
        raise ValueError(
            f"{given} trains in one process or under DDP, and Accelerate is configured for FSDP2: launch with "
            "--config_file configs/ddp.yaml"
        )


def frozen_dtype(options: LanguageModelOptions, precision: str) -> torch.dtype:
    """The type that a pretrained model is read in: bfloat16 for what is frozen, was saved in it and is computed in it
    (half the memory, the same products); else float32.

    Args:
        precision: Accelerate's `mixed_precision`.
    """
    if not (options.lora_rank and options.lm_name_or_path and precision == "bf16"):
        return torch.float32
    saved = getattr(load_configuration(options.lm_name_or_path), "dtype", None)
    return torch.bfloat16 if saved in (torch.bfloat16, "bfloat16") else torch.float32


def first_new_id(options: LanguageModelOptions) -> int:
    """The first id that the model of --lm_name_or_path or --init_from was not trained on as text: further text tokens,
    special tokens and image codes follow each other from there on."""
    if options.lm_name_or_path:
        return ids_taken(given_tokenizer(options))
    before = MultimodalVocabulary.from_pretrained(options.earlier_folder / "lm")
    own = [number for name, number in before.tokenizer.get_vocab().items() if OWN_TOKENS.fullmatch(name)]
    return min(own)


def adapt(options: LanguageModelOptions, model: PreTrainedModel, vocabulary: MultimodalVocabulary) -> AdaptedModel:
    """Freeze the model, in the type that it was read in, beside adapters and the rows of new tokens."""
    assert options.lora_rank is not None
    if next(model.parameters()).dtype == torch.bfloat16:
        frozen_in_bfloat16(model)
    first = first_new_id(options)
    return AdaptedModel(model, options.lora_rank, first, vocabulary.size - first)


def adapters_line(adapted: AdaptedModel, options: LanguageModelOptions, vocabulary: MultimodalVocabulary) -> str:
    """What is trained, in words."""
    trained = sum(parameter.numel() for parameter in trained_parameters(adapted.model).values())
    share = trained / sum(parameter.numel() for parameter in adapted.model.parameters())
    return (
        f"--lora_rank {options.lora_rank}: adapters of {adapted.num_layers} linear layers and the rows of "
        f"{vocabulary.size - first_new_id(options)} new tokens are trained, {trained / 1e6:.2f}M parameters "
        f"({share:.1%} of all); the rest stays as it is"
    )


@contextmanager
def adapted_forward(accelerator: Accelerator, model: Any) -> Iterator[None]:
    """Inside, a model with adapters can be measured and drawn from: by its own forward, which needs the precision of
    training where frozen weights are in bfloat16, and without dropout."""
    with without_dropout(model), accelerator.autocast():
        yield
