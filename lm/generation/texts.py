"""Writing texts with a causal language model: a caption after a picture, or the continuation of a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from lm.generation.lookahead import Lookahead, looking_ahead
from lm.generation.memory import in_batches, rows_that_fit
from lm.generation.noise import gumbel
from lm.generation.phrase_table import PhraseTable
from lm.generation.sampling import SamplingSettings, choose, uniforms_of
from lm.generation.stepper import Stepper, check_finite, evaluation_mode
from lm.generation.steppers import StepperFactory, check_per_call, default_tokens_per_call, stepper_factory
from lm.pretrained import NO_LIMIT, max_positions
from lm.vocabulary import MultimodalVocabulary

NEW_TOKENS_WITHOUT_LIMIT = 1024  # of a text by a model that states no limit


def room_after(model: Any, prompt_length: int) -> int:
    """How many new tokens the model has positions for after a prompt of so many; 1024 where it states no limit."""
    limit = max_positions(model.config)
    return NEW_TOKENS_WITHOUT_LIMIT if limit == NO_LIMIT else limit - prompt_length


def check_room(model: Any, prompt_length: int, max_new_tokens: int) -> None:
    """Raise ValueError unless the model has positions for a prompt of so many tokens and for the new ones."""
    positions = max_positions(model.config)
    if prompt_length + max_new_tokens > positions:
        room = positions - prompt_length
        remedy = f"give at most {room}" if room > 0 else "give a shorter prompt"
        raise ValueError(
            f"max_new_tokens={max_new_tokens} beside a prompt of {prompt_length} tokens is more than the model's "
            f"{positions} positions: {remedy}"
        )


def generate_text(
    model: Any,
    vocabulary: MultimodalVocabulary,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    settings: SamplingSettings,
    generators: Sequence[torch.Generator],
    max_batch_rows: int = 128,
    tokens_per_call: int | None = None,
    phrases: PhraseTable | None = None,
) -> list[list[int]]:
    """Write a text after each prompt: its token ids, without the eos that ends it.

    Only ids of text and eos can be drawn, whatever the model has learned.

    Args:
        prompts: B rows of token ids.
        max_new_tokens: a text that has not ended by then stops there.
        settings: how tokens are drawn; guidance does not apply to texts and must be 1.
        generators: B random streams; row b draws from stream b alone, whatever its neighbours.
        max_batch_rows: rows of the model's batch; more, or more than the free memory has room for, take several.
        tokens_per_call: tokens of a text computed in one call of the model, at most (`lm.generation.lookahead`); None
            takes several where that is faster. What is written does not depend on it.
        phrases: guesses which tokens follow; without it, they are computed one by one.

    Raises:
        ValueError: guidance, numbers that do not match, `tokens_per_call` below 1, or prompts that leave no room for
            `max_new_tokens`.
        RuntimeError: logits that are not finite.
    """
    if settings.guidance_scale != 1:
        raise ValueError(f"guidance_scale={settings.guidance_scale}: a text is drawn without guidance, at 1")
    if len(generators) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many generators, got {len(generators)}")
    check_per_call("tokens_per_call", tokens_per_call)
    longest = max(map(len, prompts), default=0)
    check_room(model, longest, max_new_tokens)
    rows = rows_that_fit(model, longest, max_new_tokens, vocabulary.image_offset) or max_batch_rows
    size = max(1, min(rows, max_batch_rows, len(prompts)))

    def write(rows: slice) -> list[list[int]]:
        make = partial(_stepper_of, model, vocabulary, make_stepper, most, phrases)
        return _write_batch(vocabulary, make, prompts[rows], settings, generators[rows], max_new_tokens)

    with evaluation_mode(model), torch.inference_mode():
        make_stepper = stepper_factory(model, size)
        most = tokens_per_call or default_tokens_per_call(model, make_stepper, size)
        return list(in_batches(lambda batch: write(batch.rows), len(prompts), size))


def _stepper_of(
    model: Any,
    vocabulary: MultimodalVocabulary,
    make_stepper: StepperFactory,
    tokens_per_call: int,
    phrases: PhraseTable | None,
    prompts: Sequence[Sequence[int]],
    num_new_tokens: int,
) -> Stepper | Lookahead:
    """After the prompts, computing several tokens a call where these are asked for and can be guessed."""
    stepper = make_stepper(prompts, num_new_tokens, vocabulary.pad_id)
    if phrases is None:
        return stepper

    def guess(written: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """Rows that have ended go on with eos, which is not read."""
        return [
            [vocabulary.eos_id] * count if row[-1] == vocabulary.eos_id else phrases.guess([*prompt[-1:], *row], count)
            for prompt, row in zip(prompts, written, strict=True)
        ]

    return looking_ahead(stepper, model, guess, tokens_per_call, num_new_tokens)


def _write_batch(
    vocabulary: MultimodalVocabulary,
    make_stepper: Callable[[Sequence[Sequence[int]], int], Stepper | Lookahead],
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    generators: Sequence[torch.Generator],
    max_new_tokens: int,
) -> list[list[int]]:
    """Token ids of b texts, until all have ended."""
    stepper = make_stepper(prompts, max_new_tokens)
    forbidden = ~torch.from_numpy(vocabulary.text_mask()).to(stepper.device)
    uniforms = None if settings.temperature == 0 else uniforms_of(generators, max_new_tokens, stepper.device)
    ids = torch.full((len(prompts), max_new_tokens), vocabulary.eos_id, device=stepper.device)
    finite = torch.ones((), dtype=torch.bool, device=stepper.device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=stepper.device)
    for t in range(max_new_tokens):
        logits = stepper.logits(0, vocabulary.image_offset)
        finite &= logits.isfinite().all()
        noise = None if uniforms is None else gumbel(uniforms[:, t], logits.shape[-1])
        drawn = choose(logits.masked_fill(forbidden, -math.inf), noise, settings)
        ids[:, t] = torch.where(ended, vocabulary.eos_id, drawn)
        ended |= drawn == vocabulary.eos_id
        if bool(ended.all()) or t + 1 == max_new_tokens:
            break
        stepper.advance(ids[:, t])
    check_finite(finite)
    return [row[: row.index(vocabulary.eos_id)] if vocabulary.eos_id in row else row for row in ids.tolist()]
