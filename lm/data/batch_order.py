"""The order of data: which sequences make which batch. A batch depends on (seed, epoch, window, number) alone."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from lm.data.sequence_source import BLOCK_ORDER, BUCKETS, ROW_ORDER, Item, SequenceSource, keyed_generator
from lm.sequences import collate

BATCHES_PER_WINDOW = 32  # with packing, at least; rows that fill no batch are left out of the epoch

Batch = dict[str, torch.Tensor]
Row = list[Item]  # one row of a batch: one sequence, or several that are packed


class Place(NamedTuple):
    """Where in the data a run is: the next batch. Three numbers, so that a checkpoint can hold them."""

    epoch: int = 0
    window: int = 0
    batch: int = 0


@dataclass
class BatchOrder:
    """Which rows make which batch.

    Rows of the cache come in one global random order, in windows. Inside a window they are blocked, the blocks come in
    random order, and every block is dealt to the ranks in equal shares: the batches are the same for any number of
    processes. A block holds

    - `batch_size` sequences of about the same length, each padded to the longest of its share; or,
    - with `pack_length`, `batch_size` rows of that many tokens, each filled with as many whole sequences as fit, so
      that next to nothing is padding, whatever the lengths.

    Sequences that do not fill the last block of a window (without packing: of an epoch) are left out of the epoch.

    Attributes:
        source: the rows as sequences.
        batch_size: rows of a batch, over all processes.
        window: rows of the cache in a window.
        mix: sequences whose texts' lengths differ by up to this many tokens may share a batch by chance; 0 sorts
            strictly, and makes batches of captionless rows only.
        pack_length: tokens of a packed row; None pads.
    """

    source: SequenceSource
    batch_size: int
    seed: int = 0
    window: int = 4096
    mix: float = 4.0
    pack_length: int | None = None

    def __post_init__(self) -> None:
        self._order: tuple[int, np.ndarray] | None = None
        rows = len(self.source.cache)
        if self.pack_length is None:
            if rows < self.batch_size:
                raise ValueError(
                    f"--batch_size {self.batch_size} is larger than the data set, {rows} rows: lower it to {rows}"
                )
            self.window = max(self.batch_size, self.window // self.batch_size * self.batch_size)
        elif self.pack_length < self.source.max_length:
            raise ValueError(
                f"--pack_length {self.pack_length} is shorter than the longest sequence, {self.source.max_length} "
                "tokens: raise it, or lower --max_caption_tokens or --max_length"
            )
        else:
            first = self._items(0, np.arange(min(256, rows)))
            mean = np.mean([item.length for item in first]) if first else 1
            needed = int(BATCHES_PER_WINDOW * self.batch_size * self.pack_length / mean)
            self.window = max(self.window, needed)

    @property
    def windows(self) -> int:
        """Windows of an epoch."""
        rows = len(self.source.cache)
        return -(-(rows if self.pack_length else rows // self.batch_size * self.batch_size) // self.window)

    def window_batches(self, epoch: int, index: int) -> list[list[Row]]:
        """All batches of one window."""
        items = self._items(epoch, self._rows(epoch)[index * self.window : (index + 1) * self.window])
        shuffle = keyed_generator(self.seed, BLOCK_ORDER, epoch, index).permutation
        if self.pack_length:
            rows = packed(items, self.pack_length)
            rows = [rows[place] for place in shuffle(len(rows))]
            return [
                rows[start : start + self.batch_size]
                for start in range(0, len(rows) - self.batch_size + 1, self.batch_size)
            ]
        items = items[: len(items) // self.batch_size * self.batch_size]
        # By text alone: batches then hold all formats in about their shares, and so both kinds of loss.
        lengths = np.asarray([sum(map(len, item.texts)) for item in items], np.float64)
        lengths += keyed_generator(self.seed, BUCKETS, epoch, index).random(len(items)) * self.mix
        by_length = np.argsort(lengths, kind="stable").reshape(-1, self.batch_size)
        return [[[items[place]] for place in block] for block in shuffle(by_length)]

    def _rows(self, epoch: int) -> np.ndarray:
        """All rows in the order of an epoch; kept until another epoch is asked for."""
        if self._order is None or self._order[0] != epoch:
            shuffled = keyed_generator(self.seed, ROW_ORDER, epoch).permutation(len(self.source.cache))
            self._order = epoch, shuffled
        return self._order[1]

    def _items(self, epoch: int, rows: np.ndarray) -> list[Item]:
        items = self.source.items(rows, self.source.choose(self.seed, epoch, rows))
        if self.source.views:
            items = [self.source.viewed(item, self.seed, epoch) for item in items]
        return [replace(item, key=(self.seed, epoch)) for item in items] if self.source.noise else items

    def batches(
        self, start: Sequence[int] = Place(), *, rank: int = 0, world_size: int = 1, micro_batches: int = 1
    ) -> Iterator[tuple[Place, list[Batch]]]:
        """This rank's share of all batches from `start` on, without end.

        Yields:
            the place of the batch that comes next, and this one as `micro_batches` collated parts.

        Raises:
            ValueError: shares are not equal, or a whole epoch does not fill one batch.
        """
        parts = world_size * micro_batches
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of {parts} "
                f"({world_size} processes x {micro_batches} accumulation steps)"
            )
        epoch, window, first = start
        any_batch = window > 0 or first > 0
        while True:
            blocks = self.window_batches(epoch, window)
            any_batch |= bool(blocks)
            ended = window + 1 >= self.windows
            follows = Place(epoch + 1) if ended else Place(epoch, window + 1)
            for number in range(first, len(blocks)):
                shares = [blocks[number][part::parts] for part in range(parts)]
                after = follows if number + 1 == len(blocks) else Place(epoch, window, number + 1)
                yield after, [self.collate(shares[rank * micro_batches + micro]) for micro in range(micro_batches)]
            if ended and not any_batch:
                raise ValueError(
                    f"the {len(self.source.cache)} rows do not fill one batch of {self.batch_size} rows"
                    f"{f' of {self.pack_length} tokens' if self.pack_length else ''}: lower --batch_size"
                )
            epoch, window, first = follows

    def collate(self, share: Sequence[Row]) -> Batch:
        """Rows of a batch as tensors, padded to the longest of them, or to `pack_length`."""
        rows = [[self.source.sequence(item) for item in row] for row in share]
        return collate(rows, self.source.vocabulary.pad_id, self.pack_length)


def packed(items: Sequence[Item], length: int) -> list[Row]:
    """Fill rows of `length` tokens with whole sequences: longest first, each into the fullest row that has room
    (best-fit decreasing)."""
    rows: list[Row] = []
    free: list[tuple[int, int]] = []  # (room, row), in order
    for item in sorted(items, key=lambda item: -item.length):
        place = bisect_left(free, (item.length, 0))
        if place == len(free):
            room, row = length, len(rows)
            rows.append([])
        else:
            room, row = free.pop(place)
        rows[row].append(item)
        if room > item.length:
            insort(free, (room - item.length, row))
    return rows
