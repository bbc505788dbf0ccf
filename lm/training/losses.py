"""The next-token loss, weighted, over the ids that compete for a place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from lm.model import partial_logits, plain_head
from lm.sequences import IGNORED

# Logits of more floats than this (256 MB) are made, used and dropped in parts.
CHUNK_FLOATS = 1 << 26

# Matrix products of other numbers of places than multiples of this are slower: bf16 ones by up to a third on a CPU.
ALIGNMENT = 16


def places_read(config: Any, position_ids: torch.Tensor) -> int:
    """How many places of each row the model reads, of a batch with these positions (B, L).

    All but the last, which predicts nothing; the last too where that makes a product's number of places a multiple of
    `ALIGNMENT`, as where 12 rows of 256 are packed, and where the model has a position for it.
    """
    rows, length = position_ids.shape
    if rows % ALIGNMENT == 0 or rows * length % ALIGNMENT != 0:
        return length - 1
    room = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length - 1 if room is not None and int(position_ids[:, -1].max()) >= room else length


def label_weights(batches: Sequence[dict[str, torch.Tensor]], image_offset: int) -> torch.Tensor:
    """(2,) float64: sums of the weights of all text labels and of all image codes, over batches of `collate`."""
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        labels, weights = batch["labels"][:, 1:], batch["loss_weights"][:, 1:].double()
        codes = labels >= image_offset
        sums += torch.stack([weights[~codes].sum(), weights[codes].sum()])  # weight 0 where nothing is learned
    return sums


def balance(
    batches: Sequence[dict[str, torch.Tensor]],
    image_offset: int,
    totals: Sequence[float],
    shares: tuple[float, float],
) -> float:
    """Weigh text beside codes, and return the divisor that makes the loss a weighted sum of two global means,

        sum over ranks and batches of `NextTokenLoss`'s loss / divisor
            = text share x mean nats of a text label + image share x mean nats of a code,

    for any numbers of either in a rank or a micro-batch. A batch without one kind has the other's term alone.

    Args:
        batches: this rank's micro-batches; their loss weights are changed in place.
        totals: `label_weights` of all ranks, added up.
        shares: of text and of codes, with sum 1.

    Returns:
        the divisor.
    """
    scales = [share / total if total else 0.0 for share, total in zip(shares, totals, strict=True)]
    anchor = 1 if scales[1] else 0  # codes keep the weight 1 that they come with, where there are any
    divisor = totals[anchor] / shares[anchor] if scales[anchor] else 1.0
    for batch in batches:
        codes = batch["labels"] >= image_offset
        for kind, scale in ((~codes, scales[0]), (codes, scales[1])):
            if scale * divisor != 1:
                batch["loss_weights"][kind] *= scale * divisor
    return divisor


class NextTokenLoss(nn.Module):
    """Backbone, output layer and loss in one module, so that wrappers (DDP, FSDP, autocast) see one forward.

    The place of a token determines its kind (text or special; image code of a certain depth), and the sampler draws
    only from that kind. So the softmax runs over that kind's ids alone, and only at places that have a label: no
    logit is computed that nothing is learned from.

    Args:
        model: a stock transformers causal LM. Where its logits are more than one linear map of the last hidden states
            (capped, scaled), its own forward makes them all.
        id_ranges: [low, high) of token ids for each kind, text first (`MultimodalVocabulary.id_ranges`).
        z_loss_weight: weight of the squared log-partition (Chowdhery et al. 2022, PaLM, section 5; Chameleon), which
            keeps logits from drifting away: at each place with a label, over that place's ids, weighted as its nats.
    """

    def __init__(self, model: PreTrainedModel, id_ranges: list[tuple[int, int]], z_loss_weight: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.id_ranges = id_ranges
        self.z_loss_weight = z_loss_weight
        self.has_plain_head = plain_head(model) is not None
        self.is_adapted = not all(parameter.requires_grad for parameter in model.parameters())
        self._no_split_modules = model._no_split_modules  # which layers FSDP2 wraps

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        position_ids: torch.Tensor,
        loss_weights: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Sums over a batch, so that ranks and micro-batches add up exactly before anything is divided.

        Args: (B, L) tensors as `lm.sequences.collate` makes them.

        Returns:
            scalars float32: `loss`, the sum of weight x negative log-likelihood in nats, with gradient; `weight`, the
            sum of the weights; `text_nats`, `image_nats`, the same without weights; `text_tokens`, `image_tokens`,
            how many labels there are of each; `z_loss`, what the squared log-partition adds to `loss`.
        """
        hidden = self._hidden(input_ids, position_ids)
        labels, weights = labels[:, 1:], loss_weights[:, 1:]
        zero = hidden.new_zeros((), dtype=torch.float32)
        sums = {"loss": zero, "weight": weights.sum(), "z_loss": zero.clone()}
        for kind in ("text", "image"):
            sums |= {f"{kind}_nats": zero.clone(), f"{kind}_tokens": zero.clone()}
        for kind, places, (nats, *squares) in self._kinds(hidden, labels):
            sums["loss"] = sums["loss"] + (nats * weights[places]).sum()
            if squares:
                z_loss = self.z_loss_weight * (squares[0] * weights[places]).sum()
                sums["loss"] = sums["loss"] + z_loss
                sums["z_loss"] += z_loss.detach()
            sums[f"{kind}_nats"] += nats.detach().sum()
            sums[f"{kind}_tokens"] += len(nats)
        return sums

    def position_nats(self, input_ids: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihood of each label in nats, 0 where there is none: (B, L) float32."""
        hidden = self._hidden(input_ids, position_ids)
        all_nats = hidden.new_zeros(labels.shape, dtype=torch.float32)
        for _, (rows, columns), (nats, *_) in self._kinds(hidden, labels[:, 1:]):
            all_nats[rows, columns + 1] = nats
        return all_nats

    def _hidden(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Last hidden states (B, P, d), or logits (B, P, V) where there is no plain head, at the P = L or L - 1
        places that `places_read` says."""
        # use_cache=False: with a cache, transformers ignores position_ids that start again inside a row.
        # One row of positions serves all rows where they are the same: the rotary tables are made once, not B times.
        places = places_read(self.model.config, position_ids)
        if bool((position_ids == position_ids[:1]).all()):
            position_ids = position_ids[:1]
        inputs = {"input_ids": input_ids[:, :places], "position_ids": position_ids[:, :places], "use_cache": False}
        if self.has_plain_head:
            return self.model.base_model(**inputs)[0]
        return self.model(**inputs).logits

    def _kinds(
        self, hidden: torch.Tensor, labels: torch.Tensor
    ) -> Iterator[tuple[str, tuple[torch.Tensor, ...], torch.Tensor]]:
        """For each range of ids that has labels: "text" or "image", the labels' places, and `_terms` of them."""
        for index, (low, high) in enumerate(self.id_ranges):
            places = ((labels >= low) & (labels < high) & (labels != IGNORED)).nonzero(as_tuple=True)
            if len(places[0]):
                terms = self._terms(hidden[places], labels[places] - low, low, high)
                yield "text" if index == 0 else "image", places, terms

    def _terms(self, hidden: torch.Tensor, targets: torch.Tensor, low: int, high: int) -> torch.Tensor:
        """Float32 (1, M): negative log-likelihood of `targets` (M,) among the ids low .. high - 1; (2, M) with the
        squared log-partition where that has a weight."""
        rows = max(1, CHUNK_FLOATS // (high - low))
        if len(hidden) <= rows:
            return self._chunk_terms(hidden, targets, low, high)
        # Recomputing a chunk's logits in the backward pass costs one product; keeping them all costs the memory.
        chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
        parts = [checkpoint(self._chunk_terms, *chunk, low, high, use_reentrant=False) for chunk in chunks]
        return torch.cat(parts, dim=1)

    def _chunk_terms(self, hidden: torch.Tensor, targets: torch.Tensor, low: int, high: int) -> torch.Tensor:
        logits = self._logits(hidden, low, high).float()
        nats = F.cross_entropy(logits, targets, reduction="none")
        if not self.z_loss_weight:
            return nats[None]
        return torch.stack([nats, logits.logsumexp(-1).square()])

    def _logits(self, hidden: torch.Tensor, low: int, high: int) -> torch.Tensor:
        """(M, high - low), of hidden states (M, d) or, without a plain head, out of all logits (M, V)."""
        if not self.has_plain_head:
            return hidden[:, low:high]
        return partial_logits(self.model.get_output_embeddings(), hidden, low, high)
