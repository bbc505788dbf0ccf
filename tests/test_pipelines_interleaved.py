"""Documents of texts and pictures: continued as they were learned, and only with what can stand at each place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_pipeline

from lm.generation.direct_stepper import DirectModel
from lm.generation.documents import DocumentTask, generate_document
from lm.generation.sampling import SamplingSettings
from lm.generation.stepper import Stepper
from lm.sequences import Picture, collate, document_sequence
from lm.training.losses import NextTokenLoss
from lm.vocabulary import MultimodalVocabulary
from pipelines.interleaved import InterleavedPipeline

SQUARE, WIDE = (16, 16), (8, 24)
TEXTS = ["first a red dog", "then a blue cat", "the end"]


def build(*sizes: tuple[int, int]) -> InterleavedPipeline:
    sizes_of_model = {"hidden_size": 48, "intermediate_size": 96, "max_positions": 96, "noise": 0.0}
    return tiny_pipeline(kind=InterleavedPipeline, texts=TEXTS, sizes=sizes, formats=["document"], **sizes_of_model)


@pytest.fixture(scope="module")
def pipe() -> InterleavedPipeline:
    """Has learned one document by heart."""
    pipe = build(SQUARE, WIDE)
    rows = [document_sequence(pipe.vocabulary, document(pipe.vocabulary))]
    batch, module = collate(rows, pipe.vocabulary.pad_id), NextTokenLoss(pipe.model.train(), pipe.vocabulary.id_ranges)
    optimizer = torch.optim.AdamW(pipe.model.parameters(), 5e-3)
    for _ in range(60):
        sums = module(**batch)
        (sums["loss"] / sums["weight"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(sums["loss"] / sums["weight"]) < 0.02
    pipe.model.eval()
    return pipe


def document(vocabulary: MultimodalVocabulary) -> list[list[int] | Picture]:
    rng = np.random.default_rng(0)

    def picture(size: tuple[int, int]) -> Picture:
        layout = vocabulary.layouts[size]
        return Picture(rng.integers(layout["low"], layout["high"]), size)

    texts = [vocabulary.encode_text(text) for text in TEXTS]
    return [texts[0], picture(WIDE), texts[1], picture(SQUARE), picture(WIDE), texts[2]]


@pytest.mark.parametrize("given", [0, 1, 2, 4, 5])
def test_a_document_that_was_learned_goes_on(pipe, given):
    parts = document(pipe.vocabulary)
    prompt = document_sequence(pipe.vocabulary, parts[:given], whole=False).input_ids
    settings = SamplingSettings(temperature=0)
    task = DocumentTask(prompt, 96 - len(prompt), settings, settings, torch.Generator())
    found = generate_document(pipe.model, pipe.vocabulary, task)
    for ours, expected in zip(found, parts[given:], strict=True):
        if isinstance(expected, Picture):
            assert ours.size == expected.size and ours.codes.tolist() == expected.codes.tolist()
        else:
            assert ours == expected


def test_a_picture_that_just_fits_is_drawn(pipe, monkeypatch):
    parts = document(pipe.vocabulary)
    prompt = document_sequence(pipe.vocabulary, parts[:1], whole=False).input_ids
    settings, room = SamplingSettings(temperature=0), len(pipe.vocabulary.picture(WIDE)) + 2
    fed = []
    monkeypatch.setattr(DirectModel, "fits", lambda model: False)
    advance = Stepper.advance
    monkeypatch.setattr(Stepper, "advance", lambda self, ids: fed.append(1) or advance(self, ids))
    (picture,) = generate_document(
        pipe.model, pipe.vocabulary, DocumentTask(prompt, room, settings, settings, torch.Generator())
    )
    assert picture.size == WIDE and picture.codes.tolist() == parts[1].codes.tolist()
    assert len(fed) == room - 1, "nothing follows the last token, which the model need not read"


def test_parts_are_texts_and_pictures(pipe):
    parts = pipe([TEXTS[0]], temperature=0).parts
    assert [part if isinstance(part, str) else part.size for part in parts] == [
        (24, 8), TEXTS[1], (16, 16), (24, 8), TEXTS[2]
    ]  # fmt: skip
    assert pipe([TEXTS[0], parts[0]], max_new_tokens=3, temperature=0).parts != []


@pytest.mark.parametrize("sizes", [(SQUARE,), (SQUARE, WIDE)])
def test_whatever_is_drawn_is_whole_and_repeats_under_its_seed(sizes):
    pipe = build(*sizes)
    picture = min(len(pipe.vocabulary.picture(size)) for size in sizes) + 2
    pictures = 0
    for seed in range(12):
        parts = pipe(["a red dog"], max_new_tokens=60, seed=seed).parts
        for part in parts:
            assert isinstance(part, str) or (part.height, part.width) in sizes
            pictures += not isinstance(part, str)
        again = pipe(["a red dog"], max_new_tokens=60, seed=seed).parts
        assert [part if isinstance(part, str) else part.tobytes() for part in parts] == [
            part if isinstance(part, str) else part.tobytes() for part in again
        ]
        short = pipe(["a red dog"], max_new_tokens=picture - 1, seed=seed).parts
        assert all(isinstance(part, str) for part in short), "no picture is begun that does not fit"
    assert pictures > 0


def test_bad_input(pipe):
    with pytest.raises(TypeError, match=r"parts must be a list of texts and PIL images, got 'a dog'"):
        pipe("a dog")
    with pytest.raises(TypeError, match="part 1 must be a text or a PIL image, got 3"):
        pipe(["a", 3])
    with pytest.raises(
        ValueError, match="the parts have .* which leaves no room in the model's 96 positions: give fewer"
    ):
        pipe([Image.new("RGB", (16, 16))] * 9)
    with pytest.raises(ValueError, match="max_new_tokens=96 beside a prompt of .* give at most"):
        pipe(["a"], max_new_tokens=96)
    with pytest.raises(TypeError, match="InterleavedPipeline.* does not continue: load a model"):
        InterleavedPipeline("a dog")
    with pytest.raises(ValueError, match="a document is drawn without guidance"):
        DocumentTask([0], 3, SamplingSettings(), SamplingSettings(2.0), torch.Generator())
    formats, pipe.vocabulary.formats = pipe.vocabulary.formats, ["caption_to_image"]
    with pytest.raises(ValueError, match=r"continuing a document: .*train one with train_lm.py --formats document"):
        pipe(["a"])
    pipe.vocabulary.formats = formats
