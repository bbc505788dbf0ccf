"""Which sequences stage 2 learns: the rows of a token cache in the formats and lengths that the options ask for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import PreTrainedModel

from lm.data.code_noise import CodeNoise
from lm.data.sequence_source import SequenceSource
from lm.data.token_cache import TokenCache
from lm.pretrained import max_positions
from lm.sequences import FORMATS
from lm.vocabulary import MultimodalVocabulary
from pipelines.options.language_model import LanguageModelOptions
from tokenizer_image.layout import ImageTokenizer

DOCUMENT_LENGTH = 1024  # tokens of an interleaved row, where --max_length does not say


def longest_sequence(options: LanguageModelOptions, longest_picture: int, documents: bool = False) -> int:
    """Most tokens of a sequence: --max_length, or what a picture with the longest caption and all special tokens takes,
    and where there are interleaved `documents` at least `DOCUMENT_LENGTH`."""
    captioned = longest_picture + options.max_caption_tokens + max(FORMATS[name].frame for name in options.mixture())
    return options.max_length or max(captioned, DOCUMENT_LENGTH if documents else 0)


def build_source(
    options: LanguageModelOptions,
    cache: TokenCache,
    vocabulary: MultimodalVocabulary,
    model: PreTrainedModel,
    views: Sequence[TokenCache] = (),
    validation: bool = False,
) -> SequenceSource:
    """The rows of a cache in the formats of the options, cut to what the options allow and the model can take.

    Args:
        views: caches of further views of the same rows.
        validation: with whole captions, and none dropped.
    """
    longest = min(longest_sequence(options, vocabulary.longest_picture, cache.interleaved), max_positions(model.config))
    dropout = 0.0 if validation else options.caption_dropout_share()
    drop = options.long_sequences == "drop" and not validation  # validation keeps every row, and crops long ones
    return SequenceSource(
        cache, vocabulary, dropout, options.mixture(), longest, drop, options.max_caption_tokens,
        phrase_dropout=0.0 if validation else options.phrase_dropout, views=views,
    )  # fmt: skip


def code_noise(share: float, tokenizer: ImageTokenizer, vocabulary: MultimodalVocabulary) -> CodeNoise | None:
    """Noise on a share of the codes, by the tokenizer's code vectors where it tells them."""
    if not share:
        return None
    vectors = tokenizer.code_vectors() if hasattr(tokenizer, "code_vectors") else None
    return CodeNoise.build(share, vocabulary, None if vectors is None else vectors.float().cpu().numpy())


def formats_line(source: SequenceSource) -> str:
    """What is learned, and what becomes of rows that lack a caption or a picture."""
    line = f"sequence formats: {' '.join(f'{name}={weight:g}' for name, weight in source.mixture.items())}"
    if source.cache.interleaved:
        return f"{line}; interleaved rows are learned as document, of up to {source.max_length} tokens"
    for has_text, has_codes, what in ((False, True, "caption"), (True, False, "picture")):
        rows = source.cache.count(has_text, has_codes)
        if rows:
            line += f"; {rows} rows without a {what} are learned as {' or '.join(source.possible(has_text, has_codes))}"
    return line


def first_choices(source: SequenceSource, name: str, rows: Iterable[int]) -> list[tuple[str, str | None]]:
    """What `SequenceSource.choose` returns, for validation: each row's first text, in the format `name` where the row
    has what that needs, else in the first format that it fits."""
    choices: list[tuple[str, str | None]] = []
    for row in rows:
        texts = source.cache.texts(row)
        contents = bool(texts), len(source.cache.codes(row)) > 0, len(source.cache.order(row)) > 1
        format_name = name if FORMATS[name].fits(*contents) else next(iter(source.possible(*contents)))
        choices.append((format_name, texts[0] if FORMATS[format_name].has_text else None))
    return choices


def count_long(source: SequenceSource) -> int:
    """How many rows, each with its first text, are too long in the longest of the formats: cropped, or left out."""
    rows = range(len(source.cache))
    longest = max(source.mixture, key=lambda name: FORMATS[name].frame * FORMATS[name].has_text)
    before = source.cropped + source.dropped
    source.items(rows, first_choices(source, longest, rows))
    return source.cropped + source.dropped - before


def long_line(long: int, source: SequenceSource, rows: int) -> str:
    """A line about sequences that are too long: `long` of the `rows` validation rows."""
    return (
        f"{long} of {rows} validation rows, and about that share of all, are longer than {source.max_length} tokens "
        f"and are {'left out' if source.drop_long else 'cropped'} (--max_caption_tokens, --max_length, "
        "--long_sequences)"
    )
