"""Several codes a call of the model: the codes of drawing one by one, in every setting, in fewer calls."""

from __future__ import annotations

import logging
from functools import partial

import numpy as np
import pytest
import torch
from test_lm_cache import write_cache
from test_lm_generation import CAPTIONS, other_shapes, random_model, vocabulary  # noqa: F401
from test_lm_native import compiled
from tiny import draw_codes, streams, task_of, tiny_model, tiny_tokenizer, tiny_vocabulary

from lm.data.token_cache import Document, TokenCache
from lm.generation import native, steppers
from lm.generation.direct_stepper import DirectModel, DirectStepper
from lm.generation.guess_table import GuessTable, neighbours
from lm.generation.guesses import Guesser
from lm.generation.images import draw
from lm.generation.native_stepper import NativeStepper
from lm.generation.stepper import Stepper
from lm.sequences import image_prompt
from lm.training.guess_table import learn_guess_table
from tokenizer_image.layout import build_layout

SETTINGS = {
    "plain": {},
    "greedy": {"temperature": 0},
    "temperature": {"temperature": 0.5},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.1},
    "guidance": {"guidance_scale": 2.5},
    "all": {"guidance_scale": 1.5, "temperature": 0.8, "top_k": 9, "top_p": 0.9, "min_p": 0.01},
    "levels": {"temperature": [1.0, 0.0], "top_k": [3, 0], "guidance_scale": 2.0},
    "schedule": {"guidance_scale": lambda position: 1 + position / 4},
}


@pytest.fixture(params=["compiled", "operators", "own forward"])
def path(request, monkeypatch) -> str:
    if request.param != "compiled":
        monkeypatch.setattr(native, "fits", lambda model: False)
    if request.param == "own forward":
        monkeypatch.setattr(DirectModel, "fits", lambda model: False)
    return request.param


def both_ways(model, vocabulary, prompts, *, windows=(2, 3, 16), **settings):  # noqa: F811
    """Codes drawn one by one, once they are those of several a call."""

    def codes(codes_per_call):
        generators = streams(*range(len(prompts)))
        return draw_codes(model, vocabulary, prompts, generators=generators, codes_per_call=codes_per_call, **settings)

    expected = codes(1)
    for window in windows:
        assert codes(window).equal(expected), window
    return expected


@pytest.fixture(scope="module")
def prompts(vocabulary) -> list[list[int]]:  # noqa: F811
    return [image_prompt(vocabulary, caption) for caption in CAPTIONS]


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_codes_are_those_of_drawing_one_by_one(vocabulary, prompts, name, architecture, path):  # noqa: F811
    model = random_model(vocabulary, architecture)
    both_ways(model, vocabulary, prompts, **SETTINGS[name])
    both_ways(model, vocabulary, prompts[:1], windows=(4,), **SETTINGS[name])


def test_forced_codes(vocabulary, prompts, path):  # noqa: F811
    model = random_model(vocabulary)
    whole = draw_codes(model, vocabulary, prompts, generators=streams(5, 6, 7, 8))
    for kept in ([0, 1, 5, 6, 7], [3, 11], [2, 3, 4, 5, 6, 7, 8, 9, 10]):
        forced = torch.full_like(whole, -1)
        forced[:, kept] = whole[:, kept]
        forced[2, :9] = whole[2, :9]  # rows that begin apart
        forced[3] = whole[3]  # one with nothing to draw
        drawn = both_ways(model, vocabulary, prompts, forced=forced, guidance_scale=2.0)
        assert drawn[forced >= 0].equal(forced[forced >= 0])


def test_several_sizes_with_ends_of_rows(path):
    sizes = [(16, 16), (16, 32), (32, 16)]
    vocabulary = tiny_vocabulary(tiny_tokenizer(), sizes=sizes)  # noqa: F811
    model = tiny_model(vocabulary)
    for size in sizes:
        both_ways(model, vocabulary, [image_prompt(vocabulary, "a cat", size)] * 3, size=size, guidance_scale=2.0)


def test_batches_and_negative_prompts(vocabulary, prompts, path):  # noqa: F811
    model = random_model(vocabulary)
    both_ways(model, vocabulary, prompts, negative_prompts=prompts[::-1], guidance_scale=2.0, max_batch_rows=4)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["qwen3", "shared keys, wide heads, biases, tied"])
