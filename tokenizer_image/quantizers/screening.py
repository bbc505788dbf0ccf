"""Exact nearest codes with a bfloat16 product: exclude codes that cannot be nearest, compare the others in float32.

CPUs with bfloat16 instructions multiply bfloat16 matrices two to eight times as fast as float32. With v^ and e^ for
values rounded to bfloat16, Cauchy-Schwarz bounds the rounding error of a score,

    |v.e - v^.e^| <= |v - v^| |e| + |v^| |e - e^|,

so a code whose rounded score is further below the best one than twice that bound, plus the rounding of the scores
themselves, is not nearest. For random or trained vectors one to three candidates remain, whose distances |v - e|^2 are
then computed in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BLOCK_SCORES = 1 << 23  # limit on the bfloat16 scores in memory (16 MB)
BLOCK_ROWS = 4096
MIN_SIZE = 1024  # with fewer codes or vectors, float32 is as fast
GUESSES = 16  # codes whose exact scores give a first lower bound on the best score
ROUNDING = 2.0**-8  # upper bound on the relative error of rounding to bfloat16
ACCUMULATION = 2.0**-23  # upper bound on the relative error of a float32 addition
MAX_CANDIDATES = 16  # mean candidates per vector above which screening is not faster


def screening_pays(vectors: torch.Tensor, codebook: torch.Tensor) -> bool:
    """Whether `screened_codes` is faster than the float32 search for these sizes on this machine."""
    return vectors.device.type == "cpu" and min(len(vectors), len(codebook)) >= MIN_SIZE and has_bfloat16()


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16 products."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@dataclass
class Screen:
    """A codebook (K, D) prepared for bfloat16 products.

    A score is v.e - |e|^2 / 2 + offset(v), with v and e relative to the codebook's mean. One product computes all of
    it: the left factor has v and then 1, 1, 1, offset; `right`, (D + 4, K), has e and then -|e|^2 / 2 as a sum of three
    bfloat16 numbers (exact to float32) and 1. The offset makes the best score positive: positive bfloat16 numbers have
    the order of their bits read as int16, whose maximum a CPU finds several times as fast.

    Attributes:
        codebook: (K, D) float32.
        mean: (D,), of the codebook's rows.
        right: (D + 4, K) bfloat16, the right factor.
        guesses: (D, GUESSES), some rows relative to the mean, transposed.
        guess_norms: (GUESSES,), -|e|^2 / 2 of these rows.
        longest: largest |e|.
        longest_residual: largest |e - e^|.
        largest_half_norm: largest |e|^2 / 2.
    """

    codebook: torch.Tensor
    mean: torch.Tensor
    right: torch.Tensor
    guesses: torch.Tensor
    guess_norms: torch.Tensor
    longest: torch.Tensor
    longest_residual: torch.Tensor
    largest_half_norm: torch.Tensor

    @classmethod
    def of(cls, codebook: torch.Tensor) -> Screen:
        """Prepare a codebook (K, D) float32."""
        mean = codebook.mean(0)
        centred = codebook - mean
        rounded = centred.bfloat16()
        half_norms = centred.square().sum(1).mul_(-0.5)
        parts, rest = [], half_norms
        for _ in range(3):
            parts.append(rest.bfloat16())
            rest = rest - parts[-1].float()
        guessed = torch.linspace(0, len(codebook) - 1, GUESSES).long()
        return cls(
            codebook=codebook,
            mean=mean,
            right=torch.cat([rounded.t(), torch.stack([*parts, torch.ones_like(parts[0])])]),
            guesses=centred[guessed].t(),
            guess_norms=half_norms[guessed],
            longest=centred.norm(dim=1).amax(),
            longest_residual=(centred - rounded.float()).norm(dim=1).amax(),
            largest_half_norm=half_norms.abs().amax(),
        )

    def round(self, vectors: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        """Write vectors (n, D) and their offsets into `left` (n, D + 4) bfloat16.

        Returns:
            (n,): bound on the rounding error of each vector's scores.
        """
        dim = vectors.shape[1]
        centred = vectors - self.mean
        left[:, :dim] = centred
        rounded = left[:, :dim].float()
        length = rounded.norm(dim=1)
        guess = torch.addmm(self.guess_norms, centred, self.guesses).amax(1)
        centred -= rounded
        error = centred.norm(dim=1) * self.longest + length * self.longest_residual
        sizes = length * self.longest + self.largest_half_norm + guess.abs()
        error += sizes * ((dim + 8) * ACCUMULATION)
        # The best score is at least guess - error, so with an offset of 4 * error - guess it is at least 3 * error. The
        # offset is enlarged first, so that rounding it to bfloat16 cannot make it smaller.
        offset = 4 * error - guess
        left[:, dim + 3] = offset + offset.abs() * (2 * ROUNDING)
        return error

    def candidates(self, scores: torch.Tensor, error: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Candidates by scores (n, K) bfloat16: (m,) rows and (m,) codes, sorted by row. None if there are too many."""
        bits = scores.view(torch.int16)
        size = scores.shape[1]
        # The maximum is taken over columns first: column c has the codes c, c + size / depth, ...
        depth = next((d for d in (64, 32, 16, 8, 4, 2) if size % d == 0 and size // d >= 64), 1)
        columns = bits.view(len(bits), depth, size // depth)
        largest = columns.amax(1)
        best = largest.amax(1).view(torch.bfloat16).float()
        least = (best * (1 - 2 * ROUNDING) - 2 * error).bfloat16().view(torch.int16)
        row, column = (largest >= least[:, None]).nonzero(as_tuple=True)
        if len(row) > MAX_CANDIDATES * len(bits):
            return None
        pair, place = (columns[row, :, column] >= least[row, None]).nonzero(as_tuple=True)
        if len(pair) > MAX_CANDIDATES * len(bits):
            return None
        return row[pair], place * (size // depth) + column[pair]


def screened_codes(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """The nearest row of `codebook` (K, D) float32 for the first n of vectors (N, D); ties go to the lowest code.

    Returns:
        (n,) int64, n <= N. It ends before the first block with too many candidates (a codebook of equal rows, say);
        the caller searches for the other vectors in float32.
    """
    screen, size = Screen.of(codebook), len(codebook)
    rows = max(64, min(BLOCK_ROWS, BLOCK_SCORES // size))
    left = torch.ones(rows, len(screen.right), dtype=torch.bfloat16)
    buffer = torch.empty(rows, size, dtype=torch.bfloat16)
    codes = torch.empty(len(vectors), dtype=torch.int64)
    for start in range(0, len(vectors), rows):
        block = vectors[start : start + rows].float()
        count = len(block)
        error = screen.round(block, left[:count])
        candidates = screen.candidates(torch.mm(left[:count], screen.right, out=buffer[:count]), error)
        if candidates is None:
            return codes[:start]
        codes[start : start + count] = _nearest(block, codebook, *candidates)
    return codes


def _nearest(vectors: torch.Tensor, codebook: torch.Tensor, row: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """The nearest candidate of each of vectors (n, D), (n,) int64; ties go to the lowest code.

    Args:
        row, code: (m,) each: a candidate is a row of `vectors` and a code.
    """
    distance = (vectors[row] - codebook[code]).square_().sum(1)
    best = distance.new_full((len(vectors),), float("inf")).scatter_reduce_(0, row, distance, "amin")
    wins = distance == best[row]
    # A vector that is not finite has no winner and gets the last code.
    last = code.new_full((len(vectors),), len(codebook) - 1)
    return last.scatter_reduce_(0, row[wins], code[wins], "amin")
