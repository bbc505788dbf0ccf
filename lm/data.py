"""Token cache to batches. Batch k is a pure function of (seed, epoch, k), whatever the number of processes."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, product
from typing import NamedTuple

import numpy as np
import torch

from lm.cache import TokenCache
from lm.sequences import FORMATS, TokenSequence, check_mixture, collate, token_sequence
from lm.vocabulary import MultimodalVocabulary

# Streams of random numbers, each keyed by (seed, epoch, ...), so that none depends on what another one drew.
ROW_ORDER, BLOCK_ORDER, CHOICES, BUCKETS = range(4)


def keyed_generator(*key: int) -> np.random.Generator:
    """A generator that depends on its key alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


class Item(NamedTuple):
    """What becomes one sequence: a row in a format, with the token ids of its text (None where it takes none)."""

    row: int
    format: str
    text_ids: list[int] | None


def default_mixture() -> dict[str, float]:
    """Drawing alone."""
    return {"caption_to_image": 1.0}


@dataclass
class CaptionedPictures:
    """Rows of a token cache as sequences; format, caption and dropout are keyed by (seed, epoch, row).

    A row that cannot take a format takes one that it can: among those of the mixture by their weights, else `image`
    where it has no text and `text` where it has no picture.

    Attributes:
        caption_dropout: share of rows that are drawn without their caption (the `image` format).
        mixture: weight of each sequence format.
        max_length: longer sequences lose the end of their text.
    """

    cache: TokenCache
    vocabulary: MultimodalVocabulary
    caption_dropout: float = 0.1
    mixture: dict[str, float] = field(default_factory=default_mixture)
    max_length: int = 1 << 30

    def __post_init__(self) -> None:
        check_mixture(self.mixture)
        self._encoded: dict[str, list[int]] = {}
        self.cropped = 0
        self._pictures_everywhere = not (self.cache.count(True, False) or self.cache.count(False, False))
        # Names and running sums of weights, by what a row has.
        self._possible: dict[tuple[bool, bool], tuple[list[str], list[float]]] = {}
        for has_text, has_codes in product((False, True), repeat=2):
            possible = self.possible(has_text, has_codes)
            self._possible[has_text, has_codes] = list(possible), list(accumulate(possible.values()))

    def possible(self, has_text: bool, has_codes: bool) -> dict[str, float]:
        """Formats, and their weights, that a row with or without a text and a picture can take."""
        fitting = {
            name: weight
            for name, weight in self.mixture.items()
            if weight > 0 and FORMATS[name].fits(has_text, has_codes)
        }
        return fitting or ({"image": 1.0} if has_codes else {"text": 1.0})

    def trained_formats(self) -> list[str]:
        """The formats that rows of this cache are learned in, in the order of `FORMATS`."""
        found = {name for name, weight in self.mixture.items() if weight > 0}
        if self.caption_dropout > 0 and any(FORMATS[name].drops_captions for name in found):
            found.add("image")
        for has_text, has_codes in ((False, True), (True, False)):
            if self.cache.count(has_text, has_codes):
                found.update(self.possible(has_text, has_codes))
        return [name for name in FORMATS if name in found]

    def choose(self, seed: int, epoch: int, rows: np.ndarray) -> list[tuple[str, str | None]]:
        """Format of each row in this epoch, and one of its texts where the format takes one."""
        chosen: list[tuple[str, str | None]] = []
        for row in rows:
            dropout, choice, which = keyed_generator(seed, CHOICES, epoch, int(row)).random(3)
            texts = self.cache.texts(int(row))
            has_codes = self._pictures_everywhere or len(self.cache.codes(int(row))) > 0
            possible = self._possible[bool(texts), has_codes]
            name = possible[0][min(bisect(possible[1], which * possible[1][-1]), len(possible[0]) - 1)]
            if FORMATS[name].drops_captions and dropout < self.caption_dropout:
                name = "image"
            chosen.append((name, texts[int(choice * len(texts))] if FORMATS[name].has_text else None))
        return chosen

    @property
    def room(self) -> int:
        """Most tokens of a text: what the format with the most special tokens leaves."""
        frame = max(FORMATS[name].frame for name, weight in self.mixture.items() if weight > 0)
        return self.max_length - self.vocabulary.tokens_per_image - frame

    def text_ids(self, texts: Sequence[str | None]) -> list[list[int] | None]:
        """Token ids of texts, each tokenized once and cut to fit `max_length`."""
        new = list({text for text in texts if text is not None} - self._encoded.keys())
        if len(self._encoded) + len(new) > 1_000_000:
            self._encoded.clear()
            new = list({text for text in texts if text is not None})
        if new:
            self._encoded.update(zip(new, self.vocabulary.encode_texts(new), strict=True))
        room = self.room
        self.cropped += sum(text is not None and len(self._encoded[text]) > room for text in texts)
        return [None if text is None else self._encoded[text][:room] for text in texts]

    def items(self, rows: Sequence[int] | np.ndarray, chosen: Sequence[tuple[str, str | None]]) -> list[Item]:
        """Rows with what `choose` found for them."""
        text_ids = self.text_ids([text for _, text in chosen])
        return [Item(int(row), name, ids) for row, (name, _), ids in zip(rows, chosen, text_ids, strict=True)]

    def sequence(self, item: Item) -> TokenSequence:
        """The sequence of one row."""
        return token_sequence(self.vocabulary, item.format, item.text_ids, self.cache.codes(item.row))


