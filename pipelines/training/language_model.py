"""Options of stage 2 to a language model and its vocabulary, and the figures and pictures of its training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lm.data.sequence_source import SequenceSource
from lm.data.token_cache import TokenCache
from lm.model import build_configuration, build_model, load_model, model_sizes, start_code_rows
from lm.model import default_learning_rate as width_learning_rate
from lm.pretrained import (
    check_positions,
    check_tokenizer,
    extend_model,
    ids_taken,
    load_configuration,
    load_own_tokenizer,
    load_pretrained,
    max_positions,
)
from lm.sequences import FORMATS, collate
from lm.vocabulary import MultimodalVocabulary, train_text_tokenizer
from tokenizer_image.layout import ImageTokenizer

VALIDATION_ROWS = 64  # per batch
DOCUMENT_LENGTH = 1024  # tokens of an interleaved row, where --max_length does not say
BPE_ROWS = 50_000  # whose captions a BPE is trained on; more change it little, and take longer
PRETRAINED_SHARE = 0.25  # of the learning rate that a model from scratch of that width starts with


def build_vocabulary(options: Any, tokenizer: ImageTokenizer, cache: TokenCache) -> MultimodalVocabulary:
    """The joint vocabulary: a BPE trained on the captions (or a given tokenizer) and the image codes."""
    if options.text_tokenizer or options.lm_name_or_path:
        text = given_tokenizer(options)
    else:
        text = train_text_tokenizer(cache.some_texts(BPE_ROWS), options.text_vocab_size)
    own = tokenizer.config.image_size
    first, *others = options.picture_sizes() or [(own, own)]
    return MultimodalVocabulary.build(
        text, num_codes=tokenizer.num_codes, layout=tokenizer.layout(first).to_dict(), image_size=list(first),
        image_tokenizer_fingerprint=tokenizer.fingerprint, default_guidance=options.default_guidance,
        other_layouts={size: tokenizer.layout(size).to_dict() for size in others},
    )  # fmt: skip


def given_tokenizer(options: Any) -> PreTrainedTokenizerBase:
    """That of --text_tokenizer, else the one of --lm_name_or_path."""
    if options.text_tokenizer:
        return load_text_tokenizer(options.text_tokenizer)
    return load_own_tokenizer(options.lm_name_or_path)


def load_text_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A fast tokenizer of transformers."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"--text_tokenizer {name} is no tokenizer of transformers, here or on the Hub: {reason}"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(f"--text_tokenizer {name} has no fast version (tokenizer.json): choose one that has")
    return tokenizer


def load_vocabulary(options: Any, tokenizer: ImageTokenizer) -> MultimodalVocabulary:
    """The vocabulary of --init_from."""
    vocabulary = MultimodalVocabulary.from_pretrained(Path(str(options.init_from)) / "lm")
    if vocabulary.image_tokenizer_fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"--init_from {options.init_from} was trained with another image tokenizer: give its own as "
            f"--image_tokenizer {Path(str(options.init_from)) / 'image_tokenizer'}"
        )
    side = tokenizer.config.image_size
    others = [size for size in options.picture_sizes() or [(side, side)] if size not in vocabulary.layouts]
    if others:
        raise ValueError(
            f"--image_sizes: --init_from {options.init_from} knows {_sizes_line(vocabulary.layouts)}, not "
            f"{_sizes_line(others)}: give sizes that it knows"
        )
    return vocabulary


def _sizes_line(sizes: Iterable[tuple[int, int]]) -> str:
    return ", ".join(f"{height}x{width}" for height, width in sizes)


def check_parts(options: Any, tokenizer: ImageTokenizer) -> None:
    """Raise ValueError for what can be told about `build_parts` before pictures are encoded."""
    if options.init_from and options.lm_name_or_path:
        raise ValueError(
            f"--init_from {options.init_from} and --lm_name_or_path {options.lm_name_or_path} exclude each other: give "
            "the one to start from"
        )
    if options.init_from:
        load_vocabulary(options, tokenizer)
        config = AutoConfig.from_pretrained(Path(options.init_from) / "lm")
        check_sizes(options, "init_from", config, "text_tokenizer", "text_vocab_size")
    elif options.lm_name_or_path:
        config = load_configuration(options.lm_name_or_path)
        check_sizes(options, "lm_name_or_path", config, "text_vocab_size")
        check_tokenizer(config, given_tokenizer(options), options.lm_name_or_path)
        check_positions(
            config, options.lm_name_or_path, longest_sequence(options, _longest_picture(options, tokenizer))
        )
    else:
        model_sizes(**options.sizes(tokenizer.tokens_per_image))
        if options.text_tokenizer:
            load_text_tokenizer(options.text_tokenizer)
            if options.text_vocab_size != type(options).text_vocab_size:
                raise ValueError(
                    f"--text_vocab_size {options.text_vocab_size} is of a BPE that is trained here: leave it out, or "
                    f"--text_tokenizer {options.text_tokenizer}"
                )


def _longest_picture(options: Any, tokenizer: ImageTokenizer) -> int:
    """Most codes of a picture, before there is a vocabulary."""
    return max([len(tokenizer.layout(size)) for size in options.picture_sizes()] or [tokenizer.tokens_per_image])


def check_sizes(options: Any, start: str, config: Any, *others: str) -> None:
    """Raise ValueError for sizes, and `others` among the options, that what the run starts from has settled."""
    text = config.get_text_config()
    fixed = {
        "architecture": config.model_type, "num_layers": text.num_hidden_layers, "hidden_size": text.hidden_size,
        "num_heads": text.num_attention_heads, "intermediate_size": getattr(text, "intermediate_size", None),
        "lm_size": None, **dict.fromkeys(others),
    }  # fmt: skip
    defaults = {option.name: option.default for option in fields(options)}
    clashes = [name for name, value in fixed.items() if getattr(options, name) not in (defaults[name], value)]
    if clashes:
        raise ValueError(
            f"--{start} {getattr(options, start)} fixes {', '.join('--' + n for n in clashes)}: leave them out"
        )


def longest_sequence(options: Any, longest_picture: int, documents: bool = False) -> int:
    """Most tokens of a sequence: --max_length, or what a picture with the longest caption and all special tokens takes,
    and where there are interleaved `documents` at least `DOCUMENT_LENGTH`."""
    captioned = longest_picture + options.max_caption_tokens + max(FORMATS[name].frame for name in options.mixture())
    return options.max_length or max(captioned, DOCUMENT_LENGTH if documents else 0)


def build_parts(
    options: Any, tokenizer: ImageTokenizer, cache: TokenCache
) -> tuple[PreTrainedModel, MultimodalVocabulary]:
    """Language model and vocabulary: fresh, those of --init_from, or a pretrained model's with rows for the codes."""
    if options.init_from:
        vocabulary = load_vocabulary(options, tokenizer)
        model = load_model(str(Path(options.init_from) / "lm"))
    elif options.lm_name_or_path:
        known = ids_taken(given_tokenizer(options))
        vocabulary = build_vocabulary(options, tokenizer, cache)
        model = load_pretrained(options.lm_name_or_path)
        extend_model(model, vocabulary, known)
    else:
        vocabulary = build_vocabulary(options, tokenizer, cache)
        positions = longest_sequence(options, vocabulary.longest_picture, cache.interleaved) + 4
        sizes = options.sizes(vocabulary.tokens_per_image)
        model = build_model(build_configuration(vocabulary, max_positions=positions, **sizes))
        vectors = tokenizer.code_vectors() if hasattr(tokenizer, "code_vectors") else None
        if vectors is not None:
            start_code_rows(model, vocabulary, vectors)
    # Guidance needs what caption dropout teaches.
    dropped = options.dropout() > 0 and any(FORMATS[name].drops_captions for name in options.mixture())
    alone = dropped or any(FORMATS[name].draws_alone for name in options.mixture())
    vocabulary.default_guidance = options.default_guidance if alone else 1.0
    return model, vocabulary


