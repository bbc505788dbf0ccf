"""How likely a language model finds the codes of pictures, with and without their captions, level by level."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lm.sequences import FORMATS
from pipelines.drawing.captions import caption_room
from pipelines.drawing.likelihood import label_nats
from pipelines.evaluation.metrics.intervals import mean_interval
from pipelines.evaluation.metrics.result_cache import ResultCache
from pipelines.evaluation.samples import model_key
from pipelines.machine.batches import index_batches
from pipelines.multimodal import MultimodalPipeline

# Formats that write text, the one that describes first: the text part of its labels is scored.
TEXT_FORMATS = ("image_to_caption", "image_and_caption", "text", "caption_and_image")


def code_nats(
    pipeline: MultimodalPipeline,
    codes: Tensor,
    captions: Sequence[str | None],
    *,
    batch_size: int = 100,
    cache: ResultCache | None = None,
    progress: bool = True,
) -> Tensor:
    """Negative log-likelihood of each code of pictures under the language model: nats, (n, T) float32.

    As in sampling and training, probabilities are among the codes that are valid at each position. Captions that leave
    no room for the picture lose their end.

    Args:
        codes: (n, T) int64, of the model's own tokenizer.
        captions: one for each picture; None for a picture without its caption.
        cache: where they are kept under the model's hashes, the codes and the captions.
    """

    def compute() -> dict[str, Tensor]:
        return {"nats": _code_nats(pipeline, codes, captions, batch_size, progress)}

    if cache is None:
        return compute()["nats"]
    digest = hashlib.sha256(codes.contiguous().numpy().tobytes() + json.dumps(list(captions)).encode())
    key = {"kind": "nats", **model_key(pipeline), "documents": digest.hexdigest(), "batch_size": batch_size}
    return cache.tensors(key, compute)["nats"]


def _code_nats(
    pipeline: MultimodalPipeline, codes: Tensor, captions: Sequence[str | None], batch_size: int, progress: bool
) -> Tensor:
    room = caption_room(pipeline.model, pipeline.vocabulary)
    rows = {"caption_to_image": [row for row, caption in enumerate(captions) if caption is not None],
            "image": [row for row, caption in enumerate(captions) if caption is None]}  # fmt: skip
    texts: list[list[int]] = [[] for _ in captions]
    for row in rows["caption_to_image"]:
        texts[row] = pipeline.vocabulary.encode_text(str(captions[row]))[:room]
    nats = torch.zeros(codes.shape)
    with tqdm(total=len(captions), desc="likelihood", unit=" pictures", disable=not progress, leave=False) as bar:
        for sequence_format, members in rows.items():
            members.sort(key=lambda row: len(texts[row]))  # so that little is computed on padding
            for indices in index_batches(len(members), batch_size):
                batch = members[indices.start : indices.stop]
                found = label_nats(pipeline, sequence_format, [texts[row] for row in batch], codes[batch])
                nats[torch.tensor(batch)] = torch.stack(found).float().cpu()
                bar.update(len(batch))
    return nats


def measure_likelihood(
    pipeline: MultimodalPipeline,
    codes: Tensor,
    captions: Sequence[str | None],
    *,
    batch_size: int = 100,
    cache: ResultCache | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Likelihood figures of a set of pictures.

    Returns:
        `n` pictures, of which `num_captioned` have a caption; `num_codes`; `nats_per_code` with each picture's caption,
        and `nats_per_code_without_caption`, the same number where no picture has one; of the first, `bits_per_code`,
        `bits_per_dimension` (bits of all codes over the picture's values, channels x height x width: the rate of a
        lossless coder of codes, no likelihood of pixels), `levels`, coarse to fine (`level`, `num_codes` of a picture,
        `nats_per_code`, `bits_per_code`), and `interval`s of 95% over pictures.
    """
    num_captioned = sum(caption is not None for caption in captions)

    def nats_of(texts: Sequence[str | None]) -> Tensor:
        return code_nats(pipeline, codes, texts, batch_size=batch_size, cache=cache, progress=progress).double()

    alone = nats_of([None] * len(codes))
    captioned = nats_of(captions) if num_captioned else alone
    level = torch.as_tensor(pipeline.vocabulary.layout["level"])
    height, width = pipeline.vocabulary.image_size
    values = pipeline.image_tokenizer.config.num_channels * height * width
    return {
        "n": len(codes),
        "num_captioned": num_captioned,
        "num_codes": codes.numel(),
        "nats_per_code": float(captioned.mean()),
        "nats_per_code_without_caption": float(alone.mean()),
        "bits_per_code": float(captioned.mean()) / math.log(2),
        "bits_per_dimension": float(captioned.sum(dim=1).mean()) / math.log(2) / values,
        "interval": {
            "nats_per_code": mean_interval(captioned.mean(dim=1)),
            "nats_per_code_without_caption": mean_interval(alone.mean(dim=1)),
            "bits_per_code": mean_interval(captioned.mean(dim=1) / math.log(2)),
            "bits_per_dimension": mean_interval(captioned.sum(dim=1) / math.log(2) / values),
        },
        "levels": [_level(int(number), captioned[:, level == number]) for number in level.unique()],
    }


