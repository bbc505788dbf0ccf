"""Sampling the codes of pictures, and texts, from a causal language model.

At position t only the codes `layout["low"][t] <= code < layout["high"][t]` are possible, so only those rows
of the output layer are multiplied and every sample is a whole, valid picture. With guidance, a prompt's row
and its unconditional twin share one batch: one prefill, then one forward pass for each code, with a KV cache.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from lm.vocabulary import MultimodalVocabulary

# callback(step, total_steps, codes): `codes` (b, t) int64 is what the batch at work has drawn so far.
Callback = Callable[[int, int, torch.Tensor], Any]

# Classes whose logits are one linear map of the backbone's output. Others (soft-capped or scaled logits,
# wrapped or quantized models) answer through their own forward.
_PLAIN_HEADS = frozenset(
    {"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM", "GPT2LMHeadModel"}
)


@dataclass(frozen=True)
class SamplingSettings:
    """How codes are drawn; raises TypeError or ValueError for settings that mean nothing.

    Attributes:
        guidance_scale: s in `logits = u + s (c - u)`, c with the prompt, u without it or with the negative
            prompt (classifier-free guidance, Ho and Salimans 2022). Log-probabilities in the place of logits
            would give the same: they differ by one constant a row. 1 is off, 0 ignores the prompt.
        temperature: divides the guided logits; 0 takes the likeliest code.
        top_k: keep the k likeliest codes; 0 keeps all.
        top_p: keep the smallest set of likeliest codes that has at least this probability; 1 keeps all.
    """

    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name in ("guidance_scale", "temperature", "top_p"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise TypeError(f"{name} must be a number, got {value!r}")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, numbers.Integral):
            raise TypeError(f"top_k must be a whole number, got {self.top_k!r}")
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            raise ValueError(f"guidance_scale must be at least 0 (1 is no guidance), got {self.guidance_scale}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be at least 0 (0 is greedy), got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0 (0 keeps every code), got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1] (1 keeps every code), got {self.top_p}")


def generate_codes(
    model: Any,
    vocabulary: MultimodalVocabulary,
    prompts: Sequence[Sequence[int]],
    negative_prompts: Sequence[Sequence[int]] | None = None,
    *,
    guidance_scale: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generators: Sequence[torch.Generator],
    callback: Callback | None = None,
    max_batch_rows: int = 128,
) -> torch.Tensor:
    """Draw one picture for each prompt: codes (B, T) int64 on the model's device.

    Args:
        prompts: B rows of token ids that end with the beginning-of-image token.
        negative_prompts: B rows that guidance leads away from (default: the prompt without a caption). Not
            read at guidance 1.
        generators: B random streams; row b draws from stream b alone, whatever its neighbours.
        callback: called after each code as `callback(step, total_steps, codes)`, with what the batch at work
            has so far, (b, t). Steps count over all batches.
        max_batch_rows: rows of the model's batch, unconditional ones included; more take several batches.

    Raises:
        ValueError: settings out of range, a prompt that leaves no room for the picture, a model without the
            vocabulary's image tokens.
        RuntimeError: logits that are not finite.
    """
    settings = SamplingSettings(guidance_scale, temperature, top_k, top_p)
    guided = settings.guidance_scale != 1
    if len(generators) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many generators, got {len(generators)}")
    if guided and negative_prompts is None:
        from lm.sequences import image_prompt

        negative_prompts = [image_prompt(vocabulary, None)] * len(prompts)
    if guided and negative_prompts is not None and len(negative_prompts) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many negative prompts, got {len(negative_prompts)}")
    _check_room(model, vocabulary, [*prompts, *(negative_prompts or [])] if guided else prompts)
    size = max(1, max_batch_rows // (2 if guided else 1))
    batches = [slice(start, start + size) for start in range(0, len(prompts), size)]
    drawn = []
    with evaluation_mode(model), torch.inference_mode():
        for number, batch in enumerate(batches):
            rows = [*prompts[batch], *negative_prompts[batch]] if guided and negative_prompts else prompts[batch]
            report = _reporter(callback, number, len(batches))
            drawn.append(_draw_batch(model, vocabulary, rows, settings, generators[batch], report))
    if not drawn:
        return torch.empty(0, len(vocabulary.layout["low"]), dtype=torch.int64)
    return torch.cat(drawn).clone()  # cloned outside inference mode: an ordinary tensor


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
        max_batch_rows: rows of the model's batch; more take several batches.

    Raises:
        ValueError: settings out of range, or prompts that leave no room for `max_new_tokens`.
        RuntimeError: logits that are not finite.
    """
    settings = SamplingSettings(1.0, temperature, top_k, top_p)
    if len(generators) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many generators, got {len(generators)}")
    positions, longest = getattr(model.config, "max_position_embeddings", None), max(map(len, prompts), default=0)
    if positions is not None and longest + max_new_tokens > positions:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} beside a prompt of {longest} tokens is more than the model's {positions} "
            f"positions: give at most {positions - longest}"
        )
    texts: list[list[int]] = []
    with evaluation_mode(model), torch.inference_mode():
        for start in range(0, len(prompts), max_batch_rows):
            batch = slice(start, start + max_batch_rows)
            texts += _write_batch(model, vocabulary, prompts[batch], settings, generators[batch], max_new_tokens)
    return texts