def loss_shares(options: Any, names: Iterable[str]) -> tuple[float, float]:
    """What text and image codes count in the loss, with sum 1: by the options' weights where the formats of these
    names learn both.

    Raises:
        ValueError: the weights were changed, but only one of both is learned.
    """
    formats = [FORMATS[name] for name in names]
    weights = {"text_loss_weight": options.text_loss_weight, "image_loss_weight": options.image_loss_weight}
    learned = any(one.writes for one in formats), any(one.draws for one in formats)
    changed = [f"--{name} {weights[name]:g}" for name in weights if weights[name] != getattr(type(options), name)]
    if changed and not all(learned):
        raise ValueError(
            f"{' and '.join(changed)} has no effect: --formats {' '.join(options.mixture())} learns only "
            f"{'text' if learned[0] else 'image codes'}; leave it out, or add a format "
            "(caption_and_image learns both; so does document, of interleaved rows)"
        )
    text, image = (weight * kind for weight, kind in zip(weights.values(), learned, strict=True))
    return text / (text + image), image / (text + image)


def build_source(
    options: Any, cache: TokenCache, vocabulary: MultimodalVocabulary, model: PreTrainedModel, validation: bool = False
) -> SequenceSource:
    """The rows of a cache in the options' formats, no longer than what the options allow and the model can take."""
    longest = min(longest_sequence(options, vocabulary.longest_picture, cache.interleaved), max_positions(model.config))
    dropout = 0.0 if validation else options.dropout()
    drop = options.long_sequences == "drop" and not validation  # every row is validated on, cropped where need be
    return SequenceSource(cache, vocabulary, dropout, options.mixture(), longest, drop, options.max_caption_tokens)


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
    """`SequenceSource.choose` for validation: every row in the format `name` with its first text, or in one that it
    can take."""
    chosen: list[tuple[str, str | None]] = []
    for row in rows:
        texts = source.cache.texts(row)
        has = bool(texts), len(source.cache.codes(row)) > 0, len(source.cache.order(row)) > 1
        takes = name if FORMATS[name].fits(*has) else next(iter(source.possible(*has)))
        chosen.append((takes, texts[0] if FORMATS[takes].has_text else None))
    return chosen


