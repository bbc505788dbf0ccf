"""Attention by plain products is transformers' own but for rounding, in training and while sampling."""

from __future__ import annotations

import pytest
import torch
from tiny import draw_codes
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lm.model import ARCHITECTURES, build_configuration, build_model
from lm.sequences import image_prompt
from lm.training.attention import LONGEST, NAME, use_fastest_attention
from lm.training.losses import NextTokenLoss
from lm.vocabulary import MultimodalVocabulary, train_text_tokenizer
from tokenizer_image.layout import build_layout

SIZES = {"num_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4}
CAPTIONS = ("a red dog left of a blue house on grass", "a cat", "")


@pytest.fixture(scope="module")
def vocabulary() -> MultimodalVocabulary:
    return MultimodalVocabulary.build(
        train_text_tokenizer(CAPTIONS, 300),
        num_codes=12,
        layout=build_layout([(2, 3)], [[12]]).to_dict(),
        image_size=[16, 24],
        image_tokenizer_fingerprint="none",
    )


def random_model(vocabulary: MultimodalVocabulary, architecture: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if architecture == "shared keys and values":
        config = LlamaConfig(
            vocab_size=vocabulary.size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64, eos_token_id=0,
        )  # fmt: skip
        model: PreTrainedModel = LlamaForCausalLM(config)
    else:
        model = build_model(build_configuration(vocabulary, architecture=architecture, max_positions=64, **SIZES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


def batch(vocabulary: MultimodalVocabulary) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary.image_offset, vocabulary.size, (5, 17), generator=generator)
    return {"input_ids": ids, "labels": ids, "position_ids": torch.arange(17).repeat(5, 1),
            "loss_weights": torch.ones(5, 17)}  # fmt: skip


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "shared keys and values"])
def test_loss_and_gradients_are_the_same(vocabulary, architecture):
    results = []
    for fast in (False, True):
        model = random_model(vocabulary, architecture)
        if fast:
            use_fastest_attention(model, 40)
            assert model.config._attn_implementation == NAME
        loss = NextTokenLoss(model, vocabulary.id_ranges)(**batch(vocabulary))["loss"]
        loss.backward()
        results.append((loss, {name: p.grad for name, p in model.named_parameters()}))
    (expected, gradients), (found, others) = results
    assert torch.allclose(found, expected, rtol=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(others[name], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item()), name


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "shared keys and values"])
def test_sampling_in_training_draws_the_same_pictures(vocabulary, architecture):
    """Prompts of different lengths are padded, and codes are drawn with a cache: neither may be overlooked."""
    drawn = []
    for fast in (False, True):
        model = random_model(vocabulary, architecture)
        if fast:
            use_fastest_attention(model, 40)
        drawn.append(
            draw_codes(
                model,
                vocabulary,
                [image_prompt(vocabulary, caption) for caption in CAPTIONS] * 2,
                guidance_scale=2.0,
                generators=[torch.Generator().manual_seed(row) for row in range(6)],
            )
        )
    assert torch.equal(*drawn)


def test_long_sequences_and_saved_models_use_transformers_own(vocabulary, tmp_path):
    model = random_model(vocabulary, "qwen3")
    use_fastest_attention(model, 40)
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation != NAME
    use_fastest_attention(model, LONGEST + 1)
    assert model.config._attn_implementation == "sdpa"


def test_bf16_is_close(vocabulary):
    model = random_model(vocabulary, "qwen3")
    use_fastest_attention(model, 40)
    module, found = NextTokenLoss(model, vocabulary.id_ranges), []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = module(**batch(vocabulary))["loss"]
        loss.backward()
        found.append((loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]))
        model.zero_grad()
    (exact, gradients), (rounded, others) = found
    assert torch.allclose(rounded, exact, rtol=0.05)
    for one, other in zip(gradients, others, strict=True):
        assert one.dtype == other.dtype and (one - other).norm() < 0.1 * one.norm()
