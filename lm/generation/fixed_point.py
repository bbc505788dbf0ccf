"""Several codes a call of the model, and the very codes that drawing one by one gives.

A code is a function of its logits and of its own random number, so a picture is the one row of codes that agrees with
itself, and fixed-point iteration finds it (predictive sampling, Wiggers and Hoogeboom 2020; Jacobi decoding, Song et
al. 2021): guess the codes that follow, compute the logits of all of them in one call, take each code again with its
own number, and keep those up to and including the first that was guessed wrong. Each call fixes one code at least. A
wrong code's successors were drawn after a wrong prefix, and are the next guesses of their places; where such a draw
was what its neighbours made likely, the guess follows them as they change.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch

from lm.generation.guesses import Guesser
from lm.generation.picture_rows import PictureRows
from lm.generation.sampling import choose
from lm.generation.stepper import Stepper, check_finite
from lm.generation.task import UNDRAWN

LEAST_WINDOW = 4  # codes computed in a call, while few of the guesses are kept


class FixedPoint:
    """One batch of b pictures, whose tokens from the first code to draw on are numbered 0 .. L - 1.

    Args:
        rows: the pictures.
        stepper: after their prompts, and the codes before `first`.
        codes: (b, T), UNDRAWN where to draw.
        first: the first position that is drawn in any picture.
        guesser: proposes codes at positions whose logits were never computed.
        most: codes computed in one call of the model, at most.
    """

    def __init__(
        self, rows: PictureRows, stepper: Stepper, codes: torch.Tensor, first: int, guesser: Guesser, most: int
    ) -> None:
        self._rows, self._stepper, self._guesser, self._most = rows, stepper, guesser, most
        picture, self._offset = rows.picture, rows.vocabulary.image_offset
        start, stop = picture.places[first], picture.places[-1] + 1
        self._first, self._length = first, int(stop - start)
        self._places = picture.places[first:] - start  # of the codes among the tokens
        self._position = np.full(self._length, -1)  # of each token that is a code
        self._position[self._places] = np.arange(first, len(picture.places))
        self._codes = codes.cpu().numpy().copy()
        self._open = np.zeros((len(codes), self._length), bool)  # to draw
        self._open[:, self._places] = self._codes[:, first:] == UNDRAWN
        self._tokens = np.tile(picture.ids[start:stop], (len(codes), 1))
        self._tokens[:, self._places] = self._offset + self._codes[:, first:]
        self._known = np.zeros(len(codes), np.int64)  # leading tokens that are those of drawing one by one
        self._fed = np.zeros(len(codes), np.int64)  # leading tokens, all known, whose keys and values are in the cache
        self._proposed = np.full_like(self._tokens, -1)  # what the guesser said last
        self._follows = np.ones_like(self._open)  # whether the guesser is believed: it was not wrong, or not asked yet
        self._window = float(most)
        self._finite = torch.zeros((), device=stepper.device)

    def steps(self) -> Iterator[torch.Tensor]:
        """Codes (b, t) that all pictures have after each call of the model, the prompt's first; t up to T."""
        low, high = self._range(0)
        logits = self._stepper.logits(low, high)
        self._finite = self._finite + logits.sum()
        drawn = low + self._rows.choose(self._first, logits).cpu().numpy()
        self._tokens[:, 0] = np.where(self._open[:, 0], drawn, self._tokens[:, 0])
        self._known += 1
        self._skip_given()
        yield self._drawn()
        while (self._known < self._length).any():
            self._call()
            yield self._drawn()
        check_finite(self._finite.isfinite())

    def _range(self, token: int) -> tuple[int, int]:
        """The ids low .. high - 1 that a token can be."""
        layout, position = self._rows.picture.layout, self._position[token]
        return self._offset + layout["low"][position], self._offset + layout["high"][position]

    def _drawn(self) -> torch.Tensor:
        """Codes (b, t) that are known in all pictures."""
        count = int(np.searchsorted(self._places, self._known.min()))
        self._codes[:, self._first : self._first + count] = self._tokens[:, self._places[:count]] - self._offset
        return torch.from_numpy(self._codes[:, : self._first + count].copy()).to(self._stepper.device)

    def _skip_given(self) -> None:
        """Count tokens that need not be drawn as known: codes that are forced, and ends of rows of codes."""
        for row in range(len(self._known)):
            while self._known[row] < self._length and not self._open[row, self._known[row]]:
                self._known[row] += 1

    def _call(self) -> None:
        """Compute a window of tokens in each picture that is not done, and keep what agrees."""
        active = self._known < self._length
        starts = self._fed.copy()
        if not self._stepper.rows_apart:
            starts[:] = starts[active].min()
        window = min(self._most, max(LEAST_WINDOW, round(self._window)))
        ends = np.minimum(np.maximum(starts + window, self._known), self._length - 1)
        if self._stepper.rows_apart:
            ends[~active] = starts[~active]
        else:
            ends[:] = ends[active].max()
        self._guess(ends)
        self._feed(starts, ends)
        drawn = self._draw(starts, ends)
        kept = 0
        for row in np.flatnonzero(active).tolist():
            before = self._known[row]
            self._keep(row, int(ends[row]), drawn[row])
            kept += self._known[row] - before
        self._skip_given()
        # More than is kept: a place beyond the first wrong guess is drawn again before its turn, and guessed better.
        self._window += 0.3 * (4 * kept / active.sum() + 2 - self._window)

    def _guess(self, ends: np.ndarray) -> None:
        """Guess the codes of tokens before `ends` (b,) that are not known."""
        codes = self._codes.copy()
        codes[:, self._first :] = self._tokens[:, self._places] - self._offset
        for token in range(int(self._known.min()), int(ends.max())):
            rows = np.flatnonzero((self._known <= token) & (token < ends) & self._open[:, token])
            if len(rows):
                position = self._position[token]
                self._proposed[rows, token] = self._offset + self._guesser.guess(codes[rows], position, rows)
                follows = rows[self._follows[rows, token]]
                self._tokens[follows, token] = self._proposed[follows, token]
                codes[rows, position] = self._tokens[rows, token] - self._offset

    def _feed(self, starts: np.ndarray, ends: np.ndarray) -> None:
        width = int((ends - starts).max())
        ids = np.full((len(starts), width), -1)
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            ids[row, : end - start] = self._tokens[row, start:end]
        twins = self._rows.rows_of_picture
        self._stepper.feed(torch.from_numpy(np.tile(ids, (twins, 1))), torch.from_numpy(np.tile(starts, twins)))

    def _draw(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Tokens (b, L): codes drawn after the fed tokens, and as they were elsewhere."""
        drawn, groups = self._tokens.copy(), defaultdict(list)
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            for token in range(max(int(start) + 1, int(self._known[row])), int(end) + 1):
                if self._open[row, token]:
                    settings = self._rows.settings[self._position[token]]
                    groups[id(settings), self._range(token)].append((row, token))
        twins, count = self._rows.rows_of_picture, len(self._known)
        for (_, (low, high)), places in groups.items():
            rows, tokens = np.array(places).T
            positions = self._position[tokens]
            model_rows = np.concatenate([rows + count * twin for twin in range(twins)])
            columns = np.tile(tokens - 1 - starts[rows], twins)
            logits = self._stepper.logits_at(torch.from_numpy(model_rows), torch.from_numpy(columns), low, high)
            self._finite = self._finite + logits.sum()
            settings = self._rows.settings[positions[0]]
            noise = None
            if settings.temperature:
                noise = self._rows.noise.of(torch.from_numpy(rows), torch.from_numpy(positions))
            drawn[rows, tokens] = low + choose(self._rows.guided(logits, settings), noise, settings).cpu().numpy()
        return drawn

    def _keep(self, row: int, end: int, drawn: np.ndarray) -> None:
        """Take over what was drawn (L,) in a row whose tokens before `end` were fed."""
        token, agrees = int(self._known[row]), True
        while agrees and token <= end:  # the logits of token `end` are known, and all before it are right
            if self._open[row, token]:
                agrees = token < end and drawn[token] == self._tokens[row, token]
            token += 1
        self._known[row] = token
        self._fed[row] = end if agrees else min(end, token - 1)
        self._tokens[row, : end + 1] = drawn[: end + 1]
        self._follows[row, : end + 1] = drawn[: end + 1] == self._proposed[row, : end + 1]
