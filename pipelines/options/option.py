"""One option of a command: a dataclass field with its help text and the values that it may have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, fields
from typing import Any

INTERVAL, CHOICES = "interval", "choices"
BOUNDS = re.compile(r"(?P<opens>[\[(])(?P<low>\S+), (?P<high>\S+)(?P<closes>[\])])")


def option(
    default: Any,
    text: str,
    *,
    above_zero: bool = False,
    not_negative: bool = False,
    within: str = "",
    choices: Sequence[str | int] = (),
) -> Any:
    """A dataclass field with help text.

    Args:
        default: a list is copied for each object.
        text: the help text.
        above_zero, not_negative: what `check_values` allows of a number, or of each in a list; None is always allowed.
        within: the same as an interval with both ends: "[0, 1)" has 0 but not 1, and the upper end may be "inf".
        choices: the values that it allows.
    """
    interval = within or ("(0, inf)" if above_zero else "[0, inf)" if not_negative else "")
    metadata = {"help": text, INTERVAL: interval, CHOICES: tuple(choices)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_values(options: object) -> None:
    """Raise ValueError for an option of a dataclass that has a value which its `option` does not allow."""
    for one in fields(options):  # type: ignore[arg-type]  # any dataclass
        value, interval, choices = getattr(options, one.name), one.metadata.get(INTERVAL), one.metadata.get(CHOICES)
        for part in value if isinstance(value, list) else [value]:
            if part is not None and interval and not _is_within(part, interval):
                raise ValueError(f"--{one.name} {part} must be {_in_words(interval)}")
            if part is not None and choices and part not in choices:
                *others, last = map(str, choices)
                raise ValueError(f"--{one.name} {part!r}: choose {', '.join(others)} or {last}")


def option_defaults(options: object) -> dict[str, Any]:
    """The default of each option of a dataclass."""
    return {
        one.name: one.default_factory() if callable(one.default_factory) else one.default
        for one in fields(options)  # type: ignore[arg-type]  # any dataclass
    }


def given_options(options: object, names: Iterable[str]) -> list[str]:
    """ "--name" for each of these options of a dataclass that is not at its default; other names are passed over."""
    defaults = option_defaults(options)
    return [f"--{name}" for name in names if name in defaults and getattr(options, name) != defaults[name]]


def _is_within(value: float, interval: str) -> bool:
    """Whether a number lies in an interval such as "[0, 1)"; NaN lies in none."""
    opens, low, high, closes = _bounds(interval)
    return (value >= low if opens == "[" else value > low) and (value <= high if closes == "]" else value < high)


def _in_words(interval: str) -> str:
    """What a message says of an interval: "above zero", "at least 0 and below 1"."""
    opens, low, high, closes = _bounds(interval)
    lower = f"{'at least' if opens == '[' else 'above'} {low:g}".replace(" 0", " zero")
    return lower if high == float("inf") else f"{lower} and {'at most' if closes == ']' else 'below'} {high:g}"


def _bounds(interval: str) -> tuple[str, float, float, str]:
    match = BOUNDS.fullmatch(interval)
    assert match, f"{interval!r} is no interval such as [0, 1)"
    return match["opens"], float(match["low"]), float(match["high"]), match["closes"]


def with_option_names(message: str, options: Mapping[str, str]) -> str:
    """A message about a class's settings with options in their place: `image_size=30` is `--image_size 30`.

    Args:
        message: in which a setting's value follows its name, after an equals sign or a blank.
        options: the option, without dashes, that sets each setting.
    """
    pattern = rf"(?<![\w-])({'|'.join(options)})(?:=| (?=[\d\[']))"
    return re.sub(pattern, lambda match: f"--{options[match[1]]} ", message)
