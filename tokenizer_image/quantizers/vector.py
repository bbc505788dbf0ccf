"""Vector quantization with a codebook learned by exponential moving averages."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from tokenizer_image.nearest import nearest_codes, sums_per_code
from tokenizer_image.quantizers.output import QuantizerOutput

KMEANS_ROUNDS = 10


class NotFiniteError(ValueError):
    """Latents with NaN or infinity: training has diverged, and the codebook was left as it was."""


class VectorQuantizer(nn.Module):
    """The nearest row of a codebook, which follows the latents by EMA (van den Oord et al. 2017, appendix A.1).

    With n_k the number of latents nearest to code k and s_k their sum, every training step does

        N_k <- decay N_k + (1 - decay) n_k,   m_k <- decay m_k + (1 - decay) s_k,   e_k <- m_k / N_k

    with Laplace smoothing of N_k. The gradient goes straight through to the latents, and the commitment loss
    `commitment_weight * |latents - sg(quantized)|^2` keeps them near their codes. The first training batch starts
    the codebook by k-means; codes that fewer latents use than `revival_threshold` times their fair share are dead
    and are replaced by random latents of the batch, count and sum included (Zeghidour et al. 2021, SoundStream).

    In a distributed run, counts and sums are reduced over all ranks and starts and revivals are broadcast from
    rank 0, so that every rank holds the same codebook.

    Args:
        codebook_size: number of codes K.
        code_dim: size D of a latent and of a code.
        commitment_weight: weight of the commitment loss.
        ema_decay: share of the old averages that a step keeps.
        revival_threshold: a code is dead when its moving count is below this share of the mean count; 0 never
            revives.
    """

    codebook: torch.Tensor
    ema_counts: torch.Tensor
    ema_sums: torch.Tensor
    initialized: torch.Tensor

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        *,
        commitment_weight: float = 0.25,
        ema_decay: float = 0.99,
        revival_threshold: float = 0.1,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        if codebook_size < 2 or code_dim < 1:
            raise ValueError(
                f"codebook_size={codebook_size}, code_dim={code_dim}: a codebook needs at least 2 codes of 1 number"
            )
        if not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay={ema_decay} must be in [0, 1); 0.99 is usual")
        self.codebook_size = codebook_size
        self.code_dim = code_dim
        self.commitment_weight = commitment_weight
        self.ema_decay = ema_decay
        self.revival_threshold = revival_threshold
        self.epsilon = epsilon
        # All persistent: a non-persistent buffer comes back from `from_pretrained` uninitialised.
        self.register_buffer("codebook", torch.zeros(codebook_size, code_dim))
        self.register_buffer("ema_counts", torch.zeros(codebook_size))
        self.register_buffer("ema_sums", torch.zeros(codebook_size, code_dim))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))

    @property
    def codes_per_position(self) -> int:
        return 1

    @property
    def codebook_sizes(self) -> list[int]:
        """Codebook size of each of the `codes_per_position` codes."""
        return [self.codebook_size]

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (..., code_dim) to codes (..., 1) int64. Changes nothing, in train mode too."""
        codes = nearest_codes(latents.reshape(-1, self.code_dim), self.codebook)
        return codes.reshape(*latents.shape[:-1], 1)

    @property
    def quantizers(self) -> list[VectorQuantizer]:
        """The quantizer of each of the `codes_per_position` codes."""
        return [self]

    def inputs(self, latents: torch.Tensor, depth: int) -> torch.Tensor:
        """What the quantizer of code `depth` sees of latents (..., code_dim)."""
        return latents

    def decode(self, codes: torch.Tensor, absent: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (..., 1) int64 to quantized (..., code_dim) float32.

        Where `absent` (..., 1) bool is set, there is no code yet, and the codebook's mean stands in.

        Raises:
            ValueError: a code is outside 0 .. codebook_size - 1.
        """
        check_range(codes, self.codebook_size)
        rows = F.embedding(codes[..., 0], self.codebook.float())
        return rows if absent is None else torch.where(absent, self.mean_code(), rows)

    def code_vectors(self) -> list[torch.Tensor]:
        """For each of the `codes_per_position` codes, what it adds to a quantized latent: (its size, code_dim)."""
        return [self.codebook.float()]

    def mean_code(self) -> torch.Tensor:
        """(code_dim,) mean of the codebook, each code weighted by how often it is used."""
        weights = self.ema_counts if self.ema_counts.sum() > 0 else torch.ones_like(self.ema_counts)
        return (weights[:, None] * self.codebook).sum(0) / weights.sum()

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Quantize latents (..., code_dim); in train mode the codebook learns from them.

        Raises:
            NotFiniteError: in train mode, a latent is NaN or infinite (the codebook is left as it was).
        """
        vectors = latents.reshape(-1, self.code_dim).float()
        if self.training and not bool(self.initialized):
            self.start(vectors.detach())
        codes = nearest_codes(vectors, self.codebook)
        quantized = F.embedding(codes, self.codebook)  # before the update: the row that was nearest
        loss = self.commitment_weight * F.mse_loss(vectors, quantized)
        revived = self.update(vectors.detach(), codes) if self.training else 0
        quantized = vectors + (quantized - vectors).detach()
        return QuantizerOutput(quantized.reshape(latents.shape), codes.reshape(*latents.shape[:-1], 1), loss, revived)

    @torch.no_grad()
    def update(self, vectors: torch.Tensor, codes: torch.Tensor) -> int:
        """One EMA step from vectors (N, D) and their codes (N,); returns the number of revived codes."""
        counts, sums = sums_per_code(vectors, codes, self.codebook_size)
        check_finite(sums, counts)
        all_reduce(counts, sums)
        self.ema_counts.lerp_(counts, 1 - self.ema_decay)
        self.ema_sums.lerp_(sums, 1 - self.ema_decay)
        total = self.ema_counts.sum()
        smoothed = (self.ema_counts + self.epsilon) * total / (total + self.codebook_size * self.epsilon)
        self.codebook.copy_(self.ema_sums / smoothed[:, None])
        return self.revive(vectors)

    def revive(self, vectors: torch.Tensor) -> int:
        """Replace dead codes by random rows of vectors (N, D): code, count and sum."""
        mean_count = self.ema_counts.mean()
        dead = torch.nonzero(self.ema_counts < self.revival_threshold * mean_count).flatten()
        if len(dead) == 0:
            return 0
        self.codebook[dead] = broadcast(sample_rows(vectors, len(dead)))
        self.ema_counts[dead] = mean_count
        self.ema_sums[dead] = self.codebook[dead] * mean_count
        return len(dead)

    @torch.no_grad()
    def start(self, vectors: torch.Tensor) -> None:
        """Start the codebook by k-means over vectors (N, D) (with fewer vectors than codes, some start as copies)."""
        if not bool(torch.isfinite(vectors).all()):
            raise NotFiniteError("latents with NaN or infinity: the codebook was not started")
        codebook = sample_rows(vectors, self.codebook_size)
        for _ in range(KMEANS_ROUNDS):
            counts, sums = sums_per_code(vectors, nearest_codes(vectors, codebook), self.codebook_size)
            # An empty cluster starts again at a random vector; sums are divided by counts only where there are any.
            means = sums / counts.clamp(min=1)[:, None]
            codebook = torch.where(counts[:, None] > 0, means, sample_rows(vectors, self.codebook_size))
        self.codebook.copy_(broadcast(codebook))
        self.ema_counts.fill_(len(vectors) * world_size() / self.codebook_size)
        self.ema_sums.copy_(self.codebook * self.ema_counts[:, None])
        self.initialized.fill_(True)

    @torch.no_grad()
    def refit(self, counts: torch.Tensor, sums: torch.Tensor) -> None:
        """Put each code that has any latents at their mean: counts (K,) and sums (K, D) over many batches.

        The moving counts keep their total, about that of one batch: with the counts of many, a training that goes on
        from here would hardly move the codebook for hundreds of steps.
        """
        used = counts > 0
        self.codebook[used] = sums[used] / counts[used, None]
        total = self.ema_counts.sum()
        self.ema_counts.copy_(counts * (total / counts.sum()) if total > 0 else counts)
        self.ema_sums.copy_(self.codebook * self.ema_counts[:, None])


def check_range(codes: torch.Tensor, codebook_size: int) -> None:
    """Raise ValueError unless every code is in [0, codebook_size)."""
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= codebook_size):
        raise ValueError(
            f"codes from {int(codes.min())} to {int(codes.max())}: this codebook has codes 0 to {codebook_size - 1}"
        )


def check_finite(sums: torch.Tensor, counts: torch.Tensor) -> None:
    """Raise NotFiniteError if any latent was NaN or infinite. Sums show it without another pass over the latents."""
    if not bool(torch.isfinite(sums).all()):
        raise NotFiniteError(f"latents with NaN or infinity among {int(counts.sum())}: the codebook was left as it was")


def sample_rows(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """`count` random rows of vectors (N, D), without repeats where N allows it."""
    if count <= len(vectors):
        return vectors[torch.randperm(len(vectors), device=vectors.device)[:count]].float()
    return vectors[torch.randint(len(vectors), (count,), device=vectors.device)].float()


def world_size() -> int:
    """Number of ranks, asked at call time: the process group may come after the quantizer."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce(*tensors: torch.Tensor) -> None:
    """Sum each tensor over all ranks, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def broadcast(tensor: torch.Tensor) -> torch.Tensor:
    """Rank 0's values on every rank."""
    if world_size() > 1:
        tensor = tensor.contiguous()
        dist.broadcast(tensor, 0)
    return tensor