def _write_batch(
    model: Any,
    vocabulary: MultimodalVocabulary,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    generators: Sequence[torch.Generator],
    max_new_tokens: int,
) -> list[list[int]]:
    """Token ids of b texts, until all have ended."""
    stepper = _Stepper(model, prompts, max_new_tokens, vocabulary.pad_id)
    never = ~torch.from_numpy(vocabulary.text_mask()).to(stepper.device)
    uniforms = None if settings.temperature == 0 else _uniforms(generators, max_new_tokens, stepper.device)
    ids = torch.full((len(prompts), max_new_tokens), vocabulary.eos_id, device=stepper.device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=stepper.device)
    for t in range(max_new_tokens):
        logits = stepper.logits(0, vocabulary.image_offset)
        _check_finite(logits.isfinite().all())
        drawn = choose(logits.masked_fill(never, -math.inf), None if uniforms is None else uniforms[:, t], settings)
        ids[:, t] = torch.where(ended, vocabulary.eos_id, drawn)
        ended |= drawn == vocabulary.eos_id
        if bool(ended.all()) or t + 1 == max_new_tokens:
            break
        stepper.advance(ids[:, t])
    return [row[: row.index(vocabulary.eos_id)] if vocabulary.eos_id in row else row for row in ids.tolist()]


def _check_finite(finite: torch.Tensor) -> None:
    if not finite:
        raise RuntimeError(
            "the model's logits are not finite: its weights are damaged, or float16 overflows (use float32)"
        )


def longest_prompt(model: Any, vocabulary: MultimodalVocabulary) -> int | None:
    """How many tokens of prompt leave room for a picture's codes; None where the model names no limit."""
    positions = getattr(model.config, "max_position_embeddings", None)
    return None if positions is None else positions - len(vocabulary.layout["low"])


def _check_room(model: Any, vocabulary: MultimodalVocabulary, prompts: Sequence[Sequence[int]]) -> None:
    limit = longest_prompt(model, vocabulary)
    for index, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {index} is empty: it must end with the beginning-of-image token")
        if limit is not None and len(prompt) > limit:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens, but at most {limit} leave room for a picture in "
                f"the model's {model.config.max_position_embeddings} positions: shorten the prompt"
            )
    rows, needed = (
        model.get_input_embeddings().weight.shape[0],
        vocabulary.image_offset + vocabulary.num_codes,
    )
    if rows < needed:
        raise ValueError(f"the model has {rows} tokens but the vocabulary {needed}: they belong to different models")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; each module's own mode is back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _reporter(callback: Callback | None, batch: int, num_batches: int) -> Callable[[torch.Tensor, int], None]:
    def report(codes: torch.Tensor, total: int) -> None:
        if callback is not None:
            callback(batch * total + codes.shape[1], num_batches * total, codes)

    return report


def _draw_batch(
    model: Any,
    vocabulary: MultimodalVocabulary,
    rows: Sequence[Sequence[int]],
    settings: SamplingSettings,
    generators: Sequence[torch.Generator],
    report: Callable[[torch.Tensor, int], None],
) -> torch.Tensor:
    """Codes (b, T) for b prompts. `rows` holds them, with guidance followed by their b negative prompts."""
    low, high = vocabulary.layout["low"], vocabulary.layout["high"]
    total, guided = len(low), len(rows) > len(generators)
    stepper = _Stepper(model, rows, total, vocabulary.pad_id)
    codes = torch.empty(len(generators), total, dtype=torch.int64, device=stepper.device)
    uniforms = None if settings.temperature == 0 else _uniforms(generators, total, stepper.device)
    finite = torch.ones((), dtype=torch.bool, device=stepper.device)
    for t in range(total):
        logits = stepper.logits(vocabulary.image_offset + int(low[t]), vocabulary.image_offset + int(high[t]))
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + settings.guidance_scale * (conditional - unconditional)
        finite &= logits.isfinite().all()
        codes[:, t] = int(low[t]) + choose(logits, None if uniforms is None else uniforms[:, t], settings)
        report(codes[:, : t + 1], total)
        if t + 1 < total:
            ids = vocabulary.image_offset + codes[:, t]
            stepper.advance(torch.cat([ids, ids]) if guided else ids)
    _check_finite(finite)
    return codes


