"""Sampling the codes of pictures from a causal language model.

At position t only the codes `layout["low"][t] <= code < layout["high"][t]` are possible, so only those rows
of the output layer are multiplied and every sample is a whole, valid picture. With guidance, a prompt's row
and its unconditional twin share one batch: one prefill, then one forward pass for each code, with a KV cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lm.generation import memory
from lm.generation import native_stepper as native
from lm.generation.direct_stepper import DirectModel, DirectStepper
from lm.generation.sampling import ByLevel, Guidance, SamplingSettings, choose, settings_by_position, uniforms_of
from lm.generation.stepper import Stepper

if TYPE_CHECKING:
    from lm.vocabulary import MultimodalVocabulary, PictureTokens, Size

__all__ = ["Callback", "DrawingInterrupted", "DrawingStopped", "Progress", "SamplingSettings", "generate_codes"]

# callback(step, total_steps, codes): `codes` (b, t) int64 is what the batch at work has drawn so far.
Callback = Callable[[int, int, torch.Tensor], Any]

UNDRAWN = -1  # in a row of codes: to be drawn, or not drawn yet


class DrawingStopped(RuntimeError):
    """A callback raised (its error is the `__cause__`). What was drawn is in `codes` and `output`.

    Attributes:
        codes: (B, T) int64, -1 where nothing was drawn yet.
        output: what the pipeline would have returned, with the places that are not drawn left plain.
    """

    codes: torch.Tensor
    output: Any = None


class DrawingInterrupted(KeyboardInterrupt):
    """Ctrl-C while drawing. What was drawn is in `codes` and `output`, as in `DrawingStopped`."""

    codes: torch.Tensor
    output: Any = None


@dataclass
class Progress:
    """Where drawing is, after a step.

    Attributes:
        step, total_steps: counted over all batches.
        rows: which pictures the batch at work draws.
        codes: (b, t) int64, what it has so far.
    """

    step: int
    total_steps: int
    rows: slice
    codes: torch.Tensor


@dataclass
class _Task:
    """What is asked for; one row a picture.

    Attributes:
        negative_prompts: None without guidance.
        picture: the tokens of pictures of the size that is drawn.
        settings: one for each of T positions.
        uniforms: (B, T) numbers in [0, 1].
        forced: (B, T) codes, -1 where to draw; None draws all.
    """

    model: Any
    vocabulary: MultimodalVocabulary
    prompts: Sequence[Sequence[int]]
    negative_prompts: Sequence[Sequence[int]] | None
    picture: PictureTokens
    settings: list[SamplingSettings]
    uniforms: torch.Tensor
    forced: torch.Tensor | None

    def of(self, rows: slice) -> _Task:
        """The same for some of the pictures."""
        return replace(
            self,
            prompts=self.prompts[rows],
            negative_prompts=None if self.negative_prompts is None else self.negative_prompts[rows],
            uniforms=self.uniforms[rows],
            forced=None if self.forced is None else self.forced[rows],
        )


def generate_codes(
    model: Any,
    vocabulary: MultimodalVocabulary,
    prompts: Sequence[Sequence[int]],
    negative_prompts: Sequence[Sequence[int]] | None = None,
    *,
    size: Size | None = None,
    callback: Callback | None = None,
    **settings: Any,
) -> torch.Tensor:
    """Draw one picture for each prompt: codes (B, T) int64 on the model's device.

    Args:
        size: of the pictures, see `draw`.
        callback: called after each code as `callback(step, total_steps, codes)`, with what the batch at work
            has so far, (b, t). Steps count over all batches.
        settings: and all else is as in `draw`, which also says what is raised.

    Raises:
        DrawingStopped: the callback raised; what was drawn until then comes with the error.
        DrawingInterrupted: Ctrl-C, likewise.
    """
    codes = torch.full((len(prompts), len(vocabulary.picture(size).places)), UNDRAWN, device=model.device)
    try:
        for progress in draw(model, vocabulary, prompts, negative_prompts, size=size, **settings):
            codes[progress.rows, : progress.codes.shape[1]] = progress.codes
            if callback is not None:
                _call(callback, progress)
    except _CallbackError as failed:
        stopped = DrawingStopped(f"the callback raised {failed.__cause__!r}; what was drawn is in this error's output")
        stopped.codes = codes
        raise stopped from failed.__cause__
    except KeyboardInterrupt as interrupt:
        interrupted = DrawingInterrupted("interrupted; what was drawn is in this error's output")
        interrupted.codes = codes
        raise interrupted from interrupt
    return codes


class _CallbackError(Exception):
    """Tells an error of the callback from one of the model."""


def _call(callback: Callback, progress: Progress) -> None:
    try:
        callback(progress.step, progress.total_steps, progress.codes)
    except Exception as error:
        raise _CallbackError from error


def draw(
    model: Any,
    vocabulary: MultimodalVocabulary,
    prompts: Sequence[Sequence[int]],
    negative_prompts: Sequence[Sequence[int]] | None = None,
    *,
    size: Size | None = None,
    guidance_scale: Guidance = 1.0,
    temperature: ByLevel = 1.0,
    top_k: int | Sequence[int] = 0,
    top_p: ByLevel = 1.0,
    min_p: ByLevel = 0.0,
    generators: Sequence[torch.Generator],
    forced: torch.Tensor | None = None,
    max_batch_rows: int = 128,
) -> Iterator[Progress]:
    """Draw one picture for each prompt, and tell after each code how far it is.

    Args:
        prompts: B rows of token ids that end where a picture of this size begins (`lm.sequences.image_prompt`).
        negative_prompts: B rows that guidance leads away from (default: the prompt without a caption). Not
            read at guidance 1.
        size: of the pictures, (height, width), one of the vocabulary's; default: its default.
        guidance_scale, temperature, top_k, top_p, min_p: see `SamplingSettings`; lists and functions as in
            `settings_by_position`.
        generators: B random streams; row b draws from stream b alone, whatever its neighbours.
        forced: (B, T) codes that are kept, -1 where to draw.
        max_batch_rows: rows of the model's batch, unconditional ones included; more, or more than the free memory
            has room for (`lm.generation.memory`), take several batches. A batch for which there is no memory after
            all is split.

    Raises:
        TypeError, ValueError: settings out of range, a prompt that leaves no room for the picture, a model without
            the vocabulary's image tokens, forced codes that cannot stand where they do.
        RuntimeError: logits that are not finite; no memory for one picture.
    """
    picture = vocabulary.picture(size)
    settings = settings_by_position(
        picture.layout, guidance_scale=guidance_scale, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )
    guided = any(one.guidance_scale != 1 for one in settings)
    if len(generators) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many generators, got {len(generators)}")
    if not guided:
        negative_prompts = None
    elif negative_prompts is None:
        from lm.sequences import image_prompt

        negative_prompts = [image_prompt(vocabulary, None, size)] * len(prompts)
    elif len(negative_prompts) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many negative prompts, got {len(negative_prompts)}")
    _check_room(model, vocabulary, [*prompts, *(negative_prompts or [])], size)
    if forced is not None:
        forced = _checked(forced, picture, len(prompts)).to(model.device)
    if not prompts:
        return iter(())
    uniforms = uniforms_of(generators, len(settings), model.device)
    task = _Task(model, vocabulary, prompts, negative_prompts, picture, settings, uniforms, forced)
    rows = min(max_batch_rows, _rows_that_fit(task) or max_batch_rows)
    return _draw_all(task, max(1, rows // (2 if guided else 1)))


def _rows_that_fit(task: _Task) -> int | None:
    longest = max(map(len, [*task.prompts, *(task.negative_prompts or [])]))
    return memory.rows_that_fit(task.model, longest, *_steps(task.picture))


def _steps(picture: PictureTokens) -> tuple[int, int]:
    """A picture's tokens, and the most codes that one of them is chosen among."""
    low, high = picture.layout["low"], picture.layout["high"]
    return len(picture), max(last - first for first, last in zip(low, high, strict=True))