def _level(number: int, nats: Tensor) -> dict[str, Any]:
    mean = float(nats.mean())
    return {
        "level": number,
        "num_codes": nats.shape[1],
        "nats_per_code": mean,
        "bits_per_code": mean / math.log(2),
        "interval": {
            "nats_per_code": mean_interval(nats.mean(dim=1)),
            "bits_per_code": mean_interval(nats.mean(dim=1) / math.log(2)),
        },
    }


def measure_text(
    pipeline: MultimodalPipeline, codes: Tensor, captions: Sequence[str | None], *, batch_size: int = 100
) -> dict[str, Any] | None:
    """Likelihood of captions by a model that has learned to write them; None where it has not, or there are none.

    Captions that leave no room for the picture lose their end.

    Returns:
        `n` captions, `num_tokens` of text, without special ones, `nats_per_token`, and its 95% `interval` over
        captions; `format`, the sequence format that they are scored in.
    """
    name = next((one for one in TEXT_FORMATS if one in pipeline.vocabulary.formats), None)
    rows = [row for row, caption in enumerate(captions) if caption]
    if name is None or not rows:
        return None
    room = caption_room(pipeline.model, pipeline.vocabulary) - 2  # beside text and codes: end of image, eos
    texts = [pipeline.vocabulary.encode_text(str(captions[row]))[: max(1, room)] for row in rows]
    nats: list[Tensor] = []
    for indices in index_batches(len(rows), batch_size):
        part = slice(indices.start, indices.stop)
        found = label_nats(pipeline, name, texts[part], codes[rows[part]])
        nats += [_text_part(name, row, len(ids), codes.shape[1]) for row, ids in zip(found, texts[part], strict=True)]
    totals = torch.stack([row.double().sum() for row in nats])
    lengths = torch.tensor([len(row) for row in nats], dtype=torch.float64)
    mean = float(totals.sum() / lengths.sum())
    # The mean over tokens is a ratio of two means over captions; its spread is that of the residuals (Cochran 1977).
    residuals = mean + (totals - mean * lengths) / lengths.mean()
    return {
        "n": len(nats),
        "num_tokens": int(lengths.sum()),
        "format": name,
        "nats_per_token": mean,
        "interval": {"nats_per_token": mean_interval(residuals)},
    }


def _text_part(name: str, nats: Tensor, num_tokens: int, num_codes: int) -> Tensor:
    """Of the nats of a sequence's labels, those of its text."""
    before, layout = 0, FORMATS[name]
    for part, learned in zip(layout.parts, layout.learned, strict=True):
        if part == "text":
            break
        before += learned * (num_codes if part == "codes" else 1)
    return nats[before : before + num_tokens].cpu()
