"""One option of a command: a dataclass field with its help text and the values that it may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, fields
from typing import Any

ABOVE_ZERO, NOT_NEGATIVE, CHOICES = "above_zero", "not_negative", "choices"


def option(
    default: Any,
    text: str,
    *,
    above_zero: bool = False,
    not_negative: bool = False,
    choices: Sequence[str] = (),
) -> Any:
    """A dataclass field with help text.

    Args:
        default: a list is copied for each object.
        text: the help text.
        above_zero, not_negative, choices: what `check_values` allows; None is always allowed.
    """
    metadata = {"help": text, ABOVE_ZERO: above_zero, NOT_NEGATIVE: not_negative, CHOICES: tuple(choices)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_values(options: Any) -> None:
    """Raise ValueError for an option of a dataclass that has a value which its `option` does not allow."""
    for one in fields(options):
        value, rule = getattr(options, one.name), one.metadata
        if value is None:
            continue
        if rule.get(ABOVE_ZERO) and not value > 0:
            raise ValueError(f"--{one.name} {value} must be above zero")
        if rule.get(NOT_NEGATIVE) and not value >= 0:
            raise ValueError(f"--{one.name} {value} must be at least zero")
        choices = rule.get(CHOICES)
        if choices and value not in choices:
            listed = f"{', '.join(choices[:-1])} or {choices[-1]}"
            raise ValueError(f"--{one.name} {value!r}: choose {listed}")
