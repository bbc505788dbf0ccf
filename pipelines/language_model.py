"""Options of stage 2 to a language model and its vocabulary: fresh, or those of an earlier run."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lm.cache import TokenCache
from lm.model import build_configuration, build_model, load_model, model_sizes
from lm.vocabulary import MultimodalVocabulary, train_text_tokenizer
from tokenizer_image.layout import ImageTokenizer


def build_vocabulary(options: Any, tokenizer: ImageTokenizer, cache: TokenCache) -> MultimodalVocabulary:
    """The joint vocabulary: a BPE trained on the captions (or a given tokenizer) and the image codes."""
    if options.text_tokenizer:
        text = load_text_tokenizer(options.text_tokenizer)
    else:
        text = train_text_tokenizer(cache.all_texts(), options.text_vocab_size)
    side = tokenizer.config.image_size
    return MultimodalVocabulary.build(
        text, num_codes=tokenizer.num_codes, layout=tokenizer.layout().to_dict(), image_size=[side, side],
        image_tokenizer_fingerprint=tokenizer.fingerprint, default_guidance=options.default_guidance,
    )  # fmt: skip


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
    return vocabulary


def check_parts(options: Any, tokenizer: ImageTokenizer) -> None:
    """Raise ValueError for what can be told about `build_parts` before pictures are encoded."""

    if not options.init_from:
        model_sizes(**options.sizes(tokenizer.tokens_per_image))
        if options.text_tokenizer:
            load_text_tokenizer(options.text_tokenizer)
        return
    load_vocabulary(options, tokenizer)
    config = AutoConfig.from_pretrained(Path(options.init_from) / "lm")
    fixed = {
        "architecture": config.model_type, "num_layers": config.num_hidden_layers, "hidden_size": config.hidden_size,
        "num_heads": config.num_attention_heads, "intermediate_size": getattr(config, "intermediate_size", None),
        "lm_size": None, "text_tokenizer": None,
    }  # fmt: skip
    defaults = {option.name: option.default for option in fields(options)}
    clashes = [name for name, value in fixed.items() if getattr(options, name) not in (defaults[name], value)]
    if clashes:
        raise ValueError(
            f"--init_from {options.init_from} fixes {', '.join('--' + n for n in clashes)}: leave them out"
        )


def build_parts(
    options: Any, tokenizer: ImageTokenizer, cache: TokenCache
) -> tuple[PreTrainedModel, MultimodalVocabulary]:
    """Language model and vocabulary: fresh, or those of --init_from."""
    if options.init_from:
        vocabulary = load_vocabulary(options, tokenizer)
        model = load_model(str(Path(options.init_from) / "lm"))
    else:
        vocabulary = build_vocabulary(options, tokenizer, cache)
        positions = vocabulary.tokens_per_image + options.max_caption_tokens + 4
        sizes = options.sizes(vocabulary.tokens_per_image)
        model = build_model(build_configuration(vocabulary, max_positions=positions, **sizes))
    vocabulary.formats = options.formats()
    # Guidance needs what caption dropout teaches.
    vocabulary.default_guidance = options.default_guidance if "image" in vocabulary.formats else 1.0
    return model, vocabulary
