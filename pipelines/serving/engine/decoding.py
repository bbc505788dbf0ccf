"""Codes that are drawn become pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from lm.generation.rows_under_way import PictureUnderWay
from lm.vocabulary import Size
from pipelines.multimodal import MultimodalPipeline
from pipelines.serving.engine.work import DrawingWork
from tokenizer_image.preprocessing import postprocess


def decode(pipeline: MultimodalPipeline, pictures: Sequence[tuple[DrawingWork, PictureUnderWay]]) -> None:
    """Decode pictures as far as they are drawn, several at a time where they are alike, and give them to their jobs."""
    alike: dict[tuple[Size | None, int], list[tuple[DrawingWork, PictureUnderWay]]] = defaultdict(list)
    for work, row in pictures:
        alike[work.size, row.position].append((work, row))
    for (size, position), members in alike.items():
        drawn = np.stack([row.codes[:position] for _, row in members])
        codes = torch.from_numpy(drawn)
        if len(members) == 1:  # libraries compute a batch of one by other kernels, which round otherwise
            codes = codes.expand(2, -1)
        values = pipeline.decode_codes(codes.to(pipeline.device), size)[: len(members)]
        for (work, row), own, image in zip(members, drawn, postprocess(values, "pil"), strict=True):
            work.give(row, own, image)
