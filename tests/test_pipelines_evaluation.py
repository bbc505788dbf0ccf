"""Figures of a model folder, and the probe that reads sprites. Real parts, at tiny size."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_pipeline, tiny_tokenizer

from lm.sequences import token_sequence
from pipelines.caching.pixel_cache import decode_pictures
from pipelines.evaluation.likelihood import code_nats
from pipelines.evaluation.metrics.intervals import paired_comparison, share_of_misses_removed, wilson_interval
from pipelines.evaluation.metrics.reconstruction import as_8_bit, measure_tokenizer, reconstruct
from pipelines.evaluation.probes.alignment import alignment_report, alignment_sets, is_right, score
from pipelines.evaluation.probes.captions import caption_report, score_captions
from pipelines.evaluation.probes.probe_training import load_probe, probe_hash, train_probe
from pipelines.evaluation.probes.sprites_probe import QUESTIONS, SpritesProbe, answers, labels
from pipelines.evaluation.report.codebook_plot import codebook_figure, codebook_views
from pipelines.evaluation.report.tables import captions_table
from pipelines.options.evaluation import EvaluationOptions
from pipelines.options.parser import parse_options
from pipelines.text_to_image import TextToImagePipeline
from scripts.evaluate import main
from tokenizer_image import VQVAE, VQVAEConfig
from tokenizer_image.pictures.loading import load_pictures
from tokenizer_image.preprocessing import Preprocessing, preprocessing_of, to_pixel_values
from tokenizer_image.sprites import scenes as sprites
from tokenizer_image.sprites.data_set import SpriteDataset


@pytest.fixture(scope="module")
def image_tokenizer() -> VQVAE:
    tokenizer = tiny_tokenizer(image_size=32).train()
    scenes = [sprites.sample_scene(index) for index in range(64)]
    drawn = np.stack([np.asarray(sprites.draw_scene(scene)) for scene in scenes]).transpose(0, 3, 1, 2)
    with torch.no_grad():
        tokenizer(to_pixel_values(drawn))  # the first batch starts the codebooks
    return tokenizer.eval()


@pytest.fixture(scope="module")
def pipeline(image_tokenizer: VQVAE) -> TextToImagePipeline:
    torch.manual_seed(1)
    source = SpriteDataset(num_examples=50)
    texts = [caption for row in range(50) for caption in source.texts(row)]
    pipe = tiny_pipeline(
        tokenizer=image_tokenizer, texts=texts, num_layers=1, intermediate_size=None, max_positions=128, noise=0.0
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("pictures")
    source = load_pictures("sprites", "validation", max_examples=30)
    return decode_pictures(source, Preprocessing(image_size=32), cache_folder=folder, progress=False)


class PerfectProbe(SpritesProbe):
    """Reads pictures by looking them up among those of known scenes, so that scoring can be tested exactly."""

    def __init__(self, scenes: list[sprites.Scene]) -> None:
        super().__init__()
        self.known = {np.asarray(sprites.draw_scene(scene)).tobytes(): scene for scene in scenes}

    def read(self, pixel_values: torch.Tensor, batch_size: int = 500) -> list[dict[str, str]]:
        readings = []
        for picture in as_8_bit(pixel_values).permute(0, 2, 3, 1).contiguous().numpy():
            scene = self.known.get(picture.tobytes())
            reading = {name: "?" for name in QUESTIONS}
            readings.append(reading if scene is None else reading | answers(scene))
        return readings


# --- tokenizer


def test_reconstruction_figures_are_means_over_all_pictures(image_tokenizer, pictures):
    found = measure_tokenizer(image_tokenizer, pictures, batch_size=7, num_examples=9, progress=False)
    target = torch.from_numpy(pictures.batch(range(30)))
    with torch.no_grad():
        codes = image_tokenizer.encode(to_pixel_values(target))
        pixels = image_tokenizer.decode(codes)
    reconstruction = ((pixels.clamp(-1, 1) + 1) * 127.5).round()  # the stored picture, not the network's output
    squares = ((reconstruction - target) / 255).double().square().mean(dim=(1, 2, 3))
    quality = found.figures["reconstruction"]
    assert quality["n"] == 30
    assert quality["mse"] == pytest.approx(float(squares.mean()), rel=1e-5)
    assert quality["psnr"] == pytest.approx(float((-10 * squares.log10()).mean()), rel=1e-5)
    assert torch.equal(found.codes, codes)
    assert torch.equal(found.pictures, target[:9]) and found.reconstructions.shape == (9, 3, 32, 32)
    assert torch.equal(found.reconstructions, reconstruction[:9].to(torch.uint8))


def test_codebook_figures_cover_each_depth(image_tokenizer, pictures):
    found = measure_tokenizer(image_tokenizer, pictures, progress=False)
    codes, codebook = found.codes.numpy(), found.figures["codebook"]
    assert codebook["num_codes"] == 24 and codebook["tokens_per_image"] == codes.shape[1] == 32
    assert codebook["usage"] == pytest.approx(len(np.unique(codes)) / 24)
    first, second = codebook["parts"]
    assert (first["codebook_size"], second["codebook_size"]) == (16, 8)
    assert first["usage"] == pytest.approx(len(np.unique(codes[codes < 16])) / 16)
    share = np.bincount(codes[codes >= 16] - 16, minlength=8) / (codes >= 16).sum()
    share = share[share > 0]
    assert second["perplexity"] == pytest.approx(np.exp(-(share * np.log(share)).sum()))


def test_measuring_changes_nothing(image_tokenizer, pictures):
    before = {name: tensor.clone() for name, tensor in image_tokenizer.state_dict().items()}
    image_tokenizer.train()
    measure_tokenizer(image_tokenizer, pictures, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in image_tokenizer.state_dict().items())


def test_a_tokenizer_without_stored_settings_gets_plain_ones():
    tokenizer = VQVAE(VQVAEConfig(image_size=16, num_channels=1, hidden_sizes=[8], codebook_sizes=[4]))
    assert preprocessing_of(tokenizer) == Preprocessing(image_size=16, num_channels=1)


# --- language model


def test_nats_per_code_equals_plain_log_softmax(pipeline, image_tokenizer, pictures):
    codes = reconstruct(image_tokenizer, torch.from_numpy(pictures.batch(range(6))))[1]
    captions = ["a red dog", None, "a dog on the left, on grass", "a cat", None, "two words"]
    vocabulary, low, high = pipeline.vocabulary, pipeline.vocabulary.layout["low"], pipeline.vocabulary.layout["high"]
    total = 0.0
    for row, caption in enumerate(captions):
        ids = None if caption is None else vocabulary.encode_text(caption)
        name = "image" if ids is None else "caption_to_image"
        sequence = token_sequence(vocabulary, name, ids, codes[row].numpy())
        with torch.no_grad():
            logits = pipeline.model(torch.from_numpy(sequence.input_ids)[None], use_cache=False).logits[0].double()
        begin = len(sequence) - 32
        for place, code in enumerate(codes[row].tolist()):
            valid = slice(vocabulary.image_offset + low[place], vocabulary.image_offset + high[place])
            total -= float(logits[begin + place - 1, valid].log_softmax(-1)[code - low[place]])
    found = float(code_nats(pipeline, codes, captions, batch_size=4, progress=False).double().mean())
    assert found == pytest.approx(total / codes.numel(), rel=1e-5)


def test_nats_per_code_crops_a_caption_that_leaves_no_room(pipeline, image_tokenizer, pictures):
    codes = reconstruct(image_tokenizer, torch.from_numpy(pictures.batch(range(1))))[1]
    long = "a very long story about a dog " * 50
    assert code_nats(pipeline, codes, [long], progress=False).mean() > 0


# --- alignment


def test_sets_state_everything_and_keep_pairs_apart():
    seen, held_out, relation = alignment_sets(40, seed=3)
    assert [len(one.scenes) for one in (seen, held_out, relation)] == [40, 40, 20]
    for one, apart in ((seen, False), (held_out, True)):
        for scene, caption in zip(one.scenes, one.captions, strict=True):
            (thing,) = scene.objects
            assert ((thing.thing, thing.colour) in sprites.HELD_OUT_PAIRS) == apart
            assert thing.thing in caption and thing.colour in caption
    assert all(len(scene.objects) == 2 for scene in relation.scenes)
    trained = {sprites.sample_scene(index) for index in range(2000)}
    assert not trained & set(seen.scenes)
    assert alignment_sets(40, seed=3)[0].captions == seen.captions != alignment_sets(40, seed=4)[0].captions


def test_answers_name_the_left_or_upper_object_first():
    scene = sprites.sample_scene(5, pairs="all", num_objects=2)
    expected = answers(scene)
    assert expected == answers(scene.reversed())
    first = min(scene.objects, key=lambda thing: thing.x if expected["axis"] == "horizontal" else thing.y)
    assert (expected["first_thing"], expected["first_colour"]) == (first.thing, first.colour)
    numbers = dict(zip(QUESTIONS, labels(scene).tolist(), strict=True))
    assert numbers["thing"] == -100 and QUESTIONS["second_thing"][numbers["second_thing"]] == expected["second_thing"]


def test_score_counts_each_attribute_and_all_at_once():
    (one, *_) = alignment_sets(4, seed=0)
    readings = [answers(scene) for scene in one.scenes]
    readings[0]["thing"] = "other"
    readings[1]["size"] = "other"
    readings[1]["thing"] = "other"
    readings[2]["num_objects"] = "2"  # a second object that nobody asked for
    result = score(one, readings)
    expected = {"thing": 0.5, "colour": 1.0, "size": 0.75, "position": 1.0, "background": 1.0}
    assert {name: result[name] for name in expected} == expected
    assert result["num_objects"] == 0.75 and result["all"] == 0.25 and result["n"] == 4
    assert result["interval"]["thing"] == pytest.approx(wilson_interval(2, 4))


def test_a_swapped_pair_is_not_the_relation_asked_for():
    scene = next(scene for scene in alignment_sets(60)[2].scenes if scene.objects[0].colour != scene.objects[1].colour)
    swapped = sprites.Scene(scene.objects, scene.background, sprites.OPPOSITES[scene.relation])
    verdict = is_right(scene, answers(swapped))
    assert verdict == {"things": False, "colours": False, "num_objects": True, "all": False}
    assert all(is_right(scene, answers(scene)).values())


def test_wilson_interval_against_tabled_values():
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(20, 20)[1] == 1.0
    with pytest.raises(ValueError, match="3 right of 2"):
        wilson_interval(3, 2)


def test_report_of_real_pictures_reconstructions_and_samples(pipeline, image_tokenizer):
    sets = alignment_sets(6, seed=1)
    probe = PerfectProbe([scene for one in sets for scene in one.scenes])
    options = {"sets": sets, "seed": 1, "progress": False}
    report = alignment_report(pipeline, image_tokenizer, probe, batch_size=4, **options)
    for name in ("seen", "held_out", "relation"):
        assert report["real"][name]["all"] == 1.0
        assert report[name]["all"] == report["reconstructed"][name]["all"] == 0.0  # nothing is trained
        assert report[name]["n"] == report["real"][name]["n"] == (3 if name == "relation" else 6)
    assert set(report["seen"]) >= {"thing", "colour", "size", "position", "background", "all", "n", "interval"}
    assert sets[0].pictures["sampled"].shape == (6, 3, 32, 32)
    sampled = [one.pictures["sampled"].clone() for one in sets]
    # Samples depend on seed and scene, not on the batches; two captions do not share random numbers.
    alignment_report(pipeline, image_tokenizer, probe, batch_size=6, **options)
    assert all(torch.equal(one.pictures["sampled"], before) for one, before in zip(sets, sampled, strict=True))
    assert len({picture.numpy().tobytes() for picture in sampled[0]}) == 6
    alone = alignment_report(None, image_tokenizer, probe, **options)
    assert set(alone) == {"real", "reconstructed", "probe"}


# --- captions


def test_captions_are_scored_by_what_they_state():
    (one, _, relation) = alignment_sets(4, seed=0)
    things, colours = [s.objects[0].thing for s in one.scenes], [s.objects[0].colour for s in one.scenes]
    others = [next(c for c in sprites.COLOURS if c != colour) for colour in colours]
    texts = [one.captions[0], f"a {things[1]}", f"a {others[2]} {things[2]}", "a thing"]
    result = score_captions(one.scenes, texts)
    expected = {"thing": 0.75, "colour": 0.25, "thing_and_colour": 0.25, "true": 0.5, "states_colour": 0.5, "n": 4}
    assert {name: result[name] for name in expected} == expected
    assert result["interval"]["thing"] == pytest.approx(wilson_interval(3, 4)) and result["examples"] == texts
    result = score_captions(relation.scenes, relation.captions)
    assert result["things_and_colours"] == result["true"] == 1.0


# --- probe


def test_probe_reads_other_sizes_and_grey(tmp_path):
    probe = SpritesProbe()
    readings = probe.read(torch.zeros(3, 1, 64, 48))
    assert len(readings) == 3
    assert all(reading[name] in known for reading in readings for name, known in QUESTIONS.items())


def test_probe_learns_and_comes_back_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.evaluation.probes.probe_training.TEST_PICTURES", 200)
    train = train_probe

    def quick(**options):
        return train(num_pictures=1500, epochs=3, required_accuracy=0.05, **options)

    monkeypatch.setattr("pipelines.evaluation.probes.probe_training.train_probe", quick)
    probe = load_probe(tmp_path, progress=False)
    assert probe.accuracies["background"] > 0.8 and probe.accuracies["colour"] > 0.2  # by chance 0.17, 0.1
    folder = tmp_path / f"probe-{probe_hash()}"
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "probe.json"]
    assert json.loads((folder / "probe.json").read_text())["accuracies"] == probe.accuracies
    monkeypatch.setattr(
        "pipelines.evaluation.probes.probe_training.train_probe", lambda **_: pytest.fail("trained again")
    )
    again = load_probe(tmp_path, progress=False)
    scenes = [sprites.sample_scene(index, pairs="all") for index in range(10)]
    pixels = np.stack([np.asarray(sprites.draw_scene(scene)) for scene in scenes]).transpose(0, 3, 1, 2)
    assert again.read(to_pixel_values(pixels)) == probe.read(to_pixel_values(pixels))
    assert again.accuracies == probe.accuracies


def test_a_probe_that_does_not_get_good_enough_is_refused(monkeypatch):
    monkeypatch.setattr("pipelines.evaluation.probes.probe_training.TEST_PICTURES", 50)
    with pytest.raises(RuntimeError, match=r"must read 99% .* after 256 pictures it reads: num_objects"):
        train_probe(num_pictures=128, epochs=1, rounds=2, progress=False)


# --- the command


@pytest.fixture
def untrained_probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command gets a probe that nobody trained: what it reads is not the subject here."""
    torch.manual_seed(0)
    monkeypatch.setattr("pipelines.evaluation.sprites_figures.load_probe", lambda **_: SpritesProbe())
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))


