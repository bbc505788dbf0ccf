"""Metrics of disentanglement and their classifiers, each equal to scikit-learn's or scipy's on random data."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.preprocessing import KBinsDiscretizer, StandardScaler

from pipelines.evaluation.disentanglement.beta_vae import beta_vae_score
from pipelines.evaluation.disentanglement.dci import PENALTY, completeness, dci, disentanglement
from pipelines.evaluation.disentanglement.factor_vae import factor_vae_score
from pipelines.evaluation.disentanglement.factors import FactorSampler, split_rows, standardised
from pipelines.evaluation.disentanglement.modularity import modularity_score
from pipelines.evaluation.disentanglement.mutual_information import BINS, binned, entropies, mutual_information
from pipelines.evaluation.disentanglement.mutual_information_gap import mutual_information_gap
from pipelines.evaluation.disentanglement.sap import attribute_predictability, sap_score
from pipelines.evaluation.disentanglement.scores import rank_correlation
from pipelines.evaluation.metrics.linear_classifiers import (
    single_input_regressions,
    softmax_regression,
    sparse_softmax_regression,
)

EQUAL = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def factors() -> np.ndarray:
    """400 rows of three factors with 3, 4 and 5 values, not equally frequent."""
    return np.random.default_rng(0).binomial([2, 3, 4], 0.4, size=(400, 3))


@pytest.fixture(scope="module")
def latents(factors: np.ndarray) -> np.ndarray:
    """Five latents: mixtures of the factors with noise, and noise alone."""
    rng = np.random.default_rng(1)
    mixture = np.array([[1.0, 0.2, 0.0, 0.3, 0.0], [0.1, 2.0, 0.3, 0.0, 0.0], [0.0, 0.3, 0.5, 0.4, 0.0]])
    return factors @ mixture + rng.normal(size=(400, 5)) * [0.3, 0.5, 0.2, 0.4, 1.0] + 7


def bins_of(latents: np.ndarray) -> np.ndarray:
    model = KBinsDiscretizer(BINS, encode="ordinal", strategy="uniform", subsample=None, dtype=np.float64)
    return model.fit_transform(latents).astype(np.int64)


def information(latents: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Of each latent in bins and each factor, by scikit-learn: (D, K) nats."""
    return np.array([[mutual_info_score(one, factor) for factor in factors.T] for one in bins_of(latents).T])


# ---- mutual information


def test_mutual_information_is_scikit_learns(latents, factors):
    np.testing.assert_array_equal(binned(latents), bins_of(latents))
    np.testing.assert_allclose(entropies(factors), [stats.entropy(np.bincount(one)) for one in factors.T], **EQUAL)
    np.testing.assert_allclose(mutual_information(binned(latents), factors), information(latents, factors), **EQUAL)


@pytest.mark.parametrize(
    ("values", "step", "first"), [(5, 0.3, -3.0), (21, 0.3, -3.0), (101, 1 / 7, 1 / 3), (41, 1, 0)]
)
def test_latents_on_a_grid_are_counted_as_by_numpy_and_scikit_learn(values, step, first):
    """They meet the bins' edges, where a rounding error would move them to another bin."""
    grid = (np.arange(values) * step + first)[:, None]
    found = binned(grid)
    np.testing.assert_array_equal(found, bins_of(grid))
    np.testing.assert_array_equal(np.bincount(found[:, 0], minlength=BINS), np.histogram(grid, BINS)[0])


def test_the_gap_and_modularity_by_scikit_learns_information(latents, factors):
    shared = information(latents, factors)
    ordered = np.sort(shared, axis=0)
    wanted = ((ordered[-1] - ordered[-2]) / [stats.entropy(np.bincount(one)) for one in factors.T]).mean()
    assert mutual_information_gap(latents, factors) == pytest.approx(wanted, abs=1e-4) and wanted > 0.05
    best = shared.max(axis=1, keepdims=True)
    template = np.where(shared == best, best, 0)
    wanted = (1 - ((shared - template) ** 2).sum(1) / (best[:, 0] ** 2 * (shared.shape[1] - 1))).mean()
    assert modularity_score(latents, factors) == pytest.approx(wanted, abs=1e-4)


