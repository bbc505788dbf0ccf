"""Continuous batching: rows that come and go draw what each draws alone, offline."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny import SQUARE, add_noise, draw_codes, streams, task_of, tiny_model, tiny_tokenizer, tiny_vocabulary

from lm.generation import native
from lm.generation.continuous import ContinuousSampler, slots_for
from lm.generation.direct_slots import DirectSlots
from lm.generation.native_slots import NativeSlots
from lm.generation.noise import gumbel
from lm.generation.prompt_cache import PromptCache
from lm.generation.rows_under_way import PictureUnderWay, TextUnderWay, pictures_of
from lm.generation.sampling import SamplingSettings, choose, choose_by_row, uniforms_of
from lm.generation.slots import FedTokens, Slots
from lm.generation.texts import generate_text
from lm.model import build_configuration, build_model
from lm.sequences import description_prompt, image_prompt

WIDE = (16, 32)
SETTINGS = (
    {"guidance_scale": 2.0},
    {"temperature": 0.7, "top_k": 5},
    {"guidance_scale": 3.0, "temperature": 0.0},
    {"guidance_scale": 1.5, "temperature": 1.3, "top_p": 0.8},
    {"min_p": 0.05, "temperature": [0.5, 1.5]},
)
KINDS: dict[str, Callable[..., Slots]] = {
    "any": Slots,
    "direct": lambda model, count, places: DirectSlots(model, count, places, rows=8),
    "native": NativeSlots,
}


@pytest.fixture(scope="module")
def vocabulary():
    return tiny_vocabulary(tiny_tokenizer(), sizes=[SQUARE, WIDE], formats=["caption_to_image", "image_and_caption"])


@pytest.fixture(scope="module")
def model(vocabulary):
    """Qwen3, with query heads that share a key head."""
    torch.manual_seed(3)
    sizes = {"num_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "max_positions": 64}
    configuration = build_configuration(vocabulary, architecture="qwen3", **sizes)
    configuration.num_key_value_heads = 1
    return add_noise(build_model(configuration), 0.15).eval()


def sampler(model, vocabulary, kind: str = "direct", count: int = 16) -> ContinuousSampler:
    if kind == "native" and native.unavailable() is not None:
        pytest.skip(f"no compiled code: {native.unavailable()}")
    return ContinuousSampler(KINDS[kind](model, count, 64), vocabulary)


def tasks(vocabulary) -> list:
    """Tasks of two pictures each: prompts of different lengths, sizes and settings; one keeps some codes."""
    found = []
    for number, settings in enumerate(SETTINGS):
        size = WIDE if number % 2 else SQUARE
        text = ["a red dog", "a blue cat on grass and a red dog", None][number % 3]
        forced = None
        if number == 3:
            forced = torch.full((2, len(vocabulary.picture(size).places)), -1)
            layout = vocabulary.layouts[size]
            forced[:, 0], forced[1, 4:7] = layout["low"][0], torch.tensor(layout["low"][4:7])
        found.append(
            task_of(
                vocabulary,
                [image_prompt(vocabulary, text, size)] * 2,
                generators=streams(10 * number, 10 * number + 1),
                size=size,
                forced=forced,
                **settings,
            )  # fmt: skip
        )
    return found


def finish(sampling: ContinuousSampler, rows: list, each: int = 3) -> None:
    """Begin `each` rows every third step; in every second step, only some of those under way go on."""
    waiting, under_way, step = list(rows), [], 0
    while waiting or under_way:
        if waiting and step % 3 == 0:
            fresh = [waiting.pop(0) for _ in range(min(each, len(waiting)))]
            sampling.begin(fresh)
            under_way += fresh
        sampling.step(under_way if step % 2 else under_way[:2])
        under_way = [row for row in under_way if not row.is_complete]
        step += 1


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_come_and_go_draw_what_they_draw_offline(model, vocabulary, kind):
    """Sizes, settings, prompts and places differ in one call, and some codes are kept; each row is as alone."""
    from lm.generation.images import generate_codes

    rows = [row for task in tasks(vocabulary) for row in pictures_of(task, vocabulary)]
    expected = [codes for task in tasks(vocabulary) for codes in generate_codes(model, vocabulary, task)]
    sampling = sampler(model, vocabulary, kind)
    finish(sampling, rows)
    assert sampling.num_used == 0 and sampling.num_free == 16
    for row, codes in zip(rows, expected, strict=True):
        assert row.codes.tolist() == codes.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_that_are_kept_are_not_read_again(model, vocabulary, kind):
    """With three places for five prompts: some are copied, some forgotten, and each row is as alone."""
    from lm.generation.images import generate_codes

    expected = [codes for task in tasks(vocabulary) for codes in generate_codes(model, vocabulary, task)]
    slots = sampler(model, vocabulary, kind, count=19)._slots
    sampling, fed = ContinuousSampler(slots, vocabulary, kept_prompts=3), []
    feed, slots.feed = slots.feed, lambda tokens: (fed.append(len(tokens.ids)), feed(tokens))[1]
    for turn in range(3):
        rows = [row for task in tasks(vocabulary) for row in pictures_of(task, vocabulary)]
        finish(sampling, rows, each=2 if turn else 16)
        assert [row.codes.tolist() for row in rows] == [codes.tolist() for codes in expected]
        assert sampling.num_used == 0 and sampling.num_free == 16
    row = [pictures_of(tasks(vocabulary)[0], vocabulary)[0] for _ in range(3)]
    sampling.begin(row[:1])
    fed.clear()
    sampling.begin(row[1:2])
    assert not fed, "both prompts of guidance are kept"
    sampling.forget_prompts()
    sampling.begin(row[2:])
    assert fed == [sum(len(prompt) for prompt in row[2].prompts)]


def test_the_prompt_that_was_used_longest_ago_is_forgotten():
    kept = PromptCache([7, 8])
    assert kept.find((1,)) is None and kept.keep((1,)) == 8 and kept.keep((2,)) == 7
    assert kept.find((1,)) == 8 and kept.keep((3,)) == 7 and kept.find((2,)) is None
    kept.clear()
    assert kept.find((1,)) is None and {kept.keep((4,)), kept.keep((5,))} == {7, 8}
    assert PromptCache([]).keep((1,)) is None


def test_compiled_logits_are_the_same_bits_alone_and_among_others(model, vocabulary):
    prompts = [image_prompt(vocabulary, text) for text in ("a red dog", "a blue cat", None, "dog dog dog")]
    if native.unavailable() is not None:
        pytest.skip(f"no compiled code: {native.unavailable()}")
    many, one = NativeSlots(model, 4, 64), NativeSlots(model, 1, 64)
    with torch.inference_mode():
        together = many.feed(FedTokens.of_rows(prompts, [2, 0, 3, 1], [0] * 4))
        alone = torch.cat([one.feed(FedTokens.of_rows([prompt], [0], [0])) for prompt in prompts])
    assert together.equal(alone)


def test_texts_and_pictures_share_steps(model, vocabulary):
    codes = draw_codes(model, vocabulary, [image_prompt(vocabulary, "a dog")], generators=streams(1))[0]
    prompt = description_prompt(vocabulary, codes.numpy())
    settings = SamplingSettings(temperature=0.9, top_p=0.9)
    (expected,) = generate_text(
        model, vocabulary, [prompt], max_new_tokens=12, settings=settings, generators=streams(5)
    )  # fmt: skip
    text = TextUnderWay(vocabulary, [prompt], settings, uniforms_of(streams(5), 12, model.device)[0].numpy(), 12)
    pictures = pictures_of(tasks(vocabulary)[0], vocabulary)
    finish(sampler(model, vocabulary), [pictures[0], text, pictures[1]], each=1)
    assert text.ids == expected
    assert text.has_stopped == (len(expected) < 12)
    assert all((picture.codes >= 0).all() for picture in pictures)


def test_a_row_that_leaves_frees_its_slots_and_the_next_is_not_disturbed(model, vocabulary):
    task = tasks(vocabulary)[0]
    sampling = sampler(model, vocabulary, count=4)
    first, second = pictures_of(task, vocabulary)
    sampling.begin([first, second])
    assert sampling.num_free == 0
    sampling.step([first, second])
    sampling.leave(first)
    assert sampling.num_free == 2
    again = pictures_of(tasks(vocabulary)[0], vocabulary)[0]
    sampling.begin([again])
    while not again.is_complete:
        sampling.step([again])
    assert again.codes.tolist() == draw_codes(
        model, vocabulary, [task.prompts[0]], generators=streams(0), guidance_scale=2.0
    )[0].tolist()  # fmt: skip


def test_a_picture_of_which_all_is_kept_takes_no_slot(model, vocabulary):
    task = tasks(vocabulary)[0]
    row = pictures_of(task, vocabulary)[0]
    row.codes = np.asarray(vocabulary.layout["low"])
    sampling = sampler(model, vocabulary)
    sampling.begin([row])
    assert row.is_complete and sampling.num_used == 0


def test_what_does_not_fit_is_refused(model, vocabulary):
    rows = pictures_of(tasks(vocabulary)[0], vocabulary)
    with pytest.raises(ValueError, match="2 rows need more than the 2 slots that are free"):
        sampler(model, vocabulary, count=2).begin(rows)
    with pytest.raises(ValueError, match="longer than a slot of 8"):
        ContinuousSampler(Slots(model, 4, 8), vocabulary).begin(rows[:1])


def test_logits_that_are_not_finite_are_an_error(vocabulary):
    broken = tiny_model(vocabulary)
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    sampling = ContinuousSampler(Slots(broken, 4, 64), vocabulary)
    row = pictures_of(tasks(vocabulary)[0], vocabulary)[0]
    sampling.begin([row])
    with pytest.raises(RuntimeError, match="not finite"):
        sampling.step([row])


def test_other_models_take_slots_of_their_own(vocabulary):
    """GPT-2 has no compiled code; a model with sliding windows has only transformers' cache."""
    gpt2 = tiny_model(vocabulary, architecture="gpt2")
    assert type(slots_for(gpt2, 4, 64, 4)) is DirectSlots
    expected = draw_codes(gpt2, vocabulary, [image_prompt(vocabulary, "a dog")], generators=streams(2))
    row = pictures_of(
        task_of(vocabulary, [image_prompt(vocabulary, "a dog")], generators=streams(2)), vocabulary
    )[0]  # fmt: skip
    finish(ContinuousSampler(slots_for(gpt2, 4, 64, 4), vocabulary), [row])
    assert row.codes.tolist() == expected[0].tolist()
    gpt2.transformer.h[0].register_forward_hook(lambda *_: None)
    assert type(slots_for(gpt2, 4, 64, 4)) is Slots