def evaluate(*arguments: object) -> dict:
    words = [str(argument) for argument in arguments]
    fixed = ["--device", "cpu", "--cpu_threads", "1", "--num_workers", "0"]
    return main(parse_options(EvaluationOptions, description=None, argv=words + fixed))


def test_command_writes_report_and_page(untrained_probe, pipeline, tmp_path, capsys):
    pipeline.save_pretrained(tmp_path / "model")
    output, page = tmp_path / "figures" / "report.json", tmp_path / "page"
    evaluate(
        "--model", tmp_path / "model", "--output", output, "--report", page, "--max_examples", 40,
        "--num_captions", 5, "--guidance_scale", 2, "--seed", 7,
    )  # fmt: skip
    report = json.loads(output.read_text())
    assert (
        set(report["reconstruction"]) == {"mse", "psnr", "ssim", "grid_ratio", "n", "interval"}
        and report["reconstruction"]["n"] == 40
    )
    assert 0 < report["codebook"]["usage"] <= 1 and report["codebook"]["perplexity"] >= 1
    assert report["alignment"]["held_out"]["n"] == 5 and report["alignment"]["relation"]["n"] == 3
    assert report["likelihood"]["nats_per_code"] > 0
    assert report["guidance_scale"] == report["settings"]["guidance_scale"] == 2
    assert report["seed"] == 7 and torch.__version__.startswith(report["versions"]["torch"])
    assert "commit" in report  # the commit is null outside a checkout
    assert report["image_tokenizer_fingerprint"] == pipeline.image_tokenizer.fingerprint
    names = {path.name for path in page.iterdir()}
    pages = {"report.html", "report.md", "report.json"}
    assert names >= pages | {"reconstructions.png", "alignment_seen.png", "alignment_relation.png"}
    html = (page / "report.html").read_text()
    assert html.count("data:image/png;base64,") == len(names) - 3 and 'src="reconstructions' not in html
    assert json.loads((page / "report.json").read_text()) == report
    markdown = (page / "report.md").read_text()
    assert markdown.count("](") == len(names) - 3 and "(reconstructions.png)" in markdown and "PSNR" in markdown
    assert report["training"]["likelihood"]["n"] == 40
    shown = capsys.readouterr().out
    assert "PSNR" in shown and "held-out, samples" in shown and str(output) in shown and "report.html" in shown


