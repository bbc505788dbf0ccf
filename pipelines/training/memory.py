"""What memory a run of stage 2 takes in a process (--dry_run), from configurations alone: no weight is made or read."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, PreTrainedModel

from lm.lora import AdaptedModel, frozen_in_bfloat16, trained_parameters
from lm.model import build_configuration, build_model, plain_head, recompute_layers
from lm.pretrained import max_positions
from lm.sequences import FORMATS
from lm.training.attention import attention_for
from lm.training.losses import CHUNK_FLOATS
from lm.vocabulary import MultimodalVocabulary, train_text_tokenizer
from pipelines.machine.devices import computes_bf16
from pipelines.options.language_model import BATCH_SIZE, LanguageModelOptions
from pipelines.training.fine_tuning import first_new_id, frozen_dtype
from pipelines.training.language_model import check_parts
from pipelines.training.optimizers import optimizer_bytes
from pipelines.training.sequences import longest_sequence
from pipelines.training.vocabulary import given_tokenizer, joint_vocabulary
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.registry import load_tokenizer

GB = 1e9
LOGIT_BYTES = 12  # of a logit: itself in float32, its log-probability, and the gradient


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process that trains alone.

    Attributes:
        weights, gradients, optimizer, averages: of the language model.
        activations: what the forward pass keeps for the backward pass at this batch, and what that works with.
        saving: weights in float32, where they are not in training: a merged model is written so.
        parameters, trained: how many there are, and how many of them learn.
        batch: in words.
    """

    weights: float
    gradients: float
    optimizer: float
    averages: float
    activations: float
    saving: float
    parameters: int
    trained: int
    batch: str

    @property
    def training(self) -> float:
        """All of them together while the model learns."""
        return self.weights + self.gradients + self.optimizer + self.averages + self.activations

    @property
    def total(self) -> float:
        """The most at any time: in training, or at its end."""
        return max(self.training, self.saving + self.optimizer + self.averages)

    def table(self) -> str:
        """One line for each part."""
        rows = [
            ("weights", self.weights, f"{self.parameters / 1e6:.1f}M parameters, {self.trained / 1e6:.1f}M trained"),
            ("gradients", self.gradients, ""),
            ("optimizer", self.optimizer, ""),
            ("averaged weights", self.averages, ""),
            ("activations", self.activations, self.batch),
            ("together", self.training, "beside Python, its libraries and the image tokenizer"),
        ]
        if self.total > self.training:
            rows.append(("at the end", self.total, "to write the merged model in float32"))
        lines = [f"{name:<18}{value / GB:9.2f} GB   {note}".rstrip() for name, value, note in rows]
        return "\n".join(["memory of a run, in one process:", *lines])


