"""Arguments of a pipeline's call: brought into one form, and refused in a sentence that names the value."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator
from typing import Any

from PIL import Image

from tokenizer_image.pictures.text_intake import clean_text


def whole_number(value: Any, name: str, least: int) -> int:
    """`value` as an int.

    Raises:
        TypeError, ValueError: not a whole number, or one below `least`; the message names it.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def list_of_texts(prompt: Any, name: str) -> list[str | None]:
    """A prompt, or several, as a list, cleaned as captions are (`clean_text`) and without the space
    at both ends; [None] for None: no prompt.

    Raises:
        TypeError, ValueError: an empty list, or something that is not a text.
    """
    if prompt is None:
        return [None]
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (list, tuple)):
        raise TypeError(f"{name} must be a text, a list of texts or None, got {shown(prompt)}")
    if not prompts:
        raise ValueError(f"{name} is an empty list: give at least one text")
    for index, text in enumerate(prompts):
        if not isinstance(text, str):
            raise TypeError(f"{name} {index} must be a text, got {shown(text)}")
    return [clean_text(text).strip() for text in prompts]


def each_image(image: Image.Image | Iterable[Image.Image]) -> Iterator[Image.Image]:
    """The PIL images of an argument, one after the other; of an iterator, each is taken when it is needed.

    Raises:
        TypeError, ValueError: there is none, or something that is not a PIL image.
    """
    if isinstance(image, (str, bytes)) or not isinstance(image, Iterable):
        image = [image]
    count = 0
    for one in image:  # no enumerate: it would keep a picture until the next one is read
        if not isinstance(one, Image.Image):
            raise TypeError(f"image {count} must be a PIL image, got {shown(one)}: open files with PIL.Image.open")
        yield one
        del one  # before the next one is read
        count += 1
    if not count:
        raise ValueError("image is an empty list: give at least one picture")


def shown(value: Any) -> str:
    """A value for an error message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}...{text[-1]}"
