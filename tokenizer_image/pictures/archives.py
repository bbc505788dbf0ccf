"""WebDataset tars: pictures and captions read straight from their places in the archives.

Nothing is unpacked, so that names with "..", absolute names and links in an archive lead nowhere.
"""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tokenizer_image.pictures.columns import IMAGE_NAMES, Columns, caption_columns, check_column
from tokenizer_image.pictures.dataset import PictureSource
from tokenizer_image.pictures.fingerprints import digest, file_identity, hash64, one_or_all
from tokenizer_image.pictures.json_lines import parse_json
from tokenizer_image.pictures.picture_files import is_picture, open_picture, why_not_read
from tokenizer_image.pictures.reading_notes import ReadingNotes, shown
from tokenizer_image.pictures.text_intake import caption_lines, captions_in, decode_text

Place = tuple[int, int]  # offset in the archive, and size
Members = dict[str, Place]  # {field: place} of one example; a field is what follows the key: "png", "seg.png", "txt"
TEXT_FIELDS = ("txt", "caption")  # members that hold captions; an example may have either
LOOKED_AT = 64  # examples whose .json members are read to find the key of the captions


@dataclass(frozen=True)
class TarRow:
    """One picture: the number of its archive, its key there, its own place and all members of its example."""

    archive: int
    key: str
    picture: Place
    members: Members


class TarPictures(PictureSource):
    """Pictures in tars: files that share the name up to its first dot are one example.

    Where dots belong to the names ("22.05.png", "22.06.png"), an example's files share the name up to the last one.
    Captions come from the `.txt` member (one per line) or a key of the `.json` member, the label from `.cls`.
    """

    def __init__(self, paths: list[Path], *, name: str, columns: Columns, notes: ReadingNotes) -> None:
        super().__init__(name, notes)
        self.paths = paths
        examples = [
            (number, key, members)
            for number, path in enumerate(paths)
            for key, members in tar_examples(path, notes).items()
        ]
        fields = sorted({field for _, _, members in examples for field in members})
        pictures = sorted(filter(_is_picture_field, fields), key=lambda f: (f not in IMAGE_NAMES, f.count("."), f))
        if columns.image is not None:
            pictures = [check_column(fields, columns.image, "image_column", name)]
        self._rows = [
            TarRow(number, key, members[field], members)
            for number, key, members in examples
            for field in [next((field for field in pictures if field in members), None)]
            if field is not None
        ]
        if not self._rows:
            held = ", ".join(map(shown, fields[:20])) or "nothing"
            raise ValueError(f"{name} holds no pictures: its .tar archives hold {held}, not .jpg, .png, ...")
        self._caption_fields, self._caption_keys = self._find_captions(fields, columns.caption)
        usable = () if columns.caption or self._caption_keys else TEXT_FIELDS
        self._second_fields = [field for field in usable if field in fields and field not in self._caption_fields]
        self._note_left_out(examples, pictures)
        files = [(path.name, *file_identity(path)) for path in paths]
        fields = ["json"] if self._caption_keys else [*self._caption_fields, *self._second_fields]
        self.fingerprint = digest("tar", files, pictures, *map(one_or_all, (fields, self._caption_keys)))

    def _find_captions(self, fields: list[str], wanted: str | None) -> tuple[list[str], list[str]]:
        """(members that hold the captions, keys inside the .json member): at least one list is empty."""
        if wanted in fields:
            return [str(wanted)], []
        plain = caption_columns([field for field in fields if field != "json"], self.name, ReadingNotes())
        keys: dict[str, None] = {}
        if "json" in fields:
            for row in range(min(len(self._rows), LOOKED_AT)):
                keys.update(dict.fromkeys(self._json(row, ReadingNotes())))
        if wanted is None and plain:
            unused = caption_columns(list(keys), self.name, ReadingNotes())
            if unused:
                self.notes.warn(
                    f"{self.name}: captions are read from .{', .'.join(plain)} members; {', '.join(unused)} in .json "
                    "members not used (--caption_column chooses)"
                )
            return plain, []
        if wanted is not None:
            return [], [check_column([*fields, *keys], wanted, "caption_column", self.name)]
        caption_keys = caption_columns(list(keys), self.name, self.notes)
        others = [field for field in fields if not _is_picture_field(field)]
        if not caption_keys and others:
            self.notes.warn(
                f"{self.name}: no captions in its .{', .'.join(others[:5])} members; they are read from .txt and "
                ".caption members, and from keys such as caption of .json objects"
            )
        return [], caption_keys

    def _note_left_out(self, examples: Iterable[tuple[int, str, Members]], pictures: Sequence[str]) -> None:
        """Count members that are not used: texts without a picture, and further pictures of an example."""
        used = {(row.archive, row.key): row.picture for row in self._rows}
        for number, key, members in examples:
            picture = used.get((number, key))
            place = f"{self.paths[number].name}/{key}"
            for field, where in members.items():
                if picture is None:
                    reason = why_not_read(f"{place}.{field}") or "no picture has this name"
                    self.notes.leave_out(f"{place}.{field}", reason)
                elif field in self._second_fields and set(self._caption_fields) & set(members):
                    self.notes.leave_out(f"{place}.{field}", "another caption member is read, where that has a text")
                elif field in pictures and where != picture:
                    self.notes.leave_out(f"{place}.{field}", "another picture of its example (--image_column chooses)")

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, row: int) -> str:
        return f"{self.paths[self._rows[row].archive].name}/{self._rows[row].key}"

    def image(self, row: int) -> Image.Image:
        if self._caption_keys and self._json_error(row) is not None:
            raise ValueError(self._json_error(row))
        place = self._rows[row]
        field = next(field for field, where in place.members.items() if where == place.picture)
        return open_picture(self._read(place.archive, place.picture), f".{field}")

    def picture_key(self, row: int) -> int:
        place = self._rows[row]
        return hash64(self._read(place.archive, place.picture))

    def read_captions(self, row: int, notes: ReadingNotes) -> list[str]:
        place = self.key(row)
        texts: list[str] = []
        if self._caption_keys:
            values = self._json(row, notes)
            texts = [
                text for key in self._caption_keys for text in captions_in(values.get(key), f"{place}.json", notes)
            ]
            origin = ".json members"
        else:
            for fields in (self._caption_fields, self._second_fields):
                if not texts:
                    for field in fields:
                        texts += caption_lines(self._member(row, field), f"{place}.{field}", notes)
                    origin = f".{', .'.join(fields)} members"
        if texts:
            notes.captions_from(origin)
        return list(dict.fromkeys(texts))

    def label(self, row: int) -> int:
        content = self._member(row, "cls").strip()
        return int(content) if content.isdigit() else -1

    def _json(self, row: int, notes: ReadingNotes) -> dict[str, Any]:
        """The row's .json member, {} if there is none or it cannot be parsed."""
        content = self._member(row, "json")
        place = f"{self.key(row)}.json"
        if not content.strip():
            return {}
        try:
            value = parse_json(decode_text(content, place, notes), place)
        except ValueError as error:
            notes.leave_out_caption(f"broken .json, so its picture is skipped ({error})", place)
            return {}
        if not isinstance(value, dict):
            notes.leave_out_caption("the .json member is no object", place)
            return {}
        return value

    def _json_error(self, row: int) -> str | None:
        """What is wrong with the row's .json member, None for nothing."""
        notes = ReadingNotes()
        self._json(row, notes)
        return next((f"{reason}" for _, reason in notes.left_out if reason.startswith("broken")), None)

    def _member(self, row: int, field: str) -> bytes:
        """Content of one member of the row's example, empty if there is no such member."""
        place = self._rows[row]
        return self._read(place.archive, place.members[field]) if field in place.members else b""

    def _read(self, archive: int, place: Place) -> bytes:
        with open(self.paths[archive], "rb") as file:
            file.seek(place[0])
            return file.read(place[1])


