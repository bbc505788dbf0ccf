"""Noise on the codes that a model reads, and dropout in stock models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer, tiny_vocabulary
from torch import nn

from lm.data.code_noise import NEAR_SHARE, NEAREST, CodeNoise
from lm.sequences import token_sequence
from lm.training.dropout import add_dropout, has_dropout_places, seed_step, without_dropout


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    return tiny_vocabulary(tokenizer)


def picture(vocabulary, seed=0):
    rng = np.random.default_rng(seed)
    return np.array(
        [rng.integers(low, high) for low, high in zip(*(vocabulary.layout[n] for n in ("low", "high")), strict=True)]
    )


@pytest.mark.parametrize("has_vectors", [True, False])
def test_noise_replaces_that_share_by_codes_of_the_same_range_and_leaves_the_labels(vocabulary, tokenizer, has_vectors):
    vectors = tokenizer.code_vectors().numpy() if has_vectors else None
    noise = CodeNoise.build(0.4, vocabulary, vectors)
    sequence = token_sequence(vocabulary, "caption_and_image", vocabulary.encode_text("a red dog"), picture(vocabulary))
    is_code = sequence.input_ids >= vocabulary.image_offset
    rng, changed = np.random.default_rng(1), 0
    low, high = (np.asarray(vocabulary.layout[name]) + vocabulary.image_offset for name in ("low", "high"))
    for _ in range(500):
        noisy = noise.applied(sequence, rng)
        assert np.array_equal(noisy.labels, sequence.labels) and noisy.loss_weights is sequence.loss_weights
        assert np.array_equal(noisy.input_ids[~is_code], sequence.input_ids[~is_code]), "text stays"
        codes, before = noisy.input_ids[is_code], sequence.input_ids[is_code]
        assert (codes >= low).all() and (codes < high).all()
        changed += int((codes != before).sum())
    # Any of 16 or 8 codes may be the same again; near ones never are.
    same = (1 / 16 + 1 / 8) / 2 * (1 - NEAR_SHARE if has_vectors else 1)
    assert changed / (500 * is_code.sum()) == pytest.approx(0.4 * (1 - same), abs=0.03)
    assert np.array_equal(sequence.labels[is_code], sequence.input_ids[is_code]), "the original is untouched"


def test_near_codes_are_those_with_the_nearest_vectors(vocabulary):
    vectors = np.arange(vocabulary.num_codes, dtype=np.float32)[:, None]
    noise = CodeNoise.build(0.5, vocabulary, vectors)
    assert noise.near is not None and noise.near.shape == (24, NEAREST)
    assert set(noise.near[5]) == {1, 2, 3, 4, 6, 7, 8, 9} and set(noise.near[0]) == set(range(1, 9))
    assert set(noise.near[16]) == set(range(17, 24)), "of the range of 8: 7 others, and none of the other range"


def test_a_generator_gives_the_same_noise_again(vocabulary):
    noise = CodeNoise.build(0.5, vocabulary, None)
    sequence = token_sequence(vocabulary, "image", None, picture(vocabulary))
    one, same, other = (noise.applied(sequence, np.random.default_rng(seed)).input_ids for seed in (3, 3, 4))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_dropout_is_of_training_alone_and_leaves_the_model_stock(vocabulary, architecture, tmp_path):
    model = tiny_model(vocabulary, architecture=architecture)
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        plain = model(ids).logits
        add_dropout(model, 0.5)
        assert has_dropout_places(model) and torch.equal(model(ids).logits, plain)
        model.train()
        seed_step((0, 1, 0))
        first = model(ids).logits
        seed_step((0, 1, 0))
        assert torch.equal(model(ids).logits, first) and not torch.equal(first, plain)
        seed_step((0, 2, 0))
        assert not torch.equal(model(ids).logits, first)
        with without_dropout(model):
            assert not any(module._forward_hooks for module in model.modules())
            assert torch.equal(model(ids).logits, plain)
        assert any(module._forward_hooks for module in model.modules())
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(ids).logits, plain)


def test_dropout_drops_that_share_of_the_embeddings(vocabulary):
    model = tiny_model(vocabulary).train()
    add_dropout(model, 0.3)
    dropped = model.get_input_embeddings()(torch.arange(20).repeat(50))
    assert float((dropped == 0).float().mean()) == pytest.approx(0.3, abs=0.02)


def test_no_dropout_adds_nothing_and_an_unknown_model_is_refused(vocabulary):
    model = tiny_model(vocabulary)
    add_dropout(model, 0.0)
    assert not any(module._forward_hooks for module in model.modules())
    other = nn.Sequential(nn.Linear(2, 2))
    assert not has_dropout_places(other)
    with pytest.raises(ValueError, match=r"Sequential has no layers named o_proj, .*set it to 0"):
        add_dropout(other, 0.1)
