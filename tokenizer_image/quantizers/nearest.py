"""The hot path of every lookup quantizer: the nearest code, and sums per code, without an N x K tensor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tokenizer_image.quantizers.screening import screened_codes, screening_pays

# At most so many scores (16 MB) exist at a time: the product is quick only in blocks of some hundred rows, and what
# follows it wants to find the block in the processor's cache.
BLOCK_FLOATS = 1 << 22
BLOCK_ROWS = 8192
# The search takes the maximum over columns that lie this far apart, which a processor does for many columns at once;
# torch.argmax over a whole row looks at one number at a time.
STRIDE = 64
# Fewer codes are searched whole.
FEW = 256
_held = threading.local()


@torch.no_grad()
def nearest_codes(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Index of the nearest row of `codebook` (squared Euclidean distance) for each vector.

    |v - e|^2 = |v|^2 - 2 (v.e - |e|^2 / 2), and |v|^2 is the same for every row, so the nearest row has the
    largest v.e - |e|^2 / 2. Computed in float32 whatever autocast and the settings for faster products say, block by
    block, so that no more than `BLOCK_FLOATS` scores exist at a time. Where the processor multiplies bfloat16 faster, a
    product in it first rules out what cannot be nearest (`screening`); the codes are as exact. Ties go to the lowest
    index.

    Args:
        vectors: (N, D) float.
        codebook: (K, D) float.

    Returns:
        (N,) int64.
    """
    codebook, size = codebook.float(), len(codebook)
    found = vectors.new_empty(0, dtype=torch.int64)
    if screening_pays(vectors, codebook):
        with torch.autocast(vectors.device.type, enabled=False):
            found = screened_codes(vectors, codebook)
        vectors = vectors[len(found) :]  # where screening rules out too little
        if not len(vectors):
            return found
    half_norms = _half_norms(codebook)
    if size > FEW:
        codebook, half_norms = _deal(codebook, 0.0), _deal(half_norms, float("-inf"))  # what is added never wins
    return torch.cat([found, _search(vectors, codebook, half_norms, lambda scores: _largest(scores, size))])


def _half_norms(codebook: torch.Tensor) -> torch.Tensor:
    """(K,): -|e|^2 / 2 of each row."""
    return codebook.square().sum(1).mul_(-0.5)


def _search(
    vectors: torch.Tensor,
    codebook: torch.Tensor,
    half_norms: torch.Tensor,
    pick: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """What `pick` makes, (n,) int64, of blocks of scores v.e - |e|^2 / 2, (n, K), which it may write into."""
    with torch.autocast(vectors.device.type, enabled=False), _float32_products():
        vectors, transposed = vectors.float(), codebook.t()
        codes = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
        rows = max(64, min(BLOCK_ROWS, BLOCK_FLOATS // len(codebook)))
        if vectors.is_cuda:
            rows *= 8  # a graphics card is idle between small blocks
        buffer = _buffer(min(rows, len(vectors)) * len(codebook), vectors.device).view(-1, len(codebook))
        for start in range(0, len(vectors), rows):
            block = vectors[start : start + rows]
            scores = torch.addmm(half_norms, block, transposed, out=buffer[: len(block)])
            codes[start : start + rows] = pick(scores)
        return codes


def _buffer(size: int, device: torch.device) -> torch.Tensor:
    """(size,) float32 of any content, valid until the next call in this thread.

    On a CPU the memory is held from call to call: what is given back to the system has to be made anew, page by page,
    which takes as long as the search itself.
    """
    if device.type != "cpu":
        return torch.empty(size, device=device)
    held: torch.Tensor | None = getattr(_held, "buffer", None)
    if held is None or len(held) < size:
        with torch.inference_mode(False):  # an inference tensor could not be written to outside
            held = _held.buffer = torch.empty(size)
    return held[:size]


@contextmanager
def _float32_products() -> Iterator[None]:
    """Matrix products of float32 in float32, also where `torch.set_float32_matmul_precision` allows others."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


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
    codebook = codebook.float()

    def draw(scores: torch.Tensor) -> torch.Tensor:
        scores *= 2 / temperature
        scores -= torch.empty_like(scores).exponential_().log_()
        return scores.argmax(1)

    return _search(vectors, codebook, _half_norms(codebook), draw)


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