def _uniforms(generators: Sequence[torch.Generator], count: int, device: torch.device) -> torch.Tensor:
    """(B, count) numbers in [0, 1] on `device`, row b from generator b, which may live elsewhere."""

    def widest(place: torch.device) -> torch.dtype:
        return torch.float32 if place.type == "mps" else torch.float64  # mps has nothing wider

    rows = [torch.rand(count, generator=g, device=g.device, dtype=widest(g.device)).cpu() for g in generators]
    return torch.stack(rows).to(widest(device)).to(device)


def choose(logits: torch.Tensor, uniforms: torch.Tensor | None, settings: SamplingSettings) -> torch.Tensor:
    """Draw one column a row, (B,) int64, from logits (B, n) and one number in [0, 1] a row (None: greedy).

    Inverts the cumulative distribution: a row's draw needs one number, whatever n, and no other row.
    """
    if uniforms is None:
        return logits.argmax(-1)
    # The largest becomes 0 first, so that a tiny temperature cannot overflow.
    logits = (logits - logits.amax(-1, keepdim=True)) / settings.temperature
    probabilities = _truncated(logits, settings).softmax(-1, dtype=torch.float32)
    cumulative = probabilities.to(uniforms.dtype).cumsum(-1)
    total = cumulative[:, -1:]
    # Strictly below the total: else rounding could pass the last column that has a probability.
    point = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, point, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def _truncated(logits: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    """Logits (B, n) with -inf where top-k or top-p leave a column out; one column at least stays."""
    if 0 < settings.top_k < logits.shape[-1]:
        smallest = logits.topk(settings.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -math.inf)
    if settings.top_p < 1:
        ordered, order = logits.sort(descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # what likelier columns have together
        ordered = ordered.masked_fill(before >= settings.top_p, -math.inf)
        logits = torch.empty_like(logits).scatter_(-1, order, ordered)
    return logits


class _Stepper:
    """A language model and its cache, moved on by one token in all rows at once.

    Prompts of different lengths are padded on the left; padding is masked, and positions count from each
    row's first token, so a row's logits are those of the row alone.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], num_new_tokens: int, pad_id: int) -> None:
        from transformers import DynamicCache

        self._model, self.device = model, model.device
        self._head = _plain_head(model)
        self._cache = DynamicCache(config=model.config)
        # A prompt that several rows share (the unconditional one above all) is read once.
        distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
        longest = max(map(len, distinct))
        ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in distinct])
        lengths = torch.tensor([len(prompt) for prompt in distinct])
        columns = torch.arange(longest + num_new_tokens)
        mask = (columns >= longest - lengths[:, None]).long()
        positions = (mask[:, :longest].cumsum(-1) - 1).clamp(min=0)
        self._length = longest
        self._mask = mask.to(self.device)
        self._state = self._forward(ids.to(self.device), positions.to(self.device))
        places = {prompt: place for place, prompt in enumerate(distinct)}
        which = torch.tensor([places[tuple(prompt)] for prompt in prompts])
        self._positions = lengths[which, None].to(self.device)
        which = which.to(self.device)
        self._cache.batch_select_indices(which)
        self._mask, self._state = self._mask[which], self._state[which]

    def advance(self, ids: torch.Tensor) -> None:
        """Feed token `ids` (B,)."""
        self._length += 1
        self._state = self._forward(ids[:, None], self._positions)
        self._positions = self._positions + 1

    def logits(self, first: int, last: int) -> torch.Tensor:
        """Logits of tokens `first <= id < last` after what was fed: (B, last - first) float32."""
        if self._head is None:
            return self._state[:, first:last].float()
        bias = None if self._head.bias is None else self._head.bias[first:last]
        return functional.linear(self._state, self._head.weight[first:last], bias).float()

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The last position's hidden state (B, d), or its logits (B, V) where there is no plain head."""
        inputs = {
            "input_ids": ids,
            "attention_mask": self._mask[:, : self._length],
            "position_ids": positions,
            "past_key_values": self._cache,
            "use_cache": True,
        }
        if self._head is not None:
            return self._model.base_model(**inputs).last_hidden_state[:, -1]
        return self._model(**inputs, logits_to_keep=1).logits[:, -1]


def _plain_head(model: Any) -> nn.Linear | None:
    head = model.get_output_embeddings()
    plain = type(model).__name__ in _PLAIN_HEADS and type(head) is nn.Linear
    return head if plain else None
