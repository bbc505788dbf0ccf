"""Learning the table that guesses codes (`lm.generation.guess_table`) from a token cache."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from lm.data.sequence_source import SequenceSource, default_mixture
from lm.data.token_cache import TokenCache
from lm.generation.guess_table import CONTEXTS, WIDTH, GuessTable, neighbours
from lm.generation.phrase_table import PhraseTable
from lm.vocabulary import MultimodalVocabulary

LEAST_ROWS, MOST_CODES = 200, 32_768  # of a token cache that a table is learned from; more codes, and it is not small
MOST_ROWS, STEPS, EXAMPLES, LEARNING_RATE = 20_000, 400, 1024, 0.02


def learn_guess_table(cache: TokenCache, vocabulary: MultimodalVocabulary) -> GuessTable | None:
    """Learn a table from pictures of the default size; None where there are too few, or too many codes.

    Adam on the cross-entropy of the codes that can be at a position; seconds, and the same for the same cache.
    """
    layout = vocabulary.layout
    if vocabulary.num_codes > MOST_CODES:
        return None
    codes = _codes_of(cache, vocabulary)
    if len(codes) < LEAST_ROWS:
        return None
    around = torch.from_numpy(neighbours(layout))
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(CONTEXTS, vocabulary.num_codes + 1, WIDTH, generator=generator).mul_(0.1).requires_grad_()
    output = torch.randn(vocabulary.num_codes, WIDTH, generator=generator).mul_(0.1).requires_grad_()
    bias = torch.zeros(vocabulary.num_codes, requires_grad=True)
    optimizer = torch.optim.Adam([vectors, output, bias], LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, STEPS)
    ranges = sorted(set(zip(layout["low"], layout["high"], strict=True)))
    positions = {one: torch.tensor([t for t, low in enumerate(layout["low"]) if low == one[0]]) for one in ranges}
    tables = (vocabulary.num_codes + 1) * torch.arange(CONTEXTS)  # first rows of each context's vectors
    for _ in range(STEPS):
        loss = torch.zeros(())
        for low, high in ranges:
            count = max(1, EXAMPLES // len(ranges))
            rows = torch.randint(len(codes), (count,), generator=generator)
            places = positions[low, high][torch.randint(len(positions[low, high]), (count,), generator=generator)]
            near = around[places]  # (count, 4)
            ids = torch.where(near >= 0, codes[rows[:, None], near.clamp(min=0)], vocabulary.num_codes)
            # Indexing would add up gradients in any order; this adds them in one.
            context = functional.embedding(tables + ids, vectors.flatten(0, 1)).sum(1)
            logits = context @ output[low:high].T + bias[low:high]
            loss = loss + functional.cross_entropy(logits, codes[rows, places] - low)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    arrays = (vectors.detach().numpy(), output.detach().numpy(), bias.detach().numpy())
    return GuessTable(
        *arrays, fingerprint=vocabulary.image_tokenizer_fingerprint, phrases=learn_phrases(cache, vocabulary)
    )


def learn_phrases(cache: TokenCache, vocabulary: MultimodalVocabulary) -> PhraseTable:
    """Which token of text follows which, in sequences of all formats that the model learns, without special cases for
    what stands before and after a text."""
    mixture = dict.fromkeys(vocabulary.formats, 1.0) or default_mixture()
    source = SequenceSource(cache, vocabulary, mixture=mixture)
    rows = _rows_at_even_distances(cache)
    items = source.items(rows, source.choose(seed=0, epoch=0, rows=rows))
    return PhraseTable.learn((source.sequence(item).input_ids for item in items), vocabulary.image_offset)


def _codes_of(cache: TokenCache, vocabulary: MultimodalVocabulary) -> torch.Tensor:
    """Codes (N, T) of pictures of the default size, from rows at even distances."""
    size = (vocabulary.image_size[0], vocabulary.image_size[1])
    chosen = _rows_at_even_distances(cache)
    rows = [cache.codes(row) for row in chosen if {tuple(one) for one in cache.image_sizes(row)} == {size}]
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *rows]).reshape(-1, vocabulary.tokens_per_image))


def _rows_at_even_distances(cache: TokenCache) -> np.ndarray:
    return np.linspace(0, len(cache) - 1, min(len(cache), MOST_ROWS)).astype(np.int64)
