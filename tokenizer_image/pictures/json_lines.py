"""Files with one JSON value a line. Errors name file and line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizer_image.pictures.reading_notes import ReadingNotes
from tokenizer_image.pictures.text_intake import decode_text


def read_text_file(path: Path, notes: ReadingNotes) -> str:
    """A text file in any usual encoding. Raises ValueError that names the file if it is no text or cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    return decode_text(content, str(path), notes)


def json_lines(text: str, path: Path, form: str, notes: ReadingNotes) -> Iterator[tuple[str, Any]]:
    """("FILE, line N", value) of each line of a file's text that is not blank.

    Raises:
        ValueError: a line is not JSON, or an object there has a key twice; `form` says what a line should be.
    """
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, _parse_line(line.strip(), place, form, notes)


def _parse_line(line: str, place: str, form: str, notes: ReadingNotes) -> Any:
    try:
        return parse_json(line, place)
    except json.JSONDecodeError as error:
        if line.endswith(","):  # lines that were cut out of a JSON array
            try:
                value = parse_json(line[:-1], place)
            except json.JSONDecodeError:
                pass
            else:
                notes.repair("a comma behind a line of JSON", place)
                return value
        raise ValueError(f"{place}, is not JSON: {error}. {form}") from error


def parse_json(text: str | bytes, place: str) -> Any:
    """JSON in which no object has a key twice. Raises json.JSONDecodeError, or ValueError that names `place`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {twice!r} occurs twice; leave one out")
        return values

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise ValueError(f"{place}: the JSON is nested too deeply") from error
    except ValueError as error:  # a key that occurs twice, or a number of thousands of digits
        raise ValueError(f"{place}: {error}") from error