def longest_prompt(model: Any, vocabulary: MultimodalVocabulary, size: Size | None = None) -> int | None:
    """How many tokens of prompt leave room for a picture of this size; None where the model names no limit."""
    positions, picture = getattr(model.config, "max_position_embeddings", None), vocabulary.picture(size)
    return None if positions is None else positions - int(picture.places[-1] - picture.places[0] + 1)


def _check_room(
    model: Any, vocabulary: MultimodalVocabulary, prompts: Sequence[Sequence[int]], size: Size | None
) -> None:
    limit = longest_prompt(model, vocabulary, size)
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


def _checked(forced: torch.Tensor, picture: PictureTokens, count: int) -> torch.Tensor:
    low, high = (torch.tensor(picture.layout[name], device=forced.device) for name in ("low", "high"))
    if forced.shape != (count, len(low)):
        raise ValueError(
            f"forced codes of shape {tuple(forced.shape)}: expected ({count}, {len(low)}), a row for each prompt"
        )
    wrong = ((forced != UNDRAWN) & ((forced < low) | (forced >= high))).nonzero()
    if len(wrong):
        row, place = wrong[0].tolist()
        raise ValueError(
            f"forced code {int(forced[row, place])} at position {place} of row {row}: the codes there are "
            f"{int(low[place])} to {int(high[place]) - 1}, or {UNDRAWN} where to draw"
        )
    return forced


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