# ---- classifiers


def test_standardised_numbers_are_scikit_learns(latents):
    """With n in the denominator of the variance; a column that never changes is 0."""
    constant = np.concatenate([latents, np.full((400, 1), 3.0)], axis=1)
    np.testing.assert_allclose(standardised(constant), StandardScaler().fit_transform(constant), **EQUAL)


def test_the_classifier_is_scikit_learns_logistic_regression(latents, factors):
    """Its C of 1 is the penalty sum(weights ** 2) / (2 n) beside the mean cross-entropy; a bias has none, and is known
    but for a number that all classes share."""
    inputs, classes = standardised(latents), factors[:, 2]
    model = LogisticRegression(C=1.0, tol=1e-10, max_iter=10000).fit(inputs, classes)
    weights, bias = softmax_regression(inputs, classes, 5)
    np.testing.assert_allclose(weights, model.coef_.T, **EQUAL)
    np.testing.assert_allclose(bias - bias.mean(), model.intercept_ - model.intercept_.mean(), **EQUAL)


def test_two_classes_have_a_row_of_weights_each(latents, factors):
    """scikit-learn has one row for two classes, v; ours are v / 2 and -v / 2, whose penalty is half of its: C is 2."""
    inputs, classes = standardised(latents), (factors[:, 2] > 1).astype(np.int64)
    model = LogisticRegression(C=2.0, tol=1e-10, max_iter=10000).fit(inputs, classes)
    weights, bias = softmax_regression(inputs, classes, 2)
    np.testing.assert_allclose(weights[:, 1] - weights[:, 0], model.coef_[0], **EQUAL)
    assert bias[1] - bias[0] == pytest.approx(model.intercept_[0], abs=1e-4)


def test_classifiers_of_one_input_are_scikit_learns_balanced_ones(latents, factors):
    inputs, classes = standardised(latents), factors[:, 1]
    weights, bias = single_input_regressions(inputs, classes, 4)
    for number, column in enumerate(inputs.T):
        model = LogisticRegression(C=1.0, class_weight="balanced", tol=1e-10, max_iter=10000)
        model.fit(column[:, None], classes)
        np.testing.assert_allclose(weights[number], model.coef_[:, 0], **EQUAL)
        centred = bias[number] - bias[number].mean()
        np.testing.assert_allclose(centred, model.intercept_ - model.intercept_.mean(), **EQUAL)


def sparse(inputs: np.ndarray, classes: np.ndarray, penalty: float) -> LogisticRegression:
    """scikit-learn's lasso: its C is 1 / (n penalty)."""
    model = LogisticRegression(
        C=1 / (len(inputs) * penalty), l1_ratio=1.0, solver="saga", tol=1e-9, max_iter=50000, random_state=0
    )
    return model.fit(inputs, classes)


def test_the_sparse_classifier_is_scikit_learns(latents, factors):
    inputs, classes = standardised(latents), factors[:, 2]
    model = sparse(inputs, classes, 0.02)
    weights, bias = sparse_softmax_regression(inputs, classes, 5, 0.02)
    np.testing.assert_allclose(weights, model.coef_.T, rtol=0, atol=1e-4)
    np.testing.assert_allclose(bias - bias.mean(), model.intercept_ - model.intercept_.mean(), rtol=0, atol=1e-4)
    assert (weights == 0).any() and (weights != 0).any()


# ---- the metrics that read latents with them


