"""The hot path of every lookup quantizer: the nearest code, and sums per code, without an N x K tensor."""

from __future__ import annotations

import torch

# A block of scores of this many floats (1 MB) stays in a core's cache between the product and the search.
BLOCK_FLOATS = 1 << 18
# The search takes the maximum over columns that lie this far apart, which a processor does for many columns at once;
# torch.argmax over a whole row looks at one number at a time.
STRIDE = 64
# Fewer codes are searched whole.
FEW = 256


@torch.no_grad()
def nearest_codes(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Index of the nearest row of `codebook` (squared Euclidean distance) for each vector.

    |v - e|^2 = |v|^2 - 2 (v.e - |e|^2 / 2), and |v|^2 is the same for every row, so the nearest row has the
    largest v.e - |e|^2 / 2. Computed in float32 whatever autocast is on, block by block, so that no more than
    `BLOCK_FLOATS` scores exist at a time. Ties go to the lowest index.

    Args:
        vectors: (N, D) float.
        codebook: (K, D) float.

    Returns:
        (N,) int64.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        vectors, codebook = vectors.float(), codebook.float()
        half_norms = codebook.square().sum(1).mul_(-0.5)
        size = len(codebook)
        if size > FEW:
            codebook, half_norms = _deal(codebook, 0.0), _deal(half_norms, float("-inf"))  # what is added never wins
        codes = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
        rows, transposed = _block_rows(vectors, codebook), codebook.t()
        buffer = vectors.new_empty(min(rows, len(vectors)), len(codebook))
        for start in range(0, len(vectors), rows):
            block = vectors[start : start + rows]
            scores = torch.addmm(half_norms, block, transposed, out=buffer[: len(block)])
            codes[start : start + rows] = _largest(scores, size)
        return codes


def _deal(rows: torch.Tensor, filling: float) -> torch.Tensor:
    """Put row c * (K / STRIDE) + r of (K, ...) at place r * STRIDE + c, so that each column of `_largest` holds
    neighbours and a tie between columns goes to the lower code. K is filled up to a multiple of STRIDE."""
    missing = -len(rows) % STRIDE
    filled = torch.cat([rows, rows.new_full((missing, *rows.shape[1:]), filling)])
    return filled.view(STRIDE, -1, *rows.shape[1:]).transpose(0, 1).reshape(filled.shape)


def _largest(scores: torch.Tensor, size: int) -> torch.Tensor:
    """Code below `size` of the largest score in each row of (n, K), dealt by `_deal` where there are many; ties: the
    lowest code."""
    if scores.shape[1] <= FEW:
        return scores.argmax(1)
    dealt = scores.view(len(scores), -1, STRIDE)
    column = dealt.amax(1).argmax(1)
    row = dealt.gather(2, column[:, None, None].expand(-1, dealt.shape[1], 1))[:, :, 0].argmax(1)
    # Vectors that are not finite have scores that are not numbers, also at the places that were filled up.
    return (column * dealt.shape[1] + row).clamp_(max=size - 1)


@torch.no_grad()
def sample_codes(vectors: torch.Tensor, codebook: torch.Tensor, temperature: float) -> torch.Tensor:
    """A random code for each vector, with probability proportional to exp(-|v - e|^2 / temperature).

    The largest of the scores plus Gumbel noise is such a draw, so no probabilities are kept (Lee et al. 2022, RQ-VAE,
    section 3.2, has the formula).

    Args: as `nearest_codes`, and `temperature` > 0.

    Returns:
        (N,) int64.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        vectors, codebook = vectors.float(), codebook.float()
        half_norms = codebook.square().sum(1).mul_(-0.5)
        codes = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
        rows = _block_rows(vectors, codebook)
        for start in range(0, len(vectors), rows):
            scores = torch.addmm(half_norms, vectors[start : start + rows], codebook.t()).mul_(2 / temperature)
            scores -= torch.empty_like(scores).exponential_().log_()
            torch.argmax(scores, dim=1, out=codes[start : start + rows])
        return codes


def _block_rows(vectors: torch.Tensor, codebook: torch.Tensor) -> int:
    return max(64, (64 if vectors.is_cuda else 1) * BLOCK_FLOATS // len(codebook))


@torch.no_grad()
def sums_per_code(vectors: torch.Tensor, codes: torch.Tensor, codebook_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How many vectors have each code, and their sum.

    Args:
        vectors: (N, D) float.
        codes: (N,) int64 in [0, codebook_size).

    Returns:
        counts (K,) float32 and sums (K, D) float32.
    """
    vectors = vectors.float()
    counts = torch.bincount(codes, minlength=codebook_size).float()
    sums = vectors.new_zeros(codebook_size, vectors.shape[1]).index_add_(0, codes, vectors)
    return counts, sums
