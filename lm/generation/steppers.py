"""Which stepper computes a model fastest, and of how many tokens a call pays."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from lm.generation import memory, native
from lm.generation.direct_stepper import DirectModel, DirectStepper
from lm.generation.native_stepper import NativeStepper
from lm.generation.stepper import Stepper

LARGE_MODEL = 64e6  # bytes of weights that no cache of the processor holds
FEW_TOKENS = 4  # in a call, where several pay
StepperFactory = Callable[[Sequence[Sequence[int]], int, int], Stepper]  # prompts, new tokens, padding id

logger = logging.getLogger(__name__)


@torch.inference_mode()
def stepper_factory(model: Any, rows: int) -> StepperFactory:
    """The fastest stepper that computes a model, for batches of about so many rows."""
    if not DirectModel.fits(model):
        return partial(Stepper, model)
    if native.fits(model):
        return partial(NativeStepper, model)
    try:
        direct = DirectModel(model, rows)
    except RuntimeError as error:  # memory has no room for copies of the weights
        if not memory.out_of_memory(error):
            raise
        return partial(Stepper, model)
    return partial(DirectStepper, direct)


def default_tokens_per_call(model: Any, make_stepper: StepperFactory, batch: int, rows_of_each: int = 1) -> int:
    """How many tokens, or codes, are computed in a call where nothing else is asked for.

    Several pay where a call takes the time to read the weights: through compiled code, for one picture or text, where
    the weights are more than the processor's caches hold. With guidance, which computes each code twice, they do with
    AVX-512 alone. docs/generation.md has the measurements.

    Args:
        batch: pictures or texts that are drawn together.
        rows_of_each: rows of the model's batch that each of them takes.
    """
    weights = sum(parameter.nbytes for parameter in model.base_model.parameters())
    is_native = getattr(make_stepper, "func", None) is NativeStepper
    if not is_native or weights < LARGE_MODEL or batch > 1 or rows_of_each > 2:
        return 1
    return FEW_TOKENS if rows_of_each == 1 or native.vector_bytes() >= 64 else 1


def check_per_call(name: str, count: int | None) -> None:
    """Raise ValueError, with the name of the setting, unless so many codes or tokens can be computed in a call; None
    leaves it open."""
    if count is not None and count < 1:
        raise ValueError(f"{name} must be at least 1 (one by one), got {count}")


def can_compute_several(stepper: Stepper, model: Any) -> bool:
    """Whether `Stepper.feed` works; where it does not, that is told, once for each kind of model."""
    if not stepper.goes_back:
        _say_one_by_one(type(model).__name__)
    return stepper.goes_back


@functools.cache
def _say_one_by_one(name: str) -> None:
    logger.warning("tokens are drawn one by one: the cache of %s (sliding windows, states) cannot be cut back", name)
