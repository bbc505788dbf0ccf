"""Sampling the codes of pictures from a causal language model.

At position t only the codes `layout["low"][t] <= code < layout["high"][t]` are possible, so only those rows
of the output layer are multiplied and every sample is a whole, valid picture. With guidance, a prompt's row
and its unconditional twin share one batch: one prefill, then one forward pass for each code, with a KV cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from lm.generation import memory
from lm.generation import native_stepper as native
from lm.generation.direct_stepper import DirectModel, DirectStepper
from lm.generation.progress import Callback, DrawingInterrupted, DrawingStopped, Progress
from lm.generation.sampling import SamplingSettings, choose, uniforms_of
from lm.generation.stepper import Stepper, check_finite, evaluation_mode
from lm.generation.task import UNDRAWN, DrawingTask
from lm.sequences import image_prompt
from lm.vocabulary import MultimodalVocabulary, PictureTokens

StepperFactory = Callable[[Sequence[Sequence[int]], int, int], Stepper]  # prompts, new tokens, padding id


def generate_codes(
    model: Any, vocabulary: MultimodalVocabulary, task: DrawingTask, callback: Callback | None = None
) -> torch.Tensor:
    """Draw the pictures of a task: codes (B, T) int64 on the model's device.

    Args:
        callback: called after each code as `callback(step, total_steps, codes)`, with what the current batch has
            drawn so far, (b, t). Steps count over all batches.

    Raises:
        DrawingStopped: the callback raised; what was drawn until then comes with the error.
        DrawingInterrupted: Ctrl-C, likewise.
        ValueError, RuntimeError: as `draw`.
    """
    shape = (len(task.prompts), len(vocabulary.picture(task.size).places))
    codes = torch.full(shape, UNDRAWN, device=model.device)
    try:
        for progress in draw(model, vocabulary, task):
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


def draw(model: Any, vocabulary: MultimodalVocabulary, task: DrawingTask) -> Iterator[Progress]:
    """Draw the pictures of a task step by step: one `Progress` after each code.

    Pictures are drawn in batches of at most `task.max_batch_rows` rows, or as many as the free memory has room for
    (`lm.generation.memory`). A batch that runs out of memory all the same is halved and drawn again.

    Raises:
        ValueError: lists that do not match in number, a prompt that leaves no room for the picture, a model without
            the vocabulary's image tokens, forced codes that are not possible at their positions.
        RuntimeError: logits that are not finite; no memory for one picture.
    """
    task.check(model, vocabulary)
    if not task.prompts:
        return iter(())
    negatives = task.negative_prompts
    if not task.is_guided:
        negatives = None
    elif negatives is None:
        negatives = [image_prompt(vocabulary, None, task.size)] * len(task.prompts)
    rows = _Rows(
        model, vocabulary, vocabulary.picture(task.size), task.settings, task.prompts, negatives,
        uniforms=uniforms_of(task.generators, len(task.settings), model.device),
        forced=None if task.forced is None else task.forced.to(model.device),
    )  # fmt: skip
    most = min(task.max_batch_rows, rows.that_fit() or task.max_batch_rows)
    return _draw_in_batches(rows, max(1, most // rows.rows_of_picture))


@dataclass(frozen=True)
class _Rows:
    """All or some of a task's pictures, after its checks.

    Attributes:
        picture: the tokens of pictures of the size that is drawn.
        settings: one for each of T positions.
        negative_prompts: None without guidance.
        uniforms: (B, T) numbers in [0, 1].
        forced: (B, T) codes, -1 where to draw; None draws every code.
    """

    model: Any
    vocabulary: MultimodalVocabulary
    picture: PictureTokens
    settings: Sequence[SamplingSettings]
    prompts: Sequence[Sequence[int]]
    negative_prompts: Sequence[Sequence[int]] | None
    uniforms: torch.Tensor
    forced: torch.Tensor | None

    def part(self, rows: slice) -> _Rows:
        """Some of the pictures."""
        return replace(
            self,
            prompts=self.prompts[rows],
            negative_prompts=None if self.negative_prompts is None else self.negative_prompts[rows],
            uniforms=self.uniforms[rows],
            forced=None if self.forced is None else self.forced[rows],
        )

    @property
    def rows_of_picture(self) -> int:
        """Rows of the model's batch that one picture takes: a second one with guidance."""
        return 1 if self.negative_prompts is None else 2

    def that_fit(self) -> int | None:
        """Rows of the model's batch that the free memory has room for; None where that is not known."""
        return memory.rows_that_fit(self.model, *self._lengths())

    def bytes_of_row(self) -> int:
        """About what one row of the model's batch takes beside the weights."""
        return memory.bytes_of_row(self.model, *self._lengths())

    def _lengths(self) -> tuple[int, int, int]:
        """Tokens of the longest prompt, tokens of a picture, and the most codes that one is chosen among."""
        low, high = self.picture.layout["low"], self.picture.layout["high"]
        longest = max(map(len, [*self.prompts, *(self.negative_prompts or [])]))
        return longest, len(self.picture), max(last - first for first, last in zip(low, high, strict=True))