def estimate_memory(options: LanguageModelOptions) -> MemoryEstimate:
    """The memory of a run with these options; of the image tokenizer and of text tokenizers, the files are read.

    A text tokenizer that the run would train counts with all of --text_vocab_size; a model whose size the budget would
    choose, with its size by codes per picture. Sequences are as long as the options allow.
    """
    tokenizer = load_tokenizer(options.tokenizer_folder)
    check_parts(options, tokenizer)
    config, vocabulary = _configuration(options, tokenizer)
    bf16 = options.mixed_precision == "bf16" or (options.mixed_precision == "auto" and computes_bf16())
    rows = -(-(options.batch_size or BATCH_SIZE) // options.gradient_accumulation_steps)
    longest = min(longest_sequence(options, vocabulary.longest_picture), max_positions(config))
    shape = rows, options.pack_length or longest
    dtype = frozen_dtype(options, "bf16" if bf16 else "no")
    model = _model(options, config, vocabulary, dtype)
    parameters, trained = list(model.parameters()), list(trained_parameters(model).values())
    count = sum(parameter.numel() for parameter in parameters)
    trained_bytes = 4.0 * sum(parameter.numel() for parameter in trained)
    activations = _activations(options, config, vocabulary, dtype, shape, bf16)
    batch = f"{rows} {'rows' if options.pack_length else 'sequences'} of {shape[1]} tokens, "
    batch += f"{'bf16' if bf16 else 'float32'}{', layers computed again' if options.gradient_checkpointing else ''}"
    return MemoryEstimate(
        weights=float(sum(parameter.numel() * parameter.element_size() for parameter in parameters)),
        gradients=trained_bytes,
        optimizer=optimizer_bytes(options, model),
        averages=trained_bytes,
        activations=activations + LOGIT_BYTES * _logit_floats(options, model, vocabulary, shape),
        saving=4.0 * count if options.lora_rank else 0.0,
        parameters=count,
        trained=sum(parameter.numel() for parameter in trained),
        batch=batch,
    )


def _configuration(options: LanguageModelOptions, tokenizer: ImageTokenizer) -> tuple[Any, MultimodalVocabulary]:
    """The language model's configuration, with a row for each token, and a vocabulary with its numbers of tokens."""
    if options.init_from:
        folder = options.earlier_folder / "lm"
        vocabulary = MultimodalVocabulary.from_pretrained(folder)
        config = AutoConfig.from_pretrained(folder)
        vocabulary.num_codes = tokenizer.num_codes
        config.vocab_size = vocabulary.size
        return config, vocabulary
    given = options.text_tokenizer or options.lm_name_or_path
    text = given_tokenizer(options) if given else train_text_tokenizer([], 0)
    left_open = 0 if given else max(0, options.text_vocab_size - len(text))
    vocabulary = joint_vocabulary(text, options, tokenizer)
    if options.lm_name_or_path:
        config = AutoConfig.from_pretrained(options.lm_name_or_path)
        text_config = config.get_text_config()
        text_config.vocab_size = max(text_config.vocab_size, vocabulary.size)
    else:
        sizes = options.sizes(vocabulary.tokens_per_image)
        positions = longest_sequence(options, vocabulary.longest_picture)
        config = build_configuration(vocabulary, max_positions=positions, **sizes)
        config.vocab_size += left_open
    return config, vocabulary


def _model(
    options: LanguageModelOptions, config: Any, vocabulary: MultimodalVocabulary, dtype: torch.dtype
) -> PreTrainedModel:
    """The model that would be trained, on the meta device: shapes and types without numbers."""
    config = copy.deepcopy(config)
    config.dtype = torch.float32
    with torch.device("meta"):
        model = build_model(config).train()
        if options.lora_rank:
            model = frozen_in_bfloat16(model) if dtype == torch.bfloat16 else model
            first = first_new_id(options)
            AdaptedModel(model, options.lora_rank, first, vocabulary.size - first)
    longest = options.pack_length or longest_sequence(options, vocabulary.longest_picture)
    if plain_head(model) is not None:
        model.set_attn_implementation(attention_for(longest, "cuda" if torch.cuda.is_available() else "cpu"))
    return model


def _logit_floats(
    options: LanguageModelOptions, model: PreTrainedModel, vocabulary: MultimodalVocabulary, shape: tuple[int, int]
) -> float:
    """Logits that are kept at once (`lm.training.losses`): each kind of place has its own range of ids."""
    rows, length = shape
    if plain_head(model) is None:
        return float(rows * length * model.config.get_text_config().vocab_size)
    text, *codes = (high - low for low, high in vocabulary.id_ranges)
    sequences = max(1, length // vocabulary.longest_picture) if options.pack_length else 1
    places = rows * sequences * vocabulary.tokens_per_image / len(codes)
    floats = sum(min(places * size, CHUNK_FLOATS) for size in codes)
    if any(FORMATS[name].writes for name in options.mixture()):
        floats += min(rows * sequences * options.max_caption_tokens * text, CHUNK_FLOATS)
    return floats


def _activations(
    options: LanguageModelOptions,
    config: Any,
    vocabulary: MultimodalVocabulary,
    dtype: torch.dtype,
    shape: tuple[int, int],
    bf16: bool,
) -> float:
    """Bytes that autograd keeps of a forward pass through the backbone, weights apart: measured with one layer and with
    two, whose difference counts for every other layer; and once more, for the layer at work in the backward pass."""

    def kept(layers: int, recompute: bool) -> int:
        part = copy.deepcopy(config)
        text = part.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
        model = _model(options, part, vocabulary, dtype)
        if recompute:
            recompute_layers(model)
        with FakeTensorMode():
            return _kept_bytes(model, shape, bf16)

    recompute = options.gradient_checkpointing
    one, two = kept(1, recompute), kept(2, recompute)
    at_work = kept(2, False) - kept(1, False) if recompute else two - one
    return one + (config.get_text_config().num_hidden_layers - 1) * (two - one) + at_work


def _kept_bytes(model: PreTrainedModel, shape: tuple[int, int], bf16: bool) -> int:
    """Bytes of all tensors, each storage once and weights left out, that autograd keeps of a forward pass. To be called
    under `FakeTensorMode`, whose tensors are on a CPU as far as operators know, which choose their kernels by it."""
    for module in model.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                module._parameters[name] = nn.Parameter(empty, requires_grad=tensor.requires_grad)
        for name, tensor in module._buffers.items():
            module._buffers[name] = None if tensor is None else torch.empty(tensor.shape, dtype=tensor.dtype)
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    found: dict[int, torch.Tensor] = {}  # holding the tensors, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage()._cdata
        if address not in weights:
            found[address] = tensor
        return tensor

    ids = torch.zeros(shape, dtype=torch.long)
    positions = torch.arange(shape[1])[None]
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        output = model.base_model(input_ids=ids, position_ids=positions, use_cache=False)[0]
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())
