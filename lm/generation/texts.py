"""Writing texts with a causal language model: what describes a picture, or goes on from a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from lm.generation.images import check_finite, evaluation_mode
from lm.generation.memory import in_batches, rows_that_fit
from lm.generation.sampling import SamplingSettings, choose, uniforms_of
from lm.generation.stepper import Stepper

if TYPE_CHECKING:
    from lm.vocabulary import MultimodalVocabulary


def generate_text(
    model: Any,
    vocabulary: MultimodalVocabulary,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generators: Sequence[torch.Generator],
    max_batch_rows: int = 128,
) -> list[list[int]]:
    """Write a text after each prompt: its token ids, without the eos that ends it.

    Only ids of text and eos can be drawn, so a text is one whatever the model has learned.

    Args:
        prompts: B rows of token ids.
        max_new_tokens: a text that has not ended by then stops there.
        generators: B random streams; row b draws from stream b alone, whatever its neighbours.
        max_batch_rows: rows of the model's batch; more, or more than the free memory has room for, take several.

    Raises:
        ValueError: settings out of range, or prompts that leave no room for `max_new_tokens`.
        RuntimeError: logits that are not finite.
    """
    settings = SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p)
    if len(generators) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many generators, got {len(generators)}")
    positions, longest = getattr(model.config, "max_position_embeddings", None), max(map(len, prompts), default=0)
    if positions is not None and longest + max_new_tokens > positions:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} beside a prompt of {longest} tokens is more than the model's {positions} "
            f"positions: give at most {positions - longest}"
        )
    rows = rows_that_fit(model, longest, max_new_tokens, vocabulary.image_offset) or max_batch_rows
    size = max(1, min(rows, max_batch_rows))

    def write(batch: slice) -> list[list[int]]:
        return _write_batch(model, vocabulary, prompts[batch], settings, generators[batch], max_new_tokens)

    with evaluation_mode(model), torch.inference_mode():
        return in_batches(write, len(prompts), size)


def _write_batch(
    model: Any,
    vocabulary: MultimodalVocabulary,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    generators: Sequence[torch.Generator],
    max_new_tokens: int,
) -> list[list[int]]:
    """Token ids of b texts, until all have ended."""
    stepper = Stepper(model, prompts, max_new_tokens, vocabulary.pad_id)
    never = ~torch.from_numpy(vocabulary.text_mask()).to(stepper.device)
    uniforms = None if settings.temperature == 0 else uniforms_of(generators, max_new_tokens, stepper.device)
    ids = torch.full((len(prompts), max_new_tokens), vocabulary.eos_id, device=stepper.device)
    finite = torch.ones((), dtype=torch.bool, device=stepper.device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=stepper.device)
    for t in range(max_new_tokens):
        logits = stepper.logits(0, vocabulary.image_offset)
        finite &= logits.isfinite().all()
        drawn = choose(logits.masked_fill(never, -math.inf), None if uniforms is None else uniforms[:, t], settings)
        ids[:, t] = torch.where(ended, vocabulary.eos_id, drawn)
        ended |= drawn == vocabulary.eos_id
        if bool(ended.all()) or t + 1 == max_new_tokens:
            break
        stepper.advance(ids[:, t])
    check_finite(finite)
    return [row[: row.index(vocabulary.eos_id)] if vocabulary.eos_id in row else row for row in ids.tolist()]
