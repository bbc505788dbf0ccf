"""Linear classifiers with softmax outputs, by which metrics and probes read latents; fitted without any randomness."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LBFGS_STEPS = 200
PROXIMAL_STEPS = 500


def softmax_regression(
    inputs: np.ndarray, classes: np.ndarray, num_classes: int, penalty: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The weights (D, C) and biases (C,) with the least mean cross-entropy plus penalty sum(weights ** 2) / 2.

    That is scikit-learn's `LogisticRegression` with C = 1 / (n penalty); with twice that where there are two classes,
    which share one row of weights there.

    Args:
        inputs: (n, D) float64, of about unit scale.
        classes: (n,) int64 in 0 .. C - 1.
        penalty: by default 1 / n.
    """
    penalty = 1 / len(inputs) if penalty is None else penalty
    x, y = torch.from_numpy(np.ascontiguousarray(inputs)), torch.from_numpy(classes)

    def loss(weights: Tensor, bias: Tensor) -> Tensor:
        return F.cross_entropy(x @ weights + bias, y) + penalty / 2 * weights.square().sum()

    return _minimum(loss, (inputs.shape[1], num_classes), (num_classes,))


def single_input_regressions(
    inputs: np.ndarray, classes: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each of D inputs, the weights (C,) and biases (C,) of a classifier that reads it alone: (D, C) each.

    Every class counts as much as any other, however often it occurs (scikit-learn's `class_weight="balanced"`).

    Args:
        inputs: (n, D), of about unit scale.
        classes: (n,) int64 in 0 .. C - 1.
    """
    x, y = torch.from_numpy(np.ascontiguousarray(inputs)), torch.from_numpy(classes)
    counts = torch.bincount(y, minlength=num_classes).clamp(min=1)
    importance = (1 / counts)[y] / (1 / counts)[y].sum()
    places = y[:, None, None].expand(-1, x.shape[1], 1)

    def loss(weights: Tensor, bias: Tensor) -> Tensor:
        logits = x[:, :, None] * weights + bias  # (n, D, C)
        errors = logits.logsumexp(-1) - logits.gather(-1, places)[..., 0]
        return (importance[:, None] * errors).sum() + weights.square().sum() / (2 * len(x))

    shape = (inputs.shape[1], num_classes)
    return _minimum(loss, shape, shape)


def _minimum(
    loss: Callable[[Tensor, Tensor], Tensor], weights: tuple[int, ...], bias: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Where a convex loss of weights and biases of these shapes is least, by L-BFGS from zero."""
    found = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in (weights, bias)]
    optimizer = torch.optim.LBFGS(
        found, max_iter=LBFGS_STEPS, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(found[0], found[1])
        value.backward()
        return value

    optimizer.step(closure)
    return found[0].detach().numpy(), found[1].detach().numpy()


def sparse_softmax_regression(
    inputs: np.ndarray, classes: np.ndarray, num_classes: int, penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """The weights (D, C) and biases (C,) with the least mean cross-entropy plus penalty * sum(|weights|).

    That is scikit-learn's `LogisticRegression` with `l1_ratio=1` and C = 1 / (n penalty), by its solver "saga", which
    does not penalise biases.

    By accelerated proximal gradients (FISTA, Beck and Teboulle 2009), restarted where the direction turns back
    (O'Donoghue and Candes 2015).

    Args:
        inputs: (n, D), standardised.
        classes: (n,) int64 in 0 .. C - 1.
    """
    x = torch.from_numpy(np.pad(inputs, ((0, 0), (0, 1)), constant_values=1.0))  # the last input is the bias's
    target = F.one_hot(torch.from_numpy(classes), num_classes).double()
    # Half the largest eigenvalue of x'x / n bounds the curvature of the cross-entropy.
    step = 2 / (float(torch.linalg.matrix_norm(x, ord=2)) ** 2 / len(x))
    weights = torch.zeros(x.shape[1], num_classes, dtype=torch.float64)
    ahead, momentum = weights, 1.0
    for _ in range(PROXIMAL_STEPS):
        gradient = x.T @ ((x @ ahead).softmax(dim=1) - target) / len(x)
        moved = ahead - step * gradient
        moved[:-1] = F.softshrink(moved[:-1], step * penalty)
        change = moved - weights
        if float(((ahead - moved) * change).sum()) > 0:
            momentum = 1.0
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = moved + (momentum - 1) / following * change
        weights, momentum = moved, following
        if float(change.abs().max()) < 1e-7:
            break
    return weights[:-1].numpy(), weights[-1].numpy()
