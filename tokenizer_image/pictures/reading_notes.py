"""What readers report about a data set: repairs, files that are left out, and warnings."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

NUM_EXAMPLES = 3
COMPRESSED_ENDINGS = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")


@dataclass
class Tally:
    """How often something happened, and the first few places where it did."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        self.count += 1
        if len(self.examples) < NUM_EXAMPLES:
            self.examples.append(one_line(place))


@dataclass
class ReadingNotes:
    """Every reader of a data set fills these; `DataSummary` prints them.

    repairs: places where texts were repaired, by kind.
    left_out: files, by (ending, reason); captions that are not used are under the ending "caption", folders under
        "folder".
    doubts: texts that a person should look at, by what is doubtful.
    caption_origins: pictures whose captions came from each origin ("caption files", "names of classes", ...).
    """

    repairs: dict[str, Tally] = field(default_factory=dict)
    left_out: dict[tuple[str, str], Tally] = field(default_factory=dict)
    doubts: dict[str, Tally] = field(default_factory=dict)
    caption_origins: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    counted: set[str] = field(default_factory=set, repr=False)  # the files in `left_out`

    def repair(self, kind: str, place: str) -> None:
        self.repairs.setdefault(kind, Tally()).add(place)

    def doubt(self, kind: str, place: str) -> None:
        self.doubts.setdefault(kind, Tally()).add(place)

    def leave_out(self, file: str, reason: str, *, is_folder: bool = False) -> None:
        """Count a file that is not read, by its ending, or a folder."""
        self.counted.add(file)
        self.left_out.setdefault(("folder" if is_folder else ending(file), reason), Tally()).add(file)

    def leave_out_caption(self, reason: str, place: str) -> None:
        self.left_out.setdefault(("caption", reason), Tally()).add(place)

    def captions_from(self, origin: str) -> None:
        self.caption_origins[origin] = self.caption_origins.get(origin, 0) + 1

    def warn(self, text: str) -> None:
        if one_line(text) not in self.warnings:
            self.warnings.append(one_line(text))

    def left_out_reasons(self) -> list[str]:
        """What is left out and why: "2 .png files left out (no plain file), such as a.png"."""
        return [
            f"{things(kind, tally.count)} left out ({reason}), such as {tally.examples[0]}"
            for (kind, reason), tally in self.left_out.items()
        ]

    def copy(self) -> ReadingNotes:
        return copy.deepcopy(self)


def ending(file: str) -> str:
    """A file name's ending in lower case, with its dot: "a/B.JPG" -> ".jpg"; "" without."""
    base = file[file.rfind("/") + 1 :]
    place = base.rfind(".")
    return base[place:].lower() if place > 0 else ""


def counted(count: int, noun: str) -> str:
    """ "1 file", "2,000 files"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def shown(text: str) -> str:
    """A text or file name in a form that can be printed: what is not Unicode is escaped."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def one_line(text: str) -> str:
    """As `shown`, with its line ends escaped, so that a file's name cannot look like a line of the summary."""
    return shown(text).replace("\r", "\\r").replace("\n", "\\n")


def things(ending: str, count: int) -> str:
    """ "2 .png files", "1 caption", "3 files without an ending", "1 folder"."""
    if ending in ("caption", "folder"):
        return counted(count, ending)
    return counted(count, f"{ending} file") if ending else f"{counted(count, 'file')} without an ending"