def test_table_has_a_line_for_the_best_of_many_captions(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline.vocabulary, "formats", ["caption_to_image", "image_to_caption"])
    sets = alignment_sets(2, num_relation_captions=1)
    report = caption_report(pipeline, sets, best_of=3, batch_size=1, progress=False)
    assert report["seen"]["best_of"]["captions_each"] == 3 and report["relation"]["best_of"]["n"] == 1
    assert report["seen"]["best_of"]["examples"] != report["seen"]["examples"]
    lines = captions_table(report)
    assert [line.split("  ")[1] for line in lines[1:3]] == ["seen", "seen, best of 3"]
    assert len({len(line) for line in lines}) == 1
    assert "best_of" not in caption_report(pipeline, sets[:1], progress=False)["seen"]


@pytest.mark.parametrize("formats", [["image_to_caption"], ["image", "image_to_caption"]])
def test_command_reads_captions_of_models_that_describe(
    untrained_probe, pipeline, tmp_path, capsys, monkeypatch, formats
):
    monkeypatch.setattr(pipeline.vocabulary, "formats", formats)
    pipeline.save_pretrained(tmp_path / "model")
    evaluate("--model", tmp_path / "model", "--output", tmp_path / "r.json", "--max_examples", 5, "--num_captions", 2)
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["captions"]["held_out"]["n"] == 2 and report["captions"]["relation"]["n"] == 1
    assert ("likelihood" in report) == ("image" in formats) and "seen" not in report["alignment"]
    assert "captions state rightly" in capsys.readouterr().out


