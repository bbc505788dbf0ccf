"""Exact nearest codes from products in bfloat16: rule out what cannot be nearest, compare the rest in float32.

Processors with bfloat16 instructions multiply in it two to eight times as fast as in float32. With hats for numbers
rounded to bfloat16, Cauchy-Schwarz bounds what the rounding of both factors does to a score,

    |v.e - v^.e^| <= |v - v^| |e| + |v^| |e - e^|,

so a code whose rounded score lies further below the best one than twice that bound (and the rounding of the scores
themselves) is not nearest. Of random or trained vectors, one to three codes remain, whose distances are then computed
in float32, directly as |v - e|^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BLOCK_SCORES = 1 << 23  # at most so many bfloat16 scores (16 MB) exist at a time
BLOCK_ROWS = 4096
FEW = 1024  # with fewer codes or vectors, float32 is as fast
GUESSES = 16
ROUNDING = 2.0**-8  # largest relative error of rounding to bfloat16
ACCUMULATION = 2.0**-23  # of adding two numbers in float32, with room to spare
# Where more codes than this many a vector remain, screening does not pay.
CROWD = 16


def screening_pays(vectors: torch.Tensor, codebook: torch.Tensor) -> bool:
    """Whether a product in bfloat16 is so much faster here that `screened_codes` is worth its checks."""
    return vectors.device.type == "cpu" and min(len(vectors), len(codebook)) >= FEW and has_bfloat16()


def has_bfloat16() -> bool:
    """Whether this processor has instructions for products in bfloat16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@dataclass
class Screen:
    """A codebook (K, D) made ready for products in bfloat16.

    A score is v.e - |e|^2 / 2 + offset of v, with v and e taken from the codebook's mean, and all of it comes out of
    one product: rows of vectors go on with 1, 1, 1, offset, and `right`, (D + 4, K), with -|e|^2 / 2 in three bfloat16
    parts (exact to float32) and 1. The offset makes the best score positive, and positive bfloat16 numbers are in the
    same order as their bits read as int16, of which processors find the largest several times as fast.
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
        mean = codebook.mean(0)
        centred = codebook - mean
        rounded = centred.bfloat16()
        half_norms = centred.square().sum(1).mul_(-0.5)
        parts, rest = [], half_norms
        for _ in range(3):
            parts.append(rest.bfloat16())
            rest = rest - parts[-1].float()
        some = torch.linspace(0, len(codebook) - 1, GUESSES).long()
        return cls(
            codebook=codebook,
            mean=mean,
            right=torch.cat([rounded.t(), torch.stack([*parts, torch.ones_like(parts[0])])]),
            guesses=centred[some].t(),
            guess_norms=half_norms[some],
            longest=centred.norm(dim=1).amax(),
            longest_residual=(centred - rounded.float()).norm(dim=1).amax(),
            largest_half_norm=half_norms.abs().amax(),
        )

    def round(self, vectors: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        """Fill `left` (n, D + 4) bfloat16 from vectors (n, D); returns the bound on each one's scores, (n,)."""
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
        # The best score is at least the guess less the error; rounding the offset may take it no lower than 3 errors.
        offset = 4 * error - guess
        left[:, dim + 3] = offset + offset.abs() * (2 * ROUNDING)
        return error

    def candidates(self, scores: torch.Tensor, error: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Rows and codes, (m,) each, row by row, that may be nearest by scores (n, K) bfloat16; None: too many."""
        bits = scores.view(torch.int16)
        size = scores.shape[1]
        # Column c of these holds the codes c, c + columns, ...
        depth = next((d for d in (64, 32, 16, 8, 4, 2) if size % d == 0 and size // d >= 64), 1)
        dealt = bits.view(len(bits), depth, size // depth)
        largest = dealt.amax(1)
        best = largest.amax(1).view(torch.bfloat16).float()
        least = (best * (1 - 2 * ROUNDING) - 2 * error).bfloat16().view(torch.int16)
        row, column = (largest >= least[:, None]).nonzero(as_tuple=True)
        if len(row) > CROWD * len(bits):
            return None
        pair, place = (dealt[row, :, column] >= least[row, None]).nonzero(as_tuple=True)
        if len(pair) > CROWD * len(bits):
            return None
        return row[pair], place * (size // depth) + column[pair]


def screened_codes(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """The nearest row of `codebook` (K, D) float32 for the first vectors of (N, D), ties to the lowest.

    Returns:
        (n,) int64, n <= N: it ends before a block in which too many codes remain (a codebook of equal rows, say), and
        the rest is for a search that looks at all.
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
        remaining = screen.candidates(torch.mm(left[:count], screen.right, out=buffer[:count]), error)
        if remaining is None:
            return codes[:start]
        codes[start : start + count] = _nearest(block, codebook, *remaining)
    return codes


def _nearest(vectors: torch.Tensor, codebook: torch.Tensor, row: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """Of pairs of a row of vectors (n, D) and a code, each row's nearest, (n,); ties go to the lowest code."""
    distance = (vectors[row] - codebook[code]).square_().sum(1)
    best = distance.new_full((len(vectors),), float("inf")).scatter_reduce_(0, row, distance, "amin")
    wins = distance == best[row]
    # Where a vector is not finite nothing compares, and any code will do.
    last = code.new_full((len(vectors),), len(codebook) - 1)
    return last.scatter_reduce_(0, row[wins], code[wins], "amin")
