"""The members of a tar archive, and which of them are one example.

Damaged and joined archives are read as far as they are whole; what is lost is told.
"""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from tokenizer_image.pictures.fingerprints import file_identity
from tokenizer_image.pictures.folder_files import folded, is_hidden, is_of_system
from tokenizer_image.pictures.picture_files import is_picture
from tokenizer_image.pictures.reading_notes import ReadingNotes

Place = tuple[int, int]  # offset in the archive, and size
Members = dict[str, Place]  # {field: place} of one example; a field is what follows the key: "png", "seg.png", "txt"
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"7z\xbc\xaf", b"Rar!")
CHUNK = 1 << 20  # bytes that are looked through at once


def is_picture_field(field: str) -> bool:
    """Whether a member with this field is a picture that this installation reads."""
    return is_picture(f"x.{field}")


def tar_examples(path: Path, notes: ReadingNotes) -> dict[str, Members]:
    """{key: members} of a tar archive, in its order. Reads the headers alone.

    Raises:
        ValueError: the file is no tar archive, or a compressed one.
    """
    places: dict[tuple[str, str], Place] = {}  # by (folder and name up to the first dot, the rest)
    for member in _members(path, notes):
        folder, base = posixpath.split(member.name)
        stem, _, field = base.partition(".")
        name = f"{path.name}/{member.name}"
        if member.isdir() or is_of_system(member.name):
            continue
        if is_hidden(member.name):
            notes.leave_out(name, "hidden: its name, or its folder's, begins with a dot")
            continue
        if not field:
            notes.leave_out(name, "its name has no ending")
            continue
        if not member.isreg() or member.issparse():
            notes.leave_out(name, "a link, or no plain file, in an archive")
            continue
        key = f"{folder}/{stem}".lstrip("/"), field
        if key in places:
            notes.leave_out(name, "a later member of the archive has the same name")
        places[key] = member.offset_data, member.size
    fields: dict[str, list[str]] = {}
    for stem, field in places:
        fields.setdefault(stem, []).append(field)
    dotted = dotted_keys(fields)
    examples: dict[str, Members] = {}
    for (stem, field), place in places.items():
        if stem in dotted and "." in field:
            middle, _, last = field.rpartition(".")
            examples.setdefault(f"{stem}.{middle}", {})[last.lower()] = place
        else:
            examples.setdefault(stem, {})[field.lower()] = place
    return _joined(examples)


def _joined(examples: dict[str, Members]) -> dict[str, Members]:
    """The examples, with texts that differ from one picture's name in case or Unicode form alone put beside it."""
    by_name: dict[str, list[str]] = {}
    for key in examples:
        by_name.setdefault(folded(key), []).append(key)
    for keys in by_name.values():
        pictures = [key for key in keys if any(map(is_picture_field, examples[key]))]
        if len(pictures) != 1:
            continue
        for key in keys:
            if key != pictures[0] and examples[key].keys().isdisjoint(examples[pictures[0]]):
                examples[pictures[0]].update(examples.pop(key))
    return examples


def _members(path: Path, notes: ReadingNotes) -> Iterator[tarfile.TarInfo]:
    """The whole members. A damaged place is passed over block by block up to the next header."""
    size = path.stat().st_size
    _check_kind(path, size)
    end, found, is_cut = 0, 0, False  # end: of the last member
    try:
        archive = tarfile.open(path, "r:", ignore_zeros=True)  # noqa: SIM115 (closed below, whatever was opened)
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError, RecursionError) as error:
        raise ValueError(f"{path} is no tar archive ({error})") from error
    with archive:
        while archive.offset < size or archive.firstmember is not None:  # type: ignore[attr-defined]
            start = archive.offset
            try:
                member = archive.next()
            except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError, RecursionError):
                archive.offset = max(start, end) + tarfile.BLOCKSIZE
                continue
            if member is None:
                break
            if archive.offset <= end or member.size < 0:  # a size below 0 would lead back
                archive.offset = max(start, end) + tarfile.BLOCKSIZE
                continue
            _check_gap(path, end, member.offset, notes)
            end, found = archive.offset, found + 1
            if member.offset_data + member.size > size:
                notes.warn(f"{path.name} is cut off in {member.name}: this member and those behind it are missing")
                is_cut = True
            else:
                yield member
    if not found and size and not _is_zero(path, 0, size):
        raise ValueError(f"{path} is no tar archive: it has no header of a member")
    if not is_cut and size - end < tarfile.BLOCKSIZE:
        notes.warn(f"{path.name} has no end mark: it may be cut off, and what was behind the cut is missing")
    elif not is_cut:
        _check_gap(path, end, size, notes, is_last=True)


def _check_kind(path: Path, size: int) -> None:
    if not size:
        raise ValueError(f"{path} is empty; remove it, or pack it anew")
    with open(path, "rb") as file:
        if file.read(8).startswith(COMPRESSED):
            raise ValueError(f"{path} is a compressed archive; unpack it, or pack it as a plain .tar")


def _check_gap(path: Path, start: int, stop: int, notes: ReadingNotes, *, is_last: bool = False) -> None:
    """Tell what bytes between two members, or behind the last one, are: an end mark, or what is left of a member."""
    if start == stop:
        return
    if not _is_zero(path, start, stop):
        notes.warn(f"{path.name} is damaged at byte {start:,}: what lay there is lost; pack it anew")
    elif not is_last:
        notes.repair("archives that were joined in one file", path.name)


def _is_zero(path: Path, start: int, stop: int) -> bool:
    with open(path, "rb") as file:
        file.seek(start)
        return not any(any(file.read(min(CHUNK, stop - place))) for place in range(start, stop, CHUNK))


def dotted_keys(fields: dict[str, list[str]]) -> set[str]:
    """The keys whose files' names go on behind their first dot: {"22": ["05.png", "05.txt", "06.png"]} -> {"22"}.

    The part between two dots ("05") belongs to the name if it is a number. If it is not a number, it belongs to the
    name if every file of the key has such a part, unless most keys share the part ("input.png", "target.png") and only
    pictures have it.
    """
    pictures = Counter(field.lower() for members in fields.values() for field in members if is_picture_field(field))
    dotted = set()
    for key, members in fields.items():
        long = [field for field in members if "." in field]
        short_texts = [field for field in members if "." not in field and not is_picture_field(field)]
        long_texts = [field for field in long if not is_picture_field(field)]
        long_pictures = [field for field in long if is_picture_field(field)]
        if not long_pictures:
            continue
        if all(re.fullmatch(r"[\d._ -]+", field.rpartition(".")[0]) for field in long):
            own = bool(long_texts) or not short_texts
        else:
            usual = len(fields) > 1 and all(pictures[field.lower()] > len(fields) / 2 for field in long_pictures)
            own = len(long) == len(members) and (bool(long_texts) or not usual)
        if own:
            dotted.add(key)
    return dotted


def count_tar_pictures(path: Path) -> int:
    """How many pictures a tar archive holds; 0 for a file that is none."""
    return _count(path, *file_identity(path))


@lru_cache(maxsize=4096)
def _count(path: Path, size: int, changed: int) -> int:
    try:
        examples = tar_examples(path, ReadingNotes())
    except ValueError:
        return 0
    return sum(any(map(is_picture_field, members)) for members in examples.values())


def count_pictures_of_tars(paths: Sequence[Path]) -> int:
    """How many pictures some tar archives hold."""
    return sum(map(count_tar_pictures, paths))
