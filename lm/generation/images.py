"""Sampling the codes of pictures from a causal language model.

At position t only the codes `layout["low"][t] <= code < layout["high"][t]` are possible, so only those rows
of the output layer are multiplied and every sample is a whole, valid picture. With guidance, a prompt's row
and its unconditional twin share one batch: one prefill, then one forward pass for each code, or for several
(`lm.generation.fixed_point`), with a KV cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from lm.generation import memory
from lm.generation.fixed_point import FixedPoint
from lm.generation.guess_table import GuessTable
from lm.generation.guesses import Guesser
from lm.generation.picture_rows import PictureRows
from lm.generation.progress import Callback, DrawingInterrupted, DrawingStopped, Progress
from lm.generation.sampling import uniforms_of
from lm.generation.stepper import check_finite, evaluation_mode
from lm.generation.steppers import StepperFactory, can_compute_several, default_tokens_per_call, stepper_factory
from lm.generation.task import UNDRAWN, DrawingTask
from lm.vocabulary import MultimodalVocabulary


def generate_codes(
    model: Any, vocabulary: MultimodalVocabulary, task: DrawingTask, callback: Callback | None = None
) -> torch.Tensor:
    """Draw the pictures of a task: codes (B, T) int64 on the model's device.

    Args:
        callback: called after each call of the model as `callback(step, total_steps, codes)`, with what the current
            batch has drawn so far, (b, t). Steps count codes over all batches; a call may draw several.

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
    """Draw the pictures of a task step by step: one `Progress` after each call of the model.

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
    rows = PictureRows(
        model, vocabulary, vocabulary.picture(task.size), task.settings, task.prompts,
        task.guiding_prompts(vocabulary), uniforms=uniforms_of(task.generators, len(task.settings), model.device),
        forced=None if task.forced is None else task.forced.to(model.device), sources=task.sources,
    )  # fmt: skip
    most = min(task.max_batch_rows, rows.that_fit() or task.max_batch_rows)
    return _draw_in_batches(rows, max(1, most // rows.rows_of_picture), task.codes_per_call, task.guess_table)


def _draw_in_batches(task: PictureRows, size: int, wanted: int | None, table: GuessTable | None) -> Iterator[Progress]:
    """All pictures, at most `size` at once, and `wanted` codes a call."""
    count, total = len(task.prompts), len(task.settings)

    def draw_batch(batch: memory.Batch) -> Iterator[Progress]:
        part = task.part(batch.rows)
        try:
            for calls, codes in enumerate(_draw_batch(part, make_stepper, codes_per_call, table), 1):
                step = batch.number * total + codes.shape[1]
                yield Progress(step, batch.expected * total, batch.rows, codes, calls)
        except RuntimeError as error:
            if len(part.prompts) == 1 and memory.out_of_memory(error):
                raise RuntimeError(_no_memory_message(part, error)) from error
            raise

    with evaluation_mode(task.model):
        batch = min(size, count)
        make_stepper = stepper_factory(task.model, batch * task.rows_of_picture)
        codes_per_call = wanted or default_tokens_per_call(task.model, make_stepper, batch, task.rows_of_picture)
        yield from memory.in_batches(draw_batch, count, size)


def _no_memory_message(picture: PictureRows, error: RuntimeError) -> str:
    """What to say where one picture alone does not fit."""
    needed, device = picture.rows_of_picture * picture.bytes_of_row(), picture.model.device
    free = memory.available_memory(device)
    free_words = "" if free is None else f", and {free / 1e6:,.0f} MB are free on {device}"
    return (
        f"there is no memory to draw even one picture at a time: it takes about {needed / 1e6:,.0f} MB beside the model"
        f"{free_words}. Use dtype bfloat16, a shorter prompt, or guidance_scale=1 ({error})"
    )


@torch.inference_mode()
def _draw_batch(
    batch: PictureRows, make_stepper: StepperFactory, codes_per_call: int, table: GuessTable | None
) -> Iterator[torch.Tensor]:
    """One batch of b pictures: codes (b, t) after each call of the model, t up to T."""
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
    stepper = make_stepper(batch.prompts_with(codes[:, :first]), places[-1] + 1 - places[first], vocabulary.pad_id)
    if codes_per_call > 1 and can_compute_several(stepper, batch.model):
        sources = None if batch.sources is None else batch.sources.cpu().numpy()
        guesser = Guesser(picture.layout, table, sources)
        yield from FixedPoint(batch, stepper, codes, first, guesser, codes_per_call).steps()
        return
    finite = torch.zeros((), device=stepper.device)
    for t in range(first, total):
        if to_draw[t]:
            logits = stepper.logits(offset + low[t], offset + high[t])
            finite = finite + logits.sum()  # a sum is finite only where all its parts are
            drawn = low[t] + batch.choose(t, logits)
            codes[:, t] = torch.where(codes[:, t] == UNDRAWN, drawn, codes[:, t])
        yield codes[:, : t + 1]
        if t + 1 < total:
            ids = (offset + codes[:, t]).repeat(batch.rows_of_picture)
            stepper.advance(ids)
            for fixed in picture.ids[places[t] + 1 : places[t + 1]].tolist():  # where a row of codes ends
                stepper.advance(torch.full_like(ids, fixed))
    check_finite(finite.isfinite())
