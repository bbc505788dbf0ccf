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

from tokenizer_image.pictures.columns import CAPTION_NAMES, usual_columns
from tokenizer_image.pictures.reading_notes import ReadingNotes

MARKS = (  # byte order marks; UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
FIRST_OF_MARKS = {mark[:1] for mark, _ in MARKS}
NUMBERS = (int, float, decimal.Decimal, datetime.date, datetime.time)
MISSING = frozenset((  # how tables written by pandas, R, databases and Excel write a value that is missing, or an error
    "nan", "NaN", "-nan", "-NaN", "NaT", "None", "null", "NULL", "Null", "NA", "N/A", "n/a", "<NA>", "#N/A", "#NA",
    "#VALUE!", "#REF!", "#NAME?", "#DIV/0!", "#NULL!", "#NUM!", "undefined",
))  # fmt: skip
DEEPEST = 8  # lists and mappings around a caption
MOST_CONTROLS = 0.1  # share of control characters above which a file is no text
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_USUAL = re.compile(  # whitespace, and characters of the scripts that most captions are in
    "[\t\n\r -~\u00a0-\u024f\u0370-\u052f\u0590-\u06ff\u0900-\u0e7f\u2010-\u2027\u3000-\u30ff\u4e00-\u9fff\uac00-\ud7a3"
    "\uff00-\uffef]"
)
_WORDS = re.compile("[A-Za-z\udc80-\udcff]+")  # with bytes that are not UTF-8, as "surrogateescape" has them
_RARE = re.compile(
    "[\udc81\udc83\udc86-\udc89\udc8d\udc8f\udc90\udc9d\udca4\udca6\udca8\udcac\udcaf\udcb6\udcb8\udcb9]"
)
_PUNCTUATION = dict.fromkeys(
    0xDC00 + byte for byte in b"\x80\x84\x85\x91\x92\x93\x94\x95\x96\x97\xa0\xa1\xa7\xa9\xab\xae\xbb\xbf"
)
_LIST = re.compile(r"""\[(['"]).*\1\]""", re.DOTALL)  # as pandas writes lists into CSV
_BOX = re.compile(r"\s*\d+(\s+-?(\d+(\.\d*)?|\.\d+)){4,}\s*")  # a class and a box, as detectors have it beside pictures
_INVISIBLE = re.compile("[\ufeff\u200b\u2060]")  # byte order mark, zero-width space, word joiner


def _windows_1252(error: UnicodeError) -> tuple[str, int]:
    """Error handler: bytes that are not UTF-8 are read as Windows-1252, and the others stay UTF-8."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("cp1252", errors="replace"), error.end


codecs.register_error("windows-1252", _windows_1252)


def decode_text(content: bytes, place: str, notes: ReadingNotes) -> str:
    """Bytes -> text, by their byte order mark (UTF-8, UTF-16, UTF-32), else as UTF-8, else as UTF-16 if zero bytes
    suggest it, else as Windows-1252. Text that looks wrong in Windows-1252 is counted as a doubt.

    Raises:
        ValueError: the bytes are no text.
    """
    mark, encoding = b"", "utf-8"
    if content[:1] in FIRST_OF_MARKS:
        mark, encoding = next(((mark, name) for mark, name in MARKS if content.startswith(mark)), (b"", "utf-8"))
    content = content[len(mark) :]
    if encoding == "utf-8":
        text = _as_utf8(content)
        encoding = "utf-8" if mark else _unmarked_utf16(content, text) or "utf-8"
        if encoding == "utf-8" and text is not None:
            return text  # with control characters, which `clean_text` replaces
    if encoding != "utf-8":
        notes.repair(f"read as {encoding[:6].upper()}", place)
        text = content.decode(encoding, errors="replace")
    else:
        notes.repair("not UTF-8, read as Windows-1252", place)
        text = content.decode("utf-8", errors="windows-1252")
        if _looks_wrong(content):
            notes.doubt("may be in another encoding than Windows-1252; save them as UTF-8", f"{place} ({text[:20]!r})")
    if _too_many_controls(text):
        raise ValueError(f"{place} is not text, or in an unknown encoding; save it as UTF-8")
    return text


def _as_utf8(content: bytes) -> str | None:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _unmarked_utf16(content: bytes, as_utf8: str | None) -> str | None:
    """The byte order of UTF-16 without a mark, None for other text.

    In mostly Latin text every other byte is zero. Else there are zero bytes that are not UTF-8 (of blanks and line
    ends), or UTF-8 with many control characters, and nearly all characters are usual ones in one order of the bytes.
    """
    if b"\0" in content:
        for first, name in ((1, "utf-16-le"), (0, "utf-16-be")):
            if content[first::2].count(0) > 0.4 * (len(content) / 2) and content[1 - first :: 2].count(0) == 0:
                return name
    suggested = b"\0" in content if as_utf8 is None else _too_many_controls(as_utf8)
    if not suggested or len(content) % 2:
        return None
    usual = {}
    for name in ("utf-16-le", "utf-16-be"):
        text = content.decode(name, errors="replace")
        usual[name] = len(_USUAL.findall(text)) / len(text)
    best = max(usual, key=lambda name: usual[name])
    return best if usual[best] > 0.9 else None


def _too_many_controls(text: str) -> bool:
    return len(_CONTROLS.findall(text)) > max(2, MOST_CONTROLS * len(text))


def _looks_wrong(content: bytes) -> bool:
    """Whether bytes that are not UTF-8 would be words in Windows-1252 that Western languages do not have: mostly of
    letters beyond ASCII, or with rare signs. So are Chinese, Japanese, Cyrillic, ... in their own encodings."""
    escaped = content.decode("utf-8", errors="surrogateescape").translate(_PUNCTUATION)  # byte 0xE9 -> "\udce9"
    words = [word for word in _WORDS.findall(escaped) if not word.isascii()]
    length = sum(map(len, words))
    beyond_ascii = sum(not letter.isascii() for word in words for letter in word)
    rare = sum(len(_RARE.findall(word)) for word in words)
    return (beyond_ascii > max(1, 0.5 * length)) or rare > 0.2 * length


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
    lines = re.split(r"\r\n|\r|\n", text)
    if any(map(_BOX.fullmatch, lines)):
        notes.doubt("may be a detector's labels, not captions", place)
    return captions_in(lines, place, notes)


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
        if _LIST.fullmatch(text):
            notes.doubt("may be a list that was written as text", place)
        return [text] if text else []
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    if isinstance(value, float) and math.isinf(value):
        notes.leave_out_caption("an infinite number", place)
        return []
    if isinstance(value, NUMBERS) and not isinstance(value, bool):
        notes.repair("numbers written as text", place)
        return [str(value)]
    if isinstance(value, Mapping):
        names = usual_columns([key for key in value if isinstance(key, str)], CAPTION_NAMES)
        for name in names:
            texts = captions_in(value[name], place, notes, depth + 1)
            if texts:
                return texts
        if names:
            return []
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
    """The Python value of an Arrow scalar. Texts in it that are not UTF-8 are decoded by `decode_text`; they stay bytes
    if they are no text."""
    import pyarrow as pa

    try:
        return cell.as_py()
    except UnicodeDecodeError:
        if isinstance(cell, pa.StructScalar):
            return {name: arrow_value(child, place, notes) for name, child in cell.items()}
        if isinstance(cell, pa.ListScalar):
            return [arrow_value(child, place, notes) for child in cell]
        if isinstance(cell, pa.DictionaryScalar):
            return arrow_value(cell.value, place, notes)
        content = cell.as_buffer().to_pybytes()
    try:
        return decode_text(content, place, notes)
    except ValueError:
        return content


def name_to_caption(name: str) -> str:
    """A folder's or class's name as a caption: underscores become spaces and nothing is added ("sports_car")."""
    if _SURROGATES.search(name):  # a file system's name that is not UTF-8
        name = decode_text(os.fsencode(name), name, ReadingNotes())
    return " ".join(unicodedata.normalize("NFC", clean_text(name)).replace("_", " ").split())
