"""Edits as sequences, and drawn with guidance over the instruction and over the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_lm_generation import random_model, vocabulary  # noqa: F401
from tiny import draw_codes, streams, task_of, tiny_model, tiny_tokenizer, tiny_vocabulary

from lm.data.sequence_source import SequenceSource
from lm.data.shards import Document, code_dtype, write_shard
from lm.data.token_cache import TokenCache, write_manifest
from lm.generation import native
from lm.generation.direct_stepper import DirectModel
from lm.generation.guesses import Guesser
from lm.generation.images import draw
from lm.sequences import IGNORED, Picture, edit_prompt, image_prompt, token_sequence

INSTRUCTIONS = ("a cat", "a small green star", "a red dog left of a blue house on grass")


def codes_of(vocabulary, seed: int) -> np.ndarray:  # noqa: F811
    rng = np.random.default_rng(seed)
    return rng.integers(vocabulary.layout["low"], vocabulary.layout["high"])


def test_an_edit_written_out(vocabulary):  # noqa: F811
    before, after = codes_of(vocabulary, 0), codes_of(vocabulary, 1)
    bos, boi, eoi, offset = vocabulary.bos_id, vocabulary.boi_id, vocabulary.eoi_id, vocabulary.image_offset
    for name, text in (("edit", [10, 11]), ("image_to_image", [])):
        found = token_sequence(vocabulary, name, text, after, source=Picture(before))
        head = [bos, *text, boi, *(before + offset), eoi, boi]
        assert found.input_ids.tolist() == [*head, *(after + offset)]
        assert found.labels.tolist() == [IGNORED] * len(head) + (after + offset).tolist()
        assert found.loss_weights.tolist() == [0.0] * len(head) + [1.0] * 12


def test_a_prompt_is_the_beginning_of_its_sequence():
    sizes = [(16, 16), (16, 32)]
    vocabulary = tiny_vocabulary(tiny_tokenizer(), sizes=sizes)  # noqa: F811
    before, after = (
        Picture(np.random.default_rng(0).integers(one["low"], one["high"]), size)
        for size, one in vocabulary.layouts.items()
    )
    text = vocabulary.encode_text("a cat")
    whole = token_sequence(vocabulary, "edit", text, *after, source=before)
    prompt = edit_prompt(vocabulary, "a cat", before, after.size)
    assert whole.input_ids[: len(prompt)].tolist() == prompt and whole.labels[len(prompt) - 1] == IGNORED
    assert whole.labels[len(prompt)] == whole.input_ids[len(prompt)] == vocabulary.image_offset + after.codes[0]
    alone = edit_prompt(vocabulary, None, before, after.size)
    assert alone == [vocabulary.bos_id, *prompt[1 + len(text) :]]


@pytest.fixture
def cache(vocabulary, tmp_path) -> TokenCache:  # noqa: F811
    """Edits, of which every third has its source's caption, or its instruction, in front."""
    rows = []
    for number in range(300):
        codes = np.concatenate([codes_of(vocabulary, number), codes_of(vocabulary, number + 1000)])
        order = ("iti", "titi", "tii")[number % 3]
        texts = ["a red dog", "a cat"][-order.count("t") :]
        rows.append(Document(codes, [(16, 16)] * 2, texts, order))
    return written(tmp_path, rows)


def written(folder: Path, rows: list[Document]) -> TokenCache:
    write_shard(folder / "shard-00000", rows, code_dtype(32))
    write_manifest(
        folder, {"image_tokenizer_fingerprint": "none", "shards": [{"name": "shard-00000", "rows": len(rows)}]}
    )
    return TokenCache(folder)


def test_rows_are_learned_as_edits(vocabulary, cache):  # noqa: F811
    assert cache.num_edits == 300 and not cache.is_of_edits
    assert SequenceSource(cache, vocabulary).trained_formats() == ["document"], "some may be stories"
    source = SequenceSource(cache, vocabulary, mixture={"edit": 1.0})
    assert source.trained_formats() == ["edit"]
    rows = np.arange(3)
    chosen = source.choose(0, 0, rows)
    assert chosen == [("edit", "a cat"), ("edit", "a red dog\na cat"), ("edit", "a cat")]
    for row, item in enumerate(source.items(rows, chosen)):
        sequence = source.sequence(item)
        ids = sequence.input_ids[sequence.input_ids >= vocabulary.image_offset] - vocabulary.image_offset
        assert ids.tolist() == cache.codes(row).tolist() and item.length == len(sequence)
        learned = sequence.labels[sequence.labels != IGNORED] - vocabulary.image_offset
        assert learned.tolist() == cache.codes(row)[12:].tolist()


