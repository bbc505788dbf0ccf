"""Token cache to batches. Batch k is a pure function of (seed, epoch, k), whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from lm.cache import TokenCache
from lm.sequences import TokenSequence, collate, image_sequence
from lm.vocabulary import MultimodalVocabulary

# Streams of random numbers, each keyed by (seed, epoch, ...), so that none depends on what another one drew.
ROW_ORDER, BLOCK_ORDER, CHOICES, BUCKETS = range(4)


def keyed_generator(*key: int) -> np.random.Generator:
    """A generator that depends on its key alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@dataclass
class CaptionedPictures:
    """Rows of a token cache as sequences; caption and dropout are keyed by (seed, epoch, row).

    Attributes:
        caption_dropout: share of rows drawn without their caption (the `image` format).
        text_loss_weight: see `image_sequence`.
        max_length: longer sequences lose the end of their caption.
    """

    cache: TokenCache
    vocabulary: MultimodalVocabulary
    caption_dropout: float = 0.1
    text_loss_weight: float = 0.0
    max_length: int = 1 << 30

    def __post_init__(self) -> None:
        self._encoded: dict[str, list[int]] = {}
        self.cropped = 0

    def choose(self, seed: int, epoch: int, rows: np.ndarray) -> list[str | None]:
        """The caption of each row in this epoch: one of its texts, or None."""
        captions: list[str | None] = []
        for row in rows:
            dropout, choice = keyed_generator(seed, CHOICES, epoch, int(row)).random(2)
            texts = self.cache.texts(int(row))
            captions.append(texts[int(choice * len(texts))] if texts and dropout >= self.caption_dropout else None)
        return captions

    @property
    def room(self) -> int:
        """Most tokens of a caption."""
        tail = 2 if self.text_loss_weight > 0 else 0
        return self.max_length - self.vocabulary.tokens_per_image - 2 - tail

    def caption_ids(self, captions: list[str | None]) -> list[list[int] | None]:
        """Token ids of captions, each text tokenized once and cut to fit `max_length`."""
        new = list({caption for caption in captions if caption is not None} - self._encoded.keys())
        if len(self._encoded) + len(new) > 1_000_000:
            self._encoded.clear()
            new = list({caption for caption in captions if caption is not None})
        if new:
            self._encoded.update(zip(new, self.vocabulary.encode_texts(new), strict=True))
        room = self.room
        self.cropped += sum(caption is not None and len(self._encoded[caption]) > room for caption in captions)
        return [None if caption is None else self._encoded[caption][:room] for caption in captions]

    def sequence(self, row: int, caption_ids: list[int] | None) -> TokenSequence:
        """The sequence of one row."""
        return image_sequence(
            self.vocabulary, caption_ids, self.cache.codes(row), text_loss_weight=self.text_loss_weight
        )


@dataclass
class BatchOrder:
    """Which rows make batch k of an epoch.

    Rows come in one global random order, in windows of `window` rows. Inside a window, rows of about the same length
    are blocked together, so that little padding is needed, and the blocks come in random order. Every block is dealt
    to the ranks in equal shares.

    Attributes:
        source: what the rows are.
        batch_size: rows of a batch, over all processes.
        mix: rows whose lengths differ by up to this many tokens may share a batch by chance; 0 sorts strictly, and
            makes batches of captionless rows only.
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

    def window_batches(self, epoch: int, index: int) -> list[list[tuple[int, list[int] | None]]]:
        """All batches of one window: (row, caption ids) of each of their rows."""
        order = keyed_generator(self.seed, ROW_ORDER, epoch).permutation(len(self.source.cache))
        rows = order[index * self.window : (index + 1) * self.window]
        rows = rows[: len(rows) // self.batch_size * self.batch_size]
        caption_ids = self.source.caption_ids(self.source.choose(self.seed, epoch, rows))
        lengths = np.asarray([0 if ids is None else len(ids) for ids in caption_ids], np.float64)
        lengths += keyed_generator(self.seed, BUCKETS, epoch, index).random(len(rows)) * self.mix
        by_length = np.argsort(lengths, kind="stable").reshape(-1, self.batch_size)
        blocks = keyed_generator(self.seed, BLOCK_ORDER, epoch, index).permutation(by_length)
        return [[(int(rows[place]), caption_ids[place]) for place in block] for block in blocks]

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

    def collate(self, share: list[tuple[int, list[int] | None]]) -> dict[str, torch.Tensor]:
        """Sequences of (row, caption ids) as one padded batch."""
        sequences = [self.source.sequence(row, caption_ids) for row, caption_ids in share]
        return collate(sequences, self.source.vocabulary.pad_id)
