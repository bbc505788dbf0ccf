"""From the options of stage 2 to a language model and its vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

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
from lm.sequences import FORMATS
from lm.vocabulary import MultimodalVocabulary, train_text_tokenizer
from pipelines.options.language_model import LanguageModelOptions
from pipelines.options.sequences import GUIDANCE
from pipelines.training.sequences import longest_sequence
from tokenizer_image.fingerprint import accepts_fingerprint
from tokenizer_image.layout import ImageTokenizer

BPE_ROWS = 50_000  # whose captions a BPE is trained on; more change it little, and take longer
PRETRAINED_SHARE = 0.25  # of the learning rate that a model from scratch of that width starts with


def build_vocabulary(
    options: LanguageModelOptions, tokenizer: ImageTokenizer, cache: TokenCache
) -> MultimodalVocabulary:
    """The joint vocabulary: a BPE trained on the captions (or a given tokenizer) and the image codes."""
    if options.text_tokenizer or options.lm_name_or_path:
        text = given_tokenizer(options)
    else:
        text = train_text_tokenizer(cache.some_texts(BPE_ROWS), options.text_vocab_size)
    side = tokenizer.config.image_size
    first, *others = options.picture_sizes() or [(side, side)]
    return MultimodalVocabulary.build(
        text, num_codes=tokenizer.num_codes, layout=tokenizer.layout(first).to_dict(), image_size=list(first),
        image_tokenizer_fingerprint=tokenizer.fingerprint,
        other_layouts={size: tokenizer.layout(size).to_dict() for size in others},
    )  # fmt: skip


def given_tokenizer(options: LanguageModelOptions) -> PreTrainedTokenizerBase:
    """That of --text_tokenizer, else the one of --lm_name_or_path."""
    if options.text_tokenizer:
        return load_text_tokenizer(options.text_tokenizer)
    return load_own_tokenizer(str(options.lm_name_or_path))


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


def load_vocabulary(options: LanguageModelOptions, tokenizer: ImageTokenizer) -> MultimodalVocabulary:
    """The vocabulary of --init_from."""
    vocabulary = MultimodalVocabulary.from_pretrained(Path(str(options.init_from)) / "lm")
    if not accepts_fingerprint(tokenizer, vocabulary.image_tokenizer_fingerprint):
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


def check_parts(options: LanguageModelOptions, tokenizer: ImageTokenizer) -> None:
    """Raise ValueError where `build_parts` could not succeed, before any picture is encoded."""
    _check_image_size(options, tokenizer)
    if options.init_from:
        load_vocabulary(options, tokenizer)
        config = AutoConfig.from_pretrained(Path(options.init_from) / "lm")
        check_sizes(options, "init_from", config, "text_tokenizer", "text_vocab_size")
        if (options.max_length or 0) > max_positions(config):
            raise ValueError(
                f"--max_length {options.max_length}: --init_from {options.init_from} takes at most "
                f"{max_positions(config)} tokens; give no more, or leave it out"
            )
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


def _check_image_size(options: LanguageModelOptions, tokenizer: ImageTokenizer) -> None:
    """Raise ValueError unless --image_size, where it is given, is a size that pictures are encoded at."""
    size, side = options.image_size, tokenizer.config.image_size
    if size is not None and (size, size) not in (options.picture_sizes() or [(side, side)]):
        raise ValueError(
            f"--image_size {size}: the image tokenizer {options.image_tokenizer} encodes {side}x{side} pictures; leave "
            f"--image_size out, or give --image_sizes {size}x{size} to have it encode that size"
        )


def _longest_picture(options: LanguageModelOptions, tokenizer: ImageTokenizer) -> int:
    """Most codes of a picture, before there is a vocabulary."""
    return max([len(tokenizer.layout(size)) for size in options.picture_sizes()] or [tokenizer.tokens_per_image])


def check_sizes(options: LanguageModelOptions, start: str, config: Any, *others: str) -> None:
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


def build_parts(
    options: LanguageModelOptions, tokenizer: ImageTokenizer, cache: TokenCache
) -> tuple[PreTrainedModel, MultimodalVocabulary]:
    """Language model and vocabulary: fresh, those of --init_from, or a pretrained model's with rows for the codes."""
    if options.init_from:
        vocabulary = load_vocabulary(options, tokenizer)
        model = load_model(str(Path(options.init_from) / "lm"), dtype=torch.float32)
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
    dropped = options.caption_dropout_share() > 0 and any(FORMATS[name].drops_captions for name in options.mixture())
    alone = dropped or any(FORMATS[name].draws_alone for name in options.mixture())
    usual = GUIDANCE if options.default_guidance is None else options.default_guidance
    vocabulary.default_guidance = usual if alone else 1.0
    return model, vocabulary


def describe_model(model: PreTrainedModel, vocabulary: MultimodalVocabulary) -> str:
    """How large the model is, in words."""
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    layers = {id(layer.weight): layer.weight.numel()
              for layer in (model.get_input_embeddings(), model.get_output_embeddings())}  # fmt: skip
    return (
        f"{model.config.model_type}: {parameters / 1e6:.2f}M parameters "
        f"({(parameters - sum(layers.values())) / 1e6:.2f}M without embeddings), "
        f"{vocabulary.size} token ids ({vocabulary.num_codes} image codes)"
    )


def default_learning_rate(options: LanguageModelOptions, model: PreTrainedModel) -> float:
    """AdamW's peak learning rate: --learning_rate, else by width, and a quarter of that for a pretrained model."""
    rate = width_learning_rate(model.config.get_text_config().hidden_size)
    return options.learning_rate or (PRETRAINED_SHARE * rate if options.lm_name_or_path else rate)