def test_dropout_leaves_out_the_instruction_or_both(vocabulary, cache):  # noqa: F811
    source = SequenceSource(cache, vocabulary, caption_dropout=0.5, edit_dropout=0.2, mixture={"edit": 1.0})
    assert source.trained_formats() == ["image", "edit", "image_to_image"]
    names = [name for epoch in range(10) for name, _ in source.choose(0, epoch, np.arange(300))]
    for name, share in (("edit", 0.6), ("image_to_image", 0.2), ("image", 0.2)):
        assert abs(names.count(name) / 3000 - share) < 0.03
    # The picture that is learned alone is the result.
    (item,) = source.items([4], [("image", None)])
    assert (
        source.sequence(item).input_ids[2:].tolist()
        == vocabulary.codes_to_ids(cache.codes(4)[12:].astype(int)).tolist()
    )
    (item,) = source.items([4], [("image_to_image", None)])
    assert len(source.sequence(item)) == item.length == 4 + 24


def test_mixtures_with_documents(vocabulary, cache, tmp_path):  # noqa: F811
    both = SequenceSource(cache, vocabulary, mixture={"edit": 1.0, "document": 1.0})
    names = [name for name, _ in both.choose(0, 0, np.arange(300))]
    assert 100 < names.count("edit") < 200 and set(names) == {"edit", "document"}
    assert SequenceSource(cache, vocabulary, mixture={"document": 1.0}).trained_formats() == ["document"]
    codes = codes_of(vocabulary, 0)
    mixed = written(
        tmp_path / "mixed",
        [Document(np.tile(codes, 2), [(16, 16)] * 2, ["a cat"], "iti"), Document(codes, [(16, 16)], ["a cat"], "ti")],
    )
    assert SequenceSource(mixed, vocabulary).trained_formats() == ["document"]
    alone = written(tmp_path / "alone", [mixed.document(0)] * 3)
    assert alone.is_of_edits and SequenceSource(alone, vocabulary).trained_formats() == ["edit"]
    assert SequenceSource(alone, vocabulary, mixture={"document": 1.0}).trained_formats() == ["document"]
    some = SequenceSource(mixed, vocabulary, mixture={"edit": 1.0})
    assert some.trained_formats() == ["edit", "document"]


# Drawing


@pytest.fixture(params=["compiled", "operators", "own forward"])
def path(request, monkeypatch) -> str:
    if request.param != "compiled":
        monkeypatch.setattr(native, "fits", lambda model: False)
    if request.param == "own forward":
        monkeypatch.setattr(DirectModel, "fits", lambda model: False)
    return request.param


def edit_settings(vocabulary) -> dict:  # noqa: F811
    sources = [Picture(codes_of(vocabulary, seed)) for seed in range(3)]
    return {
        "prompts": [edit_prompt(vocabulary, *pair) for pair in zip(INSTRUCTIONS, sources, strict=True)],
        "source_prompts": [edit_prompt(vocabulary, None, source) for source in sources],
        "negative_prompts": [image_prompt(vocabulary, None)] * 3,
    }


@torch.no_grad()
def greedy_by_hand(model, vocabulary, rows: list[list[int]], scale: float, image_scale: float) -> list[int]:  # noqa: F811
    """Equation 3 of Brooks et al. 2023, by three plain forward passes for each code."""
    codes: list[int] = []
    for low, high in zip(vocabulary.layout["low"], vocabulary.layout["high"], strict=True):
        both, picture, neither = (
            model(torch.tensor([row + [vocabulary.image_offset + code for code in codes]])).logits[0, -1].double()
            for row in rows
        )
        guided = neither + image_scale * (picture - neither) + scale * (both - picture)
        codes.append(low + int(guided[vocabulary.image_offset + low : vocabulary.image_offset + high].argmax()))
    return codes


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (3.0, 1.0), (1.0, 2.0), (2.0, 2.0), (3.0, 1.5), (0.0, 2.5)])
def test_guidance_over_both_equals_plain_forward_passes(vocabulary, scales, architecture, path):  # noqa: F811
    model, settings = random_model(vocabulary, architecture), edit_settings(vocabulary)
    scale, image_scale = scales
    expected = [
        greedy_by_hand(model, vocabulary, list(rows), scale, image_scale)
        for rows in zip(settings["prompts"], settings["source_prompts"], settings["negative_prompts"], strict=True)
    ]
    settings |= {
        "generators": streams(0, 1, 2), "temperature": 0, "guidance_scale": scale, "image_guidance_scale": image_scale
    }  # fmt: skip
    assert draw_codes(model, vocabulary, **settings).tolist() == expected
    assert draw_codes(model, vocabulary, max_batch_rows=4, **settings).tolist() == expected
    assert draw_codes(model, vocabulary, codes_per_call=4, **settings).tolist() == expected


