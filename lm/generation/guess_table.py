"""A small table of which code follows which, learned from a token cache (`lm.training.guess_table`) and kept beside the
model.

It guesses codes for `lm.generation.fixed_point`; what is drawn does not depend on it. The model is log-bilinear (Mnih
and Hinton 2007): log p(code) = bias[code] + <output[code], sum of the vectors of the codes around> + constant, where
around are the code to the left and the one above (of the same level and depth), the one before in the same place, and
the last one of the place below which it lies in the coarser level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lm.generation.phrase_table import PhraseTable
from lm.vocabulary import MultimodalVocabulary

FILE_NAME = "guess_table.safetensors"
FORMAT_VERSION = 1
CONTEXTS = 4  # left, above, before, coarser
WIDTH = 64  # numbers in a vector
ARRAYS, PHRASES = ("vectors", "output", "bias"), "phrases"


def neighbours(layout: Mapping[str, Sequence[int]]) -> np.ndarray:
    """(T, 4) positions of the codes around each code: left, above, before, coarser; -1 where there is none."""
    places = list(zip(*(layout[name] for name in ("level", "depth", "row", "column")), strict=True))
    at = {place: position for position, place in enumerate(places)}
    sides = {
        level: (1 + max(p[2] for p in places if p[0] == level), 1 + max(p[3] for p in places if p[0] == level))
        for level in {place[0] for place in places}
    }
    depths = {level: 1 + max(place[1] for place in places if place[0] == level) for level in sides}
    around = []
    for level, depth, row, column in places:
        coarser = -1
        if level - 1 in sides:
            (height, width), (rows, columns) = sides[level], sides[level - 1]
            coarser = at.get((level - 1, depths[level - 1] - 1, row * rows // height, column * columns // width), -1)
        around.append(
            [
                at.get((level, depth, row, column - 1), -1),
                at.get((level, depth, row - 1, column), -1),
                at.get((level, depth - 1, row, column), -1),
                coarser,
            ]
        )
    return np.array(around)


@dataclass(frozen=True)
class GuessTable:
    """What is learned.

    Attributes:
        vectors: (4, num_codes + 1, WIDTH) float32 of a code to the left, above, before, coarser; the last: none there.
        output: (num_codes, WIDTH) float32.
        bias: (num_codes,) float32.
        fingerprint: of the image tokenizer that the codes belong to.
        phrases: which token follows which in texts; an empty one where none was learned.
    """

    vectors: np.ndarray
    output: np.ndarray
    bias: np.ndarray
    fingerprint: str
    phrases: PhraseTable = field(default_factory=PhraseTable)

    def likeliest(self, around: np.ndarray, is_there: np.ndarray, low: int, high: int) -> np.ndarray:
        """The likeliest code (b,) of low .. high - 1, after codes around (b, 4) of which some are there (4,) bool."""
        around = np.where(is_there, around, len(self.output))
        context = self.vectors[np.arange(CONTEXTS), around].sum(1)  # (b, WIDTH)
        return low + (context @ self.output[low:high].T + self.bias[low:high]).argmax(-1)

    def save(self, folder: str | Path) -> None:
        """Write guess_table.safetensors into a folder (a model folder's lm/)."""
        arrays = {name: torch.from_numpy(getattr(self, name)).contiguous() for name in ARRAYS}
        arrays[PHRASES] = torch.from_numpy(self.phrases.entries)
        metadata = {"format_version": str(FORMAT_VERSION), "image_tokenizer_fingerprint": self.fingerprint}
        save_file(arrays, Path(folder) / FILE_NAME, metadata)

    @classmethod
    def load(cls, folder: str | Path, vocabulary: MultimodalVocabulary) -> GuessTable | None:
        """The table in a folder; None where there is none.

        Raises:
            ValueError: it belongs to another image tokenizer, has another number of codes or a newer format.
        """
        file = Path(folder) / FILE_NAME
        if not file.is_file():
            return None
        remedy = "delete this file (what is drawn does not depend on it), or train the model again"
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            arrays = {name: opened.get_tensor(name).numpy() for name in ARRAYS}
            phrases = opened.get_tensor(PHRASES).numpy() if PHRASES in opened.keys() else None  # noqa: SIM118
        if int(metadata.get("format_version", 0)) != FORMAT_VERSION:
            raise ValueError(
                f"{file} has format_version {metadata.get('format_version')}, not {FORMAT_VERSION}: {remedy}"
            )
        fingerprint = metadata.get("image_tokenizer_fingerprint", "")
        if fingerprint != vocabulary.image_tokenizer_fingerprint:
            raise ValueError(
                f"{file} belongs to another image tokenizer (fingerprint {fingerprint}, not "
                f"{vocabulary.image_tokenizer_fingerprint}): {remedy}"
            )
        if len(arrays["output"]) != vocabulary.num_codes:
            raise ValueError(f"{file} is of {len(arrays['output'])} codes, not {vocabulary.num_codes}: {remedy}")
        return cls(**arrays, fingerprint=fingerprint, phrases=PhraseTable(phrases, vocabulary.image_offset))
