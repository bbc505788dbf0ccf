"""Caption files beside pictures: a.txt, a.caption or a.json beside a.jpg."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenizer_image.pictures.columns import CAPTION_NAMES, usual_column
from tokenizer_image.pictures.folder_files import FolderFiles
from tokenizer_image.pictures.json_lines import parse_json
from tokenizer_image.pictures.reading_notes import ReadingNotes, ending
from tokenizer_image.pictures.text_intake import caption_lines, captions_in, decode_text

SIDECAR_ENDINGS = (".txt", ".caption", ".json")  # the first with a caption counts
MAX_JSON_BYTES = 1_000_000  # larger ones are annotations with pictures or outlines in them


@dataclass
class Sidecars:
    """chosen: {picture: its caption file}. unused: {further caption file of a picture: why it is not read}."""

    chosen: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)


def find_sidecars(files: FolderFiles, pictures: Sequence[str]) -> Sidecars:
    """The caption files of pictures: their names with another ending in place of the picture's, or behind it.

    Where a picture has several, they are read until one has a caption. A .json file counts only if it has one.
    """
    found = Sidecars()
    present = set(map(ending, files.files))
    endings = [suffix for suffix in SIDECAR_ENDINGS if suffix in present]
    for picture in pictures:
        stem = posixpath.splitext(picture)[0]
        paths = [files.find(stem + suffix, picture + suffix) for suffix in endings]
        paths += [picture + suffix for suffix in endings if picture + suffix in files]
        candidates = list(dict.fromkeys(path for path in paths if path is not None))
        if len(candidates) == 1 and ending(candidates[0]) != ".json":  # its content is read with the captions
            found.chosen[picture] = candidates[0]
        elif candidates:
            _choose(files.root, picture, candidates, found)
    used = set(found.chosen.values())  # a file may belong to a.jpg and to a.png
    found.unused = {file: reason for file, reason in found.unused.items() if file not in used}
    return found


def _choose(root: Path, picture: str, candidates: Sequence[str], found: Sidecars) -> None:
    for candidate in candidates:
        if picture in found.chosen:
            found.unused[candidate] = "another caption file is read"
            continue
        notes = ReadingNotes()
        if sidecar_captions(root, candidate, notes):
            found.chosen[picture] = candidate
        else:
            reasons = [reason for kind, reason in notes.left_out if kind == "caption"]
            found.unused[candidate] = reasons[0] if ending(candidate) == ".json" else "it holds no caption"


def sidecar_captions(root: Path, sidecar: str, notes: ReadingNotes) -> list[str]:
    """The captions in a caption file, [] without; repairs and reasons are counted in `notes`."""
    is_json = ending(sidecar) == ".json"
    try:
        with open(f"{root}/{sidecar}", "rb") as file:
            content = file.read(MAX_JSON_BYTES + 1 if is_json else -1)
    except OSError as error:
        notes.leave_out_caption(f"the file cannot be read ({error.strerror})", sidecar)
        return []
    return _json_captions(content, sidecar, notes) if is_json else caption_lines(content, sidecar, notes)


def _json_captions(content: bytes, place: str, notes: ReadingNotes) -> list[str]:
    if len(content) > MAX_JSON_BYTES:
        notes.leave_out_caption(f"larger than {MAX_JSON_BYTES // 1_000_000} MB", place)
        return []
    try:
        value = parse_json(decode_text(content, place, notes), place)
    except ValueError:
        notes.leave_out_caption("it is not JSON", place)
        return []
    texts = (
        captions_in(value, place, notes)
        if isinstance(value, Mapping) and usual_column(list(value), CAPTION_NAMES)
        else []
    )
    if not texts:
        notes.leave_out_caption("no text under a key such as caption, text or prompt", place)
    return texts