def test_several_codes_a_call_of_edits(vocabulary, path):  # noqa: F811
    settings = edit_settings(vocabulary) | {"guidance_scale": 2.0, "image_guidance_scale": 1.5, "top_p": 0.9}
    settings["sources"] = torch.from_numpy(np.stack([codes_of(vocabulary, seed) for seed in range(3)]))
    model = tiny_model(vocabulary, max_positions=96)

    def codes(codes_per_call: int) -> list:
        return draw_codes(
            model, vocabulary, generators=streams(3, 4, 5), codes_per_call=codes_per_call, **settings
        ).tolist()

    assert codes(1) == codes(3) == codes(16)


def test_a_code_is_guessed_to_be_the_sources_where_all_around_are(vocabulary):  # noqa: F811
    layout = vocabulary.layout  # 2x2 places of level 0, then 2x4 of level 1
    sources = np.stack([codes_of(vocabulary, seed) for seed in range(2)])
    guesser, plain = Guesser(layout, sources=sources), Guesser(layout)
    for position in range(12):
        assert guesser.guess(sources, position).tolist() == sources[:, position].tolist()
        assert guesser.guess(sources[1:], position, np.array([1])).tolist() == [sources[1, position]]
    other = sources.copy()
    other[:, 0] = (other[:, 0] + 1) % 12
    for position in (1, 2):  # to the right of what has changed, and below
        assert guesser.guess(other, position).tolist() == plain.guess(other, position).tolist() == other[:, 0].tolist()
    assert guesser.guess(other, 3).tolist() == sources[:, 3].tolist()


@torch.no_grad()
def test_a_copied_picture_takes_few_calls(vocabulary):  # noqa: F811
    model = random_model(vocabulary)
    settings = edit_settings(vocabulary) | {"generators": streams(0, 1, 2), "temperature": 0}
    copied = draw_codes(model, vocabulary, **settings)  # what this model makes of these prompts
    task = task_of(vocabulary, codes_per_call=16, sources=copied, **settings)
    steps = list(draw(model, vocabulary, task))
    assert steps[-1].codes.equal(copied) and len(steps) == 2  # the prompt's, and one for all that follow


def test_rows_that_guidance_takes(vocabulary):  # noqa: F811
    settings = edit_settings(vocabulary) | {"generators": streams(0, 1, 2)}

    def guiding(**scales) -> list:
        return task_of(vocabulary, **settings, **scales).guiding_prompts(vocabulary)

    source, neither = settings["source_prompts"], settings["negative_prompts"]
    assert guiding() == []
    assert guiding(guidance_scale=2.0) == [source]
    assert guiding(guidance_scale=2.0, image_guidance_scale=2.0) == [neither]
    assert guiding(image_guidance_scale=2.0) == [source, neither]
    assert guiding(guidance_scale=lambda t: 1 + t, image_guidance_scale=lambda t: 1 + t) == [neither]
    assert guiding(guidance_scale=lambda t: 1 + t, image_guidance_scale=2.0) == [source, neither]


def test_too_few_rows_for_an_edit(vocabulary):  # noqa: F811
    model = tiny_model(vocabulary, max_positions=96)
    settings = edit_settings(vocabulary) | {"generators": streams(0, 1, 2), "guidance_scale": 2.0}
    task = task_of(vocabulary, max_batch_rows=2, image_guidance_scale=1.5, **settings)
    with pytest.raises(ValueError, match=r"max_batch_rows=2: an edit takes 3 rows .* image_guidance_scale=1"):
        draw(model, vocabulary, task)
    draw(model, vocabulary, task_of(vocabulary, max_batch_rows=2, **settings))  # two are enough here
    with pytest.raises(ValueError, match="max_batch_rows=1: an edit takes 2 rows"):
        draw(model, vocabulary, task_of(vocabulary, max_batch_rows=1, **settings))
    settings["source_prompts"] = settings["source_prompts"][:2]
    with pytest.raises(ValueError, match="3 prompts need as many source prompts, got 2"):
        draw(model, vocabulary, task_of(vocabulary, **settings))


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_a_scale_out_of_range(vocabulary, value):  # noqa: F811
    with pytest.raises(ValueError, match="image_guidance_scale must be at least 0"):
        task_of(vocabulary, generators=streams(0, 1, 2), image_guidance_scale=value, **edit_settings(vocabulary))
