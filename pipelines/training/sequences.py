"""Which sequences stage 2 learns: the rows of a token cache in the formats and lengths that the options ask for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import PreTrainedModel

from lm.data.code_noise import CodeNoise
from lm.data.sequence_source import SequenceSource
from lm.data.shards import EDIT_ORDERS
from lm.data.token_cache import TokenCache
from lm.pretrained import max_positions
from lm.sequences import FORMATS, edit_text
from lm.vocabulary import MultimodalVocabulary
from pipelines.options.language_model import LanguageModelOptions
from tokenizer_image.layout import ImageTokenizer

DOCUMENT_LENGTH = 1024  # tokens of an interleaved row, where --max_length does not say


def longest_sequence(options: LanguageModelOptions, longest_picture: int, cache: TokenCache | None = None) -> int:
    """Most tokens of a sequence: --max_length, or what a picture with the longest caption and all special tokens takes;
    where the `cache` has edits, two pictures, and where it has other interleaved rows, at least `DOCUMENT_LENGTH`."""
    mixture, text = options.mixture(), options.max_caption_tokens
    longest = longest_picture + text + max(FORMATS[name].frame for name in mixture)
    edits = cache is not None and learns_edits(options, cache)
    if edits:
        longest = max(longest, 2 * longest_picture + text + FORMATS["edit"].frame)
    if cache is not None and cache.interleaved:
        only_edits = edits and cache.num_edits == len(cache) and "document" not in mixture
        longest = longest if only_edits else max(longest, DOCUMENT_LENGTH)
    return options.max_length or longest


def learns_edits(options: LanguageModelOptions, cache: TokenCache) -> bool:
    """Whether rows of the cache are learned as edits: by --formats, or since all are a picture, a text, a picture."""
    mixture = options.mixture()
    asked = any(FORMATS[name].edits for name in mixture)
    return cache.num_edits > 0 and (asked or (cache.is_of_edits and "document" not in mixture))


def check_edits(options: LanguageModelOptions, cache: TokenCache) -> None:
    """Raise ValueError where --formats asks for edits and the cache has none, or interleaved rows that are no edits and
    are asked for in no other format."""
    mixture = options.mixture()
    if not any(FORMATS[name].edits for name in mixture):
        return
    what = "an edit is the parts picture, text, picture (source, instruction, result), or a text before these"
    if not cache.num_edits:
        raise ValueError(
            f"--formats {' '.join(mixture)}: the data set has no edits; {what} in documents.jsonl (docs/editing.md)"
        )
    if "document" in mixture:
        return
    for row in range(len(cache)):
        order = cache.order(row)
        if len(order) > 1 and order not in EDIT_ORDERS:
            words = ", ".join("text" if part == "t" else "picture" for part in order)
            raise ValueError(
                f"--formats {' '.join(mixture)}: row {row} has the parts {words}; {what}: mend the row, leave it out, "
                "or add the format document"
            )


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
    check_edits(options, cache)
    longest = min(longest_sequence(options, vocabulary.longest_picture, cache), max_positions(model.config))
    dropout = 0.0 if validation else options.caption_dropout_share()
    drop = options.long_sequences == "drop" and not validation  # validation keeps every row, and crops long ones
    return SequenceSource(
        cache, vocabulary, dropout, options.mixture(), longest, drop, options.max_caption_tokens,
        phrase_dropout=0.0 if validation else options.phrase_dropout, views=views,
        edit_dropout=0.0 if validation else options.edit_dropout,
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
        learned = [name for name in source.trained_formats() if FORMATS[name].edits or FORMATS[name].interleaved]
        words = " and ".join(learned)
        return f"{line}; interleaved rows are learned as {words}, of up to {source.max_length} tokens"
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
        contents = source.contents(row, texts)
        format_name = name if FORMATS[name].fits(*contents) else next(iter(source.possible(*contents)))
        text = edit_text(texts) if FORMATS[format_name].edits else texts[0] if texts else None
        choices.append((format_name, text if FORMATS[format_name].has_text else None))
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
