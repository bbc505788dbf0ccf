"""Vector quantization: the nearest row of one codebook."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from tokenizer_image.quantizers.distributed import NotFiniteError, all_reduce, check_finite, sample_rows, world_size
from tokenizer_image.quantizers.estimators import rotate, straight_through_with_loss
from tokenizer_image.quantizers.interface import Quantizer, QuantizerOutput, check_range, check_values
from tokenizer_image.quantizers.nearest import nearest_codes, sample_codes, sums_per_code

LEARNING = ("ema", "gradient")
KMEANS_ROUNDS = 10
DEAD_BELOW = 0.1  # share of the mean count; the default revival threshold, and that of `dead` when revival is off


class VectorQuantizer(Quantizer):
    """The nearest row of a codebook (van den Oord et al. 2017).

    `learning="ema"`: the codebook follows the latents by moving averages (their appendix A.1). With n_k the number of
    latents nearest to code k and s_k their sum, every training step does

        N_k <- decay N_k + (1 - decay) n_k,   m_k <- decay m_k + (1 - decay) s_k,   e_k <- m_k / N_k

    with Laplace smoothing of N_k. `learning="gradient"`: the codebook is a parameter, and the loss has the codebook
    term |sg(latents) - quantized|^2 (their equation 3). In both, the commitment loss
    `commitment_weight * |latents - sg(quantized)|^2` keeps the latents near their codes.

    The first training batch initialises the codebook by k-means. A code is dead if its moving count is below
    `revival_threshold` times the mean count; it is replaced by a random latent of the batch, count and sum included
    (Zeghidour et al. 2021, SoundStream). In a distributed run, k-means, counts, sums and revivals use the latents of
    all ranks, so that every rank has the same codebook.

    Args:
        codebook_size: number of codes K.
        code_dim: size D of a latent and of a code.
        learning: "ema" or "gradient".
        normalize: normalise latents and codes to unit length, so that the nearest code has the largest cosine (Yu et
            al. 2022, ViT-VQGAN); quantized latents are unit vectors.
        commitment_weight: weight of the commitment loss.
        ema_decay: decay of the moving averages, in [0, 1).
        revival_threshold: share of the mean count below which a code is dead, in [0, 1); 0 turns revival off.
        kmeans_start: initialise by k-means over the first training batch; False: from a normal distribution.
        temperature: in training, draw codes with probability proportional to exp(-|latent - code|^2 / temperature)
            (Lee et al. 2022); 0 takes the nearest.
        rotation_trick: use the rotation gradient (`estimators.rotate`) instead of straight-through.
        epsilon: of the Laplace smoothing.

    Raises:
        ValueError: a setting out of its range.
    """

    learning_state = ("ema_counts", "ema_sums", "initialized")
    codebook: torch.Tensor
    ema_counts: torch.Tensor
    ema_sums: torch.Tensor
    initialized: torch.Tensor

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        *,
        learning: str = "ema",
        normalize: bool = False,
        commitment_weight: float = 0.25,
        ema_decay: float = 0.99,
        revival_threshold: float = DEAD_BELOW,
        kmeans_start: bool = True,
        temperature: float = 0.0,
        rotation_trick: bool = False,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        if codebook_size < 2 or code_dim < 1:
            raise ValueError(
                f"codebook_size={codebook_size}, code_dim={code_dim}: a codebook needs at least 2 codes of 1 element"
            )
        if learning not in LEARNING:
            raise ValueError(f"learning={learning!r}: choose one of {', '.join(LEARNING)}")
        weights = {"commitment_weight": commitment_weight, "temperature": temperature, "epsilon": epsilon}
        check_values({"ema_decay": ema_decay, "revival_threshold": revival_threshold, **weights})
        self.size = codebook_size
        self.code_dim = code_dim
        self.learning = learning
        self.normalize = normalize
        self.commitment_weight = commitment_weight
        self.ema_decay = ema_decay
        self.revival_threshold = revival_threshold
        self.temperature = temperature
        self.epsilon = epsilon
        self.rotation_trick = rotation_trick
        codebook = torch.zeros(codebook_size, code_dim) if kmeans_start else torch.randn(codebook_size, code_dim)
        if normalize:
            codebook = F.normalize(codebook, dim=-1)
        # All buffers are persistent: `from_pretrained` leaves non-persistent ones uninitialised.
        if learning == "gradient":
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
            self.register_buffer("ema_sums", codebook.clone())
        self.register_buffer("ema_counts", torch.zeros(codebook_size) if kmeans_start else torch.ones(codebook_size))
        self.register_buffer("initialized", torch.tensor(not kmeans_start))

    @property
    def codebook_sizes(self) -> list[int]:
        return [self.size]

    def prepare(self, latents: torch.Tensor) -> torch.Tensor:
        vectors = latents.float()
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    def flat(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (..., code_dim) to vectors (N, code_dim) float32, normalised if the codebook is."""
        return self.prepare(latents.reshape(-1, self.code_dim))

    def rows(self) -> torch.Tensor:
        """(K, code_dim) float32: the codebook's rows, normalised if `normalize` is set."""
        codebook = self.codebook.float()
        if self.learning == "gradient" and torch.is_grad_enabled():
            codebook = codebook.clone()  # the backward pass reads it after a revival has modified the parameter
        return F.normalize(codebook, dim=-1) if self.normalize else codebook

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        codes = nearest_codes(self.flat(latents), self.rows())
        return codes.reshape(*latents.shape[:-1], 1)

    def decode(self, codes: torch.Tensor, absent: torch.Tensor | None = None) -> torch.Tensor:
        check_range(codes, self.size)
        quantized = F.embedding(codes[..., 0], self.rows())
        return quantized if absent is None else torch.where(absent, self.mean_code(), quantized)

    def code_vectors(self) -> list[torch.Tensor]:
        return [self.rows().detach()]

    def mean_code(self) -> torch.Tensor:
        """(code_dim,): the mean of the codebook, weighted by the moving counts."""
        weights = self.ema_counts if self.ema_counts.sum() > 0 else torch.ones_like(self.ema_counts)
        return (weights[:, None] * self.rows()).sum(0) / weights.sum()

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Quantize latents (..., code_dim); in train mode, update the codebook.

        Raises:
            NotFiniteError: in train mode, latents have NaN or infinity (the codebook is left as it was).
            TypeError: in train mode, the codebook is not float32.
        """
        vectors = self.flat(latents)
        if self.learns:
            if self.codebook.dtype != torch.float32:
                raise TypeError(f"a codebook in {self.codebook.dtype} cannot learn: keep float32, use autocast")
            check_finite(vectors)
            if not bool(self.initialized):
                self.start(vectors.detach())
        codebook = self.rows()
        if self.training and self.temperature > 0:
            codes = sample_codes(vectors, codebook, self.temperature)
        else:
            codes = nearest_codes(vectors, codebook)
        rows = F.embedding(codes, codebook)  # those of before the update
        if self.rotation_trick:
            quantized, distance = rotate(vectors, rows.detach()), F.mse_loss(vectors, rows.detach())
        else:
            quantized, distance = straight_through_with_loss(vectors, rows.detach())
        loss = self.commitment_weight * distance
        if self.learning == "gradient" and not self.frozen:
            loss = loss + F.mse_loss(rows, vectors.detach())
        dead, revived = self.update(vectors.detach(), codes) if self.learns else (0, 0)
        codes = codes.reshape(*latents.shape[:-1], 1)
        return QuantizerOutput(quantized.reshape(latents.shape), codes, loss, dead, revived)

    @torch.no_grad()
    def update(self, vectors: torch.Tensor, codes: torch.Tensor) -> tuple[int, int]:
        """One EMA step from vectors (N, D) and their codes (N,); returns the numbers of dead and of revived codes."""
        if self.learning == "gradient":  # no averages but the counts, which revival needs
            counts = torch.bincount(codes, minlength=self.size).float()
            all_reduce(counts)
            self.ema_counts.lerp_(counts, 1 - self.ema_decay)
            return self.revive(vectors)
        counts, sums = sums_per_code(vectors, codes, self.size)
        all_reduce(counts, sums)
        self.ema_counts.lerp_(counts, 1 - self.ema_decay)
        self.ema_sums.lerp_(sums, 1 - self.ema_decay)
        total = self.ema_counts.sum()
        smoothed = (self.ema_counts + self.epsilon) * total / (total + self.size * self.epsilon)
        learned = self.ema_sums / smoothed[:, None]
        if self.normalize:  # the sum of a code that is long unused decays to zero, which has no direction
            learned = torch.where(learned.norm(dim=1, keepdim=True) > 1e-6, learned, self.codebook)
        self.codebook.copy_(learned)
        return self.revive(vectors)

    def revive(self, vectors: torch.Tensor) -> tuple[int, int]:
        """Replace dead codes, with count and sum, by random rows of vectors (N, D); returns as `update`."""
        mean_count = self.ema_counts.mean()
        dead = torch.nonzero(self.ema_counts < (self.revival_threshold or DEAD_BELOW) * mean_count).flatten()
        if len(dead) == 0 or self.revival_threshold == 0:
            return len(dead), 0
        self.codebook[dead] = sample_rows(vectors, len(dead))
        self.ema_counts[dead] = mean_count
        if self.learning == "ema":
            self.ema_sums[dead] = self.codebook[dead] * mean_count
        return len(dead), len(dead)

    @torch.no_grad()
    def start(self, vectors: torch.Tensor) -> None:
        """Initialise the codebook by k-means over vectors (N, D); with fewer vectors than codes, some are copies."""
        if (count := len(vectors) * world_size()) < self.size:
            warnings.warn(
                f"k-means start from {count} latents for {self.size} codes: some codes are copies of others until "
                f"they are revived; a larger batch, of at least {self.size} latents, avoids this",
                stacklevel=2,
            )
        codebook = sample_rows(vectors, self.size)
        for _ in range(KMEANS_ROUNDS):
            counts, sums = sums_per_code(vectors, nearest_codes(vectors, codebook), self.size)
            all_reduce(counts, sums)
            # An empty cluster restarts at a random vector.
            means = sums / counts.clamp(min=1)[:, None]
            codebook = torch.where(counts[:, None] > 0, means, sample_rows(vectors, self.size))
        self.codebook.copy_(F.normalize(codebook, dim=-1) if self.normalize else codebook)
        self.ema_counts.fill_(len(vectors) * world_size() / self.size)
        if self.learning == "ema":
            self.ema_sums.copy_(self.codebook * self.ema_counts[:, None])
        self.initialized.fill_(True)

    @torch.no_grad()
    def refit(self, batches: Sequence[torch.Tensor]) -> None:
        """Move each code to the mean of the latents nearest to it, over batches of latents (n, code_dim)."""
        counts, sums = torch.zeros_like(self.ema_counts), torch.zeros_like(self.codebook)
        for batch in batches:
            vectors = self.flat(batch)
            batch_counts, batch_sums = sums_per_code(vectors, nearest_codes(vectors, self.rows()), self.size)
            counts += batch_counts
            sums += batch_sums
        if self.frozen or not bool(counts.any()):
            return
        if not bool(torch.isfinite(sums).all()):
            raise NotFiniteError("latents with NaN or infinity: the codebook was not refitted")
        self.set_means(counts, sums)

    @torch.no_grad()
    def set_means(self, counts: torch.Tensor, sums: torch.Tensor) -> None:
        """Move each code with latents to their mean, from counts (K,) and sums (K, D) over many batches.

        The moving counts keep their total, about the latents of one batch: with the counts of many batches, training
        that resumes from here would hardly move the codebook for hundreds of steps.
        """
        used = counts > 0
        self.codebook[used] = sums[used] / counts[used, None]
        total = self.ema_counts.sum()
        self.ema_counts.copy_(counts * (total / counts.sum()) if total > 0 else counts)
        if self.learning == "ema":
            self.ema_sums.copy_(self.codebook * self.ema_counts[:, None])
