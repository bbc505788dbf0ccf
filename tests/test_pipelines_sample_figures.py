"""Nearest neighbours, precision and recall, density and coverage, copies: each against a direct computation."""

import numpy as np
import pytest
import torch

from pipelines.evaluation.metrics import neighbours
from pipelines.evaluation.metrics.copies import copies_report, nearest_training
from pipelines.evaluation.metrics.density_coverage import density_and_coverage
from pipelines.evaluation.metrics.intervals import mean_interval, wilson_interval
from pipelines.evaluation.metrics.neighbours import balls_around, nearest_neighbours
from pipelines.evaluation.metrics.precision_recall import precision_and_recall


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of each side, the last ones not full."""
    monkeypatch.setattr(neighbours, "QUERIES_AT_ONCE", 7)
    monkeypatch.setattr(neighbours, "REFERENCES_AT_ONCE", 11)


def normal(rows: int, size: int = 5, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (rows, size)).astype(np.float32)


def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of all pairs: (n, m) float64."""
    return np.sqrt(((one[:, None].astype(np.float64) - other[None]) ** 2).sum(-1))


def radii(features: np.ndarray, k: int) -> np.ndarray:
    """The k-th of the other rows."""
    return np.sort(distances(features, features), axis=1)[:, k]  # the row itself is at place 0


def test_neighbours_are_those_of_the_whole_table():
    queries, references = normal(20), normal(33, seed=1)
    found = nearest_neighbours(torch.from_numpy(queries), torch.from_numpy(references), 4)
    table = distances(queries, references)
    order = np.argsort(table, axis=1)[:, :4]
    assert np.array_equal(found.indices.numpy(), order)
    assert np.allclose(found.distances.numpy(), np.take_along_axis(table, order, 1), atol=1e-10)


def test_a_row_is_no_neighbour_of_itself_yet_its_equal_is():
    rows = torch.from_numpy(normal(25))
    rows[17] = rows[3]
    found = nearest_neighbours(rows, rows, 2, skip_same=True)
    assert found.indices[3, 0] == 17 and found.indices[17, 0] == 3
    assert found.distances[3, 0] == pytest.approx(0, abs=1e-6)
    assert not (found.indices == torch.arange(25)[:, None]).any()


def test_balls_are_counted_over_all_blocks():
    points, centres = normal(20), normal(33, seed=1)
    sizes = np.random.default_rng(2).uniform(0, 4, 33)
    found = balls_around(torch.from_numpy(points), torch.from_numpy(centres), torch.from_numpy(sizes))
    assert np.array_equal(found.numpy(), (distances(points, centres) <= sizes).sum(1))


def test_neighbours_that_there_are_not():
    rows = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="3 nearest neighbours among 2 rows: give at least 4 rows"):
        nearest_neighbours(rows, rows, 3, skip_same=True)
    with pytest.raises(ValueError, match="have no distance"):
        nearest_neighbours(rows, torch.zeros(3, 4), 1)


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_precision_and_recall_by_their_equations(shift):
    real, drawn = normal(60), normal(40, seed=1, shift=shift)
    found = precision_and_recall(torch.from_numpy(real), torch.from_numpy(drawn))
    table = distances(drawn, real)
    precise = (table <= radii(real, 3)).any(axis=1)
    recalled = (table <= radii(drawn, 3)[:, None]).any(axis=0)
    assert found["precision"] == pytest.approx(precise.mean(), abs=1e-12)
    assert found["recall"] == pytest.approx(recalled.mean(), abs=1e-12)
    assert found["interval"]["precision"] == pytest.approx(wilson_interval(int(precise.sum()), 40))
    assert found["interval"]["recall"] == pytest.approx(wilson_interval(int(recalled.sum()), 60))


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_density_and_coverage_by_their_equations(shift):
    real, drawn = normal(60), normal(40, seed=1, shift=shift)
    found = density_and_coverage(torch.from_numpy(real), torch.from_numpy(drawn))
    inside = distances(drawn, real) <= radii(real, 5)
    assert found["density"] == pytest.approx(inside.sum(axis=1).mean() / 5, abs=1e-12)
    assert found["coverage"] == pytest.approx(inside.any(axis=0).mean(), abs=1e-12)
    low, high = found["interval"]["density"]
    spread = (inside.sum(axis=1) / 5).std(ddof=1) / np.sqrt(40)
    assert (high - low) / 2 == pytest.approx(1.959964 * spread)


