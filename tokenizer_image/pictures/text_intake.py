"""Text intake of all readers: bytes to text, and the value of any cell to clean captions."""

from __future__ import annotations

import codecs
import datetime
import decimal
import math
import os
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from tokenizer_image.pictures.columns import CAPTION_NAMES, usual_column
from tokenizer_image.pictures.reading_notes import ReadingNotes

MARKS = (  # byte order marks; UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
NUMBERS = (int, float, decimal.Decimal, datetime.date, datetime.time)
MISSING = ("nan", "NaN", "None", "null", "NULL", "<NA>", "#N/A")  # as tables written from Python and Excel have it
DEEPEST = 8  # lists and mappings around a caption
MOST_CONTROLS = 0.1  # share of control characters above which a file is no text
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_INVISIBLE = re.compile("[\ufeff\u200b\u2060]")  # byte order mark, zero-width space, word joiner


def _windows_1252(error: UnicodeError) -> tuple[str, int]:
    """Error handler: bytes that are not UTF-8 are read as Windows-1252, and the others stay UTF-8."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("cp1252", errors="replace"), error.end


codecs.register_error("windows-1252", _windows_1252)


def decode_text(content: bytes, place: str, notes: ReadingNotes) -> str:
    """Bytes -> text, by their byte order mark (UTF-8, UTF-16, UTF-32), else as UTF-8; what is not UTF-8 is read as
    Windows-1252, and UTF-16 without a mark is recognised by its zero bytes.

    Raises:
        ValueError: the bytes are no text.
    """
    mark, encoding = next(((mark, name) for mark, name in MARKS if content.startswith(mark)), (b"", "utf-8"))
    content = content[len(mark) :]
    if not mark and b"\0" in content:
        encoding = _unmarked_utf16(content) or encoding
    if encoding != "utf-8":
        notes.repair(f"read as {encoding[:6].upper()}", place)
        text = content.decode(encoding, errors="replace")
    else:
        try:
            return content.decode("utf-8")  # with control characters, which `clean_text` replaces
        except UnicodeDecodeError:
            notes.repair("not UTF-8, read as Windows-1252", place)
            text = content.decode("utf-8", errors="windows-1252")
    if len(_CONTROLS.findall(text)) > max(2, MOST_CONTROLS * len(text)):
        raise ValueError(f"{place} is not text, or in an unknown encoding; save it as UTF-8")
    return text


def _unmarked_utf16(content: bytes) -> str | None:
    """The byte order of UTF-16 without a mark, of mostly Latin text: every other byte is zero."""
    for first, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        if content[first::2].count(0) > 0.4 * (len(content) / 2) and content[1 - first :: 2].count(0) == 0:
            return name
    return None


def clean_text(text: str, place: str = "", notes: ReadingNotes | None = None) -> str:
    """Text that any tokenizer and file takes: lone surrogates become U+FFFD, control characters spaces, and invisible
    marks (U+FEFF, U+200B, U+2060) go. Whitespace at the ends stays. Each repair is counted in `notes`."""
    notes = notes or ReadingNotes()
    if _SURROGATES.search(text):
        notes.repair("surrogates replaced", place)
        text = text.encode("utf-16-le", errors="surrogatepass").decode("utf-16-le", errors="replace")
    if _CONTROLS.search(text):
        notes.repair("control characters replaced by spaces", place)
        text = _CONTROLS.sub(" ", text)
    return _INVISIBLE.sub("", text)


def caption_lines(content: bytes, place: str, notes: ReadingNotes) -> list[str]:
    """The captions of a text file: its lines, without blank ones and repetitions; [] for a file that is no text."""
    try:
        text = decode_text(content, place, notes)
    except ValueError:
        notes.leave_out_caption("the file is no text", place)
        return []
    return captions_in(re.split(r"\r\n|\r|\n", text), place, notes)


def captions_in(value: Any, place: str, notes: ReadingNotes, depth: int = 0) -> list[str]:
    """A cell's captions: a text, a number, a list of texts, or a mapping with a usual caption name.

    Blank ones, missing ones (None, NaN) and repetitions are dropped; what is no caption is counted in `notes`.
    depth: lists and mappings around the value.
    """
    if depth > DEEPEST:
        notes.leave_out_caption("lists or mappings that are nested too deeply", place)
        return []
    if isinstance(value, bytes):
        return caption_lines(value, place, notes)
    if isinstance(value, str):
        text = clean_text(value, place, notes).strip()
        if text in MISSING:
            notes.leave_out_caption(f"{text!r}, which stands for a missing value", place)
            return []
        return [text] if text else []
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    if isinstance(value, NUMBERS) and not isinstance(value, bool):
        notes.repair("numbers written as text", place)
        return [str(value)]
    if isinstance(value, Mapping):
        name = usual_column([str(key) for key in value], CAPTION_NAMES)
        if name is not None:
            return captions_in(value[name], place, notes, depth + 1)
        reason = f"a mapping without a key such as caption or text (it has {', '.join(map(str, value))[:60]})"
    elif isinstance(value, (list, tuple)):
        if not value or not all(isinstance(item, NUMBERS) for item in value):
            return list(dict.fromkeys(text for item in value for text in captions_in(item, place, notes, depth + 1)))
        reason = "a list of numbers"
    else:
        reason = f"of the type {type(value).__name__}"
    notes.leave_out_caption(reason, place)
    return []


def arrow_value(cell: Any, place: str, notes: ReadingNotes) -> Any:
    """The Python value of an Arrow scalar. A text there that is not UTF-8 is decoded by `decode_text`.

    Raises:
        ValueError: such a text is inside a list or struct, or is no text.
    """
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        if not hasattr(cell, "as_buffer"):
            raise ValueError(f"{place}: a text in a list or struct is not UTF-8; save it as UTF-8") from error
        return decode_text(cell.as_buffer().to_pybytes(), place, notes)


def name_to_caption(name: str) -> str:
    """A folder's or class's name as a caption: underscores become spaces and nothing is added ("sports_car")."""
    if _SURROGATES.search(name):  # a file system's name that is not UTF-8
        name = decode_text(os.fsencode(name), name, ReadingNotes())
    return " ".join(unicodedata.normalize("NFC", clean_text(name)).replace("_", " ").split())
