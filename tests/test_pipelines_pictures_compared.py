"""Frechet distances, classes of captions, and the grid of tiles."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_tokenizer_losses import tiny_extractor
from tiny import tiny_pipeline, tiny_tokenizer

from pipelines.evaluation.metrics.classes import caption_classes, class_scores
from pipelines.evaluation.metrics.frechet import FeatureStatistics, frechet_distance, too_few_pictures
from pipelines.evaluation.metrics.reconstruction import reconstruct
from pipelines.evaluation.metrics.result_cache import ResultCache
from pipelines.evaluation.pictures_compared import ExtractorPair, PictureSet, batches_of, compare_sets
from pipelines.evaluation.report.tables import compared_lines
from pipelines.evaluation.samples import draw_set
from pipelines.options.evaluation import EvaluationOptions
from scripts import evaluate
from tokenizer_image.losses.own_classifier import CaptionClassifier
from tokenizer_image.metrics import grid_ratio, tile_powers


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def statistics(features: torch.Tensor, parts: int = 1) -> FeatureStatistics:
    found = FeatureStatistics()
    for part in features.chunk(parts):
        found.update(part)
    return found


def test_statistics_are_those_of_all_batches_together():
    features = torch.randn(50, 4) + 3
    found = statistics(features, parts=7)
    assert np.allclose(found.mean, features.mean(dim=0), atol=1e-5)
    assert np.allclose(found.covariance, np.cov(features.numpy(), rowvar=False), atol=1e-5)


def test_the_distance_of_gaussians_along_axes():
    """Independent features: sum (m - n)^2 + (s - t)^2, with s and t the standard deviations."""
    one, other = torch.randn(4000, 3), 2 * torch.randn(4000, 3) + 1
    first, second = statistics(one), statistics(other)
    for side in (first, second):  # leave out what is left of correlation by chance
        side._products = torch.diag(side.covariance.diagonal() * (side.count - 1)) + side.count * torch.outer(
            side.mean, side.mean
        )
    spread = [side.covariance.diagonal().sqrt() for side in (first, second)]
    wanted = (first.mean - second.mean).square().sum() + (spread[0] - spread[1]).square().sum()
    assert frechet_distance(first, second) == pytest.approx(wanted.item(), rel=1e-6)


def test_the_distance_against_a_matrix_root():
    """tr((A B)^(1/2)) from the eigenvalues of the product itself."""
    one, other = (statistics(torch.randn(60, 5) @ torch.randn(5, 5)) for _ in range(2))
    roots = np.sqrt(np.linalg.eigvals((one.covariance @ other.covariance).numpy()).astype(complex)).real.sum()
    wanted = (one.mean - other.mean).square().sum() + one.covariance.trace() + other.covariance.trace() - 2 * roots
    assert frechet_distance(one, other) == pytest.approx(float(wanted), rel=1e-8)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-8)


def test_one_picture_has_no_distance():
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(statistics(torch.randn(1, 3)), statistics(torch.randn(5, 3)))


def test_a_captions_class_is_the_likeliest_over_its_pictures():
    logits = torch.tensor([[0.0, 5.0, 4.0], [6.0, 0.0, 5.9], [0.0, 1.0, 9.0]])
    assert caption_classes(logits, ["a cat", "a cat", "a dog"]) == {"a cat": 2, "a dog": 2}


def test_scores_count_the_first_and_the_first_five():
    logits = torch.arange(8.0).repeat(3, 1)  # class 7 first, then 6, ...
    found = class_scores(logits, ["a", "b", "c"], {"a": 7, "b": 3, "c": 2})
    assert (found.first, found.among_five, found.count) == pytest.approx((1 / 3, 2 / 3, 3))


# ---- the grid of tiles


def test_a_grid_shows_as_power_at_its_own_frequency():
    flat = 0.5 + 0.01 * torch.randn(2, 3, 32, 32)
    grid = torch.zeros(32, 32)
    grid[::4] += 0.05
    grid[:, ::4] += 0.05
    plain, real, variance = (one.flatten() for one in tile_powers(flat, flat, 4))
    tiled = tile_powers(flat + grid, flat, 4)[0].flatten()
    other = tile_powers(flat + torch.roll(grid, (2, 1), (0, 1)), flat, 4)[0].flatten()
    assert grid_ratio(plain, real, variance) == pytest.approx(1)
    assert grid_ratio(tiled, real, variance) > 20
    assert grid_ratio(other, real, variance) == pytest.approx(grid_ratio(tiled, real, variance), rel=0.5)
    wave = 0.1 * torch.cos(torch.arange(32) * torch.pi / 4)  # of twice the period
    assert grid_ratio(tile_powers(flat + wave, flat, 4)[0].flatten(), real, variance) == pytest.approx(1, rel=1e-3)


def test_the_grid_is_looked_for_where_originals_are_flat():
    power, real, variance = torch.tensor([8.0, 1.0]), torch.tensor([2.0, 1.0]), torch.tensor([0.1, 9.0])
    assert grid_ratio(power, real, variance, flat_share=0.5) == 4
    assert grid_ratio(power, torch.zeros(2), variance, flat_share=0.5) is None, "originals of one colour have no grid"


def test_pictures_smaller_than_a_window():
    with pytest.raises(ValueError, match="no window of 16 x 16"):
        tile_powers(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), 8)


# ---- all of it


class Pictures:
    """Decoded pictures in memory."""

    def __init__(self, count: int) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 16, 16), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: list[int]) -> np.ndarray:
        return self.pixels[indices]


def compared(pipe, extractors, captions, cache=None, drawn_per_caption=3):
    pictures = torch.from_numpy(Pictures(len(captions)).pixels)
    drawn = draw_set(pipe, captions, drawn_per_caption, seed=1, sampling={}, cache=cache)
    sets = {"reconstructed": (reconstruct(pipe.image_tokenizer, pictures)[0], captions),
            "drawn": (drawn.pictures, drawn.captions)}  # fmt: skip
    others = {name: PictureSet(extractors.features_of([found]), texts) for name, (found, texts) in sets.items()}
    real = extractors.cached(cache, {"pictures": "some"}, lambda: batches_of(Pictures(len(captions))))
    return compare_sets(extractors, PictureSet(real, captions), others)


def test_reconstructed_and_drawn_pictures_are_compared_with_the_real_ones(tmp_path):
    pipe = tiny_pipeline()
    extractor = tiny_extractor(size=16)
    extractors = ExtractorPair(extractor, extractor)
    captions = ["a red dog", "a blue cat on grass"] * 6
    figures = compared(pipe, extractors, captions)
    assert [figures[name]["n"] for name in ("real", "reconstructed", "drawn")] == [12, 12, 6]
    assert "frechet" not in figures["real"] and figures["reconstructed"]["frechet"] > 0
    drawn = figures["drawn"]
    assert 0 <= drawn["class_first"] <= drawn["class_among_five"] <= 1
    for name in ("precision", "recall", "density", "coverage", "class_first"):
        low, high = drawn["interval"][name]
        assert low - 1e-12 <= drawn[name] <= high + 1e-12, name
    assert figures["extractor"] == "tiny" and len(figures["extractor_hash"]) == 16
    for _ in range(2):  # the second time from the cache
        assert compared(pipe, extractors, captions, ResultCache(tmp_path)) == figures
    assert len(list((tmp_path / "evaluation").iterdir())) == 2  # drawn pictures, and features of real ones
    lines = compared_lines(figures)
    assert len(lines) == 3 and "Frechet distance" in lines[2] and "(6 pictures)" in lines[2]
    assert "precision" in lines[2] and "coverage" in lines[2]


def test_too_few_pictures_are_told_with_the_number_needed():
    pipe, extractors = tiny_pipeline(), ExtractorPair(tiny_extractor(size=16), None)
    figures = compared(pipe, extractors, ["a red dog", "a blue cat"], drawn_per_caption=1)
    size = extractors.features_of([torch.zeros(1, 3, 16, 16, dtype=torch.uint8)]).features.shape[1]
    assert any(f"at least {size + 1} are needed in each set" in text for text in figures["warnings"])
    assert any("too few for precision, recall, density and coverage" in text for text in figures["warnings"])
    assert "precision" not in figures["drawn"] and figures["drawn"]["frechet"] > 0
    assert too_few_pictures(size + 1, size) is None and too_few_pictures(size, size) is not None


def test_the_command_warns_of_too_few_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    CaptionClassifier(2).save(tmp_path / "classifier", ["a", "b"])
    (tmp_path / "pictures" / "validation").mkdir(parents=True)
    for number, pixels in enumerate(Pictures(6).pixels):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "pictures" / "validation" / f"{number}.png")
    evaluate.main(
        EvaluationOptions(
            image_tokenizer=str(tmp_path / "tokenizer"), dataset=str(tmp_path / "pictures"),
            extractor=f"classifier={tmp_path / 'classifier'}", output=str(tmp_path / "report.json"), device="cpu",
            cpu_threads=1, num_workers=0,
        )
    )  # fmt: skip
    words = "reconstructed pictures: the Frechet distance is over 192 features, but a set has 6 pictures: it is too "
    assert f"WARNING: {words}large" in capsys.readouterr().out
    (warning,) = json.loads((tmp_path / "report.json").read_text())["compared"]["warnings"]
    assert warning.startswith(words) and "at least 193 are needed in each set" in warning


def test_pictures_without_captions_have_no_classes():
    extractors = ExtractorPair(None, tiny_extractor(size=16))
    features = extractors.features_of(batches_of(Pictures(4)))
    one = PictureSet(features, [None] * 4)
    figures = compare_sets(extractors, one, {"reconstructed": one})
    assert figures["reconstructed"] == {"n": 4} and figures["extractor"] is None and figures["classifier_hash"]


@pytest.mark.parametrize(
    ("settings", "message"),
    (
        ({"extractor": "vgg"}, "--extractor: unknown extractor 'vgg'"),
        ({"classifier": "vgg"}, "--classifier: unknown extractor 'vgg'"),
        ({"drawn_per_caption": 3, "image_tokenizer": "x"}, "--drawn_per_caption 3 needs a model that draws"),
        ({"overwrite": True}, "--overwrite says what may happen to the folder of --report"),
        ({"extractor_size": 64}, "--extractor_size 64 needs"),
    ),
)
def test_options_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        EvaluationOptions(**settings)
