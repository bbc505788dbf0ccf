"""What a worker of a Ray cluster does for a token cache: rows of a data set in, their codes, texts and keys out.

Nothing here imports Ray, and no file is written: the process that started the work writes the cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow
import torch

from lm.data.shards import Document, code_dtype
from pipelines.caching.sources import load_source
from pipelines.caching.views import View, views_of
from pipelines.caching.writer import TokenCacheWriter
from pipelines.machine.devices import choose_device
from pipelines.options.data import CacheOptions
from tokenizer_image.pictures.dataset import picture_name
from tokenizer_image.pictures.decode_workers import Reading, decode_one, decode_rows
from tokenizer_image.pictures.loading import PictureDataset
from tokenizer_image.pictures.picture_files import allow_pixels
from tokenizer_image.preprocessing import preprocessing_of
from tokenizer_image.registry import load_tokenizer

MOST_BYTES = 2**29  # of decoded pictures that a worker keeps; more are decoded once to see which can be read, and again

# One row for each task: what `EncodingWorker` answers.
DOCUMENT = pyarrow.struct(
    {
        "codes": pyarrow.binary(),
        "image_sizes": pyarrow.list_(pyarrow.int32()),
        "texts": pyarrow.list_(pyarrow.binary()),
        "order": pyarrow.string(),
        "picture_keys": pyarrow.list_(pyarrow.uint64()),
    }
)
ANSWER = pyarrow.schema(
    {
        "task": pyarrow.int64(),
        "documents": pyarrow.large_list(DOCUMENT),
        "num_read": pyarrow.int64(),
        "unreadable": pyarrow.list_(pyarrow.list_(pyarrow.string())),
        "dark": pyarrow.int64(),
        "reused": pyarrow.int64(),
        "num_new": pyarrow.int64(),
        "problem": pyarrow.string(),
    }
)


class PicturesInMemory:
    """All pictures of a source that can be read, by position, decoded here: for the few of one task.

    Attributes:
        rows: int64 (n,), the row of `source` of each. which: uint8 (n,), the size of each. unreadable, dark: as in
            `decode_workers.DecodeResult`.
    """

    def __init__(self, source: PictureDataset, reading: Reading) -> None:
        self._source, self._reading = source, reading
        step = max(1, min(len(source), MOST_BYTES // reading.picture_bytes))
        parts = [(start, min(start + step, len(source))) for start in range(0, len(source), step)]
        self.unreadable: list[tuple[int, str]] = []
        self.dark = 0
        self._block: np.ndarray | None = None
        sizes = np.zeros(len(source), np.uint8)
        for start, stop in parts:
            block, result = decode_rows(source, reading, start, stop)
            self.unreadable += result.unreadable
            self.dark += result.dark
            sizes[start:stop] = result.size_numbers
            self._block = block if len(parts) == 1 else None
        self.rows = np.setdiff1d(np.arange(len(source)), [row for row, _ in self.unreadable])
        self.which = sizes[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: np.ndarray) -> np.ndarray:
        """Pictures of one size -> uint8 (b, C, H, W)."""
        rows = self.rows[indices]
        if self._block is None:
            return np.stack([decode_one(self._source, int(row), self._reading) for row in rows])
        shape = self._reading.picture_shape(int(self.which[indices[0]]))
        return self._block[rows][:, : math.prod(shape)].reshape(-1, *shape)


@dataclass(frozen=True)
class EncodingPlan:
    """What every worker is told.

    Attributes:
        options: which pictures. Each worker reads the data set and the image tokenizer by itself.
        folders: of the token caches by (split, number of the view; 0: the plain pictures). Workers only read what an
            earlier cache there holds, if they see it.
        fingerprints: of each split's source, as the process that started the work has read it.
        shard_rows: rows of a shard.
        threads: of PyTorch.
        device: where pictures are encoded.
    """

    options: CacheOptions
    folders: dict[tuple[str, int], str]
    fingerprints: dict[str, str]
    shard_rows: int
    threads: int
    device: str


class EncodingWorker:
    """Tasks of one token cache after the other, for `ray.data.Dataset.map_batches`."""

    def __init__(self, plan: EncodingPlan) -> None:
        self.plan = plan
        self._tokenizer: Any = None
        self._sources: dict[str, PictureDataset] = {}
        self._writers: dict[tuple[str, int], TokenCacheWriter] = {}

    def __call__(self, tasks: pyarrow.Table) -> pyarrow.Table:
        """Tasks (columns `task`, `split`, `view`, `bounds`) -> `ANSWER`."""
        return pyarrow.Table.from_pylist([self.answer(**task) for task in tasks.to_pylist()], ANSWER)

    def answer(self, task: int, split: str, view: int, bounds: Sequence[int]) -> dict[str, Any]:
        """The documents of the batches of rows `bounds[0] .. bounds[1] - 1`, `bounds[1] .. bounds[2] - 1`, ...

        What a user can get wrong is in `problem`, so that it is not taken for a failure of the worker.
        """
        try:
            writer = self._writer(split, view)
            batches = list(zip(bounds[:-1], bounds[1:], strict=True))
            part, numbers = writer.part([(bounds[0], bounds[-1])])
            found: list[PicturesInMemory] = []

            def decode(pictures: PictureDataset) -> PicturesInMemory:
                settings, sizes = preprocessing_of(self._tokenizer), tuple(writer.decoded_sizes)
                reading = Reading(settings, sizes, self.plan.options.max_image_pixels)
                found.append(PicturesInMemory(pictures, reading))
                names.extend([picture_name(pictures, row), reason] for row, reason in found[0].unreadable)
                return found[0]

            names: list[list[str]] = []
            writer.read(part, numbers, decode)
            documents = [document for batch in writer.encoded(batches, self.plan.device) for document in batch]
        except ValueError as error:
            return {"task": task, "problem": str(error)}
        return {
            "task": task,
            "documents": [as_row(document, writer.tokenizer.num_codes) for document in documents],
            "num_read": sum(map(len, found)),
            "unreadable": names,
            "dark": sum(one.dark for one in found),
            "reused": writer.reused,
            "num_new": writer.num_new,
            "problem": "",
        }

    def _writer(self, split: str, view: int) -> TokenCacheWriter:
        """The writer of a split's plain pictures (view 0) or of one of its views.

        Raises:
            ValueError: this worker sees other pictures than the process that started the work.
        """
        if self._tokenizer is None:
            torch.set_num_threads(self.plan.threads)
            allow_pixels(self.plan.options.max_image_pixels)
            self._tokenizer = load_tokenizer(self.plan.options.tokenizer_folder).to(choose_device(self.plan.device))
        if split not in self._sources:
            source = load_source(self.plan.options, split, image_size=self._tokenizer.config.image_size)
            if source.fingerprint != self.plan.fingerprints[split]:
                raise ValueError(
                    f"a worker of the Ray cluster sees other pictures in {self.plan.options.dataset} than this "
                    "process: the data set must be at the same path on all machines, with the same files (names, "
                    "sizes, times)"
                )
            self._sources[split] = source
        if (split, view) not in self._writers:
            views: list[View | None] = [None, *views_of(self.plan.options.crops, self.plan.options.random_flip)]
            self._writers[split, view] = TokenCacheWriter(
                self.plan.folders[split, view], self._tokenizer, self._sources[split],
                sizes=self.plan.options.picture_sizes(), shard_rows=self.plan.shard_rows, view=views[view],
            )  # fmt: skip
        return self._writers[split, view]


def as_row(document: Document, num_codes: int) -> dict[str, Any]:
    """A document as a value of the type `DOCUMENT`."""
    return {
        "codes": np.asarray(document.codes, code_dtype(num_codes)).tobytes(),
        "image_sizes": [side for size in document.image_sizes for side in size],
        "texts": [text.encode("utf-8", "surrogatepass") for text in document.texts],
        "order": document.order,
        "picture_keys": document.picture_keys,
    }


def as_document(row: dict[str, Any], num_codes: int) -> Document:
    """The document that `as_row` made a row of."""
    sides = row["image_sizes"]
    codes = np.frombuffer(row["codes"], code_dtype(num_codes))
    sizes = list(zip(sides[::2], sides[1::2], strict=True))
    texts = [text.decode("utf-8", "surrogatepass") for text in row["texts"]]
    return Document(codes, sizes, texts, row["order"], row["picture_keys"])