def test_dci_by_scikit_learns_classifiers(latents, factors):
    found = dci(latents, factors, seed=2)
    inputs = StandardScaler().fit_transform(latents)
    train, test = split_rows(len(inputs), 0.25, 2)
    models = [sparse(inputs[train], one[train], PENALTY) for one in factors.T]
    importance = np.stack([np.abs(model.coef_).sum(axis=0) for model in models], axis=1)  # (D, K)
    accuracies = [accuracy_score(one[test], m.predict(inputs[test])) for one, m in zip(factors.T, models, strict=True)]
    wanted = [concentration(importance), concentration(importance.T), np.mean(accuracies)]
    assert [found.disentanglement, found.completeness, found.informativeness] == pytest.approx(wanted, abs=1e-4)


def concentration(importance: np.ndarray) -> float:
    """1 - H(row) to the base of the columns, by scipy, weighted by the rows' shares."""
    rows = 1 - stats.entropy(importance, base=importance.shape[1], axis=1)
    return float(np.average(rows, weights=importance.sum(axis=1)))


def test_concentrations_are_scipys_entropies():
    importance = np.random.default_rng(0).gamma(0.5, size=(6, 4))
    assert disentanglement(importance) == pytest.approx(concentration(importance), abs=1e-6)
    assert completeness(importance) == pytest.approx(concentration(importance.T), abs=1e-6)


def test_sap_by_scikit_learns_classifiers(latents, factors):
    scores = attribute_predictability(latents, factors, seed=4)
    inputs = StandardScaler().fit_transform(latents)
    train, test = split_rows(len(inputs), 0.5, 4)
    wanted = np.empty_like(scores)
    for i, column in enumerate(inputs.T):
        for k, classes in enumerate(factors.T):
            model = LogisticRegression(class_weight="balanced", tol=1e-10, max_iter=10000)
            model.fit(column[train, None], classes[train])
            wanted[i, k] = balanced_accuracy_score(classes[test], model.predict(column[test, None]))
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-4)
    ordered = np.sort(wanted, axis=0)
    assert sap_score(latents, factors, seed=4) == pytest.approx((ordered[-1] - ordered[-2]).mean(), abs=1e-4)


def test_the_beta_vae_metric_by_scikit_learns_classifier(latents, factors):
    score = beta_vae_score(latents, factors, seed=3, pairs=16, training=600, test=300)
    sampler = FactorSampler(factors, np.random.default_rng(3))
    answers = np.array([sampler.factor() for _ in range(900)])
    pairs = [sampler.pairs(int(factor), 16) for factor in answers]
    rows = np.stack([np.abs(latents[first] - latents[second]).mean(0) for first, second in pairs])
    scaler = StandardScaler().fit(rows[:600])
    model = LogisticRegression(C=1.0, tol=1e-10, max_iter=10000).fit(scaler.transform(rows[:600]), answers[:600])
    assert score == pytest.approx(accuracy_score(answers[600:], model.predict(scaler.transform(rows[600:]))), abs=1e-4)


def test_the_factor_vae_metric_by_scikit_learns_table_of_votes(latents, factors):
    score = factor_vae_score(latents, factors, seed=5, group=16, training=600, test=300)
    sampler = FactorSampler(factors, np.random.default_rng(5))
    inputs = StandardScaler().fit_transform(latents)
    votes = []
    for _ in range(900):
        factor = sampler.factor()
        votes.append((inputs[sampler.equal(factor, 16)].var(axis=0, ddof=1).argmin(), factor))
    cast, wanted = np.array(votes).T
    table = contingency_matrix(np.append(cast[:600], range(5)), np.append(wanted[:600], [0] * 5))
    table[:, 0] -= 1  # the rows that make each latent occur
    assert score == pytest.approx(accuracy_score(wanted[600:], table.argmax(axis=1)[cast[600:]]), abs=1e-4)


def test_rank_correlations_are_scipys():
    scores = np.random.default_rng(0).integers(0, 6, size=(12, 5)).astype(float)  # with ties
    np.testing.assert_allclose(rank_correlation(scores), stats.spearmanr(scores).statistic, **EQUAL)
