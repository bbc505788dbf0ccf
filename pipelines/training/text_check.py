"""Whether a trained language model keeps its text: how well it predicts text that is held out, before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lm.data.token_cache import TokenCache
from lm.pretrained import max_positions
from lm.sequences import IGNORED
from lm.training.losses import NextTokenLoss
from lm.vocabulary import MultimodalVocabulary
from pipelines.options.language_model import LanguageModelOptions
from pipelines.training.fine_tuning import first_new_id

TOKENS = 8192  # of the held-out text, at most: what a model of 0.5B reads in a minute or two on a CPU
WINDOW = 512  # tokens of a piece
BATCH = 2048  # tokens that are read at once


@dataclass(frozen=True)
class TextCheck:
    """Text that is held out.

    Attributes:
        source: where it is from, in words.
        windows: token ids of each piece, read by itself.
        num_ids: the text's ids are below this; the softmax runs over these alone, since the model before training has
            not learned that text is neither a code nor a special token.
    """

    source: str
    windows: Sequence[Sequence[int]]
    num_ids: int

    @property
    def num_tokens(self) -> int:
        """How many tokens are predicted."""
        return sum(len(window) - 1 for window in self.windows)

    @torch.no_grad()
    def measure(self, model: Any) -> float:
        """Mean nats of a token, of those that have another before them in their window."""
        was_training, device = model.training, model.device
        loss = NextTokenLoss(model.eval(), [(0, self.num_ids)])
        nats = 0.0
        for windows in self._batches():
            longest = max(map(len, windows))
            ids = torch.tensor([[*window, *[0] * (longest - len(window))] for window in windows], device=device)
            positions = torch.arange(longest, device=device).expand_as(ids)
            lengths = torch.tensor([len(window) for window in windows], device=device)
            is_text = (positions > 0) & (positions < lengths[:, None])  # padding comes after what reads it
            labels = ids.masked_fill(~is_text, IGNORED)
            nats += float(loss(ids, labels, positions, is_text.float())["text_nats"])
        model.train(was_training)
        return nats / self.num_tokens

    def _batches(self) -> Iterator[list[Sequence[int]]]:
        """Windows of similar lengths, with up to `BATCH` tokens together."""
        ordered = sorted(self.windows, key=len)
        while ordered:
            count = max(1, BATCH // len(ordered[-1]))
            yield ordered[-count:]
            del ordered[-count:]

    def line(self, before: float, after: float) -> str:
        """The comparison, in words."""
        return (
            f"text ({self.source}, {self.num_tokens} tokens): {before:.4g} nats a token before training, {after:.4g} "
            "after"
        )

    def to_dict(self, before: float, after: float | None = None) -> dict[str, Any]:
        """For run.json."""
        return {"source": self.source, "tokens": self.num_tokens, "nats_before": before, "nats_after": after}


def held_out_text(
    options: LanguageModelOptions, cache: TokenCache, vocabulary: MultimodalVocabulary, config: Any
) -> TextCheck | None:
    """The text of --text_check, else with --lm_name_or_path the captions of the validation split; None without either.

    Each caption is read by itself, a file in windows of `WINDOW` tokens; the model's own begin token stands before
    them, where it has one.

    Args:
        cache: of the validation split.
        config: the language model's.

    Raises:
        ValueError: the file is no text in UTF-8, or too little of it.
    """
    if options.text_check:
        source, texts = options.text_check, [_read(options.text_check)]
    elif options.lm_name_or_path:
        source, texts = "captions of the validation split", list(cache.some_texts(TOKENS))
    else:
        return None
    first = first_new_id(options)
    start = [vocabulary.bos_id] if vocabulary.bos_id < first else []
    length = min(WINDOW, max_positions(config)) - len(start)
    windows: list[list[int]] = []
    total = 0
    for ids in vocabulary.encode_texts(texts):
        pieces = [start + ids[place : place + length] for place in range(0, len(ids), length)]
        for window in (piece for piece in pieces if len(piece) > 1):
            if total >= TOKENS:
                break
            windows.append(window)
            total += len(window) - 1
    if not windows:
        if options.text_check:
            raise ValueError(f"--text_check {source}: there is too little text in it: give at least a few words")
        return None
    return TextCheck(source, windows, max(first, 1 + max(max(window) for window in windows)))


def _read(file: str) -> str:
    """The start of a text file, as much as can be needed."""
    try:
        with Path(file).open(encoding="utf-8") as opened:
            return opened.read(64 * TOKENS)
    except UnicodeDecodeError as error:
        raise ValueError(f"--text_check {file}: not a text in UTF-8 ({error}): convert it") from error