def _draw_all(task: _Task, size: int) -> Iterator[Progress]:
    """All pictures, at most `size` at once; a batch that memory has no room for is halved and begun again."""
    total, first, batches_done = len(task.settings), 0, 0
    with evaluation_mode(task.model):
        stepper_of = _stepper_of(task, slice(0, min(size, len(task.prompts))))
        while first < len(task.prompts):
            rows = slice(first, min(first + size, len(task.prompts)))
            to_come = -(-(len(task.prompts) - first) // size)
            try:
                for codes in _draw_batch(task.of(rows), stepper_of):
                    step = batches_done * total + codes.shape[1]
                    yield Progress(step, (batches_done + to_come) * total, rows, codes)
            except RuntimeError as error:
                if not memory.out_of_memory(error):
                    raise
                if rows.stop - rows.start == 1:
                    raise RuntimeError(_no_memory(task, rows, error)) from error
                size = (rows.stop - rows.start) // 2
                continue
            first, batches_done = rows.stop, batches_done + 1


def _no_memory(task: _Task, rows: slice, error: RuntimeError) -> str:
    """What to say where one picture alone does not fit."""
    one = task.of(rows)
    own = [*one.prompts, *(one.negative_prompts or [])]
    needed = len(own) * memory.bytes_of_row(task.model, max(map(len, own)), *_steps(task.picture))
    free = memory.available_memory(task.model.device)
    beside = "" if free is None else f", and {free / 1e6:,.0f} MB are free on {task.model.device}"
    return (
        f"there is no memory to draw even one picture at a time: it takes about {needed / 1e6:,.0f} MB beside the model"
        f"{beside}. Use dtype bfloat16, a shorter prompt, or guidance_scale=1 ({error})"
    )


@torch.inference_mode()
def _stepper_of(task: _Task, rows: slice) -> Callable[..., Stepper]:
    """What reads the prompts, given them, how many codes follow, and the padding: the fastest way for this model."""
    if not DirectModel.fits(task.model):
        return partial(Stepper, task.model)
    if native.fits(task.model):
        return partial(native.NativeStepper, task.model)
    try:
        laid_out = DirectModel(task.model, (rows.stop - rows.start) * (1 if task.negative_prompts is None else 2))
    except RuntimeError as error:  # memory has no room for copies of the weights
        if not memory.out_of_memory(error):
            raise
        return partial(Stepper, task.model)
    return partial(DirectStepper, laid_out)


@torch.inference_mode()
def _draw_batch(task: _Task, stepper_of: Callable[..., Stepper]) -> Iterator[torch.Tensor]:
    """One batch of b pictures: codes (b, t) after each step, t up to T."""
    vocabulary, picture, total = task.vocabulary, task.picture, len(task.settings)
    low, high, offset = picture.layout["low"], picture.layout["high"], vocabulary.image_offset
    places = picture.places.tolist()
    codes = torch.full((len(task.prompts), total), UNDRAWN, device=task.model.device)
    if task.forced is not None:
        codes.copy_(task.forced)
    to_draw = (codes == UNDRAWN).any(0).tolist()
    first = [*to_draw, True].index(True)  # what is given at the beginning is read with the prompt
    if first == total:
        yield codes
        return
    begun = _begun(picture, offset + codes[:, :first])
    prompts = [[*prompt, *ids] for prompt, ids in zip(task.prompts, begun, strict=True)]
    negatives = task.negative_prompts
    if negatives is not None:
        prompts += [[*prompt, *ids] for prompt, ids in zip(negatives, begun, strict=True)]
    stepper = stepper_of(prompts, places[-1] + 1 - places[first], vocabulary.pad_id)
    finite = torch.zeros((), device=stepper.device)
    for t in range(first, total):
        if to_draw[t]:
            settings = task.settings[t]
            logits = stepper.logits(offset + low[t], offset + high[t])
            finite = finite + logits.sum()  # a sum is finite only where all its parts are
            if negatives is not None:
                conditional, unconditional = logits.chunk(2)
                logits = unconditional + settings.guidance_scale * (conditional - unconditional)
            drawn = low[t] + choose(logits, None if settings.temperature == 0 else task.uniforms[:, t], settings)
            codes[:, t] = torch.where(codes[:, t] == UNDRAWN, drawn, codes[:, t])
        yield codes[:, : t + 1]
        if t + 1 < total:
            ids = offset + codes[:, t]
            ids = torch.cat([ids, ids]) if negatives is not None else ids
            stepper.advance(ids)
            for fixed in picture.ids[places[t] + 1 : places[t + 1]].tolist():  # where a row of codes ends
                stepper.advance(torch.full_like(ids, fixed))
    check_finite(finite.isfinite())


def _begun(picture: PictureTokens, ids: torch.Tensor) -> list[list[int]]:
    """The tokens (B, n) from a picture's first code to before its place t, its codes having the ids (B, t)."""
    head, count = picture.places[0], ids.shape[1]
    tokens = torch.from_numpy(picture.ids[head : picture.places[count]]).repeat(len(ids), 1)
    tokens[:, torch.from_numpy(picture.places[:count] - head)] = ids.cpu()
    return tokens.tolist()


def check_finite(finite: torch.Tensor) -> None:
    """Raise RuntimeError unless all logits were finite, scalar bool."""
    if not finite:
        raise RuntimeError(
            "the model's logits are not finite: its weights are damaged, or float16 overflows (use float32)"
        )
