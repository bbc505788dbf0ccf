"""Parts of tiny size that tests share: image tokenizers, vocabularies, language models, pipelines, and the sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lm.generation.guess_table import GuessTable
from lm.generation.images import generate_codes
from lm.generation.sampling import SamplingSchedule
from lm.generation.task import DrawingTask
from lm.model import build_configuration, build_model
from lm.vocabulary import MultimodalVocabulary, Size, train_text_tokenizer
from pipelines import TextToImagePipeline
from pipelines.multimodal import MultimodalPipeline
from tokenizer_image import VQVAE, VQVAEConfig
from tokenizer_image.preprocessing import Preprocessing

TEXTS = ("a red dog", "a blue cat on grass")
SQUARE = (16, 16)


def tiny_tokenizer(seed: int = 0, image_size: int = 16, **settings: Any) -> VQVAE:
    """2x2 positions of two codes, 16 and 8, of pictures of 16x16; in evaluation mode."""
    torch.manual_seed(seed)
    defaults = {"hidden_sizes": [8, 16], "num_res_blocks": 1, "code_dim": 4, "codebook_sizes": [16, 8]}
    preprocessing = Preprocessing(image_size=image_size).to_dict()
    return VQVAE(VQVAEConfig(image_size=image_size, preprocessing=preprocessing, **{**defaults, **settings})).eval()


def tiny_vocabulary(
    tokenizer: VQVAE, texts: Sequence[str] = TEXTS, sizes: Sequence[Size] = (), formats: Sequence[str] = ()
) -> MultimodalVocabulary:
    """A vocabulary for a tokenizer's codes, of pictures of these sizes (default: its square)."""
    sizes = list(sizes) or [(tokenizer.config.image_size,) * 2]
    layouts = {size: tokenizer.layout(size).to_dict() for size in sizes}
    vocabulary = MultimodalVocabulary.build(
        train_text_tokenizer(list(texts) * 3, 300),
        num_codes=tokenizer.num_codes,
        layout=layouts.pop(sizes[0]),
        image_size=list(sizes[0]),
        image_tokenizer_fingerprint=tokenizer.fingerprint,
        other_layouts=layouts,
    )
    if formats:
        vocabulary.formats = list(formats)
    return vocabulary


def tiny_model(vocabulary: MultimodalVocabulary, noise: float = 0.15, **settings: Any) -> Any:
    """Two layers, 32 wide; with noise on its weights, since those at the start of training hardly read the prompt."""
    sizes = {"num_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "max_positions": 64}
    return add_noise(build_model(build_configuration(vocabulary, **{**sizes, **settings})), noise).eval()


@torch.no_grad()
def add_noise(module: nn.Module, scale: float) -> Any:
    """The module, with noise of this standard deviation added to each parameter."""
    for parameter in module.parameters():
        parameter.add_(scale * torch.randn_like(parameter))
    return module


@torch.no_grad()
def with_open_blocks(tokenizer: VQVAE) -> VQVAE:
    """The tokenizer with noise in its blocks, which start as the identity and would see nothing of their neighbours."""
    for name, parameter in tokenizer.named_parameters():
        if "conv2" in name:
            parameter.normal_(std=0.2)
    return tokenizer


def with_codes(tokenizer: VQVAE, seed: int = 0) -> VQVAE:
    """The tokenizer with random code vectors, so that other codes are other pictures: they start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in tokenizer.named_buffers():
        if name.endswith("codebook"):
            buffer.normal_(generator=generator)
    return tokenizer


def tiny_pipeline(
    seed: int = 0,
    kind: type[MultimodalPipeline] = TextToImagePipeline,
    tokenizer: VQVAE | None = None,
    texts: Sequence[str] = TEXTS,
    sizes: Sequence[Size] = (),
    formats: Sequence[str] = (),
    **model: Any,
) -> Any:
    """A pipeline of such parts; `model` has settings of `tiny_model`."""
    tokenizer = tokenizer or with_codes(tiny_tokenizer(seed))
    vocabulary = tiny_vocabulary(tokenizer, texts, sizes, formats)
    return kind(tokenizer, tiny_model(vocabulary, **model), vocabulary)


def streams(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def task_of(
    vocabulary: MultimodalVocabulary,
    prompts: Sequence[Sequence[int]],
    negative_prompts: Sequence[Sequence[int]] | None = None,
    *,
    generators: Sequence[torch.Generator],
    size: Size | None = None,
    forced: torch.Tensor | None = None,
    max_batch_rows: int = 128,
    codes_per_call: int | None = None,
    guess_table: GuessTable | None = None,
    source_prompts: Sequence[Sequence[int]] | None = None,
    sources: torch.Tensor | None = None,
    **schedule: Any,
) -> DrawingTask:
    """A task for the sampler, with settings of `SamplingSchedule` by name."""
    settings = SamplingSchedule(**schedule).by_position(vocabulary.picture(size).layout)
    return DrawingTask(
        prompts, generators, settings, negative_prompts, size, forced, max_batch_rows, codes_per_call, guess_table,
        source_prompts, sources,
    )  # fmt: skip


def draw_codes(
    model: Any,
    vocabulary: MultimodalVocabulary,
    prompts: Sequence[Sequence[int]],
    negative_prompts: Sequence[Sequence[int]] | None = None,
    callback: Callable[..., Any] | None = None,
    **settings: Any,
) -> torch.Tensor:
    """Codes (B, T) of one picture for each prompt; settings as in `task_of`."""
    return generate_codes(model, vocabulary, task_of(vocabulary, prompts, negative_prompts, **settings), callback)