def test_compiled_logits_are_the_same_to_the_last_bit(vocabulary, prompts, name, dtype):  # noqa: F811
    model = (random_model(vocabulary) if name == "qwen3" else other_shapes(vocabulary, name)).to(dtype).eval()
    ids = torch.randint(vocabulary.image_offset, vocabulary.size, (len(prompts), 11))
    with torch.inference_mode():
        single, several = (NativeStepper(model, prompts, 12, vocabulary.pad_id) for _ in range(2))
        several.feed(ids.flip(1), torch.zeros(len(prompts), dtype=torch.long))  # wrong guesses leave no trace
        several.feed(ids[:, :6], torch.zeros(len(prompts), dtype=torch.long))
        after = several.logits_at(torch.arange(4), torch.tensor([5, 5, 2, 5]), 0, vocabulary.size)
        starts = torch.tensor([6, 4, 3, 6])
        rest = torch.stack(
            [
                torch.cat([row[s : s + 5], row.new_full((max(0, s - 6),), -1)])
                for row, s in zip(ids, starts, strict=True)
            ]
        )
        several.feed(rest, starts)
        for number in range(11):
            single.advance(ids[:, number])
            logits = single.logits(0, vocabulary.size)
            for row, (start, count) in enumerate(zip(starts.tolist(), (rest >= 0).sum(1).tolist(), strict=True)):
                if start <= number < start + count:
                    column = torch.tensor([number - start])
                    assert several.logits_at(torch.tensor([row]), column, 0, vocabulary.size)[0].equal(logits[row])
            if number == 5:
                assert after[[0, 1, 3]].equal(logits[[0, 1, 3]])


@pytest.mark.parametrize("kind", ["direct", "own forward"])
@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_logits_of_operators_are_the_same_up_to_rounding(vocabulary, prompts, architecture, kind):  # noqa: F811
    model = random_model(vocabulary, architecture).eval()
    ids = torch.randint(vocabulary.image_offset, vocabulary.size, (len(prompts), 8))
    with torch.inference_mode():

        def make():
            if kind == "direct":
                return DirectStepper(DirectModel(model, 8), prompts, 9, vocabulary.pad_id)
            return Stepper(model, prompts, 9, vocabulary.pad_id)

        single, several = make(), make()
        zeros = torch.zeros(len(prompts), dtype=torch.long)
        several.feed(ids.flip(1), zeros)
        several.feed(ids[:, :3], zeros)
        several.feed(ids[:, 2:], zeros + 2)
        for number in range(8):
            single.advance(ids[:, number])
            if number >= 2:
                rows, columns = torch.arange(len(prompts)), zeros + number - 2
                ours = several.logits_at(rows, columns, 0, vocabulary.size)
                torch.testing.assert_close(ours, single.logits(0, vocabulary.size), atol=1e-5, rtol=1e-5)


# Fewer calls


def calls(model, vocabulary, prompts, **settings) -> int:  # noqa: F811
    task = task_of(vocabulary, prompts, generators=streams(*range(len(prompts))), **settings)
    return list(draw(model, vocabulary, task))[-1].calls


def test_calls_are_as_many_as_codes_one_by_one_and_fewer_where_guesses_are_right(vocabulary, prompts, path):  # noqa: F811
    model = random_model(vocabulary)
    assert calls(model, vocabulary, prompts[:1], codes_per_call=1) == 12
    assert calls(model, vocabulary, prompts[:1], codes_per_call=8, temperature=50.0) <= 12
    with torch.no_grad():  # a model that repeats the code before, whatever else is there
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.zero_()
        model.model.embed_tokens.weight.normal_()
        model.lm_head.weight.copy_(model.model.embed_tokens.weight * 3)
    settings = {"temperature": 0, "forced": None}
    assert calls(model, vocabulary, prompts[:1], codes_per_call=1, **settings) == 12
    assert calls(model, vocabulary, prompts[:1], codes_per_call=12, **settings) <= 5
    assert calls(model, vocabulary, prompts, codes_per_call=12, **settings) <= 6


def test_by_default_one_by_one_unless_a_large_model_draws_few(vocabulary, prompts, monkeypatch):  # noqa: F811
    model = random_model(vocabulary)
    assert calls(model, vocabulary, prompts[:1]) == 12
    make_native, make_plain = partial(NativeStepper, model), partial(Stepper, model)
    assert steppers.default_tokens_per_call(model, make_native, 1) == 1, "its weights fit the processor's caches"
    monkeypatch.setattr(steppers, "LARGE_MODEL", 0)
    assert [steppers.default_tokens_per_call(model, make_native, batch) for batch in (1, 2, 16)] == [4, 1, 1]
    for vector_bytes, expected in ((32, [4, 1, 1]), (64, [4, 4, 1])):  # alone, with guidance, over a picture, too
        monkeypatch.setattr(native, "vector_bytes", lambda width=vector_bytes: width)
        assert [steppers.default_tokens_per_call(model, make_native, 1, rows) for rows in (1, 2, 3)] == expected
    assert steppers.default_tokens_per_call(model, make_native, 2, 2) == 1
    monkeypatch.setattr(native, "vector_bytes", lambda: pytest.fail("compiled for a model that it does not compute"))
    assert steppers.default_tokens_per_call(model, make_plain, 1, 2) == 1


def test_a_model_whose_cache_cannot_be_cut_back(vocabulary, prompts, caplog):  # noqa: F811
    model = random_model(vocabulary, "gemma2")
    steppers._say_one_by_one.cache_clear()
    with caplog.at_level(logging.WARNING, "lm.generation.steppers"):
        both_ways(model, vocabulary, prompts)
    assert caplog.text.count("the cache of Gemma2ForCausalLM (sliding windows, states) cannot be cut back") == 1