def test_what_the_papers_say_of_equal_distributions(monkeypatch):
    """Naeem et al. 2020, lemmas 1 and 2: the expected density is 1, the expected coverage 1 - 2^-k for large sets."""
    monkeypatch.setattr(neighbours, "QUERIES_AT_ONCE", 1000)
    monkeypatch.setattr(neighbours, "REFERENCES_AT_ONCE", 1000)
    real, drawn = torch.from_numpy(normal(1500, 8)), torch.from_numpy(normal(1500, 8, seed=1))
    found = density_and_coverage(real, drawn)
    assert found["density"] == pytest.approx(1, abs=0.06) and found["coverage"] == pytest.approx(1 - 2**-5, abs=0.02)
    assert precision_and_recall(real, drawn)["precision"] > 0.8
    few_modes = real[:10].repeat(20, 1) + 1e-3 * torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    dropped = precision_and_recall(real, few_modes)
    assert dropped["precision"] == 1 and dropped["recall"] < 0.05


def test_sets_too_small_for_their_neighbours():
    rows = torch.zeros(5, 2)
    with pytest.raises(ValueError, match="at least 4 pictures in each set, got 5 real and 3 drawn"):
        precision_and_recall(rows, rows[:3])
    with pytest.raises(ValueError, match="at least 6 real pictures"):
        density_and_coverage(rows, rows)


def test_interval_of_a_mean():
    values = torch.tensor([1.0, 2.0, 4.0, 9.0])
    half = 1.959964 * np.std(values.numpy(), ddof=1) / 2
    assert mean_interval(values) == pytest.approx([4 - half, 4 + half])
    assert mean_interval(values[:1]) is None


# ---- copies


def noise(count: int, side: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def test_copies_are_told_from_new_pictures():
    training, fresh = noise(40), noise(9, seed=1)
    copies = (training[[5, 30, 2]].int() + 3).clamp(max=255).to(torch.uint8)
    found = nearest_training(torch.cat([copies, fresh]), training)
    assert found.indices[:3].tolist() == [5, 30, 2] and found.copies.tolist() == [True] * 3 + [False] * 9
    table = distances(fresh.flatten(1).numpy(), training.flatten(1).numpy())
    nearest = np.sort(table, axis=1)
    assert np.allclose(found.ratios[3:], nearest[:, 0] / nearest[:, 1])
    assert np.allclose(found.distances[3:], nearest[:, 0] / np.sqrt(3 * 8 * 8) / 255)
    report = copies_report({"drawn": found}, 40)
    assert report["drawn"]["copies"] == 3 / 12 and report["drawn"]["n"] == 12 and report["num_training"] == 40
    assert report["drawn"]["interval"]["copies"] == pytest.approx(wilson_interval(3, 12))


def test_a_training_picture_that_is_there_twice_still_has_copies():
    training = noise(10)
    training[7] = training[4]
    found = nearest_training(training[[7]], training)
    assert found.indices.tolist() == [4] and found.copies.all()


def test_large_pictures_are_averaged_down():
    training = noise(6, side=64)
    found = nearest_training(training[[2, 5]], training)
    assert found.indices.tolist() == [2, 5] and found.copies.all()


def test_pictures_that_cannot_be_looked_for():
    with pytest.raises(ValueError, match="they need one shape"):
        nearest_training(noise(2), noise(2, side=16))
    with pytest.raises(ValueError, match="at least two different ones"):
        nearest_training(noise(2), noise(1).repeat(3, 1, 1, 1))
