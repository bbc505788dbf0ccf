"""What a data set holds, in a few lines, before anything is trained on it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from tokenizer_image.pictures.reading_notes import (
    COMPRESSED_ENDINGS,
    NUM_EXAMPLES,
    ReadingNotes,
    Tally,
    counted,
    one_line,
    shown,
    things,
)

QUICK_ROWS = 20_000  # from so many rows on, a progress bar shows
CAPTION_ENDINGS = (  # of files that may have captions: a warning tells of those that are not used
    ".txt", ".caption", ".captions", ".text", ".prompt", ".cap", ".tags", ".csv", ".tsv", ".json", ".jsonl", ".xml",
    ".yaml", ".yml", ".xls", ".xlsx", ".ods", ".parquet", ".arrow", ".tar", *COMPRESSED_ENDINGS,
)  # fmt: skip


class Summarised(Protocol):
    """What `summarise` reads of a source."""

    name: str
    split: str
    notes: ReadingNotes
    split_sizes: dict[str, int]

    row_name: str

    def __len__(self) -> int: ...

    def count_rows(self) -> int:
        """Pictures, or documents."""

    def captioned_rows(self, notes: ReadingNotes) -> Iterator[tuple[str, Sequence[str]]]:
        """(name, captions) of each row."""


@dataclass
class DataSummary:
    """One split of a data set.

    pictures: or examples of signals. rows: pictures, examples or documents, as `row_name` says.
    split_sizes: rows of each split, as far as they are known without opening it.
    captioned: rows with at least one text. median_length, longest_length: of captions, in characters.
    first_captions: (row's name, caption) of the first captioned pictures.
    notes: files left out, repairs, where captions came from, warnings.
    """

    name: str
    split: str
    pictures: int
    rows: int
    row_name: str
    split_sizes: dict[str, int]
    captioned: int = 0
    captions: int = 0
    median_length: int = 0
    longest_length: int = 0
    first_captions: list[tuple[str, str]] = field(default_factory=list)
    notes: ReadingNotes = field(default_factory=ReadingNotes)

    @property
    def warnings(self) -> list[str]:
        """What a person should look at before training."""
        warnings = list(self.notes.warnings)
        if 0 < self.captioned < self.rows and self.row_name != "document":
            warnings.append(f"{self.rows - self.captioned:,} of {self.rows:,} {self.row_name}s have no caption")
        for kind, tally in self.notes.doubts.items():
            warnings.append(f"{counted(tally.count, 'text')} {kind}; {_examples(tally)}")
        for (ending, reason), tally in self.notes.left_out.items():
            if ending == "caption" or ending in CAPTION_ENDINGS:
                warnings.append(f"{things(ending, tally.count)} not used: {reason}; {_examples(tally)}")
        return warnings

    def lines(self) -> list[str]:
        """The summary for the screen. Warnings come last, each a line that begins with WARNING."""
        others = ", ".join(f"{split} {count:,}" for split, count in self.split_sizes.items() if split != self.split)
        inside = f" in {counted(self.rows, 'document')}" if self.row_name == "document" else ""
        noun = "picture" if self.row_name == "document" else self.row_name
        head = f"{shown(self.name)}, {self.split}: {counted(self.pictures, noun)}{inside}"
        lines = [f"{head} ({others})" if others else head]
        if self.captioned:
            origins = ", ".join(f"{origin} {count:,}" for origin, count in self.notes.caption_origins.items())
            lines += [
                f"  captions: {self.captions:,}, of {counted(self.captioned, self.row_name)}; "
                f"median length {self.median_length} characters, longest {self.longest_length}"
                f"{f'; from {origins}' if origins else ''}",
                *(f"    {place}: {caption[:80]!r}" for place, caption in self.first_captions),
            ]
        else:
            lines.append("  captions: none")
        lines += [
            f"  repaired: {kind}: {tally.count:,}; {_examples(tally)}" for kind, tally in self.notes.repairs.items()
        ]
        for (ending, reason), tally in self.notes.left_out.items():
            if ending != "caption" and ending not in CAPTION_ENDINGS:
                lines.append(f"  left out: {things(ending, tally.count)}, {reason}; {_examples(tally)}")
        return lines + [f"  WARNING: {warning}" for warning in self.warnings]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self)
        notes = values.pop("notes")
        notes["left_out"] = [
            {"ending": ending, "reason": reason, **asdict(tally)}
            for (ending, reason), tally in self.notes.left_out.items()
        ]
        del notes["warnings"], notes["counted"]
        return {**values, **notes, "warnings": self.warnings}


def summarise(source: Summarised) -> DataSummary:
    """Count a split's captions: each is read once, no picture is. A progress bar shows for many rows."""
    from tqdm import tqdm

    notes = source.notes.copy()
    rows = source.count_rows()
    sizes = dict(source.split_sizes)
    summary = DataSummary(source.name, source.split, len(source), rows, source.row_name, sizes, notes=notes)
    lengths: list[int] = []
    bar = tqdm(total=rows, desc=f"looking at {shown(source.name)}", disable=rows < QUICK_ROWS, mininterval=0.5)
    with bar:
        for place, captions in source.captioned_rows(notes):
            bar.update()
            if not captions:
                continue
            summary.captioned += 1
            lengths += map(len, captions)
            if len(summary.first_captions) < NUM_EXAMPLES:
                summary.first_captions.append((one_line(place), captions[0]))
    if lengths:
        summary.captions, summary.longest_length = len(lengths), max(lengths)
        summary.median_length = round(statistics.median(lengths))
    return summary


def _examples(tally: Tally) -> str:
    more = ", ..." if tally.count > len(tally.examples) else ""
    return f"such as {', '.join(tally.examples)}{more}"
