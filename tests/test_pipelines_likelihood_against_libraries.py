"""Likelihoods of codes and of captions, equal to torchmetrics' perplexity of the stock model's logits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import tiny_pipeline
from torchmetrics.functional.text import perplexity

from lm.sequences import collate, token_sequence
from pipelines.evaluation.likelihood import measure_likelihood, measure_text

CAPTIONS = ["a red dog", "a blue cat on grass", "a dog", "a red cat on a blue dog", "grass"]


@pytest.fixture
def codes() -> torch.Tensor:
    """Of five pictures, one code of each range at every position of the tiny tokenizer."""
    layout = tiny_pipeline().image_tokenizer.layout()
    low, high = (torch.from_numpy(one) for one in (layout.low, layout.high))
    return low + (torch.rand(5, len(low), generator=torch.Generator().manual_seed(0)) * (high - low)).long()


def logits_and_labels(
    pipe, name: str, codes: torch.Tensor, captions: Sequence[str | None]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each position's next token, (B, L - 1, V) and (B, L - 1); ids that do not compete for the place have none."""
    texts = [[] if text is None else pipe.vocabulary.encode_text(text) for text in captions]
    rows = [token_sequence(pipe.vocabulary, name, text, one.numpy()) for text, one in zip(texts, codes, strict=True)]
    batch = collate(rows, pipe.vocabulary.pad_id)
    with torch.no_grad():
        logits = pipe.model(batch["input_ids"], position_ids=batch["position_ids"]).logits[:, :-1]
    labels = batch["labels"][:, 1:].clone()
    for start, end in pipe.vocabulary.id_ranges:
        others = (torch.arange(logits.shape[2]) < start) | (torch.arange(logits.shape[2]) >= end)
        logits[((labels >= start) & (labels < end))[..., None] & others] = -torch.inf
    return logits, labels


@pytest.mark.parametrize("captions", [[None] * 5, CAPTIONS])
def test_perplexity_of_codes(codes, captions):
    pipe = tiny_pipeline(formats=["image", "caption_to_image"], max_positions=128)
    name = "image" if captions[0] is None else "caption_to_image"
    logits, labels = logits_and_labels(pipe, name, codes, captions)
    labels[labels < pipe.vocabulary.image_offset] = -100
    assert (labels >= 0).sum() == codes.numel()
    found = measure_likelihood(pipe, codes, captions, progress=False)
    wanted = float(perplexity(logits, labels, ignore_index=-100))
    assert math.exp(found["nats_per_code"]) == pytest.approx(wanted, rel=1e-4)
    assert 2 ** found["bits_per_code"] == pytest.approx(wanted, rel=1e-4)
    nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
    means = nats.sum(1) / codes.shape[1]
    wanted = stats.norm.interval(0.95, loc=means.mean(), scale=stats.sem(means))
    assert found["interval"]["nats_per_code"] == pytest.approx(wanted, rel=1e-4)


def test_perplexity_of_captions(codes):
    """Text alone counts, no special token. The interval is that of a ratio R of two means over captions, of nats y and
    of tokens x; its variance is sum (y - R x)^2 / (n (n - 1) mean(x)^2) (Cochran 1977)."""
    pipe = tiny_pipeline(formats=["image_to_caption"], max_positions=128)
    logits, labels = logits_and_labels(pipe, "image_to_caption", codes, CAPTIONS)
    special = torch.tensor(pipe.vocabulary.tokenizer.all_special_ids)
    labels[torch.isin(labels, special) | (labels >= pipe.vocabulary.image_offset)] = -100
    lengths = np.array([len(pipe.vocabulary.encode_text(text)) for text in CAPTIONS])
    np.testing.assert_array_equal((labels >= 0).sum(1), lengths)
    found = measure_text(pipe, codes, CAPTIONS)
    assert found is not None and found["num_tokens"] == lengths.sum()
    wanted = float(perplexity(logits, labels, ignore_index=-100))
    assert math.exp(found["nats_per_token"]) == pytest.approx(wanted, rel=1e-4)
    nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
    totals = nats.double().sum(1).numpy()
    residuals = totals - math.log(wanted) * lengths
    error = math.sqrt((residuals**2).sum() / (5 * 4)) / lengths.mean()
    interval = stats.norm.interval(0.95, loc=math.log(wanted), scale=error)
    assert found["interval"]["nats_per_token"] == pytest.approx(interval, rel=1e-4)