def test_misses_removed_and_differences_with_their_intervals():
    from pipelines.evaluation.drawing_comparison import SCORES, _shares

    verdicts = np.array([[False, True, False]] * 40 + [[True, True, True]] * 160)
    before = dict(zip(SCORES, verdicts.T.copy(), strict=True))
    verdicts[:20, [0, 2]] = True
    after = dict(zip(SCORES, verdicts.T, strict=True))
    found = paired_comparison(share_of_misses_removed, before, after)
    assert found["thing"] == 0.5 and found["colour"] is None and found["interval"]["colour"] is None
    low, high = found["interval"]["thing"]
    assert 0.3 < low < 0.45 and 0.55 < high < 0.7
    assert _shares(after)["thing_and_colour"] == 0.9 and list(SCORES) == ["thing", "colour", "thing_and_colour"]


def test_command_compares_best_of_and_completion_with_plain_drawing(
    untrained_probe, pipeline, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(pipeline.vocabulary, "formats", ["caption_to_image", "image", "image_to_caption"])
    pipeline.save_pretrained(tmp_path / "model")
    arguments = (
        "--model", tmp_path / "model", "--output", tmp_path / "r.json", "--max_examples", 5, "--num_captions", 2,
        "--best_of", 3, "--best_of_captions", 7, "--completion_captions", 5, "--batch_size", 4, "--seed", 1,
    )  # fmt: skip
    report = evaluate(*arguments)
    assert {own["best_of"]["captions_each"] for own in report["captions"].values()} == {16}
    report = report["alignment"]
    best, completion = report["best_of"], report["completion"]
    assert best["best_of"] == 3 and best["n"] == 7 and completion["n"] == 5 and completion["kept_exactly"] == 1
    for own, names in ((best, ("single", "best")), (completion, ("plain", "completed"))):
        for name in names:
            assert set(own[name]) == {"thing", "colour", "thing_and_colour", "interval"}
            low, high = own[name]["interval"]["thing"]
            assert low - 1e-9 <= own[name]["thing"] <= high + 1e-9
    difference = completion["completed"]["colour"] - completion["plain"]["colour"]
    assert completion["difference"]["colour"] == pytest.approx(difference)
    shown = capsys.readouterr().out
    assert "best of, thing: single" in shown and "completion, thing and colour: plain" in shown
    monkeypatch.setattr(pipeline.vocabulary, "formats", ["caption_to_image", "image"])
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="give a ranker, or train with"):
        evaluate(*arguments)
    monkeypatch.setattr(pipeline.vocabulary, "formats", ["image", "image_to_caption"])
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="best_of for captions ranks them"):
        evaluate("--model", tmp_path / "model", "--output", tmp_path / "r.json", "--describe_best_of", 4)
    with pytest.raises(SystemExit):
        evaluate("--model", tmp_path / "model", "--describe_best_of", 0)
    assert "--describe_best_of 0 must be above zero" in capsys.readouterr().err


