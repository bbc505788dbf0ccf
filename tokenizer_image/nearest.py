"""The hot path of every lookup quantizer: the nearest code, and sums per code, without an N x K tensor."""

from __future__ import annotations

import torch

# A block of scores of this many floats (2 MB) stays in a core's cache between the product and the argmax.
BLOCK_FLOATS = 1 << 19


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
        codes = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
        rows = max(64, BLOCK_FLOATS // len(codebook))
        if vectors.is_cuda:
            rows *= 64
        for start in range(0, len(vectors), rows):
            scores = torch.addmm(half_norms, vectors[start : start + rows], codebook.t())
            torch.argmax(scores, dim=1, out=codes[start : start + rows])
        return codes


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
