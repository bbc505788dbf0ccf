"""The classification accuracy score: what classifiers of drawn and reconstructed pictures know of real ones."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_pipeline

from pipelines.caching.sources import class_numbers
from pipelines.evaluation.metrics.classification_accuracy import (
    LabelledPictures,
    classification_accuracy,
    labelled,
    learned_classifier,
)
from pipelines.evaluation.metrics.intervals import paired_comparison, ratio_of_means, wilson_interval
from pipelines.evaluation.metrics.result_cache import ResultCache
from pipelines.options.evaluation import EvaluationOptions
from scripts.evaluate import main
from tokenizer_image.losses.classifier_training import class_logits, frequent_captions

CAPTIONS = ["across", "down", "slanted"]


def stripes(count: int, seed: int, noise: float = 5.0) -> LabelledPictures:
    """Stripes across, down or slanted, at random places: uint8 (count, 3, 16, 16)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CAPTIONS), count)
    rows, columns = np.mgrid[:16, :16]
    waves = np.stack([rows, columns, rows + columns])[labels] + rng.integers(0, 8, (count, 1, 1))
    pixels = np.where(waves % 8 < 4, 200.0, 60.0)[:, None] + noise * rng.normal(size=(count, 3, 16, 16))
    return LabelledPictures(torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)), labels.astype(np.int64))


def test_captions_that_are_classes():
    texts = ["b"] * 9 + ["a"] * 20 + ["own"] * 3 + [None]
    assert frequent_captions(texts) == ["a", "b"]
    assert class_numbers(["b", None, "own", "a"], ["a", "b"]).tolist() == [1, -1, -1, 0]
    with pytest.raises(
        ValueError, match="at least 2 with 8 pictures each; the most frequent ones are: 'a' 20, 'own' 3"
    ):
        frequent_captions(texts[9:])
    with pytest.raises(ValueError, match="the most frequent ones are: none"):
        frequent_captions([None, None])


def test_labelled_pictures_are_those_of_a_class():
    found = labelled(stripes(4, 0).pictures, ["b", None, "x", "a"], ["a", "b"])
    assert found.labels.tolist() == [1, 0] and torch.equal(found.pictures, stripes(4, 0).pictures[[0, 3]])


def test_a_good_set_teaches_what_real_pictures_teach_and_a_wrong_one_does_not(tmp_path):
    test, real, drawn = stripes(90, 1), stripes(200, 2), stripes(200, 3, noise=8)
    wrong = LabelledPictures(drawn.pictures, (drawn.labels + 1) % 3)
    settings = {"steps": 90, "seed": 5, "cache": ResultCache(tmp_path)}
    report = classification_accuracy(test, {"real": real, "reconstructed": drawn, "drawn": wrong}, 3, **settings)
    assert report["n"] == 90 and report["num_classes"] == 3 and report["real"]["num_training"] == 200
    assert report["real"]["top_1"] > 0.9 and report["real"]["top_5"] == 1
    assert report["reconstructed"]["ratio"]["top_1"] > 0.9 and report["drawn"]["ratio"]["top_1"] < 0.1
    count = round(report["real"]["top_1"] * 90)
    assert report["real"]["interval"]["top_1"] == pytest.approx(wilson_interval(count, 90))
    assert report["drawn"]["ratio"]["top_1"] == report["drawn"]["top_1"] / report["real"]["top_1"]
    assert "ratio" not in report["real"]
    sets = {"real": real, "reconstructed": drawn, "drawn": wrong}
    assert classification_accuracy(test, sets, 3, **settings) == report  # from the cache
    assert len(list((tmp_path / "evaluation").iterdir())) == 3


def test_a_seed_gives_the_same_classifier_to_the_digit():
    training, test = stripes(80, 0), stripes(20, 1)
    settings = {"steps": 5, "device": torch.device("cpu")}

    def logits(seed: int) -> torch.Tensor:
        network = learned_classifier(training, 3, seed=seed, **settings)
        return class_logits(network, test.pixels_of, np.arange(20))

    assert torch.equal(logits(0), logits(0)) and not torch.equal(logits(0), logits(1))


