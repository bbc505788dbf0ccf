"""A trained model as the start for other captions and other image codes: its vocabulary, extended, and its rows, moved.

The layers between the embeddings and the output stay as they are. A row of either that the model has already goes to
the same token's new place; a new one starts from the rows of what it replaces.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import pairwise

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lm.pretrained import set_special_ids
from lm.surrogates import replace_surrogates
from lm.vocabulary import MultimodalVocabulary

LEAST_COUNT = 2  # of a pair of tokens that becomes one, as in `train_text_tokenizer`
OWN_TOKENS = re.compile(r"<\|(?:bos|eos|pad|begin_image|end_image|end_row|image_\d+|size_\d+x\d+)\|>")

Pair = tuple[str, str]


def extend_text_tokenizer(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], vocab_size: int
) -> tuple[PreTrainedTokenizerFast, int]:
    """The text part of a vocabulary's tokenizer, with further merges that are learned on top of its own (Sennrich et
    al. 2016) from texts that it was not trained on.

    Merges that it has come first, so that the words that it knows keep their tokens. One that is no BPE, or has special
    tokens of its own as a pretrained model's has, is not extended.

    Args:
        tokenizer: of a `MultimodalVocabulary`.
        texts: the new captions.
        vocab_size: most text tokens afterwards.

    Returns:
        The tokenizer, without the tokens that `MultimodalVocabulary.build` adds, and the number of merges.
    """
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    foreign = [token for token in values["added_tokens"] if not OWN_TOKENS.fullmatch(token["content"])]
    values["added_tokens"], values["post_processor"] = foreign, None
    merges: list[Pair] = []
    if values["model"]["type"] == "BPE" and not foreign:
        vocabulary: dict[str, int] = values["model"]["vocab"]
        words = _tokenized_words(Tokenizer.from_str(json.dumps(values)), texts)
        merges = learn_merges(words, set(vocabulary), max(0, vocab_size - len(vocabulary)))
        for first, second in merges:
            vocabulary[first + second] = len(vocabulary)
        values["model"]["merges"] += [list(pair) for pair in merges]
    roles = {
        role: token for role in ("bos_token", "eos_token", "pad_token")
        if (token := getattr(tokenizer, role)) and not OWN_TOKENS.fullmatch(token)
    }  # fmt: skip
    text = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(values)), clean_up_tokenization_spaces=False, **roles
    )
    return text, len(merges)


def _tokenized_words(tokenizer: Tokenizer, texts: Iterable[str]) -> Counter[tuple[str, ...]]:
    """Each word of the texts as tokens, and how often it occurs."""
    words: Counter[str] = Counter()
    for text in texts:
        normalized = replace_surrogates(text)
        if tokenizer.normalizer is not None:
            normalized = tokenizer.normalizer.normalize_str(normalized)
        before = tokenizer.pre_tokenizer
        words.update([normalized] if before is None else [word for word, _ in before.pre_tokenize_str(normalized)])
    found: Counter[tuple[str, ...]] = Counter()
    for word, count in words.items():
        found[tuple(token.value for token in tokenizer.model.tokenize(word))] += count
    return found


def learn_merges(words: Mapping[tuple[str, ...], int], known: set[str], most: int) -> list[Pair]:
    """The most frequent pairs of tokens, each merged before the next is looked for; pairs whose token is known already
    are left alone.

    Args:
        words: each word's tokens, and how often it occurs.
    """
    parts, counts = [list(word) for word in words], list(words.values())
    pairs: Counter[Pair] = Counter()
    holders: dict[Pair, set[int]] = {}  # the words that a pair is in, or was
    for number, word in enumerate(parts):
        for pair in pairwise(word):
            pairs[pair] += counts[number]
            holders.setdefault(pair, set()).add(number)
    queue = [(-count, pair) for pair, count in pairs.items()]
    heapify(queue)
    merges: list[Pair] = []
    while queue and len(merges) < most:
        count, best = heappop(queue)
        if -count != pairs[best] or -count < LEAST_COUNT or "".join(best) in known:
            continue  # counted anew since, or no pair to merge
        merges.append(best)
        known.add("".join(best))
        changed: set[Pair] = set()
        for number in holders.pop(best):
            before, parts[number] = parts[number], _merged(parts[number], best)
            for pair in pairwise(before):
                pairs[pair] -= counts[number]
            for pair in pairwise(parts[number]):
                pairs[pair] += counts[number]
                holders.setdefault(pair, set()).add(number)
            changed.update(pairwise(before), pairwise(parts[number]))
        for pair in changed:
            heappush(queue, (-pairs[pair], pair))
    return merges


def _merged(word: list[str], pair: Pair) -> list[str]:
    merged: list[str] = []
    for token in word:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return merged


def text_sources(before: MultimodalVocabulary, after: MultimodalVocabulary) -> list[list[int]]:
    """For each id of `after` below its image codes, the earlier ids that its rows start from: the same token's, else
    those of the tokens that it used to be; [] where there are none."""
    known = before.tokenizer.get_vocab()
    names = {number: token for token, number in after.tokenizer.get_vocab().items()}
    model = before.tokenizer.backend_tokenizer.model
    sources: list[list[int]] = []
    for number in range(after.image_offset):
        name = names.get(number)
        if name is None:
            sources.append([])
        elif name in known and known[name] < before.image_offset:
            sources.append([known[name]])
        elif name in after.tokenizer.all_special_tokens or name in after.tokenizer.get_added_vocab():
            sources.append([])
        else:
            sources.append([token.id for token in model.tokenize(name) if token.id < before.image_offset])
    return sources


@dataclass(frozen=True)
class CodeSources:
    """Which earlier codes' rows each code starts from: for each pair (code, earlier code), its weight.

    Attributes:
        codes, earlier: (n,) int64.
        weights: (n,) float32; those of each code have the sum 1.
    """

    codes: np.ndarray
    earlier: np.ndarray
    weights: np.ndarray


def same_codes(num_codes: int) -> CodeSources:
    """Of codes that mean what they meant."""
    codes = np.arange(num_codes)
    return CodeSources(codes, codes, np.ones(num_codes, np.float32))


@torch.no_grad()
def move_rows(
    model: PreTrainedModel, before: MultimodalVocabulary, after: MultimodalVocabulary, codes: CodeSources | None
) -> None:
    """Give a model of the vocabulary `before` the rows of `after`.

    Rows of text that have no source start from the mean of the earlier ones, as do all of the codes where `codes` is
    None.
    """
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    earlier = [tensor.detach().clone() for layer in layers for tensor in layer.parameters()]
    model.resize_token_embeddings(after.size, mean_resizing=False)
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    sources = text_sources(before, after)
    resized = [tensor for layer in layers for tensor in layer.parameters()]
    for tensor, old in zip(resized, earlier, strict=True):  # tied layers: twice the same
        text, old_codes = old[: before.image_offset], old[before.image_offset : before.size]
        mean = text.mean(0)
        tensor[: after.image_offset] = torch.stack([text[source].mean(0) if source else mean for source in sources])
        rows = old_codes.mean(0).expand(after.num_codes, *old.shape[1:])
        if codes is not None:
            weights = torch.from_numpy(codes.weights).to(old).view(-1, *[1] * (old.ndim - 1))
            parts = weights * old_codes[torch.from_numpy(codes.earlier)]
            rows = torch.zeros_like(rows).index_add_(0, torch.from_numpy(codes.codes), parts)
        tensor[after.image_offset : after.size] = rows
    set_special_ids(model, after)
