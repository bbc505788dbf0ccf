"""A pretrained causal LM of transformers as the start: its own tokenizer, and new rows for the tokens that it lacks."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lm.model import load_model
from lm.vocabulary import MultimodalVocabulary

NO_LIMIT = 1 << 30  # positions of a model that states no limit


def load_configuration(name: str) -> PretrainedConfig:
    """The configuration of a causal LM, on disk or on the Hub.

    Raises:
        ValueError: there is none.
    """
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--lm_name_or_path {name} is no causal LM of transformers, here or on the Hub: {_first_line(error)}"
        ) from error


def load_pretrained(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model in float32, also where it was saved in another type: updates are smaller than the spacing of bfloat16.

    Args:
        dtype: another type, for weights that are not trained.

    Raises:
        ValueError: not a causal LM, or one whose weights are not safetensors.
    """
    try:
        return load_model(name, dtype=dtype)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--lm_name_or_path {name} cannot be read as a causal LM with safetensors weights: {_first_line(error)}"
        ) from error


def load_own_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside the model.

    Raises:
        ValueError: there is none, or no fast one.
    """
    remedy = "give the tokenizer that it was trained with as --text_tokenizer"
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"--lm_name_or_path {name} has no tokenizer ({_first_line(error)}): {remedy}") from error
    if not tokenizer.is_fast or not len(tokenizer):  # where there are no files, some classes make an empty one
        raise ValueError(f"--lm_name_or_path {name} has no fast tokenizer (tokenizer.json): {remedy}")
    return tokenizer


def check_tokenizer(config: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise ValueError unless the model has a row for each token."""
    rows, tokens = config.get_text_config().vocab_size, ids_taken(tokenizer)
    if tokens > rows:
        raise ValueError(
            f"--lm_name_or_path {name} has {rows} token ids, the tokenizer {tokens}: they do not belong together; give "
            "the model's own as --text_tokenizer, or leave that out"
        )


def ids_taken(tokenizer: PreTrainedTokenizerBase) -> int:
    """The first id after all of the tokenizer's; more than it has tokens, where it leaves ids out."""
    return max(tokenizer.get_vocab().values()) + 1


def check_positions(config: Any, name: str, needed: int) -> None:
    """Raise ValueError unless the model takes sequences of `needed` tokens. Models without a limit take any."""
    limit = max_positions(config)
    if needed > limit:
        raise ValueError(
            f"--lm_name_or_path {name} takes at most {limit} tokens, and a sequence may have {needed}: lower "
            "--max_caption_tokens, or use an image tokenizer with fewer codes a picture"
        )


def max_positions(config: Any) -> int:
    """Most tokens of a sequence; `NO_LIMIT` where the model states none."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or NO_LIMIT


@torch.no_grad()
def extend_model(model: PreTrainedModel, vocabulary: MultimodalVocabulary, known: int) -> None:
    """Give the model a row for each id of the vocabulary, in the embeddings and in the output layer.

    New rows, and rows that only round the model's size up, start from the mean of the rows of the `known` ids that the
    model was trained with, so that no new token is much likelier than the old ones (Hewitt 2021, "Initializing
    new word embeddings for pretrained language models"). Tied layers stay tied. Ids of special tokens and the size
    become the vocabulary's in the configurations.
    """
    if model.get_input_embeddings().weight.shape[0] < vocabulary.size:
        model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    tensors = {id(tensor): tensor for layer in layers for tensor in layer.parameters()}
    for tensor in tensors.values():  # a bias too, where the output layer has one
        if tensor.shape[0] >= vocabulary.size:
            tensor[known:] = tensor[:known].mean(0)
    set_special_ids(model, vocabulary)


def set_special_ids(model: PreTrainedModel, vocabulary: MultimodalVocabulary) -> None:
    """Make the ids of special tokens in the model's configurations, and its padding row, the vocabulary's."""
    if getattr(model.get_input_embeddings(), "padding_idx", None) is not None:  # a row without gradient
        model.get_input_embeddings().padding_idx = vocabulary.pad_id
    for settings in (model.config, model.config.get_text_config(), model.generation_config):
        if settings is not None:
            settings.bos_token_id, settings.eos_token_id = vocabulary.bos_id, vocabulary.eos_id
            settings.pad_token_id = vocabulary.pad_id


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
