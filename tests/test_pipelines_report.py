"""Sheets, maps and tables of a report: what they show, against direct computations on tiny parts."""

import importlib.util
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from tiny import tiny_tokenizer

from pipelines.caching.pixel_cache import decode_pictures
from pipelines.drawing.latents import quantized_interpolation_rows
from pipelines.evaluation.metrics.reconstruction import measure_tokenizer, reconstruct
from pipelines.evaluation.report.code_gallery import CODES, FRAME, frequent_codes, gallery_sheet
from pipelines.evaluation.report.figure_rows import COLUMNS, figure_rows
from pipelines.evaluation.report.latent_map import (
    LatentMap,
    latent_map_figure,
    pca_map,
    principal_components,
    shown_labels,
    tsne_map,
)
from pipelines.evaluation.report.page import Sheet, write_report
from pipelines.evaluation.report.sheets import pairs_sheet, quality_plot, worst_sheet
from pipelines.options.evaluation import MAP_PACKAGES, EvaluationOptions
from tokenizer_image.layout import build_layout
from tokenizer_image.preprocessing import Preprocessing, postprocess, to_pixel_values
from tokenizer_image.sprites.data_set import SpriteDataset

QUANTIZERS = [
    {},
    {"quantizer": "ema", "num_levels": 2, "codebook_sizes": [16, 8], "hidden_sizes": [8, 16]},
    {"quantizer": "residual", "codebook_sizes": [16, 16], "quantizer_options": {"shared_codebook": True}},
    {"quantizer": "lookup_free", "codebook_sizes": [16]},
    {"network": "mlp", "quantizer": "ema", "codebook_sizes": [16], "hidden_sizes": [16], "patch_size": 8},
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESSERA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield decode_pictures(SpriteDataset(num_examples=24), Preprocessing(image_size=16), progress=False)


# ---- codes


def test_frequent_codes_and_their_places_by_hand():
    layout = build_layout([(1, 2), (2, 2)], [[4], [8]])
    coarse = torch.tensor([[0, 1], [0, 1], [0, 0], [2, 1]])
    fine = torch.tensor([[5, 5, 5, 7], [5, 5, 7, 7], [7, 5, 5, 6], [7, 7, 5, 7]])
    found = frequent_codes(torch.cat([coarse, 4 + fine], dim=1), layout, 4)
    assert [(one.level, one.code) for one in found] == [(0, 0), (0, 1), (1, 5), (1, 7)]
    assert [one.share for one in found] == [4 / 8, 3 / 8, 8 / 16, 7 / 16]
    assert found[0].uses.tolist() == [[3, 1]] and found[1].uses.tolist() == [[0, 3]]
    assert found[2].uses.tolist() == [[2, 3], [3, 0]] and found[3].uses.tolist() == [[2, 1], [1, 3]]
    assert [one.place for one in found] == [(0, 0), (0, 1), (0, 1), (1, 1)]
    assert [one.pictures.tolist() for one in found] == [[0, 1, 2], [0, 1, 3], [0, 1, 2], [0, 1, 3]]


def test_depths_that_share_a_codebook_are_counted_apart():
    layout = build_layout([(1, 1)], [[4, 4]], shared=[True])
    found = frequent_codes(torch.tensor([[1, 3], [1, 1], [2, 3]]), layout, 2)
    assert [(one.depth, one.code, one.share) for one in found] == [(0, 1, 2 / 3), (1, 3, 2 / 3)]


@pytest.mark.parametrize("settings", QUANTIZERS)
def test_the_gallery_has_a_row_for_each_code_with_a_frame_where_positions_are_places(settings, pictures):
    tokenizer = tiny_tokenizer(**settings)
    codes = tokenizer.encode(to_pixel_values(pictures.batch(range(24))))
    sheet = np.asarray(gallery_sheet(tokenizer, codes, pictures))
    framed = (sheet == FRAME).all(axis=-1)
    assert framed.any() == (settings.get("network") != "mlp")
    found = frequent_codes(codes, tokenizer.layout())
    assert len(found) <= CODES
    half = -(-len(found) // 2)
    # Two columns of rows: a grid of uses, a mean, and as many as five pictures, 80 pixels wide each.
    cells = [max(2 + min(5, len(one.pictures)) for one in part) for part in (found[:half], found[half:]) if part]
    assert sheet.shape[1] == sum(4 + 84 * count for count in cells)


# ---- reconstructions


def test_the_worst_reconstructions_come_first(pictures):
    tokenizer = tiny_tokenizer()
    figures = measure_tokenizer(tokenizer, pictures, progress=False)
    psnr = figures.per_picture["psnr"]
    order = sorted(range(24), key=lambda row: float(psnr[row]))[:10]
    originals = torch.from_numpy(pictures.batch(range(24)))[order]
    made = figures.reconstructions[order]
    labels = [f"{', '.join(f'{psnr[row]:.1f}' for row in part)} dB PSNR; below, the reconstructions"
              for part in (order[:8], order[8:])]  # fmt: skip
    found = worst_sheet(lambda originals, _: reconstruct(tokenizer, originals)[0], pictures, figures, 10)
    assert found.tobytes() == pairs_sheet(originals, made, labels).tobytes()
    plot = quality_plot(figures, figures, tokenizer.num_codes)
    assert plot.width > 900 and plot.tobytes() != quality_plot(figures, None, tokenizer.num_codes).tobytes()


# ---- latents


@pytest.mark.parametrize("settings", QUANTIZERS)
def test_latents_are_quantized_to_the_codes_of_their_picture(settings, pictures):
    tokenizer = tiny_tokenizer(**settings)
    pixel_values = to_pixel_values(pictures.batch(range(4)))
    codes = tokenizer.encode(pixel_values)
    assert torch.equal(tokenizer.quantize_latents(tokenizer.latents(pixel_values), 16), codes)
    rows = quantized_interpolation_rows(tokenizer, pixel_values, 5)
    assert [len(images) for _, images in rows] == [5] * 4
    whole, originals = postprocess(tokenizer.decode(codes, 16)), postprocess(pixel_values)
    for pair in (0, 1):
        walk, pixels = rows[2 * pair][1], rows[2 * pair + 1][1]
        assert [walk[0].tobytes(), walk[-1].tobytes()] == [one.tobytes() for one in whole[2 * pair : 2 * pair + 2]]
        ends = [one.tobytes() for one in originals[2 * pair : 2 * pair + 2]]
        assert [pixels[0].tobytes(), pixels[-1].tobytes()] == ends


def test_principal_components_are_those_of_scikit_learn():
    latents = torch.randn(40, 7, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 8)
    points, shares = principal_components(latents, 3)
    theirs = PCA(3, svd_solver="full").fit(latents.double().numpy())
    expected = theirs.transform(latents.double().numpy())
    assert np.allclose(np.abs(points.numpy()), np.abs(expected), atol=1e-8)  # a direction has two signs
    assert np.allclose(shares.numpy(), theirs.explained_variance_ratio_, atol=1e-10)
    assert pca_map(latents, 0).points.tolist() == points[:, :2].tolist()
    assert pca_map(latents[:, :1], 0).points.shape == (40, 2), "a map has two axes, whatever the latents"
    assert not pca_map(torch.ones(3, 5), 0).points.any()


def test_a_map_of_neighbours_keeps_groups_together_and_repeats():
    groups = torch.arange(60) % 2
    latents = 20.0 * groups[:, None] + torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    found = tsne_map(latents, 3)
    distances = np.linalg.norm(found.points[:, None] - found.points[None], axis=-1) + np.diag([np.inf] * 60)
    assert (groups[distances.argmin(axis=1)] == groups).all()
    assert np.array_equal(tsne_map(latents, 3).points, found.points)


def test_labels_are_captions_that_most_pictures_share():
    assert shown_labels(["b", "a", "a", None]) == ["a", "b"]
    assert shown_labels([None] * 3) == []
    assert shown_labels([f"picture {number}" for number in range(100)]) == []
    points = LatentMap("title", np.random.default_rng(0).normal(size=(4, 2)))
    one, two = (latent_map_figure([points] * count, ["b", "a", "a", None]) for count in (1, 2))
    assert two.width > one.width > 500


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent_maps": ["tsne"]}, "--latent_maps are shown in the folder of --report: give that, too"),
        ({"latent_maps": ["atlas"], "report": "new"}, "--latent_maps 'atlas': choose pca or tsne"),
    ],
)
def test_maps_that_cannot_be_drawn(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EvaluationOptions(**settings)


def test_a_map_whose_package_is_not_installed_says_what_to_install(monkeypatch):
    assert all(importlib.util.find_spec(module) for module, _ in MAP_PACKAGES.values())
    monkeypatch.setitem(MAP_PACKAGES, "tsne", ("no_such_module", "scikit-learn"))
    with pytest.raises(
        ValueError, match="--latent_maps tsne needs scikit-learn: pip install scikit-learn, or leave tsne"
    ):
        EvaluationOptions(latent_maps=["tsne"], report="new")


# ---- the page


def report_of(tokenizer, pictures, **more):
    figures = measure_tokenizer(tokenizer, pictures, progress=False)
    training = {"split": "train", **figures.figures}
    return {"image_tokenizer": "<b>", "split": "validation", "training": training, **figures.figures, **more}


def test_rows_say_over_what_a_figure_is_and_by_which_network(pictures):
    share = {"n": 9, "interval": {"top_1": [0.5, 0.9], "top_5": [0.6, 1.0]}, "top_1": 0.75, "top_5": 1.0}
    report = report_of(
        tiny_tokenizer(), pictures,
        compared={
            "split": "validation", "extractor": "captions", "extractor_hash": "0123abcd", "warnings": [],
            "classifier": "lite", "classifier_hash": "4567", "real": {"n": 24},
            "drawn": {"n": 20, "frechet": 3.5, "precision": 0.5, "class_first": 0.25, "num_captioned": 16,
                      "interval": {"precision": [0.25, 0.75], "class_first": [0.125, 0.5]}},
        },
        classification_accuracy={
            "split": "validation", "train_split": "train", "n": 9, "num_classes": 3, "steps": 100,
            "real": {**share, "num_training": 40, "classifier_hash": "89"},
            "drawn": {**share, "num_training": 30, "classifier_hash": "ab", "ratio": {"top_1": None, "top_5": 0.5,
                                                              "interval": {"top_1": None, "top_5": [0.25, 0.75]}}},
        },
    )  # fmt: skip
    rows = {(row.figure, row.split): row for row in figure_rows(report)}
    psnr, quality = rows["reconstruction: PSNR, dB", "train"], report["reconstruction"]
    assert psnr.over == "24 pictures" and psnr.value == f"{quality['psnr']:.2f}"
    low, high = quality["interval"]["psnr"]
    assert psnr.interval == f"{low:.2f} to {high:.2f}"
    assert rows["drawn: Frechet distance", "validation"].by == "captions (0123abcd)"
    assert rows["drawn: precision", "validation"].interval == "0.250 to 0.750"
    first = rows["drawn: class first", "validation"]
    assert (first.value, first.over, first.by) == ("25.0%", "16 captioned pictures", "lite (4567)")
    accuracy = rows["classifier of 30 drawn pictures: top 1", "validation"]
    assert (accuracy.value, accuracy.interval, accuracy.over) == ("75.0%", "50.0% to 90.0%", "9 pictures")
    assert accuracy.by == "captions, 100 steps (ab)"
    assert rows["classifier of 30 drawn pictures, over that of real ones: top 1", "validation"].value == "-"
    for row in rows.values():
        assert row.over and row.split and len(row.cells) == len(COLUMNS)


class Page(HTMLParser):
    """Sources of pictures, links and numbers of cells of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]


def test_a_page_holds_its_pictures_and_its_tables(pictures, tmp_path):
    report = report_of(tiny_tokenizer(), pictures, notes=["a <note>"])
    sheets = [Sheet(f"{name}.png", f"Sheet <{name}>", "What it shows.", Image.new("RGB", (4, 4))) for name in "ab"]
    page = write_report(tmp_path / "page", report, sheets, "PSNR | <summary>", figure_rows(report))
    text, count = page.read_text(), len(figure_rows(report))
    found = Page(text)
    assert len(found.sources) == 2 and all(one.startswith("data:image/png;base64,") for one in found.sources)
    assert found.tags.count("tr") == count + 1 and "b" not in found.tags and "note" not in found.tags
    markdown = (tmp_path / "page" / "report.md").read_text()
    assert "![Sheet <a>](a.png)" in markdown and "a <note>" in markdown
    assert len(re.findall(r"^\| ", markdown, re.MULTILINE)) == count + 2
    assert {path.name for path in page.parent.iterdir()} == {
        "report.html",
        "report.md",
        "report.json",
        "a.png",
        "b.png",
    }