def count_long(source: SequenceSource) -> int:
    """How many rows, each with its first text, are too long in one of the formats: cropped, or left out."""
    rows = range(len(source.cache))
    longest = max(source.mixture, key=lambda name: FORMATS[name].frame * FORMATS[name].has_text)
    before = source.cropped + source.dropped
    source.items(rows, first_choices(source, longest, rows))
    return source.cropped + source.dropped - before


def long_line(long: int, source: SequenceSource, rows: int) -> str:
    """What happens to sequences that are too long, of which there are so many among the validation rows."""
    return (
        f"{long} of {rows} validation rows, and about that share of all, are longer than {source.max_length} tokens "
        f"and are {'left out' if source.drop_long else 'cropped'} (--max_caption_tokens, --max_length, "
        "--long_sequences)"
    )


def validate(module: Any, source: SequenceSource, accelerator: Accelerator) -> dict[str, float]:
    """Mean nats per image code and per text token, of what is learned, over the validation rows in every format.

    Pictures count with their captions where those are learned from, not alone. Where several formats teach text, the
    figure is of all together, and one of each beside it. Processes share the rows; all get the same figures.
    """
    names = list(source.mixture)
    drawn = [name for name in names if FORMATS[name].draws]
    if any(FORMATS[name].drops_captions for name in drawn):
        drawn = [name for name in drawn if not FORMATS[name].draws_alone]
    names = [name for name in names if name in drawn or FORMATS[name].writes]
    totals: dict[str, dict[str, float]] = {}
    rows, keys = range(len(source.cache)), ("image_nats", "image_tokens", "text_nats", "text_tokens")
    rank, world = accelerator.process_index, accelerator.num_processes
    with torch.no_grad():  # not inference_mode: FSDP2 would go on with the tensors that it gathers here
        for name, start in product(names, range(0, len(rows), VALIDATION_ROWS * world)):
            part = rows[start : start + VALIDATION_ROWS * world]
            mine = part[rank::world]  # maybe none; yet all processes must call a sharded module together
            items = source.items(mine or part[:1], first_choices(source, name, mine or part[:1]))
            batch = collate([source.sequence(item) for item in items], source.vocabulary.pad_id)
            sums = module(**{key: tensor.to(accelerator.device) for key, tensor in batch.items()})
            found = totals.setdefault(name, dict.fromkeys(keys, 0.0))
            for key in keys if mine else ():
                found[key] += float(sums[key])
    for found in totals.values():
        sums = accelerator.reduce(torch.tensor(list(found.values()), device=accelerator.device), "sum")
        found.update(zip(keys, sums.tolist(), strict=True))
    written = {name: found for name, found in totals.items() if found["text_tokens"]}
    figures = {}
    if drawn:
        figures["nats_per_code"] = _mean([totals[name] for name in drawn if name in totals], "image")
    if written:
        figures["nats_per_text_token"] = _mean(written.values(), "text")
    if len(written) > 1:
        figures |= {f"nats_per_text_token_{name}": _mean([found], "text") for name, found in written.items()}
    return figures


def mean_loss(figures: dict[str, float], shares: tuple[float, float]) -> float:
    """What training makes small, of `validate`'s figures: text and codes by their shares."""
    return shares[0] * figures.get("nats_per_text_token", 0.0) + shares[1] * figures.get("nats_per_code", 0.0)


def default_learning_rate(options: Any, model: PreTrainedModel) -> float:
    """AdamW's peak learning rate: --learning_rate, else by width, and a quarter of that for a pretrained model."""
    rate = width_learning_rate(model.config.get_text_config().hidden_size)
    return options.learning_rate or (PRETRAINED_SHARE * rate if options.lm_name_or_path else rate)


def _mean(totals: Iterable[dict[str, float]], kind: str) -> float:
    found = list(totals)
    return sum(one[f"{kind}_nats"] for one in found) / max(1.0, sum(one[f"{kind}_tokens"] for one in found))
