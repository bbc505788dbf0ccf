"""The six metrics of disentanglement against direct computations, and on codes whose disentanglement is known."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tiny import tiny_tokenizer

from pipelines.evaluation.disentanglement.beta_vae import beta_vae_score
from pipelines.evaluation.disentanglement.dci import completeness, dci, disentanglement
from pipelines.evaluation.disentanglement.factor_vae import factor_vae_score
from pipelines.evaluation.disentanglement.factors import (
    FactorSampler,
    column_factors,
    latents_of,
    sprite_factors,
)
from pipelines.evaluation.disentanglement.modularity import modularity_score
from pipelines.evaluation.disentanglement.mutual_information import binned, entropies, mutual_information
from pipelines.evaluation.disentanglement.mutual_information_gap import mutual_information_gap
from pipelines.evaluation.disentanglement.sap import attribute_predictability, sap_score
from pipelines.evaluation.disentanglement.scores import (
    METRICS,
    correlation_plot,
    disentanglement_scores,
    rank_correlation,
)
from pipelines.evaluation.metrics.linear_classifiers import (
    single_input_regressions,
    softmax_regression,
    sparse_softmax_regression,
)
from scripts.benchmarks import disentanglement as benchmark
from tokenizer_image import Autoencoder, AutoencoderConfig
from tokenizer_image.pictures.loading import load_pictures
from tokenizer_image.preprocessing import Preprocessing
from tokenizer_image.sprites.factors import FACTORS, SEED, draw_factors
from tokenizer_image.sprites.scenes import draw_scene, sample_scene

FEW = {"training": 200, "test": 100}


@pytest.fixture(scope="module")
def world() -> np.ndarray:
    """600 rows of three factors with 2, 3 and 4 values."""
    return np.random.default_rng(0).integers(0, [2, 3, 4], size=(600, 3))


@pytest.fixture(scope="module")
def disentangled(world) -> np.ndarray:
    """Each latent is one factor, at a scale of its own, with a little noise."""
    return world * [1.0, 5.0, 0.1] + np.random.default_rng(1).normal(size=world.shape) * [0.01, 0.05, 0.001]


@pytest.fixture(scope="module")
def mixed(disentangled) -> np.ndarray:
    """The same, standardised and rotated so that each latent has a part of every factor."""
    rotation = np.array([[2, 2, -1], [-1, 2, 2], [2, -1, 2]]) / 3
    return disentangled / disentangled.std(axis=0) @ rotation


@pytest.mark.parametrize(
    ("metric", "at_least", "gap"),
    [
        (lambda z, v: beta_vae_score(z, v, **FEW), 0.99, 0.0),
        (lambda z, v: factor_vae_score(z, v, **FEW), 0.99, 0.05),
        (mutual_information_gap, 0.95, 0.5),
        (lambda z, v: dci(z, v).disentanglement, 0.95, 0.4),
        (lambda z, v: dci(z, v).completeness, 0.95, 0.4),
        (sap_score, 0.55, 0.2),
        (modularity_score, 0.98, 0.1),
    ],
)
def test_disentangled_codes_score_high_and_rotated_ones_lower(metric, at_least, gap, world, disentangled, mixed):
    """Perfect codes have a SAP of 1 - (1/2 + 1/3 + 1/4) / 3 = 0.64: the second latent reads as much as chance does."""
    high, low = metric(disentangled, world), metric(mixed, world)
    assert at_least <= high <= 1 and low <= high - gap
    assert metric(disentangled, world) == high, "the same digits every time"


# ---- beta-VAE and FactorVAE


def test_rows_that_agree_are_drawn_from_all_that_do(world):
    sampler = FactorSampler(world, np.random.default_rng(0))
    for factor in range(3):
        first, second = sampler.pairs(factor, 4000)
        assert (world[first, factor] == world[second, factor]).all()
        others = [k for k in range(3) if k != factor]
        agreeing = (world[first][:, others] == world[second][:, others]).mean(axis=0)
        np.testing.assert_allclose(agreeing, [1 / len(np.unique(world[:, k])) for k in others], atol=0.06)
        rows = sampler.equal(factor, 50)
        assert len(np.unique(world[rows, factor])) == 1 and len(set(rows.tolist())) > 20
    assert {sampler.factor() for _ in range(50)} == {0, 1, 2}


def test_beta_vae_by_a_direct_computation(world, mixed):
    """Number by number, with rows drawn in the same order."""
    score = beta_vae_score(mixed, world, seed=3, pairs=7, training=60, test=20)
    sampler = FactorSampler(world, np.random.default_rng(3))
    answers = [sampler.factor() for _ in range(80)]
    rows = np.empty((80, 3))
    for number, factor in enumerate(answers):
        pairs = [*zip(*sampler.pairs(factor, 7), strict=True)]
        rows[number] = [np.mean([abs(mixed[a, d] - mixed[b, d]) for a, b in pairs]) for d in range(3)]
    inputs = (rows - rows[:60].mean(0)) / rows[:60].std(0)
    weights, bias = softmax_regression(inputs[:60], np.array(answers[:60]), 3)
    named = [max(range(3), key=lambda c, one=one: one @ weights[:, c] + bias[c]) for one in inputs[60:]]
    assert score == np.mean([one == answer for one, answer in zip(named, answers[60:], strict=True)])


def test_factor_vae_by_a_direct_computation(world, mixed):
    latents = np.concatenate([mixed, np.full((600, 1), 7.0)], axis=1)  # the last never changes, and has no vote
    score = factor_vae_score(latents, world, seed=5, group=9, training=50, test=30)
    sampler = FactorSampler(world, np.random.default_rng(5))
    votes = []
    for _ in range(80):
        factor = sampler.factor()
        rows = sampler.equal(factor, 9)
        spread = [np.var(mixed[rows, d]) / np.var(mixed[:, d]) for d in range(3)]
        votes.append((int(np.argmin(spread)), factor))
    majority = {d: Counter(f for one, f in votes[:50] if one == d) for d in range(3)}
    stands_for = {d: min(f for f in count if count[f] == max(count.values())) for d, count in majority.items() if count}
    assert score == sum(stands_for.get(d, 0) == f for d, f in votes[50:]) / 30
    with pytest.raises(ValueError, match="the same for all pictures"):
        factor_vae_score(np.ones((600, 2)), world)


# ---- mutual information


def test_mutual_information_by_hand():
    first, second = np.array([[0], [0], [1], [1]]), np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    np.testing.assert_allclose(mutual_information(first, second), [[math.log(2), 0]], atol=1e-12)
    np.testing.assert_allclose(entropies(np.array([[0], [0], [0], [2]])), [0.75 * math.log(4 / 3) + 0.25 * math.log(4)])
    assert binned(np.array([[0.0], [0.24], [0.5], [1.0]]), 4)[:, 0].tolist() == [0, 0, 2, 3]
    assert binned(np.array([[2.0], [2.0]]), 4)[:, 0].tolist() == [0, 0]


def direct_information(a, b) -> float:
    """sum of p(x, y) log(p(x, y) / (p(x) p(y)))."""
    n, both = len(a), Counter(zip(a, b, strict=True))
    one, other = Counter(a), Counter(b)
    return sum(c / n * math.log(c * n / (one[x] * other[y])) for (x, y), c in both.items())


def test_gap_and_modularity_by_a_direct_computation(world, mixed):
    latents = np.concatenate([mixed, world[:, :1] + 0.2 * mixed[:, 1:2], np.ones((600, 1))], axis=1)
    bins = []
    for column in latents.T:
        edges = np.linspace(column.min(), column.max(), 21)
        bins.append((np.searchsorted(edges[1:-1], column, side="right")).tolist())
    table = [[direct_information(z, v) for v in world.T.tolist()] for z in bins]
    np.testing.assert_allclose(mutual_information(binned(latents), world), table, atol=1e-9)
    gaps = []
    for k in range(3):
        best, second = sorted((line[k] for line in table), reverse=True)[:2]
        gaps.append((best - second) / direct_information(world[:, k].tolist(), world[:, k].tolist()))
    assert mutual_information_gap(latents, world) == pytest.approx(np.mean(gaps))
    modular = []
    for line in table:
        best = max(line)
        modular.append(1 - sum((m / best) ** 2 for m in line if m != best) / 2 if best > 1e-9 else 0)
    assert modularity_score(latents, world) == pytest.approx(np.mean(modular))
    assert mutual_information_gap(world[:, :1].astype(float), world[:, :1]) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least two factors"):
        modularity_score(latents, world[:, :1])


# ---- DCI and SAP


def test_disentanglement_and_completeness_by_hand():
    importance = np.array([[3.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert disentanglement(importance) == pytest.approx(3 / 5 * 1 + 2 / 5 * 0)
    entropy = -(0.75 * math.log(0.75, 3) + 0.25 * math.log(0.25, 3))
    assert completeness(importance) == pytest.approx(4 / 5 * (1 - entropy) + 1 / 5 * 1)
    assert disentanglement(np.zeros((2, 2))) == 0


def test_dci_by_a_direct_computation(world, mixed):
    found = dci(mixed, world, seed=2, penalty=0.02)
    inputs = (mixed - mixed.mean(0)) / mixed.std(0)
    order = np.random.default_rng(2).permutation(600)
    test, train = order[:150], order[150:]
    importance, right = np.empty((3, 3)), []
    for k in range(3):
        weights, bias = sparse_softmax_regression(inputs[train], world[train, k], int(world[:, k].max()) + 1, 0.02)
        importance[:, k] = np.abs(weights).sum(1)
        right.append(np.mean((inputs[test] @ weights + bias).argmax(1) == world[test, k]))
    shares = importance / importance.sum(1, keepdims=True)
    each = 1 + np.array([sum(p * math.log(p, 3) for p in line if p > 0) for line in shares])
    assert found.disentanglement == pytest.approx((importance.sum(1) / importance.sum() * each).sum())
    assert found.informativeness == pytest.approx(np.mean(right))


def test_a_sparse_classifier_is_where_no_step_lowers_its_loss(world, mixed):
    """The conditions of optimality: a gradient is minus the penalty, with the sign of a weight that is not zero, and
    within the penalty where the weight is zero."""
    x = np.concatenate([(mixed - mixed.mean(0)) / mixed.std(0), np.random.default_rng(0).normal(size=(600, 3))], 1)
    y, penalty = world[:, 1], 0.02
    weights, bias = sparse_softmax_regression(x, y, 3, penalty)
    logits = x @ weights + bias
    share = np.exp(logits - logits.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    residual = (share - np.eye(3)[y]) / 600
    gradient = x.T @ residual
    used = weights != 0
    np.testing.assert_allclose(gradient[used], -penalty * np.sign(weights[used]), atol=2e-4)
    assert (np.abs(gradient[~used]) <= penalty + 2e-4).all() and (~used[3:]).all() and used[:3].any()
    np.testing.assert_allclose(residual.sum(0), 0, atol=2e-4)


def test_a_dense_classifier_is_where_its_gradient_is_zero(world, mixed):
    x, y = mixed / mixed.std(0), world[:, 2]
    weights, bias = softmax_regression(x, y, 4)
    w, b = (torch.tensor(one, requires_grad=True) for one in (weights, bias))
    loss = torch.nn.functional.cross_entropy(torch.tensor(x) @ w + b, torch.tensor(y)) + w.square().sum() / 1200
    loss.backward()
    assert w.grad.abs().max() < 1e-4 and b.grad.abs().max() < 1e-4


def test_classifiers_of_one_input_are_each_by_itself_and_balanced(world, mixed):
    x, y = mixed / mixed.std(0), (world[:, 2] == 0).astype(np.int64)  # a quarter and three quarters
    together = single_input_regressions(x, y, 2)
    for d in range(3):
        weights, bias = (torch.tensor(one[d], requires_grad=True) for one in together)
        logits = torch.tensor(x[:, d : d + 1]) * weights + bias
        errors = torch.nn.functional.cross_entropy(logits, torch.tensor(y), reduction="none")
        balanced = sum(errors[torch.tensor(y == one)].mean() for one in (0, 1)) / 2
        (balanced + weights.square().sum() / 1200).backward()
        assert weights.grad.abs().max() < 1e-4 and bias.grad.abs().max() < 1e-4


def test_sap_by_a_direct_computation(world, mixed):
    scores = attribute_predictability(mixed, world, seed=4)
    inputs = (mixed - mixed.mean(0)) / mixed.std(0)
    order = np.random.default_rng(4).permutation(600)
    test, train = order[:300], order[300:]
    expected = np.empty((3, 3))
    for d in range(3):
        for k in range(3):
            count = int(world[:, k].max()) + 1
            weights, bias = single_input_regressions(inputs[train, d : d + 1], world[train, k], count)
            named = (inputs[test, d : d + 1] * weights[0] + bias[0]).argmax(1)
            expected[d, k] = np.mean([(named[world[test, k] == v] == v).mean() for v in range(count)])
    np.testing.assert_allclose(scores, expected, atol=0.02)
    ordered = np.sort(scores, axis=0)
    assert sap_score(mixed, world, seed=4) == pytest.approx((ordered[-1] - ordered[-2]).mean())


@pytest.mark.parametrize(
    ("latents", "factors", "words"),
    [
        (np.zeros((4, 2)), np.zeros((3, 2), int), r"latents \(4, 2\) and factors \(3, 2\)"),
        (np.array([[0.0], [np.nan]]), np.array([[0], [1]]), "NaN"),
        (np.zeros((2, 1)), np.zeros((2, 1)), "factors must be integers, but are float64"),
        (np.zeros((2, 1)), np.array([[0, 3], [1, 3]]), "factor 1 has one value in all pictures"),
    ],
)
def test_bad_input(latents, factors, words):
    with pytest.raises(ValueError, match=words):
        mutual_information_gap(latents, factors)


# ---- over several models


def test_rank_correlation_by_hand():
    scores = np.array([[1, 10, 4, 1], [2, 30, 3, 1], [3, 20, 2, 1], [4, 40, 1, 1], [5, 50, 0, 1]], float)
    found = rank_correlation(scores)
    assert found[0, 1] == pytest.approx(1 - 6 * (1 + 1) / (5 * 24)) and found[0, 2] == pytest.approx(-1)
    assert np.isnan(found[3, 0]) and found[1, 1] == pytest.approx(1)
    ties = rank_correlation(np.array([[1, 1], [1, 2], [2, 3]], float))  # ranks 1.5, 1.5, 3 and 1, 2, 3
    assert ties[0, 1] == pytest.approx(np.corrcoef([1.5, 1.5, 3], [1, 2, 3])[0, 1])
    assert correlation_plot(found, ["a", "b", "c", "d"]).format == "PNG"
    with pytest.raises(ValueError, match="2 models: a rank correlation needs at least 3"):
        rank_correlation(scores[:2])


# ---- where factors and latents come from


def test_factors_of_sprites_are_those_of_the_scenes():
    pictures, factors = draw_factors(200, seed=1, image_size=16)
    assert pictures.shape == (200, 3, 16, 16) and factors.shape == (200, 5)
    scene = sample_scene(7, seed=SEED + 1, pairs="all", num_objects=1)
    assert [values[place] for values, place in zip(FACTORS.values(), factors[7], strict=True)] == [
        scene.attributes[name] for name in FACTORS
    ]
    np.testing.assert_array_equal(pictures[7], np.asarray(draw_scene(scene, 16)).transpose(2, 0, 1))
    assert (factors.max(0) == [len(values) - 1 for values in FACTORS.values()]).all()
    with pytest.raises(ValueError, match="count=0"):
        draw_factors(0)
    with pytest.raises(ValueError, match="sprites are in colour"):
        sprite_factors(3, 0, Preprocessing(16, 1))


def test_latents_are_pooled_or_flat():
    tokenizer = tiny_tokenizer(num_levels=2, codebook_sizes=[8, 8], quantizer="ema")
    pictures = torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    levels = tokenizer.latents(pictures.float() / 127.5 - 1)
    flat, mean = (latents_of(tokenizer, pictures, how) for how in ("flat", "mean"))
    assert flat.shape == (3, sum(one[0].numel() for one in levels)) and mean.shape == (3, 8)
    np.testing.assert_allclose(mean[1, 4:], levels[1][1].mean((0, 1)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="pooling='sum'"):
        latents_of(tokenizer, pictures, "sum")
    with pytest.raises(ValueError, match="object has no latents"):
        latents_of(object(), pictures, "mean")


@pytest.fixture
def table(tmp_path):
    """120 pictures of 16 x 16 whose brightness and width are factors, as Parquet."""
    rows = []
    for number in range(120):
        shade, width = number % 3, (number // 3) % 2
        array = np.zeros((16, 16, 3), np.uint8)
        array[:, : 4 + 8 * width] = 80 * (shade + 1)
        array[0, 0] = number
        rows.append({"image": Image.fromarray(array), "shade": shade * 10, "width": ["thin", "wide"][width],
                     "weight": number / 7})  # fmt: skip
    (tmp_path / "data").mkdir()
    Dataset.from_list(rows).to_parquet(tmp_path / "data" / "train.parquet")
    return tmp_path / "data"


def test_factors_in_columns(table):
    source = load_pictures(str(table), "train")
    data = column_factors(source, ["shade", "width"], 50, Preprocessing(16))
    assert data.names == ("shade", "width") and data.factors.shape == (50, 2) and len(data.pictures) == 50
    wide = (data.pictures[:, 0, 8, 8] > 0).long().numpy()
    shade = data.pictures[:, 0, 8, 1].numpy() // 80 - 1
    np.testing.assert_array_equal(data.factors, np.stack([shade, wide], 1))
    with pytest.raises(ValueError, match="has no column 'colour'; it has: image, shade, width, weight"):
        column_factors(source, ["colour"], 50, Preprocessing(16))
    with pytest.raises(ValueError, match="--factor_columns weight: .* is neither a whole number nor a name"):
        column_factors(source, ["weight"], 50, Preprocessing(16))


def test_labels_of_folders_are_factors_and_other_columns_are_not(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    source = load_pictures(str(tmp_path), "train")
    assert sorted(set(source.values("label"))) == [0, 1]
    with pytest.raises(ValueError, match="has no column 'breed' of values"):
        source.values("breed")


# ---- the command


def test_autoencoders_without_codes_are_read_too(tmp_path):
    torch.manual_seed(0)
    config = AutoencoderConfig(
        bottleneck="gaussian", latents="positions", image_size=16, hidden_sizes=[8, 8], num_res_blocks=0, code_dim=3,
        preprocessing=Preprocessing(16).to_dict(),
    )  # fmt: skip
    Autoencoder(config).save_pretrained(tmp_path)
    model = benchmark.load_model(str(tmp_path))
    pictures = sprite_factors(4, 0, Preprocessing(16)).pictures
    (level,) = model.latents(pictures.float() / 127.5 - 1)
    np.testing.assert_allclose(latents_of(model, pictures, "mean"), level.mean((1, 2)), rtol=1e-4, atol=1e-5)


def test_the_command_compares_models(table, tmp_path, capsys):
    folders = []
    for seed in range(3):
        folders.append(str(tmp_path / f"model_{seed}"))
        tiny_tokenizer(seed).save_pretrained(folders[-1])
    options = benchmark.Options(
        models=folders, dataset=str(table), factor_columns=["shade", "width"], max_examples=100, cpu_threads=1,
        plot=str(tmp_path / "plot.png"), output=str(tmp_path / "rows.json"),
    )  # fmt: skip
    benchmark.main(options)
    shown = capsys.readouterr().out
    assert "100 pictures of" in shown and "factors: shade, width" in shown and f"| {folders[1]} | " in shown
    assert Image.open(tmp_path / "plot.png").format == "PNG" and "| Spearman, 3 models |" in shown
    rows = {one["what"]: one["value"] for one in json.loads((tmp_path / "rows.json").read_text())}
    names = {name.rpartition("/")[2] for name in rows if "model_0" in name}
    assert names == {*METRICS, "dci_completeness", "dci_informativeness"}
    assert len([name for name in rows if "rank_correlation" in name]) == 15
    benchmark.main(options)
    assert rows == {one["what"]: one["value"] for one in json.loads((tmp_path / "rows.json").read_text())}


def test_too_few_models_have_no_correlation(tmp_path, capsys):
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    options = benchmark.Options(models=[str(tmp_path / "model")], max_examples=100, cpu_threads=1)
    assert benchmark.agreement(options, [{}]) == []
    assert "no rank correlation: it needs 3 models, and there are 1" in capsys.readouterr().out
    scores = disentanglement_scores(
        latents_of(benchmark.load_model(options.models[0]), benchmark.read_factors(options, Preprocessing(16)).pictures,
                   "mean"),
        benchmark.read_factors(options, Preprocessing(16)).factors,
    )  # fmt: skip
    assert all(0 <= value <= 1 for value in scores.values())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"models": ["a"], "dataset": "x"}, "any other data set needs columns"),
        ({"models": ["a"], "factor_columns": ["b", "c"]}, "sprites have factors of their own"),
        ({"models": ["a"], "dataset": "x", "factor_columns": ["b"]}, "--factor_columns b: name at least two"),
        ({"models": ["a", "a"]}, "--models names a twice"),
        ({"models": ["a"], "max_examples": 5}, "--max_examples 5 must be at least 100"),
    ],
)
def test_options_that_do_not_fit(given, words):
    with pytest.raises(ValueError, match=words):
        benchmark.Options(**given)
