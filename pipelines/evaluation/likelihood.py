"""How likely a language model finds the codes of pictures, with and without their captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pipelines.drawing.captions import caption_room
from pipelines.drawing.likelihood import label_nats
from pipelines.machine.batches import index_batches
from pipelines.multimodal import MultimodalPipeline


def nats_per_code(
    pipeline: MultimodalPipeline,
    codes: Tensor,
    captions: Sequence[str | None],
    *,
    batch_size: int = 100,
    progress: bool = True,
) -> float:
    """Mean negative log-likelihood of the codes of pictures under the language model, in nats.

    As in sampling and training, probabilities are among the codes that are valid at each position. Captions
    that leave no room for the picture lose their end.

    Args:
        codes: (n, T) int64, of the model's own tokenizer.
        captions: one for each picture; None for a picture without its caption.
    """
    room = caption_room(pipeline.model, pipeline.vocabulary)
    rows = {"caption_to_image": [row for row, caption in enumerate(captions) if caption is not None],
            "image": [row for row, caption in enumerate(captions) if caption is None]}  # fmt: skip
    texts: list[list[int]] = [[] for _ in captions]
    for row in rows["caption_to_image"]:
        texts[row] = pipeline.vocabulary.encode_text(str(captions[row]))[:room]
    total = 0.0
    with tqdm(total=len(captions), desc="likelihood", unit=" pictures", disable=not progress, leave=False) as bar:
        for sequence_format, members in rows.items():
            members.sort(key=lambda row: len(texts[row]))  # so that little is computed on padding
            for indices in index_batches(len(members), batch_size):
                batch = members[indices.start : indices.stop]
                nats = label_nats(pipeline, sequence_format, [texts[row] for row in batch], codes[batch])
                total += float(torch.cat(nats).double().sum())
                bar.update(len(batch))
    return total / codes.numel()


def measure_likelihood(
    pipeline: MultimodalPipeline,
    codes: Tensor,
    captions: Sequence[str | None],
    *,
    batch_size: int = 100,
    progress: bool = True,
) -> dict[str, Any]:
    """Likelihood figures of a set of pictures.

    Returns:
        `n` pictures, of which `num_captioned` have a caption; `num_codes`; `nats_per_code` with each picture's caption,
        and `nats_per_code_without_caption`, the same number where no picture has one.
    """
    num_captioned = sum(caption is not None for caption in captions)
    alone = nats_per_code(pipeline, codes, [None] * len(codes), batch_size=batch_size, progress=progress)
    captioned = alone
    if num_captioned:
        captioned = nats_per_code(pipeline, codes, captions, batch_size=batch_size, progress=progress)
    return {
        "n": len(codes),
        "num_captioned": num_captioned,
        "num_codes": codes.numel(),
        "nats_per_code": captioned,
        "nats_per_code_without_caption": alone,
    }