@pytest.mark.parametrize("count", [0, -1])
def test_too_few_codes_a_call(model_and_prompts, count):
    model, vocabulary, prompts = model_and_prompts  # noqa: F811
    with pytest.raises(ValueError, match=f"codes_per_call must be at least 1 .* got {count}"):
        draw_codes(model, vocabulary, prompts, generators=streams(0, 0, 0, 0), codes_per_call=count)


@pytest.fixture
def model_and_prompts(vocabulary, prompts):  # noqa: F811
    return random_model(vocabulary), vocabulary, prompts


# First guesses


def test_neighbours_of_two_levels_and_two_depths():
    around = neighbours(build_layout([(1, 1), (2, 2)], [[4], [8, 8]]).to_dict())
    assert around.tolist() == [
        [-1, -1, -1, -1],
        [-1, -1, -1, 0], [-1, -1, 1, 0], [1, -1, -1, 0], [2, -1, 3, 0],
        [-1, 1, -1, 0], [-1, 2, 5, 0], [5, 3, -1, 0], [6, 4, 7, 0],
    ]  # fmt: skip


def test_without_a_table_the_code_to_the_left_or_above():
    layout = build_layout([(2, 2)], [[9]]).to_dict()
    codes = np.array([[3, 5, 7, -1]])
    guesser = Guesser(layout)
    assert [guesser.guess(codes, position).tolist() for position in range(4)] == [[0], [3], [3], [7]]


def table_of(vocabulary, fingerprint="none"):  # noqa: F811
    """Each code is guessed to be the next higher one than the code to the left."""
    count = vocabulary.num_codes
    vectors = np.zeros((4, count + 1, count), np.float32)
    vectors[0, np.arange(count), (np.arange(count) + 1) % count] = 1
    return GuessTable(vectors, np.eye(count, dtype=np.float32), np.zeros(count, np.float32), fingerprint)


def test_a_table_guesses_what_follows(vocabulary, prompts, tmp_path):  # noqa: F811
    table = table_of(vocabulary)
    around, there = np.array([[3, 0, 0, 0], [7, 0, 0, 0]]), np.array([True, False, False, False])
    assert table.likeliest(around, there, 0, 12).tolist() == [4, 8]
    assert table.likeliest(around, ~there, 2, 12).tolist() == [2, 2], "what is not there does not count"
    both_ways(random_model(vocabulary), vocabulary, prompts, guess_table=table)
    table.save(tmp_path)
    again = GuessTable.load(tmp_path, vocabulary)
    assert all((getattr(again, name) == getattr(table, name)).all() for name in ("vectors", "output", "bias"))
    assert GuessTable.load(tmp_path / "none", vocabulary) is None


def test_a_table_of_other_codes(vocabulary, tmp_path):  # noqa: F811
    table_of(vocabulary, "another").save(tmp_path)
    with pytest.raises(ValueError, match="another image tokenizer .fingerprint another, not none.: delete this file"):
        GuessTable.load(tmp_path, vocabulary)
    small = table_of(vocabulary)
    GuessTable(small.vectors[:, :9], small.output[:8], small.bias[:8], "none").save(tmp_path)
    with pytest.raises(ValueError, match="is of 8 codes, not 32"):
        GuessTable.load(tmp_path, vocabulary)


def test_a_table_is_learned_from_what_follows_what(vocabulary, tmp_path):  # noqa: F811
    """Pictures whose codes count upwards from a random one: after it, every code can be guessed."""
    first = np.random.default_rng(0).integers(0, 12, 300)
    rows = [np.concatenate([(one + np.arange(4)) % 12, 12 + (one + np.arange(8)) % 20]) for one in first]
    cache = TokenCache(write_cache(tmp_path, [[Document(row, [(16, 16)]) for row in rows]], 32, "none"))
    before = torch.get_rng_state()
    table = learn_guess_table(cache, vocabulary)
    assert torch.get_rng_state().equal(before) and table.fingerprint == "none"
    guesser = Guesser(vocabulary.layout, table)
    codes = np.stack(rows[:50])
    for position in (1, 2, 3, 5, 7, 9, 11):
        assert guesser.guess(codes, position).tolist() == codes[:, position].tolist()
    again = learn_guess_table(cache, vocabulary)
    assert (again.vectors == table.vectors).all()


def test_too_few_pictures_give_no_table(vocabulary, tmp_path):  # noqa: F811
    rows = [Document(np.arange(12) + np.arange(12) // 4 * 4, [(16, 16)])] * 20 + [
        Document(np.arange(3), [(8, 8)])
    ] * 400
    cache = TokenCache(write_cache(tmp_path, [rows], 32, "none"))
    assert learn_guess_table(cache, vocabulary) is None, "pictures of another size do not count"