def _draw_in_batches(task: _Rows, size: int) -> Iterator[Progress]:
    """All pictures, at most `size` at once."""
    count, total = len(task.prompts), len(task.settings)

    def draw_batch(batch: memory.Batch) -> Iterator[Progress]:
        part = task.part(batch.rows)
        try:
            for codes in _draw_batch(part, make_stepper):
                step = batch.number * total + codes.shape[1]
                yield Progress(step, batch.expected * total, batch.rows, codes)
        except RuntimeError as error:
            if len(part.prompts) == 1 and memory.out_of_memory(error):
                raise RuntimeError(_no_memory_message(part, error)) from error
            raise

    with evaluation_mode(task.model):
        make_stepper = _stepper_factory(task, min(size, count))
        yield from memory.in_batches(draw_batch, count, size)


def _no_memory_message(picture: _Rows, error: RuntimeError) -> str:
    """What to say where one picture alone does not fit."""
    needed, device = picture.rows_of_picture * picture.bytes_of_row(), picture.model.device
    free = memory.available_memory(device)
    free_words = "" if free is None else f", and {free / 1e6:,.0f} MB are free on {device}"
    return (
        f"there is no memory to draw even one picture at a time: it takes about {needed / 1e6:,.0f} MB beside the model"
        f"{free_words}. Use dtype bfloat16, a shorter prompt, or guidance_scale=1 ({error})"
    )


@torch.inference_mode()
def _stepper_factory(task: _Rows, pictures: int) -> StepperFactory:
    """The fastest stepper that computes this model, for batches of about so many pictures."""
    if not DirectModel.fits(task.model):
        return partial(Stepper, task.model)
    if native.fits(task.model):
        return partial(native.NativeStepper, task.model)
    try:
        direct = DirectModel(task.model, pictures * task.rows_of_picture)
    except RuntimeError as error:  # memory has no room for copies of the weights
        if not memory.out_of_memory(error):
            raise
        return partial(Stepper, task.model)
    return partial(DirectStepper, direct)


@torch.inference_mode()
def _draw_batch(batch: _Rows, make_stepper: StepperFactory) -> Iterator[torch.Tensor]:
    """One batch of b pictures: codes (b, t) after each step, t up to T."""
    vocabulary, picture, total = batch.vocabulary, batch.picture, len(batch.settings)
    low, high, offset = picture.layout["low"], picture.layout["high"], vocabulary.image_offset
    places = picture.places.tolist()
    codes = torch.full((len(batch.prompts), total), UNDRAWN, device=batch.model.device)
    if batch.forced is not None:
        codes.copy_(batch.forced)
    to_draw = (codes == UNDRAWN).any(0).tolist()
    first = [*to_draw, True].index(True)  # leading codes that are forced in all rows are read with the prompt
    if first == total:
        yield codes
        return
    stepper = make_stepper(_prompts(batch, codes[:, :first]), places[-1] + 1 - places[first], vocabulary.pad_id)
    finite = torch.zeros((), device=stepper.device)
    for t in range(first, total):
        if to_draw[t]:
            logits = stepper.logits(offset + low[t], offset + high[t])
            finite = finite + logits.sum()  # a sum is finite only where all its parts are
            drawn = low[t] + _choose(batch, t, logits)
            codes[:, t] = torch.where(codes[:, t] == UNDRAWN, drawn, codes[:, t])
        yield codes[:, : t + 1]
        if t + 1 < total:
            ids = (offset + codes[:, t]).repeat(batch.rows_of_picture)
            stepper.advance(ids)
            for fixed in picture.ids[places[t] + 1 : places[t + 1]].tolist():  # where a row of codes ends
                stepper.advance(torch.full_like(ids, fixed))
    check_finite(finite.isfinite())


def _choose(batch: _Rows, position: int, logits: torch.Tensor) -> torch.Tensor:
    """The column (b,) that each picture draws at a position, of logits (b, n), or (2 b, n) with guidance."""
    settings = batch.settings[position]
    if batch.negative_prompts is not None:
        conditional, unconditional = logits.chunk(2)
        logits = unconditional + settings.guidance_scale * (conditional - unconditional)
    return choose(logits, None if settings.temperature == 0 else batch.uniforms[:, position], settings)


def _prompts(batch: _Rows, codes: torch.Tensor) -> list[list[int]]:
    """Token ids of each row of the model's batch up to the first code to draw, after the given ones (b, t)."""
    picture, count = batch.picture, codes.shape[1]
    head = picture.places[0]
    tokens = torch.from_numpy(picture.ids[head : picture.places[count]]).repeat(len(codes), 1)
    tokens[:, torch.from_numpy(picture.places[:count] - head)] = batch.vocabulary.image_offset + codes.cpu()
    given = tokens.tolist()
    rows = [[*prompt, *ids] for prompt, ids in zip(batch.prompts, given, strict=True)]
    if batch.negative_prompts is not None:
        rows += [[*prompt, *ids] for prompt, ids in zip(batch.negative_prompts, given, strict=True)]
    return rows
