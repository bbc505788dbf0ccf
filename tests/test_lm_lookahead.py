"""Several tokens of texts and documents a call: those of writing one by one, in every setting, in fewer calls."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_lm_cache import write_cache
from test_lm_fixed_point import path, table_of  # noqa: F401
from test_lm_generation import random_model, vocabulary  # noqa: F401
from test_pipelines_interleaved import document, pipe  # noqa: F401
from tiny import TEXTS, add_noise, streams, tiny_model, tiny_tokenizer, tiny_vocabulary

from lm.data.token_cache import Document, TokenCache
from lm.generation import native, steppers
from lm.generation.direct_stepper import DirectModel, DirectStepper
from lm.generation.documents import DocumentTask, generate_document
from lm.generation.guess_table import FILE_NAME, GuessTable
from lm.generation.guesses import Guesser
from lm.generation.native_stepper import NativeStepper
from lm.generation.phrase_table import ANY, CODE, PhraseTable
from lm.generation.sampling import SamplingSettings
from lm.generation.stepper import Stepper
from lm.generation.texts import generate_text
from lm.sequences import Picture, description_prompt, document_sequence
from lm.training.guess_table import learn_guess_table

SETTINGS = {
    "greedy": {"temperature": 0},
    "plain": {},
    "cold": {"temperature": 0.3},
    "truncated": {"top_k": 9, "top_p": 0.8, "min_p": 0.01},
}


@pytest.fixture
def fed(monkeypatch) -> list[int]:
    """Tokens a row of each call of a model after its prompts."""
    counts: list[int] = []
    for kind in (Stepper, DirectStepper, NativeStepper):
        advance, feed = kind.advance, kind.feed

        def counted_advance(self, ids, advance=advance):
            counts.append(1)
            return advance(self, ids)

        def counted_feed(self, ids, starts, feed=feed):
            counts.append(ids.shape[1])
            return feed(self, ids, starts)

        monkeypatch.setattr(kind, "advance", counted_advance)
        monkeypatch.setattr(kind, "feed", counted_feed)
    return counts


def prompts_of(vocabulary, count: int) -> list[list[int]]:  # noqa: F811
    layout = vocabulary.layout
    rows = np.random.default_rng(0).integers(layout["low"], layout["high"], (count, len(layout["low"])))
    return [description_prompt(vocabulary, row) for row in rows]


def write(model, vocabulary, prompts, tokens_per_call, phrases, **settings):  # noqa: F811
    return generate_text(
        model, vocabulary, prompts, max_new_tokens=14, settings=SamplingSettings(**settings),
        generators=streams(*range(len(prompts))), tokens_per_call=tokens_per_call, phrases=phrases,
    )  # fmt: skip


def phrases_of(prompts, texts, vocabulary) -> PhraseTable:  # noqa: F811
    """Learned from these very texts."""
    rows = [np.array([*prompt, *text, vocabulary.eos_id]) for prompt, text in zip(prompts, texts, strict=True)]
    return PhraseTable.learn(rows * 2, vocabulary.image_offset)


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
@pytest.mark.parametrize("name", SETTINGS)
def test_texts_are_those_of_writing_one_by_one(vocabulary, name, architecture, path):  # noqa: F811
    model = random_model(vocabulary, architecture)
    for count in (1, 4):
        prompts = prompts_of(vocabulary, count)
        expected = write(model, vocabulary, prompts, 1, None, **SETTINGS[name])
        learned = phrases_of(prompts, expected, vocabulary)
        wrong = PhraseTable(np.array([[ANY, token, (token + 7) % 40] for token in range(40)], np.int32), 40)
        for phrases in (learned, wrong, PhraseTable(), None):
            for tokens in (2, 3, 16, None):
                assert write(model, vocabulary, prompts, tokens, phrases, **SETTINGS[name]) == expected


def test_right_guesses_save_calls_and_wrong_ones_cost_none(vocabulary, path, fed):  # noqa: F811
    model, prompts = random_model(vocabulary), prompts_of(vocabulary, 1)
    (text,) = expected = write(model, vocabulary, prompts, 1, None, temperature=0)
    one_by_one = len(fed)
    assert one_by_one in (len(text), 13) and set(fed) == {1}

    class Oracle(PhraseTable):
        def guess(self, ids, count):
            written = len(ids) - 1
            return [*text, vocabulary.eos_id][written : written + count]

    fed.clear()
    assert write(model, vocabulary, prompts, 4, Oracle(), temperature=0) == expected
    assert len(fed) == -(-one_by_one // 4) and max(fed) == 4
    fed.clear()
    never = PhraseTable(np.array([[ANY, token, text[0] + 1] for token in range(vocabulary.image_offset)], np.int32))
    assert write(model, vocabulary, prompts, 4, never, temperature=0) == expected
    assert len(fed) <= one_by_one


@pytest.mark.parametrize("name", SETTINGS)
def test_documents_are_those_of_writing_one_by_one(pipe, name, path, fed):  # noqa: F811
    vocabulary = pipe.vocabulary  # noqa: F811
    model = add_noise(copy.deepcopy(pipe.model), 0.1)
    prompt = document_sequence(vocabulary, document(vocabulary)[:2], whole=False).input_ids.tolist()
    settings = SamplingSettings(**SETTINGS[name])

    def parts(seed, **several):
        (generator,) = streams(seed)
        task = DocumentTask(prompt, 64, settings, settings, generator, **several)
        return [
            (part.size, part.codes.tolist()) if isinstance(part, Picture) else part
            for part in generate_document(model, vocabulary, task)
        ]

    phrases = PhraseTable.learn([document_sequence(vocabulary, document(vocabulary)).input_ids] * 2, 1000)
    table = replace(table_of(vocabulary), phrases=phrases)
    for seed in range(4):
        expected = parts(seed, tokens_per_call=1)
        for tokens in (2, 5, 16):
            for guess_table in (table, None):
                assert parts(seed, tokens_per_call=tokens, guess_table=guess_table) == expected
    assert max(fed) > 2


def test_a_document_that_is_guessed_right_takes_few_calls(pipe, fed, monkeypatch):  # noqa: F811
    """Texts by what follows what in the document, codes by what its first picture of this size has there."""
    known = document(pipe.vocabulary)
    sequence = document_sequence(pipe.vocabulary, known).input_ids
    pictures = {len(part.codes): part.codes for part in known[:4] if isinstance(part, Picture)}
    monkeypatch.setattr(
        Guesser, "guess", lambda self, codes, position, rows=None: pictures[codes.shape[1]][position][None]
    )
    table = GuessTable(
        *[np.zeros(0)] * 3, "none", PhraseTable.learn([sequence] * 2, pipe.vocabulary.image_offset)
    )  # fmt: skip
    prompt = document_sequence(pipe.vocabulary, known[:1], whole=False).input_ids
    settings = SamplingSettings(temperature=0)
    for tokens, guess_table, most in ((1, None, 200), (8, table, 25)):
        fed.clear()
        task = DocumentTask(prompt, 96 - len(prompt), settings, settings, torch.Generator(), tokens, guess_table)
        found = generate_document(pipe.model, pipe.vocabulary, task)
        assert [part if isinstance(part, list) else part.codes.tolist() for part in found] == [
            part if isinstance(part, list) else part.codes.tolist() for part in known[1:]
        ]
        assert len(fed) <= most, tokens
    assert max(fed) == 8


# The table


def test_a_phrase_table_has_what_follows_often_enough():
    sequences = [np.array([1, 50, 51, 2, 5, 6, 7, 0])] * 3 + [np.array([1, 50, 2, 5, 6, 8, 0])] * 2 + [np.array([9, 6])]
    table = PhraseTable.learn(sequences, 40)
    assert table.guess([50, 51], 9) == [2, 5, 6, 7, 0]
    assert table.guess([1, 77, 2], 2) == [5, 6], "codes are all one to it"
    assert table.guess([3, 6], 1) == [7], "two tokens that were never seen: by the last one"
    assert table.guess([], 3) == [2, 5, 6] and table.guess([3, 3], 4) == []
    assert (CODE, CODE, 2) in {tuple(row) for row in table.entries.tolist()}
    rare = PhraseTable.learn([np.array([4, 4, token]) for token in range(10, 20)] * 2, 40)
    assert rare.guess([4, 4], 1) == [], "one in ten is right"
    assert PhraseTable.learn([], 40).guess([1, 2], 3) == []


def test_phrases_are_learned_kept_and_read(vocabulary, tmp_path):  # noqa: F811
    rng, layout = np.random.default_rng(0), vocabulary.layout
    rows = [Document(rng.integers(layout["low"], layout["high"]), [(16, 16)], [TEXTS[0]]) for _ in range(220)]
    cache = TokenCache(write_cache(tmp_path / "cache", [rows], vocabulary.num_codes, "none"))
    described = replace(vocabulary, formats=["image_to_caption"])
    table = learn_guess_table(cache, described)
    text = described.encode_text(TEXTS[0])
    assert table.phrases.guess([described.eoi_id], 20) == [*text, described.eos_id]
    table.save(tmp_path)
    again = GuessTable.load(tmp_path, described)
    assert (again.phrases.entries == table.phrases.entries).all()
    assert again.phrases.guess([described.eoi_id], 20) == [*text, described.eos_id]
    arrays = load_file(tmp_path / FILE_NAME)
    del arrays["phrases"]
    metadata = {"format_version": "1", "image_tokenizer_fingerprint": "none"}
    save_file(arrays, tmp_path / FILE_NAME, metadata)
    assert GuessTable.load(tmp_path, described).phrases.guess([described.eoi_id], 20) == []


# Where it is not possible


def test_a_model_whose_cache_cannot_be_cut_back(vocabulary, caplog):  # noqa: F811
    model, prompts = random_model(vocabulary, "gemma2"), prompts_of(vocabulary, 2)
    steppers._say_one_by_one.cache_clear()
    expected = write(model, vocabulary, prompts, 1, None)
    with caplog.at_level(logging.WARNING, "lm.generation.steppers"):
        assert write(model, vocabulary, prompts, 4, phrases_of(prompts, expected, vocabulary)) == expected
    assert caplog.text.count("the cache of Gemma2ForCausalLM (sliding windows, states) cannot be cut back") == 1


@pytest.mark.parametrize("count", [0, -1])
def test_too_few_tokens_a_call(vocabulary, count):  # noqa: F811
    model, prompts = random_model(vocabulary), prompts_of(vocabulary, 1)
    with pytest.raises(ValueError, match=f"tokens_per_call must be at least 1 .* got {count}"):
        write(model, vocabulary, prompts, count, None)
    settings = SamplingSettings()
    with pytest.raises(ValueError, match=f"tokens_per_call must be at least 1 .* got {count}"):
        DocumentTask([1], 4, settings, settings, torch.Generator(), count)


def test_texts_are_written_by_the_fastest_stepper(monkeypatch):
    """A caption takes no call of transformers' own forward, but for its prompt where there is no compiled code."""
    vocabulary = tiny_vocabulary(tiny_tokenizer(), formats=["image_to_caption"])  # noqa: F811
    model, prompts, calls = tiny_model(vocabulary), prompts_of(vocabulary, 2), []
    assert DirectModel.fits(model)
    forward = type(model.model).forward
    monkeypatch.setattr(type(model.model), "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    write(model, vocabulary, prompts, None, None)
    assert len(calls) == (native.unavailable() is not None)
