"""From the options of stage 2 to a language model and its vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoConfig, PreTrainedModel

from lm.data.token_cache import TokenCache
from lm.model import (
    affordable_size,
    build_configuration,
    build_model,
    default_size,
    model_sizes,
    start_code_rows,
    start_text_rows,
)
from lm.model import default_learning_rate as rate_by_size
from lm.pretrained import (
    check_positions,
    check_tokenizer,
    extend_model,
    ids_taken,
    load_configuration,
    load_pretrained,
    max_positions,
)
from lm.sequences import FORMATS
from lm.vocabulary import MultimodalVocabulary
from pipelines.options.language_model import BATCH_SIZE, LanguageModelOptions
from pipelines.options.option import option_defaults
from pipelines.options.sequences import GUIDANCE, IMAGE_GUIDANCE, TEMPERATURE
from pipelines.training.schedule import Budget
from pipelines.training.sequences import learns_edits, longest_sequence
from pipelines.training.start import count_parameters
from pipelines.training.transfer import EXTRA_POSITIONS, ROTARY, transferred
from pipelines.training.vocabulary import build_vocabulary, given_tokenizer, load_text_tokenizer
from tokenizer_image.layout import ImageTokenizer

BATCH_SIZES, LEAST_STEPS = (BATCH_SIZE, 32, 16), 1000  # to choose from; that a run should have
PRETRAINED_SHARE = 0.25  # of the learning rate that a model from scratch of that width starts with
ADAPTER_SHARE = 1.0  # the same of adapters, which start from nothing, as the rows of new tokens do


def check_parts(options: LanguageModelOptions, tokenizer: ImageTokenizer) -> None:
    """Raise ValueError where `build_parts` could not succeed, before any picture is encoded."""
    _check_image_size(options, tokenizer)
    if options.init_from:
        MultimodalVocabulary.from_pretrained(options.earlier_folder / "lm")
        config = AutoConfig.from_pretrained(options.earlier_folder / "lm")
        check_sizes(options, "init_from", config, "text_tokenizer", "text_vocab_size")
        needed, most = _longest_picture(options, tokenizer), max_positions(config)
        if config.model_type not in ROTARY and (options.max_length or 0) > most:
            raise ValueError(
                f"--max_length {options.max_length}: --init_from {options.init_from} takes at most {most} tokens; give "
                "no more, or leave it out"
            )
        if config.model_type not in ROTARY and needed > most:
            raise ValueError(
                f"--init_from {options.init_from} takes at most {most} tokens, and a picture has {needed} codes: use "
                "an image tokenizer with fewer codes a picture"
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
    defaults = option_defaults(options)
    clashes = [name for name, value in fixed.items() if getattr(options, name) not in (defaults[name], value)]
    if clashes:
        raise ValueError(
            f"--{start} {getattr(options, start)} fixes {', '.join('--' + n for n in clashes)}: leave them out"
        )


def build_parts(
    options: LanguageModelOptions,
    tokenizer: ImageTokenizer,
    cache: TokenCache,
    size: str | None = None,
    tell: Callable[[str], None] = print,
    dtype: torch.dtype = torch.float32,
) -> tuple[PreTrainedModel, MultimodalVocabulary]:
    """Language model and vocabulary: fresh, those of --init_from, or a pretrained model's with rows for the codes.

    Args:
        size: of a fresh model, where the options do not say.
        tell: is called with a line about what --init_from had to extend.
        dtype: that a pretrained model is read in.
    """
    if options.init_from:
        model, vocabulary, said = transferred(options, tokenizer, cache)
        if said:
            tell(said)
    elif options.lm_name_or_path:
        known = ids_taken(given_tokenizer(options))
        vocabulary = build_vocabulary(options, tokenizer, cache)
        model = load_pretrained(options.lm_name_or_path, dtype)
        extend_model(model, vocabulary, known)
    else:
        vocabulary = build_vocabulary(options, tokenizer, cache)
        positions = longest_sequence(options, vocabulary.longest_picture, cache) + EXTRA_POSITIONS
        sizes = options.sizes(vocabulary.tokens_per_image, size)
        model = build_model(build_configuration(vocabulary, max_positions=positions, **sizes))
        vectors = tokenizer.code_vectors() if hasattr(tokenizer, "code_vectors") else None
        if vectors is not None:
            start_text_rows(model, vocabulary)
            start_code_rows(model, vocabulary, vectors)
    # Guidance needs what caption dropout teaches.
    dropped = options.caption_dropout_share() > 0 and any(FORMATS[name].drops_captions for name in options.mixture())
    edits = options.edit_dropout > 0 and learns_edits(options, cache)
    alone = dropped or any(FORMATS[name].draws_alone for name in options.mixture())
    alone = edits or (alone and not cache.is_of_edits)
    usual = GUIDANCE if options.default_guidance is None else options.default_guidance
    vocabulary.default_guidance = usual if alone else 1.0
    usual = IMAGE_GUIDANCE if options.default_image_guidance is None else options.default_image_guidance
    vocabulary.default_image_guidance = usual if edits else 1.0
    vocabulary.default_temperature = TEMPERATURE if options.default_temperature is None else options.default_temperature
    return model, vocabulary


def describe_model(model: PreTrainedModel, vocabulary: MultimodalVocabulary) -> str:
    """How large the model is, in words."""
    return (
        f"{model.config.model_type}: {count_parameters(model) / 1e6:.2f}M parameters "
        f"({inner_parameters(model) / 1e6:.2f}M without embeddings), "
        f"{vocabulary.size} token ids ({vocabulary.num_codes} image codes)"
    )


def inner_parameters(model: PreTrainedModel) -> int:
    """Number of trained parameters without those of the embeddings and the output layer."""
    layers = {layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    return count_parameters(model) - sum(weight.numel() for weight in layers)


def choose_size(
    options: LanguageModelOptions, tokenizer: ImageTokenizer, peak: float, info: dict[str, Any]
) -> str | None:
    """The named size of a fresh model, by codes per picture and by what the budget lets it read; None where the options
    say.

    Args:
        peak: FLOPs a second of all processes together.
        info: run.json of the run, which is resumed where it has figures: its size is kept.
    """
    if options.lm_size or options.init_from or options.lm_name_or_path:
        return None
    if "parameters" in info:
        return info.get("lm_size")
    budget, codes = Budget.of(options), tokenizer.tokens_per_image

    def tokens(parameters: int) -> float:
        if budget.max_steps:
            return float(budget.max_steps * (options.batch_size or BATCH_SIZE) * (options.pack_length or codes))
        return budget.flops(peak) / (6 * parameters)

    return affordable_size(default_size(codes), tokens)


def choose_batch_size(
    options: LanguageModelOptions,
    accelerator: Accelerator,
    model: PreTrainedModel,
    tokens: int,
    peak: float,
    info: dict[str, Any],
) -> int:
    """--batch_size; where it is not given, the largest of `BATCH_SIZES` that leaves at least `LEAST_STEPS` steps.

    A model that makes few steps learns more from smaller ones: docs/results.md has what was measured.

    Args:
        tokens: of a sequence, about.
        peak: FLOPs a second of all processes together.
        info: run.json of the run, which keeps its batch size where it is resumed.
    """
    chosen = options.batch_size or info.get("batch_size") or info.get("options", {}).get("batch_size")
    if chosen:
        return chosen
    shares = accelerator.num_processes * options.gradient_accumulation_steps
    sizes = [size for size in BATCH_SIZES if size % shares == 0] or BATCH_SIZES
    budget = Budget.of(options)
    if budget.max_steps or options.pack_length:
        return sizes[0]
    sequences = budget.flops(peak) / (6 * inner_parameters(model) * tokens)
    return next((size for size in sizes if sequences >= LEAST_STEPS * size), sizes[-1])


def default_learning_rate(options: LanguageModelOptions, model: PreTrainedModel, info: dict[str, Any]) -> float:
    """AdamW's peak learning rate: --learning_rate, else by width and batch, and a quarter of that for all weights of a
    pretrained model.

    Args:
        info: run.json of the run, which keeps its learning rate where it is resumed.
    """
    chosen = options.learning_rate or info.get("learning_rate") or info.get("options", {}).get("learning_rate")
    if chosen:
        return chosen
    begun_before = "parameters" in info  # by a version that noted no learning rate, and chose it by width alone
    batch_size = BATCH_SIZE if begun_before else options.batch_size or BATCH_SIZE
    rate = rate_by_size(model.config.get_text_config().hidden_size, batch_size)
    share = ADAPTER_SHARE if options.lora_rank else PRETRAINED_SHARE if options.lm_name_or_path else 1.0
    return share * rate
