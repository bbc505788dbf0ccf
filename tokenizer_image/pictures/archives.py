"""WebDataset tars: pictures and captions read straight from their places in the archives.

Nothing is unpacked, so that names with "..", absolute names and links in an archive lead nowhere.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tokenizer_image.pictures.columns import (
    CAPTION_NAMES,
    IMAGE_NAMES,
    Columns,
    caption_columns,
    check_column,
    usual_columns,
)
from tokenizer_image.pictures.dataset import PictureSource
from tokenizer_image.pictures.fingerprints import digest, file_identity, hash64, one_or_all
from tokenizer_image.pictures.json_lines import parse_json
from tokenizer_image.pictures.picture_files import open_picture, why_not_read
from tokenizer_image.pictures.reading_notes import ReadingNotes, shown
from tokenizer_image.pictures.tar_members import Members, Place, is_picture_field, tar_examples
from tokenizer_image.pictures.text_intake import caption_lines, captions_in, decode_text

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
        pictures = sorted(filter(is_picture_field, fields), key=lambda f: (f not in IMAGE_NAMES, f.count("."), f))
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
            skipped = "".join(f"; {reason}" for reason in notes.left_out_reasons())
            raise ValueError(f"{name} holds no pictures: its .tar archives hold {held}, not .jpg, .png, ...{skipped}")
        self._caption_fields, self._caption_keys = self._find_captions(fields, columns.caption)
        self._takes_any_key = columns.caption is None
        self._note_left_out(examples, pictures, columns.caption)
        files = [(path.name, *file_identity(path)) for path in paths]
        fields = [field for group in self._caption_fields for field in group]
        fields += ["json"] if self._caption_keys else []
        self.fingerprint = digest("tar", files, pictures, *map(one_or_all, (fields, self._caption_keys)))

    def _find_captions(self, fields: list[str], wanted: str | None) -> tuple[list[list[str]], list[str]]:
        """(groups of members that hold captions, keys inside the .json member). An example's captions are those of the
        first group with a text, else those of the .json member."""
        if wanted in fields:
            return [[str(wanted)]], []
        keys: dict[str, None] = {}
        if "json" in fields:
            for row in range(min(len(self._rows), LOOKED_AT)):
                keys.update(dict.fromkeys(self._json(row, ReadingNotes())))
        if wanted is not None:
            return [], [check_column([*fields, *keys], wanted, "caption_column", self.name)]
        groups: list[list[str]] = []
        plain = [field for field in fields if field != "json" and why_not_read(f"x.{field}") is None]
        while group := caption_columns(plain, self.name, ReadingNotes()):
            groups.append(group)
            plain = [field for field in plain if field not in group]
        caption_keys = caption_columns(list(keys), self.name, ReadingNotes() if groups else self.notes)
        if groups and caption_keys:
            self.notes.warn(
                f"{self.name}: captions are read from .{', .'.join(groups[0])} members; {', '.join(caption_keys)} in "
                ".json members not used where an example has both (--caption_column chooses)"
            )
        if groups or caption_keys:
            return groups, caption_keys
        others = [field for field in fields if not is_picture_field(field)]
        folders = sorted({posixpath.dirname(row.key) for row in self._rows})
        if len(folders) > 1:
            self.notes.warn(
                f"the names of folders in archives are no captions: {', '.join(folders[:3])}; put a .txt beside each "
                "picture, or unpack them"
            )
        if others:
            self.notes.warn(
                f"{self.name}: no captions in its .{', .'.join(others[:5])} members; they are read from .txt and "
                ".caption members, and from keys such as caption of .json objects"
            )
        return groups, caption_keys

    def _note_left_out(
        self, examples: Iterable[tuple[int, str, Members]], pictures: Sequence[str], caption_column: str | None
    ) -> None:
        """Count members that are not used: texts without a picture, further pictures of an example, other kinds."""
        used = {(row.archive, row.key): row.picture for row in self._rows}
        read = {"json", "cls", *pictures, *(field for group in self._caption_fields for field in group)}
        for number, key, members in examples:
            picture = used.get((number, key))
            for field, where in members.items():
                place = f"{self.paths[number].name}/{key}.{field}"
                if picture is None:
                    self.notes.leave_out(place, why_not_read(place) or "no example has this name")
                elif field in pictures and where != picture:
                    self.notes.leave_out(place, "another picture of its example (--image_column chooses)")
                elif field not in read:
                    reason = why_not_read(place) or "not a kind of member that is read"
                    if is_picture_field(field):
                        reason = "another picture of its example (--image_column chooses)"
                    elif caption_column is not None and caption_columns([field], "", ReadingNotes()):
                        reason = f"--caption_column {caption_column} is read"
                    self.notes.leave_out(place, reason)

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, row: int) -> str:
        return f"{self.paths[self._rows[row].archive].name}/{self._rows[row].key}"

    def image(self, row: int) -> Image.Image:
        if self._caption_keys and not self._caption_fields and self._json_error(row) is not None:
            raise ValueError(self._json_error(row))
        place = self._rows[row]
        field = next(field for field, where in place.members.items() if where == place.picture)
        return open_picture(self._read(place.archive, place.picture), f".{field}")

    def picture_key(self, row: int) -> int:
        place = self._rows[row]
        return hash64(self._read(place.archive, place.picture))

    def read_captions(self, row: int, notes: ReadingNotes) -> list[str]:
        texts: list[str] = []
        for group in self._caption_fields:
            present = [field for field in group if field in self._rows[row].members]
            if texts:
                for field in present:
                    if self._rows[row].members[field][1]:
                        notes.leave_out_caption("another caption member is read", f"{self.key(row)}.{field}")
                continue
            for field in present:
                texts += caption_lines(self._member(row, field), f"{self.key(row)}.{field}", notes)
            origin = f".{', .'.join(group)} members"
        if not texts and (self._caption_keys or self._takes_any_key):
            texts, origin = self._json_captions(row, notes), ".json members"
        if texts:
            notes.captions_from(origin)
        return list(dict.fromkeys(texts))

    def _json_captions(self, row: int, notes: ReadingNotes) -> list[str]:
        values, place = self._json(row, notes), f"{self.key(row)}.json"
        keys = [key for key in self._caption_keys if key in values]
        texts = [text for key in keys for text in captions_in(values[key], place, notes)]
        others = {key: value for key, value in values.items() if key not in keys}
        if texts or not others or not self._takes_any_key or (keys and not usual_columns(list(others), CAPTION_NAMES)):
            return texts
        return captions_in(others, place, notes)  # only some examples were looked at for the keys

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