def test_choosing_by_row_is_choosing_row_by_row():
    torch.manual_seed(0)
    logits = 3 * torch.randn(len(SETTINGS) * 4, 50)
    noise = gumbel(torch.rand(len(logits), dtype=torch.float64), 50)
    settings = [
        SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        for temperature, top_k, top_p, min_p in (
            (1.0, 0, 1.0, 0.0), (0.0, 0, 1.0, 0.0), (0.3, 5, 1.0, 0.0), (1.7, 0, 0.6, 0.0), (1.0, 0, 1.0, 0.2),
        )
    ] * 4  # fmt: skip
    rows = range(len(logits))
    expected = [
        choose(logits[r : r + 1], None if settings[r].temperature == 0 else noise[r : r + 1], settings[r]) for r in rows
    ]
    assert choose_by_row(logits, noise, settings).tolist() == torch.cat(expected).tolist()
    same = [settings[3]] * len(logits)
    assert choose_by_row(logits, noise, same).tolist() == choose(logits, noise, settings[3]).tolist()


def test_tokens_between_codes_that_are_kept_are_read_in_one_step(model, vocabulary):
    """The end of a row of codes, and codes that are kept, cost no step of their own."""
    task = tasks(vocabulary)[3]
    row = pictures_of(task, vocabulary)[1]
    assert isinstance(row, PictureUnderWay)
    sampling = sampler(model, vocabulary)
    sampling.begin([row])
    steps = 0
    while not row.is_complete:
        sampling.step([row])
        steps += 1
    assert steps == int((task.forced[1] < 0).sum())
