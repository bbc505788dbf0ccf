"""Options of stage 2 to a language model and its vocabulary, and the figures and pictures of its training."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lm.cache import TokenCache
from lm.model import build_configuration, build_model, load_model, model_sizes, start_code_rows
from lm.vocabulary import MultimodalVocabulary, train_text_tokenizer
from pipelines.grids import labelled_grid
from tokenizer_image.layout import ImageTokenizer

VALIDATION_ROWS = 64  # per batch
SHOWN_CAPTIONS, SHOWN_PICTURES = 6, 4  # in a sample grid


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
        vectors = tokenizer.code_vectors() if hasattr(tokenizer, "code_vectors") else None
        if vectors is not None:
            start_code_rows(model, vocabulary, vectors)
    vocabulary.formats = options.formats()
    # Guidance needs what caption dropout teaches.
    vocabulary.default_guidance = options.default_guidance if "image" in vocabulary.formats else 1.0
    return model, vocabulary


def first_captions(source: Any, rows: Any) -> list[str | None]:
    """The first caption of each row; None where there is none, or where none are learned."""
    if source.caption_dropout == 1:
        return [None for _ in rows]
    return [(source.cache.texts(row) or [None])[0] for row in rows]


def shown_captions(source: Any) -> list[str | None]:
    """Different captions for the sample grid, cut at a word where they are too long for the model."""
    rows = range(min(64 * SHOWN_CAPTIONS, len(source.cache)))
    found = [caption for caption in dict.fromkeys(first_captions(source, rows)) if caption is not None]
    shown: list[str | None] = []
    for caption in found[:SHOWN_CAPTIONS]:
        words = caption.split()
        while len(source.vocabulary.encode_text(" ".join(words))) > source.room:
            words.pop()
        shown.append(" ".join(words) or None)
    return shown or [None, None]


def validate(module: Any, order: Any, device: torch.device) -> dict[str, float]:
    """Mean nats per image code (and per text token, where captions are learned) over the validation rows."""
    totals: dict[str, float] = {}
    rows = range(len(order.source.cache))
    with torch.inference_mode():
        for start in range(0, len(rows), VALIDATION_ROWS):
            part = rows[start : start + VALIDATION_ROWS]
            captions = first_captions(order.source, part)
            batch = order.collate(list(zip(part, order.source.caption_ids(captions), strict=True)))
            sums = module(**{name: tensor.to(device) for name, tensor in batch.items()})
            for name in ("image_nats", "image_tokens", "text_nats", "text_tokens"):
                totals[name] = totals.get(name, 0.0) + float(sums[name])
    figures = {"nats_per_code": totals["image_nats"] / max(1, totals["image_tokens"])}
    if totals["text_tokens"]:
        figures["nats_per_text_token"] = totals["text_nats"] / totals["text_tokens"]
    return figures


def draw_samples(pipe: Any, captions: list[str | None], file: Path) -> None:
    """A grid of pictures for the same few captions each time, with random streams of its own."""
    rows = []
    for caption in captions:
        output = pipe(caption, num_images_per_prompt=SHOWN_PICTURES, seed=0)
        rows.append((caption or "(no caption)", output.images))
    labelled_grid(rows).save(file)