def _is_picture_field(field: str) -> bool:
    return is_picture(f"x.{field}")


# ---- the names in an archive


def tar_examples(path: Path, notes: ReadingNotes) -> dict[str, Members]:
    """{key: members} of a tar archive, in its order. Reads the headers alone."""
    places: dict[tuple[str, str], Place] = {}  # by (folder and name up to the first dot, the rest)
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, base = posixpath.split(member.name)
                stem, _, field = base.partition(".")
                if member.isdir() or not stem:
                    continue
                if not field:
                    notes.leave_out(f"{path.name}/{member.name}", "its name has no ending")
                    continue
                if not member.isreg() or member.issparse():
                    notes.leave_out(f"{path.name}/{member.name}", "a link, or no plain file, in an archive")
                    continue
                key = f"{folder}/{stem}".lstrip("/"), field
                if key in places:
                    notes.leave_out(f"{path.name}/{member.name}", "a later member of the archive has the same name")
                places[key] = member.offset_data, member.size
            _check_end(path, archive.offset, notes)
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
        raise ValueError(f"{path} is no tar archive ({error}); unpack a compressed one first") from error
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
    return examples


def _check_end(path: Path, offset: int, notes: ReadingNotes) -> None:
    """Warn unless what follows the last member that was read, at `offset`, are blocks of zeros alone."""
    with open(path, "rb") as file:
        file.seek(offset)
        mark, behind = file.read(tarfile.BLOCKSIZE), file.read(16 * tarfile.RECORDSIZE)
    if len(mark) < tarfile.BLOCKSIZE:
        notes.warn(f"{path.name} has no end mark: it may be cut off, and what was behind the cut is missing")
    elif any(mark):
        notes.warn(f"{path.name} is damaged at byte {offset:,}: the members behind it are not read; pack it anew")
    elif any(behind):
        notes.warn(
            f"{path.name} goes on behind its end mark, at byte {offset:,}: what follows is not read; unpack archives "
            "that were joined (tar --ignore-zeros) and pack them as one"
        )


def dotted_keys(fields: dict[str, list[str]]) -> set[str]:
    """The keys whose files' names go on behind their first dot: {"22": ["05.png", "05.txt", "06.png"]} -> {"22"}.

    The part between two dots ("05") belongs to the name if it is a number. If it is not a number, it belongs to the
    name if every file of the key has such a part, unless most keys share the part ("input.png", "target.png") and only
    pictures have it.
    """
    pictures = Counter(field.lower() for members in fields.values() for field in members if _is_picture_field(field))
    dotted = set()
    for key, members in fields.items():
        long = [field for field in members if "." in field]
        short_texts = [field for field in members if "." not in field and not _is_picture_field(field)]
        long_texts = [field for field in long if not _is_picture_field(field)]
        long_pictures = [field for field in long if _is_picture_field(field)]
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
    """How many pictures a tar archive holds."""
    return sum(any(map(_is_picture_field, members)) for members in tar_examples(path, ReadingNotes()).values())