def test_ratio_of_means_and_its_interval():
    before, after = np.arange(200) < 160, np.arange(200) < 120
    found = paired_comparison(ratio_of_means, {"top_1": before}, {"top_1": after})
    assert found["top_1"] == pytest.approx(0.75)
    low, high = found["interval"]["top_1"]
    # Of n test pictures, those right before: the ratio is a share of them, so its spread is that of a share.
    spread = 1.96 * np.sqrt(0.75 * 0.25 / 160)
    assert low == pytest.approx(0.75 - spread, abs=0.015) and high == pytest.approx(0.75 + spread, abs=0.015)
    assert np.isnan(ratio_of_means(~before[:160], after[:160]))


# ---- the command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model, and pictures of two classes in two splits."""
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    pipeline = tiny_pipeline(texts=("across", "down"))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vocabulary.formats = ["caption_to_image", "image"]
    pipeline.save_pretrained(tmp_path / "model")
    for split, count, seed in (("train", 40, 0), ("validation", 12, 1)):
        found = stripes(count, seed)
        for number, (pixels, label) in enumerate(zip(found.pictures, found.labels % 2, strict=True)):
            place = tmp_path / "pictures" / split / CAPTIONS[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(place / f"{number}.png")
    return tmp_path


def evaluate(folder, **settings):
    fixed = {"device": "cpu", "cpu_threads": 1, "num_workers": 0, "output": str(folder / "report.json")}
    if "image_tokenizer" not in settings:
        fixed["model"] = str(folder / "model")
    return main(EvaluationOptions(**{"dataset": str(folder / "pictures"), **fixed, **settings}))


def test_the_command_trains_classifiers_and_gives_the_same_digits_again(folder, capsys):
    settings = {"drawn_per_caption": 8, "classification_accuracy": True, "classifier_steps": 4, "extractor": "captions",
                "classifier": "captions"}  # fmt: skip
    report = evaluate(folder, **settings)
    score = report["classification_accuracy"]
    assert {row["labels_per_class"] for row in report["label_efficiency"]["rows"]} == {10}
    assert any(
        note.startswith("no probes of 100, 1000 labels a class: the rarest class has") for note in report["notes"]
    )
    assert score["n"] == 12 and score["drawn"]["num_training"] == 16 and score["real"]["num_training"] == 40
    assert (score["split"], score["train_split"]) == ("validation", "train")
    real = report["compared"]["real"]
    assert real["class_first"] == score["real"]["top_1"], "the same classifier of the same pictures"
    assert report["compared"]["size"] is None, "the classifier reads pictures as they are"
    assert report["compared"]["extractor"] == "captions" and report["compared"]["drawn"]["frechet"] > 0
    assert "drawn pictures" in capsys.readouterr().out
    first = json.loads((folder / "report.json").read_text())
    again = evaluate(folder, **settings)
    other = {"created", "seconds", "command"}
    assert {k: v for k, v in first.items() if k not in other} == {
        k: v for k, v in json.loads(json.dumps(again)).items() if k not in other
    }
    alone = evaluate(
        folder, image_tokenizer=str(folder / "model" / "image_tokenizer"), classification_accuracy=True,
        classifier_steps=2,
    )  # fmt: skip
    assert set(alone["classification_accuracy"]) > {"real", "reconstructed"}
    assert "drawn" not in alone["classification_accuracy"]


def test_data_without_classes_is_refused(folder):
    settings = {"drawn_per_caption": 2, "classification_accuracy": True}
    with pytest.raises(ValueError, match="--classification_accuracy needs training pictures .* measured split is that"):
        evaluate(folder, split="train", **settings)
    for split in ("train", "validation"):
        for number, path in enumerate(sorted((folder / "pictures" / split).rglob("*.png"))):
            (folder / "plain" / split).mkdir(parents=True, exist_ok=True)
            path.rename(folder / "plain" / split / f"{number}.png")
    for options, name in (
        (settings, "--classification_accuracy"),
        ({"extractor": "captions"}, "--extractor captions"),
        ({"labels_per_class": [10]}, "--labels_per_class"),
    ):
        with pytest.raises(ValueError, match=f"{name} needs captions that sort .* are: none. Leave the option out"):
            evaluate(folder, dataset=str(folder / "plain"), **options)


def test_a_score_of_drawn_pictures_needs_to_know_how_many():
    with pytest.raises(ValueError, match="say how many of each class by --drawn_per_caption"):
        EvaluationOptions(classification_accuracy=True)
