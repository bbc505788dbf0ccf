"""Nearest codes and sums per code, the inner loop of every lookup quantizer, without an N x K tensor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tokenizer_image.quantizers.screening import screened_codes, screening_pays

# Limit on the scores in memory (16 MB): the matrix product is fast in blocks of some hundred rows, and the maximum
# after it while the block is in the CPU cache.
BLOCK_FLOATS = 1 << 22
BLOCK_ROWS = 8192
# The maximum of a row is first taken over each of this many columns, which is vectorised; torch.argmax over the whole
# row is not.
STRIDE = 64
# Up to this many codes, torch.argmax over the whole row is fast enough.
MAX_DIRECT_ARGMAX = 256
_thread_local = threading.local()


@torch.no_grad()
def nearest_codes(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Index of the nearest row of `codebook` (squared Euclidean distance) for each vector.

    |v - e|^2 = |v|^2 - 2 (v.e - |e|^2 / 2), and |v|^2 is the same for every row, so the nearest row has the
    largest score v.e - |e|^2 / 2. Scores are computed in float32, regardless of autocast and of
    `torch.set_float32_matmul_precision`, in blocks of at most `BLOCK_FLOATS`. On a CPU with bfloat16 instructions, a
    bfloat16 product first excludes rows that cannot be nearest (`screening`), which does not change the result. Ties
    go to the lowest index.

    Args:
        vectors: (N, D) float.
        codebook: (K, D) float.

    Returns:
        (N,) int64.
    """
    codebook, size = codebook.float(), len(codebook)
    screened = vectors.new_empty(0, dtype=torch.int64)
    if screening_pays(vectors, codebook):
        with torch.autocast(vectors.device.type, enabled=False):
            screened = screened_codes(vectors, codebook)
        vectors = vectors[len(screened) :]  # those that screening left because too many rows remained
        if not len(vectors):
            return screened
    half_norms = _half_norms(codebook)
    if size > MAX_DIRECT_ARGMAX:
        # Padding rows have a score of minus infinity and are never the maximum.
        codebook, half_norms = _interleave(codebook, 0.0), _interleave(half_norms, float("-inf"))
    return torch.cat([screened, _search(vectors, codebook, half_norms, lambda scores: _largest(scores, size))])


def _half_norms(codebook: torch.Tensor) -> torch.Tensor:
    """(K,): -|e|^2 / 2 of each row."""
    return codebook.square().sum(1).mul_(-0.5)


def _search(
    vectors: torch.Tensor,
    codebook: torch.Tensor,
    half_norms: torch.Tensor,
    pick: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """(N,) int64: the codes that `pick` chooses for each block of scores v.e - |e|^2 / 2, (n, K) to (n,).

    `pick` may modify the scores in place.
    """
    with torch.autocast(vectors.device.type, enabled=False), _float32_products():
        vectors, transposed = vectors.float(), codebook.t()
        codes = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
        rows = max(64, min(BLOCK_ROWS, BLOCK_FLOATS // len(codebook)))
        if vectors.is_cuda:
            rows *= 8  # small blocks leave a GPU idle between kernels
        buffer = _buffer(min(rows, len(vectors)) * len(codebook), vectors.device).view(-1, len(codebook))
        for start in range(0, len(vectors), rows):
            block = vectors[start : start + rows]
            scores = torch.addmm(half_norms, block, transposed, out=buffer[: len(block)])
            codes[start : start + rows] = pick(scores)
        return codes


def _buffer(size: int, device: torch.device) -> torch.Tensor:
    """(size,) uninitialised float32, valid until the next call in this thread.

    On a CPU the memory is kept between calls: memory returned to the system is mapped anew page by page, which takes
    as long as the search itself.
    """
    if device.type != "cpu":
        return torch.empty(size, device=device)
    buffer: torch.Tensor | None = getattr(_thread_local, "buffer", None)
    if buffer is None or len(buffer) < size:
        with torch.inference_mode(False):  # an inference tensor cannot be modified outside of inference mode
            buffer = _thread_local.buffer = torch.empty(size)
    return buffer[:size]


@contextmanager
def _float32_products() -> Iterator[None]:
    """Full float32 precision for float32 matrix products, whatever `torch.set_float32_matmul_precision` allows."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def _interleave(rows: torch.Tensor, padding: float) -> torch.Tensor:
    """Pad (K, ...) to a multiple of STRIDE rows, then move row c * (K / STRIDE) + r to r * STRIDE + c.

    Each column of `_largest` then holds consecutive codes, so that a tie between columns goes to the lower code.
    """
    missing = -len(rows) % STRIDE
    padded = torch.cat([rows, rows.new_full((missing, *rows.shape[1:]), padding)])
    return padded.view(STRIDE, -1, *rows.shape[1:]).transpose(0, 1).reshape(padded.shape)


def _largest(scores: torch.Tensor, size: int) -> torch.Tensor:
    """Code below `size` with the largest of scores (n, K), (n,) int64; ties go to the lowest code.

    More than `MAX_DIRECT_ARGMAX` columns are in the order of `_interleave`.
    """
    if scores.shape[1] <= MAX_DIRECT_ARGMAX:
        return scores.argmax(1)
    columns = scores.view(len(scores), -1, STRIDE)
    column = columns.amax(1).argmax(1)
    row = columns.gather(2, column[:, None, None].expand(-1, columns.shape[1], 1))[:, :, 0].argmax(1)
    # The scores of a vector that is not finite are NaN, at padding rows too.
    return (column * columns.shape[1] + row).clamp_(max=size - 1)


@torch.no_grad()
def sample_codes(vectors: torch.Tensor, codebook: torch.Tensor, temperature: float) -> torch.Tensor:
    """A random code for each vector, with probability proportional to exp(-|v - e|^2 / temperature).

    Drawn as the maximum of scores plus Gumbel noise, without computing probabilities. Lee et al. 2022 (RQ-VAE, section
    3.2) have the distribution.

    Args: as `nearest_codes`, and `temperature` > 0.

    Returns:
        (N,) int64.
    """
    codebook = codebook.float()

    def draw(scores: torch.Tensor) -> torch.Tensor:
        scores *= 2 / temperature
        scores -= torch.empty_like(scores).exponential_().log_()
        return scores.argmax(1)

    return _search(vectors, codebook, _half_norms(codebook), draw)


@torch.no_grad()
def sums_per_code(vectors: torch.Tensor, codes: torch.Tensor, codebook_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The number of vectors with each code, and their sum.

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
