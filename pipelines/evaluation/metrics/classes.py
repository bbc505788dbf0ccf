"""How often a classifier names, for a drawn picture, the class that its caption stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TOP = 5


@dataclass
class ClassScores:
    """Shares of pictures, in [0, 1], whose caption's class is the classifier's first, and among its first five."""

    first: float
    among_five: float
    count: int


def caption_classes(logits: Tensor, captions: Sequence[str]) -> dict[str, int]:
    """The class that each caption stands for: the likeliest one over its real pictures.

    A data set's captions are seldom a classifier's own class names ("a lighthouse" is "beacon" in ImageNet), so that
    the pictures decide: the class with the highest mean log-probability.

    Args:
        logits: (n, classes), of real pictures.
        captions: of each.
    """
    log_probabilities = logits.float().log_softmax(dim=1)
    rows: dict[str, list[int]] = {}
    for row, caption in enumerate(captions):
        rows.setdefault(caption, []).append(row)
    return {caption: int(log_probabilities[of].mean(dim=0).argmax()) for caption, of in rows.items()}


def class_scores(logits: Tensor, captions: Sequence[str], classes: Mapping[str, int]) -> ClassScores:
    """How often the classifier names the class of the caption.

    Args:
        logits: (n, classes), of pictures.
        captions: of each, with an entry in `classes`.
    """
    wanted = torch.tensor([classes[caption] for caption in captions], device=logits.device)
    named = logits.topk(min(TOP, logits.shape[1]), dim=1).indices == wanted[:, None]
    return ClassScores(float(named[:, 0].double().mean()), float(named.any(dim=1).double().mean()), len(captions))
