"""Codes that are drawn become pictures: at once, or in a thread beside the one that draws on."""

from __future__ import annotations

import logging
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lm.generation.rows_under_way import PictureUnderWay
from lm.vocabulary import Size
from pipelines.multimodal import MultimodalPipeline
from pipelines.serving.work import DrawingWork
from tokenizer_image.preprocessing import postprocess

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawn:
    """A picture of a job as far as it is drawn: codes (t,) int64, of which there will be no others."""

    work: DrawingWork
    row: PictureUnderWay
    codes: np.ndarray

    @classmethod
    def of(cls, work: DrawingWork, row: PictureUnderWay) -> Drawn:
        """What a row has drawn until now."""
        return cls(work, row, row.codes[: row.position].copy())


class Decoder:
    """Decodes pictures and gives them to their jobs, in the order in which it gets them.

    Args:
        complete: is called after each complete picture.
    """

    def __init__(self, pipeline: MultimodalPipeline, complete: Callable[[], None]) -> None:
        self._pipeline, self._complete = pipeline, complete
        self._batches: queue.SimpleQueue[Sequence[Drawn] | None] = queue.SimpleQueue()
        self._open = 0  # batches that are not given yet
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def is_idle(self) -> bool:
        """Whether its thread has nothing to do."""
        return self._open == 0

    def decode(self, pictures: Sequence[Drawn]) -> None:
        """Decode at once, in the caller's thread; its own must be idle, or pictures would come out of order."""
        alike: dict[tuple[Size | None, int], list[Drawn]] = defaultdict(list)
        for picture in pictures:
            alike[picture.work.size, len(picture.codes)].append(picture)
        for (size, _), members in alike.items():
            codes = torch.from_numpy(np.stack([picture.codes for picture in members]))
            if len(members) == 1:  # libraries compute a batch of one by other kernels, which round otherwise
                codes = codes.expand(2, -1)
            values = self._pipeline.decode_codes(codes.to(self._pipeline.device), size)[: len(members)]
            for picture, image in zip(members, postprocess(values, "pil"), strict=True):
                if len(picture.codes) == picture.row.total:
                    self._complete()
                picture.work.give(picture.row, picture.codes, image)

    def decode_aside(self, pictures: Sequence[Drawn]) -> None:
        """Decode in its own thread, and return at once. An error ends the jobs."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
            self._thread.start()
        with self._lock:
            self._open += 1
        self._batches.put(pictures)

    def close(self) -> None:
        """Wait until all is decoded, and end the thread."""
        if self._thread is not None:
            self._batches.put(None)
            self._thread.join()

    def _run(self) -> None:
        with torch.inference_mode():
            while (pictures := self._batches.get()) is not None:
                try:
                    self.decode(pictures)
                except Exception as error:
                    logger.exception("decoding failed")
                    for picture in pictures:
                        picture.work.job.end(RuntimeError(f"decoding failed: {error}"))
                with self._lock:
                    self._open -= 1
