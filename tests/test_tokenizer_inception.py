"""Inception-v3 as the standard Frechet inception distance takes it, against torch-fidelity; and missing weights."""

from __future__ import annotations

import io
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from pipelines.evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from pipelines.evaluation.pictures_compared import ExtractorPair, PictureSet, compare_sets
from tokenizer_image.losses import extractors
from tokenizer_image.losses.extractors import Extractor, check_extractor, load_extractor
from tokenizer_image.losses.perceptual import PerceptualLoss
from tokenizer_image.preprocessing import to_pixel_values

STANDARD = URL_INCEPTION_V3.rpartition("/")[2]


class Unread(FeatureExtractorInceptionV3):
    """The package's network before it reads weights."""

    def load_state_dict(self, *_: object) -> None:  # type: ignore[override]
        """Leave the weights as they are."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights with which features neither vanish nor grow from layer to layer."""
    torch.manual_seed(0)
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    network = Unread("random", ["2048"], feature_extractor_weights_path=empty)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def ours(weights: Path) -> Extractor:
    return load_extractor(f"inception={weights}")


@pytest.fixture(scope="module")
def theirs(weights: Path) -> FeatureExtractorInceptionV3:
    return FeatureExtractorInceptionV3("theirs", ["2048", "logits"], feature_extractor_weights_path=str(weights))


def pictures(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Random pictures with coarse and fine structure, uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = nn.functional.interpolate(torch.rand(count, 3, 4, 4, generator=generator), (height, width))
    fine = torch.rand(count, 3, height, width, generator=generator)
    return ((0.6 * coarse + 0.4 * fine) * 255).round().to(torch.uint8)


@pytest.mark.parametrize("size", [(32, 32), (299, 299), (310, 64)])
def test_features_are_those_of_torch_fidelity(size, ours, theirs):
    """Whatever the pictures' size and shape: they are resized as TensorFlow 1 does, and read as (v - 128) / 128."""
    batch = pictures(2, *size)
    features, logits = theirs(batch)
    with torch.no_grad():
        found = ours(to_pixel_values(batch))
    assert found.pooled.shape == (2, 2048) and found.logits.shape == (2, 1008) and features.std() > 0.1
    torch.testing.assert_close(found.pooled, features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-4)
    assert [one.shape[-1] for one in found.maps] == [147, 71, 35, 17, 8]


@pytest.fixture(scope="module")
def two_sets(weights: Path, theirs: FeatureExtractorInceptionV3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of two sets of pictures: features by our reader of uint8 pictures, and torch-fidelity's."""
    pair = ExtractorPair.load(f"inception={weights}", None, None, torch.device("cpu"))
    sets = [pictures(6, 32, 32, seed=1), pictures(7, 24, 40, seed=2)]
    return [(pair.features_of(one.split(5)).features, theirs(one)[0]) for one in sets]


def distances(two_sets: list[tuple[torch.Tensor, torch.Tensor]], columns: int) -> tuple[float, float]:
    """Ours and torch-fidelity's, each over its own features."""
    statistics = []
    for features, _ in two_sets:
        statistics.append(FeatureStatistics())
        statistics[-1].update(features[:, :columns])
    wanted = [fid_features_to_statistics(features[:, :columns]) for _, features in two_sets]
    return frechet_distance(*statistics), fid_statistics_to_metric(*wanted, verbose=False)[KEY_METRIC_FID]


def test_the_distance_is_that_of_torch_fidelity(two_sets):
    """Over some of the features, since the package's matrix root takes seconds over all."""
    found, wanted = distances(two_sets, 256)
    assert found == pytest.approx(wanted, rel=1e-4) and wanted > 0.1


@pytest.mark.slow
def test_the_distance_over_all_features_is_that_of_torch_fidelity(two_sets):
    found, wanted = distances(two_sets, 2048)
    assert found == pytest.approx(wanted, rel=1e-4)


def test_grey_pictures_are_repeated_and_gradients_pass(ours):
    grey = to_pixel_values(pictures(1, 32, 32)[:, :1]).requires_grad_()
    loss = PerceptualLoss(ours)(grey.detach().flip(3), grey)
    loss.backward()
    assert grey.grad is not None and 0 < grey.grad.abs().sum() < torch.inf
    with torch.no_grad():
        assert torch.equal(ours(grey).pooled, ours(grey.repeat(1, 3, 1, 1)).pooled)


def test_a_network_of_one_size_reads_no_other(weights, ours):
    with pytest.raises(ValueError, match=r"size 64: extractor 'inception=.*' reads all pictures at 299 pixels; give"):
        ours(torch.zeros(1, 3, 32, 32), size=64)
    with pytest.raises(ValueError, match="--extractor_size 64: extractor .* give --extractor_size 299, or leave it"):
        ExtractorPair.load(f"inception={weights}", None, 64, torch.device("cpu"))
    assert ours(torch.zeros(1, 3, 32, 32), size=299).pooled.shape == (1, 2048)


def test_figures_name_the_weights_and_say_that_they_are_not_the_standard_ones(weights, ours):
    pair = ExtractorPair(None, ours)
    one = PictureSet(pair.features_of([pictures(1, 16, 16)]), [None])
    figures = compare_sets(pair, one, {})
    assert figures["classifier"] == f"inception={weights}" and figures["size"] == 299
    assert len(figures["classifier_hash"]) == 16
    (note,) = figures["warnings"]
    assert "has other weights than the standard FID" in note and "not with 6726825d" in note
    assert extractors.file_hash(weights)[:16] in note


# ---- what is not here


def test_weights_that_torch_fidelity_has_downloaded_are_found(weights, monkeypatch, tmp_path):
    """And where it has not, the message says which file to give, and nothing is downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=rf"extractor 'inception': its .*No such file.*{STANDARD} as inception=FILE"):
        load_extractor("inception")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / STANDARD).symlink_to(weights)
    assert load_extractor("inception").size == 299


def test_weights_of_another_network_are_told_by_their_hash(tmp_path):
    file = tmp_path / "linear.pth"
    torch.save(nn.Linear(2, 2).state_dict(), file)
    begins = extractors.file_hash(file)[:16]
    with pytest.raises(ValueError, match=rf"linear.pth begins with {begins}: .*Missing key.*; give the file of http"):
        load_extractor(f"inception={file}")
    with pytest.raises(ValueError, match=rf"linear.pth begins with {begins}: .*Missing key.*; give a file of vgg16's"):
        load_extractor(f"lpips={file}")


def test_weights_are_never_unpickled(tmp_path):
    torch.save({"fc.weight": Path("x")}, tmp_path / "object.pth")
    with pytest.raises(ValueError, match="Weights only load failed"):
        load_extractor(f"inception={tmp_path / 'object.pth'}")


def test_the_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setattr(extractors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--extractor inception=x needs the package torch-fidelity: pip install"):
        check_extractor("inception=x", "--extractor")
    with pytest.raises(ValueError, match="extractor 'inception' needs the package torch-fidelity: pip install"):
        load_extractor("inception")


def test_the_backbone_of_lpips_that_is_missing_is_told_in_one_sentence(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"'lpips=absent.pth': its .*No such file.*vgg16's weights, as lpips=weights"):
        load_extractor("lpips=absent.pth")
    # Not in torchvision's cache, and a download that no machine answers.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "_opener", None)  # made by an earlier download, it would keep its proxies
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        ValueError, match=r"'lpips': its weights .*refused.*; give a file of vgg16's weights, as lpips="
    ):
        load_extractor("lpips")