def test_command_measures_a_tokenizer_alone(untrained_probe, image_tokenizer, tmp_path):
    image_tokenizer.save_pretrained(tmp_path / "tokenizer")
    output = tmp_path / "report.json"
    evaluate(
        "--image_tokenizer", tmp_path / "tokenizer", "--max_examples", 20, "--num_captions", 4, "--output", output
    )  # fmt: skip
    report = json.loads(output.read_text())
    assert "likelihood" not in report and "seen" not in report["alignment"]
    assert report["alignment"]["reconstructed"]["seen"]["n"] == 4


def test_command_on_pictures_of_ones_own(pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    pipeline.save_pretrained(tmp_path / "model")
    (tmp_path / "pictures" / "validation").mkdir(parents=True)
    for number in range(6):
        image = sprites.draw_scene(sprites.sample_scene(number), image_size=40)
        image.save(tmp_path / "pictures" / "validation" / f"{number}.png")
        (tmp_path / "pictures" / "validation" / f"{number}.txt").write_text(f"picture number {number % 2}")
    output, page = tmp_path / "report.json", tmp_path / "page"
    evaluate("--model", tmp_path / "model", "--dataset", tmp_path / "pictures", "--output", output, "--report", page)
    report = json.loads(output.read_text())
    assert "alignment" not in report and report["reconstruction"]["n"] == 6
    assert (page / "samples.png").is_file() and (page / "codebooks.png").is_file()


@pytest.mark.parametrize(
    "settings, sizes",
    [
        ({"quantizer": "residual", "codebook_sizes": [16, 8]}, [16, 8]),
        ({"quantizer": "grouped", "codebook_sizes": [16, 8]}, [16, 8]),
        ({"quantizer": "cosine", "codebook_sizes": [16]}, [16]),
        ({"quantizer": "finite_scalar", "codebook_sizes": [240]}, [240]),
        ({"quantizer": "residual", "codebook_sizes": [16, 16], "quantizer_options": {"shared_codebook": True}}, [16]),
        ({"quantizer": "ema", "num_levels": 2, "codebook_sizes": [16, 8]}, [16, 8]),
        ({"quantizer": "lookup_free", "codebook_sizes": [2]}, [2]),
    ],
)
def test_codebook_views(settings, sizes):
    torch.manual_seed(0)
    tokenizer = VQVAE(VQVAEConfig(image_size=32, hidden_sizes=[8, 16], num_res_blocks=1, code_dim=4, **settings))
    pictures = decode_pictures(SpriteDataset(num_examples=40), Preprocessing(image_size=32))
    pixel_values = to_pixel_values(pictures.batch(range(40)))
    with torch.no_grad():
        tokenizer.train()(pixel_values)
    codes = tokenizer.eval().encode(pixel_values)
    views = codebook_views(tokenizer, codes, pictures)
    assert [len(view.counts) for view in views] == sizes
    assert sum(view.counts.sum() for view in views) == codes.numel()
    for view in views:
        assert view.codes.shape[1] == view.latents.shape[1] == 2 and np.isfinite(view.latents).all()
    figure = codebook_figure(views)
    assert figure.width > 500 and figure.height > 300 * len(views)


def test_codes_lie_among_their_latents_in_a_view(image_tokenizer):
    """After the k-means start every code is the mean of its latents, in any plane."""
    pictures = decode_pictures(SpriteDataset(num_examples=64), Preprocessing(image_size=32))
    codes = image_tokenizer.encode(to_pixel_values(pictures.batch(range(64))))
    for view in codebook_views(image_tokenizer, codes, pictures)[:1]:
        low, high = view.latents.min(0), view.latents.max(0)
        assert (view.codes >= low - 1e-4).all() and (view.codes <= high + 1e-4).all()


def test_report_without_matplotlib_says_what_is_missing(
    untrained_probe, image_tokenizer, tmp_path, monkeypatch, capsys
):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)  # makes the import fail
    image_tokenizer.save_pretrained(tmp_path / "tokenizer")
    evaluate(
        "--image_tokenizer", tmp_path / "tokenizer", "--max_examples", 5, "--num_captions", 2,
        "--output", tmp_path / "report.json", "--report", tmp_path / "page",
    )  # fmt: skip
    assert "tessera[evaluation]" in capsys.readouterr().out
    assert not (tmp_path / "page" / "plots.png").exists() and (tmp_path / "page" / "report.html").is_file()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--num_captions", "0"], "--num_captions 0 must be above zero"),
        (["--batch_size", "-1"], "--batch_size -1 must be above zero"),
        (["--seed", "-1"], "--seed -1 must be at least zero"),
        (["--best_of", "0"], "--best_of 0 must be above zero"),
        (["--output", "."], "--output . is a folder: name a file"),
        (["--top_p", "0"], "--top_p must be in"),
        (["--guidance_scale", "-1"], "--guidance_scale must be at least 0"),
        (["--modle", "x"], "unrecognized arguments: --modle x"),
    ],
)
def test_command_refuses_bad_options(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_options(EvaluationOptions, description=None, argv=arguments)
    assert message in capsys.readouterr().err


def small_model(image_tokenizer: VQVAE, formats: list[str], max_positions: int) -> TextToImagePipeline:
    """An untrained model of 32 codes a picture with so many positions, that has learned these formats."""
    source = SpriteDataset(num_examples=50)
    texts = [caption for row in range(50) for caption in source.texts(row)]
    pipe = tiny_pipeline(
        tokenizer=image_tokenizer, texts=texts, num_layers=1, intermediate_size=None, max_positions=max_positions,
        noise=0.0,
    )  # fmt: skip
    pipe.vocabulary.formats = formats
    pipe.vocabulary.default_guidance = 1.0
    return pipe


def own_pictures(folder: Path, captions: list[str | None]) -> Path:
    """A folder of pictures, of which some have a caption."""
    (folder / "validation").mkdir(parents=True)
    for number, caption in enumerate(captions):
        sprites.draw_scene(sprites.sample_scene(number)).save(folder / "validation" / f"{number}.png")
        if caption is not None:
            (folder / "validation" / f"{number}.txt").write_text(caption)
    return folder


def test_a_caption_longer_than_the_models_room_is_cut_on_the_page(image_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    small_model(image_tokenizer, ["caption_to_image"], 44).save_pretrained(tmp_path / "model")
    captions = ["a dog", "one two three four five six seven eight nine ten eleven twelve", "a cat"]
    report = evaluate(
        "--model", tmp_path / "model", "--dataset", own_pictures(tmp_path / "pictures", captions),
        "--output", tmp_path / "report.json", "--report", tmp_path / "page",
    )  # fmt: skip
    assert json.loads((tmp_path / "report.json").read_text())["likelihood"] == report["likelihood"]
    assert (tmp_path / "page" / "samples.png").is_file() and (tmp_path / "page" / "report.html").is_file()


def test_captions_of_sprites_longer_than_the_models_room(untrained_probe, image_tokenizer, tmp_path):
    """Room for ten tokens; the captions of whole scenes have more."""
    pipeline = small_model(image_tokenizer, ["caption_to_image", "image_to_caption"], 44)
    assert all(len(pipeline.vocabulary.encode_text(caption)) > 10 for caption in alignment_sets(3)[1].captions)
    pipeline.save_pretrained(tmp_path / "model")
    report = evaluate(
        "--model", tmp_path / "model", "--output", tmp_path / "r.json", "--max_examples", 5, "--num_captions", 3,
        "--best_of", 2, "--best_of_captions", 3, "--completion_captions", 3, "--describe_best_of", 1,
    )["alignment"]  # fmt: skip
    assert report["held_out"]["n"] == report["best_of"]["n"] == report["completion"]["n"] == 3


def test_figures_are_written_before_a_page_that_fails(pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    pipeline.save_pretrained(tmp_path / "model")
    (tmp_path / "page" / "samples.png").mkdir(parents=True)
    with pytest.raises(OSError, match=r"samples\.png"):
        evaluate(
            "--model", tmp_path / "model", "--dataset", own_pictures(tmp_path / "pictures", ["a dog"] * 3),
            "--output", tmp_path / "report.json", "--report", tmp_path / "page", "--overwrite",
        )  # fmt: skip
    assert json.loads((tmp_path / "report.json").read_text())["reconstruction"]["n"] == 3


def test_a_report_is_never_overwritten_in_silence(tmp_path, capsys):
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "report.html").write_text("an earlier one")
    with pytest.raises(SystemExit):
        evaluate("--model", tmp_path / "nowhere", "--report", tmp_path / "page")
    shown = capsys.readouterr().err
    assert f"--report {tmp_path / 'page'} is not empty" in shown and "--overwrite" in shown


def test_drawn_pictures_are_looked_for_among_training_pictures(pipeline, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    pipeline.save_pretrained(tmp_path / "model")
    folder = own_pictures(tmp_path / "pictures", ["a dog", "a cat", "a dog"])
    own_pictures(tmp_path / "more", ["a dog", "a cat"] * 4)
    (tmp_path / "more" / "validation").rename(folder / "train")
    arguments = (
        "--model", tmp_path / "model", "--dataset", folder, "--output", tmp_path / "r.json", "--drawn_per_caption", 3,
        "--report", tmp_path / "page", "--overwrite",
    )  # fmt: skip
    first = evaluate(*arguments)
    nearest = first["nearest_training"]
    assert [nearest[name]["n"] for name in ("drawn", "held_out", "reconstructed")] == [6, 3, 3]
    assert nearest["held_out"]["copies"] == 1  # these pictures are among the first of the training pictures
    assert first["training"]["split"] == "train" and first["training"]["reconstruction"]["n"] == 3
    assert (tmp_path / "page" / "nearest_training.png").is_file() and "copies, drawn" in capsys.readouterr().out
    monkeypatch.setattr("pipelines.text_to_image.TextToImagePipeline._draw", lambda *_: pytest.fail("drawn again"))
    again = evaluate(*arguments[:-3])
    same = ("reconstruction", "codebook", "training", "likelihood", "nearest_training")
    assert {name: first[name] for name in same} == {name: again[name] for name in same}
    alone = evaluate(
        "--image_tokenizer", tmp_path / "model" / "image_tokenizer", "--dataset", folder, "--split", "train",
        "--output", tmp_path / "r.json",
    )  # fmt: skip
    assert "training" not in alone and "measured split is that of the training pictures" in alone["notes"][0]


@pytest.mark.parametrize(
    "formats, captions, line",
    [
        (["image"], ["a dog", "a cat"], r"nats a code, without captions$"),
        (["caption_to_image", "image"], [None, None], r"nats a code, without captions$"),
        (["caption_to_image", "image"], ["a dog", None], r"nats a code with captions, \d\.\d{3} without$"),
    ],
)
def test_the_table_says_whether_there_were_captions(
    image_tokenizer, tmp_path, monkeypatch, capsys, formats, captions, line
):
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    small_model(image_tokenizer, formats, 64).save_pretrained(tmp_path / "model")
    pictures = own_pictures(tmp_path / "pictures", captions)
    report = evaluate("--model", tmp_path / "model", "--dataset", pictures, "--output", tmp_path / "r.json")
    assert re.search(rf"^language model   \d\.\d{{3}} {line}", capsys.readouterr().out, flags=re.MULTILINE)
    likelihood = report["likelihood"]
    assert likelihood["num_captioned"] == (sum(map(bool, captions)) if "caption_to_image" in formats else 0)
    assert (likelihood["nats_per_code"] == likelihood["nats_per_code_without_caption"]) == line.startswith(
        "nats a code,"
    )


@pytest.mark.parametrize("option, name", [("--output", "report.json"), ("--report", "page")])
def test_places_that_cannot_be_written_are_refused_before_anything_is_measured(option, name, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        evaluate("--model", tmp_path / "nowhere", option, tmp_path / "file" / name)
    assert f"{option} {tmp_path / 'file' / name} cannot be written: " in capsys.readouterr().err
    # Its permissions allow everything to the superuser, yet nothing can be made there.
    with pytest.raises((ValueError, SystemExit)) as refusal:
        evaluate("--model", tmp_path / "nowhere", option, f"/proc/none/{name}", "--output", "/proc/none/report.json")
    assert "/proc/none" in str(refusal.value) or "/proc/none" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_a_folder_without_permission_is_refused(tmp_path, capsys):
    tmp_path.chmod(0o500)
    with pytest.raises(SystemExit):
        evaluate("--output", tmp_path / "report.json")
    assert "there is no permission to write to" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "{tmp}/nowhere"], "there is no folder"),
        (["--model", "{tmp}"], "is not a model folder"),
        (["--image_tokenizer", "{tmp}"], "is not an image tokenizer"),
    ],
)
def test_command_says_what_is_wrong_before_it_measures(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        evaluate(*(word.format(tmp=tmp_path) for word in arguments))