@dataclass
class BatchOrder:
    """Which rows make batch k of an epoch.

    Rows come in one global random order, in windows of `window` rows. Inside a window, rows with texts of about the
    same length are blocked together, so that little padding is needed, and the blocks come in random order. Every
    block is dealt to the ranks in equal shares.

    Attributes:
        source: what the rows are.
        batch_size: rows of a batch, over all processes.
        mix: rows whose texts' lengths differ by up to this many tokens may share a batch by chance; 0 sorts strictly,
            and makes batches of captionless rows only.
    """

    source: CaptionedPictures
    batch_size: int
    seed: int = 0
    window: int = 4096
    mix: float = 4.0

    def __post_init__(self) -> None:
        rows = len(self.source.cache)
        if rows < self.batch_size:
            raise ValueError(f"batch_size {self.batch_size} is larger than the data set, {rows} rows: lower it")
        self.window = max(self.batch_size, self.window // self.batch_size * self.batch_size)

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches of an epoch; the few rows left over come in another epoch's order."""
        return len(self.source.cache) // self.batch_size

    def window_batches(self, epoch: int, index: int) -> list[list[Item]]:
        """All batches of one window."""
        order = keyed_generator(self.seed, ROW_ORDER, epoch).permutation(len(self.source.cache))
        rows = order[index * self.window : (index + 1) * self.window]
        rows = rows[: len(rows) // self.batch_size * self.batch_size]
        items = self.source.items(rows, self.source.choose(self.seed, epoch, rows))
        # By text alone: batches then hold all formats in about their shares, and so both kinds of loss.
        lengths = np.asarray([len(item.text_ids or ()) for item in items], np.float64)
        lengths += keyed_generator(self.seed, BUCKETS, epoch, index).random(len(rows)) * self.mix
        by_length = np.argsort(lengths, kind="stable").reshape(-1, self.batch_size)
        blocks = keyed_generator(self.seed, BLOCK_ORDER, epoch, index).permutation(by_length)
        return [[items[place] for place in block] for block in blocks]

    def batches(
        self, start: int = 0, *, rank: int = 0, world_size: int = 1, micro_batches: int = 1
    ) -> Iterator[list[dict[str, torch.Tensor]]]:
        """This rank's share of batch `start`, `start` + 1, ... for ever, each as `micro_batches` collated parts."""
        parts = world_size * micro_batches
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of {parts} "
                f"({world_size} processes x {micro_batches} accumulation steps)"
            )
        per_window = self.window // self.batch_size
        epoch, batch = divmod(start, self.batches_per_epoch)
        while True:
            index, first = divmod(batch, per_window)
            for block in self.window_batches(epoch, index)[first:]:
                shares = [block[part::parts] for part in range(parts)]
                yield [self.collate(shares[rank * micro_batches + micro]) for micro in range(micro_batches)]
                batch += 1
            if batch >= self.batches_per_epoch:
                epoch, batch = epoch + 1, 0

    def collate(self, share: Sequence[Item]) -> dict[str, torch.Tensor]:
        """Sequences of rows as one padded batch."""
        return collate([self.source.sequence(item) for item in share], self.source.vocabulary.pad_id)
