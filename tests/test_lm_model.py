"""A language model's rows of image codes start as the image tokenizer's own vectors."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lm.model import (
    ARCHITECTURES,
    EMBEDDING_SCALE,
    OUTPUT_SCALE,
    build_configuration,
    build_model,
    default_learning_rate,
    start_code_rows,
    start_text_rows,
)
from lm.vocabulary import MultimodalVocabulary, train_text_tokenizer
from tokenizer_image.layout import build_layout

SIZES = {"num_layers": 1, "hidden_size": 96, "intermediate_size": 64, "num_heads": 2}
RANGES = ((0, 40), (40, 100))


@pytest.fixture(scope="module")
def vocabulary() -> MultimodalVocabulary:
    """Two depths, of 40 and 60 codes."""
    return MultimodalVocabulary.build(
        train_text_tokenizer(["a red dog"] * 3, 300),
        num_codes=100,
        layout=build_layout([(2, 2)], [[40, 60]]).to_dict(),
        image_size=[16, 16],
        image_tokenizer_fingerprint="none",
    )


def similarities(rows: torch.Tensor) -> torch.Tensor:
    """Cosines of all pairs of rows, about their mean."""
    rows = F.normalize(rows - rows.mean(0))
    return (rows @ rows.T)[~torch.eye(len(rows), dtype=torch.bool)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_codes_that_look_alike_start_alike(vocabulary, architecture):
    torch.manual_seed(0)
    model = build_model(build_configuration(vocabulary, architecture=architecture, max_positions=64, **SIZES))
    before = [layer.weight.detach().clone() for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
    # Each depth in half of the dimensions, far from zero and of very different sizes.
    vectors = torch.zeros(100, 8)
    vectors[:40, :4], vectors[40:, 4:] = torch.randn(40, 4) + 3, 100 * torch.randn(60, 4)
    start_code_rows(model, vocabulary, vectors)
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    for layer, old, scale in zip(layers, before, (EMBEDDING_SCALE, OUTPUT_SCALE), strict=True):
        codes = layer.weight.detach()[vocabulary.image_offset :]
        assert torch.equal(layer.weight[: vocabulary.image_offset], old[: vocabulary.image_offset])
        for low, high in RANGES:
            pairs = torch.stack([similarities(codes[low:high]), similarities(vectors[low:high])])
            assert torch.corrcoef(pairs)[0, 1] > 0.9
            assert codes[low:high].std().item() == pytest.approx(scale, rel=1e-3)


def test_text_starts_as_large_as_codes(vocabulary):
    torch.manual_seed(0)
    model = build_model(build_configuration(vocabulary, max_positions=64, **SIZES))
    start_text_rows(model, vocabulary)
    start_code_rows(model, vocabulary, torch.randn(100, 8))
    for layer, times in ((model.get_input_embeddings(), 1), (model.get_output_embeddings(), 7.5)):
        texts, codes = layer.weight[: vocabulary.image_offset], layer.weight[vocabulary.image_offset :]
        assert (codes.std() / texts.std()).item() == pytest.approx(times, rel=0.1)


def test_learning_rates_follow_width_and_batch():
    assert default_learning_rate(192) == default_learning_rate(192, 64) == pytest.approx(3e-3)
    assert default_learning_rate(384) == pytest.approx(1.5e-3)
    assert default_learning_rate(192, 16) == pytest.approx(1.5e-3)
    assert default_learning_rate(192, 256) == pytest.approx(3e-3)  # no larger one than was tried


def test_codes_that_are_all_alike_keep_their_random_rows(vocabulary):
    model = build_model(build_configuration(vocabulary, max_positions=64, **SIZES))
    before = model.get_input_embeddings().weight.detach().clone()
    start_code_rows(model, vocabulary, torch.ones(100, 8))
    assert torch.equal(model.get_input_embeddings().weight, before)


@pytest.mark.parametrize("shape", [(99, 8), (100,)])
def test_one_vector_for_each_code(vocabulary, shape):
    model = build_model(build_configuration(vocabulary, max_positions=64, **SIZES))
    with pytest.raises(ValueError, match="vocabulary's 100 image codes"):
        start_code_rows(model, vocabulary, torch.zeros(shape))
