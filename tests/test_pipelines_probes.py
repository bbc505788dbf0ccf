"""Probes, perceptual distance and kept likelihoods: each against a direct computation."""

import numpy as np
import pytest
import torch
from test_tokenizer_losses import lpips_of_random_weights, tiny_extractor
from tiny import tiny_pipeline, tiny_tokenizer

from pipelines.evaluation.likelihood import measure_likelihood
from pipelines.evaluation.metrics.label_efficiency import (
    MOST_FEATURES,
    LabelledFeatures,
    code_histograms,
    fit_linear_probe,
    knn_classes,
    label_efficiency,
    latents_of,
    pixels_of,
    rows_of_each_class,
)
from pipelines.evaluation.metrics.result_cache import ResultCache
from pipelines.evaluation.perceptual_figures import PerceptualReader
from tokenizer_image.losses.perceptual import picture_distances, unit_length
from tokenizer_image.preprocessing import to_pixel_values


def pictures(count: int, side: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


# ---- probes


def clusters(count: int, seed: int, size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = 0.5 * torch.randn(3, size, generator=torch.Generator().manual_seed(0))
    return centres[labels] + torch.randn(count, size, generator=generator), labels


def test_the_linear_probe_is_the_minimum_that_scipy_finds():
    optimize = pytest.importorskip("scipy.optimize")
    features, labels = clusters(60, 1)
    inputs, right, penalty = features.double().numpy(), labels.numpy(), 1e-2

    def loss(flat: np.ndarray) -> float:
        weight, bias = flat[:18].reshape(3, 6), flat[18:]
        logits = inputs @ weight.T + bias
        largest = logits.max(axis=1, keepdims=True)
        logs = logits - largest - np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
        return float(-logs[np.arange(60), right].mean() + penalty / 2 * (weight**2).sum())

    found = fit_linear_probe(features, labels, 3, penalty)
    theirs = optimize.minimize(loss, np.zeros(21), method="BFGS", options={"gtol": 1e-8}).x
    assert np.allclose(found.weight.numpy(), theirs[:18].reshape(3, 6), atol=1e-4)
    bias = found.bias.numpy()
    assert np.allclose(bias - bias.mean(), theirs[18:] - theirs[18:].mean(), atol=1e-4)  # a common shift is free


def test_probes_are_those_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    neighbors = pytest.importorskip("sklearn.neighbors")
    features, labels = clusters(90, 1)
    asked = clusters(200, 2)[0]
    ours = fit_linear_probe(features, labels, 3, 1e-2)
    theirs = linear_model.LogisticRegression(C=1 / (1e-2 * 90), tol=1e-8, max_iter=1000).fit(features, labels)
    assert np.allclose(ours.weight.numpy(), theirs.coef_, atol=1e-4)
    assert np.array_equal(ours.classes_of(asked).numpy(), theirs.predict(asked))
    voted = neighbors.KNeighborsClassifier(5).fit(features, labels).predict(asked)
    assert np.array_equal(knn_classes(asked, features, labels, 3).numpy(), voted)


def test_neighbours_vote_as_by_hand():
    known, labels = clusters(30, 1)
    asked = clusters(12, 2)[0]
    table = ((asked[:, None] - known[None]) ** 2).sum(-1).numpy()
    near = np.argsort(table, axis=1, kind="stable")[:, :5]
    votes = [np.bincount(labels.numpy()[row], minlength=3).argmax() for row in near]
    assert knn_classes(asked, known, labels, 3).tolist() == votes
    assert knn_classes(asked, known[:2], labels[:2], 3).shape == (12,)


def test_more_labels_help_and_are_added_to_fewer():
    features, labels = clusters(600, 1, size=40)
    asked, right = clusters(150, 2, size=40)
    sets = [{"latents": LabelledFeatures(one, two.numpy())} for one, two in ((asked, right), (features, labels))]
    rows = label_efficiency(*sets, 3, [100, 4], seed=3)
    assert [row["labels_per_class"] for row in rows] == [4, 100] and rows[0]["n"] == 150
    assert rows[1]["linear"] > rows[0]["linear"] and rows[1]["dimensions"] == 40
    low, high = rows[1]["interval"]["knn"]
    assert low <= rows[1]["knn"] <= high
    few, many = (rows_of_each_class(labels.numpy(), 3, count, 3) for count in (4, 100))
    assert set(few) < set(many) and np.bincount(labels.numpy()[few]).tolist() == [4, 4, 4]
    assert label_efficiency(*sets, 3, [4], seed=3) == rows[:1]
    with pytest.raises(ValueError, match="201 labels of each class: a class has 200 pictures only"):
        rows_of_each_class(labels.numpy(), 3, 201, 0)


def test_features_of_pictures():
    tokenizer = tiny_tokenizer(image_size=64, hidden_sizes=[8], code_dim=16)
    found = latents_of(tokenizer, pictures(3, side=64), 2)
    assert found.shape[0] == 3 and found.shape[1] <= MOST_FEATURES and found.shape[1] % 16 == 0
    small = tiny_tokenizer()
    (latents,) = small.latents(to_pixel_values(pictures(3)))
    assert torch.allclose(latents_of(small, pictures(3)), latents.permute(0, 3, 1, 2).flatten(1))
    assert latents_of(object(), pictures(1)) is None
    assert torch.equal(pixels_of(pictures(2)), pictures(2).flatten(1) / 255)
    assert pixels_of(pictures(2, side=64)).shape[1] <= MOST_FEATURES
    codes = torch.tensor([[0, 2, 2, 3], [5, 5, 5, 5]])
    ours, theirs = code_histograms(codes, codes, 6)
    order = torch.bincount(codes.flatten(), minlength=6).argsort(descending=True, stable=True)
    expected = torch.nn.functional.one_hot(codes, 6).float().mean(dim=1)[:, order]
    assert torch.equal(ours, expected) and torch.equal(theirs, expected)


# ---- perceptual distance


def test_perceptual_distances_of_pairs_by_hand():
    torch.manual_seed(0)
    extractor = tiny_extractor()
    one, other = (to_pixel_values(pictures(5, seed=seed)) for seed in (0, 1))
    wanted, found = extractor(one), extractor(other)
    expected = sum(
        (unit_length(a) - unit_length(b)).square().sum(dim=1).mean(dim=(1, 2))
        for a, b in zip(wanted.maps, found.maps, strict=True)
    )
    assert torch.allclose(picture_distances(extractor, one, other), expected)
    reader = PerceptualReader(extractor)
    reader.update(pictures(5), pictures(5, seed=1))
    figures = reader.figures()
    assert figures["distance"] == pytest.approx(float(expected.mean()), rel=1e-5) and figures["n"] == 5
    assert figures["interval"]["distance"][0] < figures["distance"] and len(figures["extractor_hash"]) == 16


def test_lpips_of_each_pair_is_the_packages_own(tmp_path):
    """With random weights of VGG16, since the package brings the channels' weights alone."""
    torch.manual_seed(0)
    theirs, extractor = lpips_of_random_weights(tmp_path)
    with torch.no_grad():
        one, other = (to_pixel_values(pictures(2, side=64, seed=seed)) for seed in (0, 1))
        found = picture_distances(extractor, one, other)
        assert torch.allclose(found, theirs(one, other).flatten(), rtol=1e-4, atol=1e-5)


# ---- likelihood


def test_likelihoods_are_kept(tmp_path):
    pipe = tiny_pipeline(max_positions=128)
    codes = pipe.image_tokenizer.encode(to_pixel_values(pictures(6)))
    captions = ["a red dog", None] * 3
    found = measure_likelihood(pipe, codes, captions, batch_size=4, progress=False)
    for _ in range(2):
        again = measure_likelihood(pipe, codes, captions, batch_size=4, cache=ResultCache(tmp_path), progress=False)
        assert again == found
    assert len(list((tmp_path / "evaluation").iterdir())) == 2  # with captions, and without
    measure_likelihood(pipe, codes, ["a blue cat", None] * 3, cache=ResultCache(tmp_path), progress=False)
    assert len(list((tmp_path / "evaluation").iterdir())) > 2
