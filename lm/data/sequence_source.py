"""Rows of a token cache to sequences: the choice of format and caption, caption dropout, and cropping."""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, product

import numpy as np

from lm.data.code_noise import CodeNoise
from lm.data.shards import EDIT_ORDERS
from lm.data.token_cache import TokenCache
from lm.sequences import (
    FORMATS,
    Picture,
    TokenSequence,
    check_mixture,
    document_sequence,
    edit_text,
    token_sequence,
)
from lm.vocabulary import MultimodalVocabulary

# Streams of random numbers, each keyed by (seed, epoch, ...), so that no stream depends on how much another has drawn.
ROW_ORDER, BLOCK_ORDER, CHOICES, BUCKETS, NOISE, VIEWS = range(6)

CACHED_TOKENS = 5_000_000  # token ids of texts kept in memory, at about 36 bytes each


PHRASE_ENDS = re.compile(r"[,;.:!?](?=\s)|[、，；。：！？]|(?=\s(?:and|with)\s)")  # a phrase ends behind or before one


def drop_phrases(text: str, share: float, rng: np.random.Generator) -> str:
    """A caption without some of its phrases, in their order: each is left out with probability `share`, and one is
    always kept. Phrases end at punctuation and in front of "and" and "with"."""
    ends = [match.end() for match in PHRASE_ENDS.finditer(text)]
    parts = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    phrases = [part for part in parts if part.strip()]
    draws = rng.random(len(phrases))
    if len(phrases) < 2 or (draws >= share).all():
        return text
    kept = [phrase for phrase, draw in zip(phrases, draws, strict=True) if draw >= share]
    return "".join(kept or [phrases[int(draws.argmax())]]).strip(" ,;:、，；：\t\n")


def keyed_generator(*key: int) -> np.random.Generator:
    """A generator that depends on its key alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@dataclass(frozen=True)
class Item:
    """A row of the cache with the choices that make one sequence of it.

    Attributes:
        row: of the cache.
        format: the sequence format.
        texts: token ids of the texts that it has, in order.
        order: the parts of an interleaved row that fit, in order, "t" and "i" each; "" for other rows.
        whole: whether an interleaved row keeps all of it.
        length: tokens of the sequence.
        key: (seed, epoch) of the noise on its codes; empty for none.
        view: 0 for the picture itself, else the number of one of the source's `views`, from 1.
    """

    row: int
    format: str
    texts: tuple[list[int], ...]
    order: str = ""
    whole: bool = True
    length: int = 0
    key: tuple[int, ...] = ()
    view: int = 0


def default_mixture() -> dict[str, float]:
    """Drawing alone."""
    return {"caption_to_image": 1.0}


@dataclass
class SequenceSource:
    """Rows of a token cache as sequences; format, caption and dropout are keyed by (seed, epoch, row).

    A row that cannot take a format takes one that it can: among those of the mixture by their weights, else `image`
    where it has no text, `text` where it has no picture, and where it is interleaved `document`, or `edit` where all
    rows are a picture, a text and a picture.

    Attributes:
        caption_dropout: share of rows that are drawn without their caption (the `image` format).
        edit_dropout: share of edits that are drawn without their instruction (`image_to_image`), and as large a share
            without instruction and source (the result's `image`), for guidance over both (Brooks et al. 2023).
        mixture: weight of each sequence format.
        max_length: most tokens of a sequence.
        drop_long: leave longer ones out, in place of cropping them: a caption loses its end, an interleaved row what
            does not fit (a picture whole, a text its end, and all that follows).
        max_caption_tokens: longer captions lose their end, even where `max_length` has room for them.
        noise: what replaces some of the codes that are read, keyed by (seed, epoch, row).
        phrase_dropout: share of a caption's phrases that are left out, keyed by (seed, epoch, row); one is always kept.
        views: caches of other views of the same rows, crops for example. In one epoch after the other, a row takes all
            of them and its own picture in turn, from one on that is keyed by (seed, row).
        cropped, dropped: how many rows have been cropped, and left out, so far.
    """

    cache: TokenCache
    vocabulary: MultimodalVocabulary
    caption_dropout: float = 0.1
    mixture: dict[str, float] = field(default_factory=default_mixture)
    max_length: int = 1 << 30
    drop_long: bool = False
    max_caption_tokens: int = 1 << 30
    noise: CodeNoise | None = None
    phrase_dropout: float = 0.0
    views: Sequence[TokenCache] = ()
    edit_dropout: float = 0.0
    cropped: int = field(default=0, init=False)
    dropped: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        check_mixture(self.mixture)
        for view in self.views:
            if len(view) != len(self.cache):
                raise ValueError(
                    f"the token cache {view.folder} has {len(view)} rows, that of the plain pictures "
                    f"{len(self.cache)}: delete {view.folder} to build it again"
                )
        self._encoded: dict[str, list[int]] = {}
        self._num_cached = 0  # tokens in `_encoded`
        self._pictures_everywhere = not (self.cache.count(True, False) or self.cache.count(False, False))
        # Names and running sums of weights, by what a row has: text, codes, an order of its own, that of an edit.
        self._possible: dict[tuple[bool, bool, bool, bool], tuple[list[str], list[float]]] = {}
        for text, codes, interleaved, edit in product((False, True), repeat=4):
            possible = self.possible(text, codes, interleaved, edit)
            self._possible[text, codes, interleaved, edit] = list(possible), list(accumulate(possible.values()))

    def possible(
        self, has_text: bool, has_codes: bool, interleaved: bool = False, edit: bool = False
    ) -> dict[str, float]:
        """Formats, and their weights, that a row with or without a text and a picture, or an interleaved one, an `edit`
        or not, can take."""
        fitting = {
            name: weight
            for name, weight in self.mixture.items()
            if weight > 0 and FORMATS[name].fits(has_text, has_codes, interleaved, edit)
        }
        if fitting:
            return fitting
        if edit and self.cache.is_of_edits:
            return {"edit": 1.0}
        return {"document" if interleaved else "image" if has_codes else "text": 1.0}

    def contents(self, row: int, texts: Sequence[str]) -> tuple[bool, bool, bool, bool]:
        """What a row with these texts has, as `possible` takes it."""
        order = self.cache.order(row)
        has_codes = self._pictures_everywhere or len(self.cache.codes(row)) > 0
        return bool(texts), has_codes, len(order) > 1, order in EDIT_ORDERS

    def trained_formats(self) -> list[str]:
        """The formats that rows of this cache are learned in, in the order of `FORMATS`."""
        names: set[str] = set()
        edits = self.cache.num_edits
        for text, codes, interleaved in product((False, True), repeat=3):
            if self.cache.count(text, codes, interleaved) > (edits if text and codes and interleaved else 0):
                names.update(self.possible(text, codes, interleaved))
        if edits:
            names.update(self.possible(True, True, True, True))
        if self.edit_dropout > 0 and any(FORMATS[name].edits and FORMATS[name].has_text for name in names):
            names.update(("image_to_image", "image"))
        if self.caption_dropout > 0 and any(FORMATS[name].drops_captions for name in names):
            names.add("image")
        return [name for name in FORMATS if name in names]

    def choose(self, seed: int, epoch: int, rows: np.ndarray) -> list[tuple[str, str | None]]:
        """Format of each row in this epoch, and one of its texts where the format takes one."""
        chosen: list[tuple[str, str | None]] = []
        for row in map(int, rows):
            rng = keyed_generator(seed, CHOICES, epoch, row)
            dropout, choice, which = rng.random(3)
            texts = self.cache.texts(row)
            names, sums = self._possible[self.contents(row, texts)]
            name = names[bisect(sums, which * sums[-1])]  # which < 1
            if FORMATS[name].drops_captions and dropout < self.caption_dropout:
                name = "image"
            if FORMATS[name].edits and FORMATS[name].has_text and dropout < 2 * self.edit_dropout:
                name = "image_to_image" if dropout < self.edit_dropout else "image"
            text = None
            if FORMATS[name].has_text:
                text = edit_text(texts) if FORMATS[name].edits else texts[int(choice * len(texts))]
            if text is not None and self.phrase_dropout and not FORMATS[name].edits:
                text = drop_phrases(text, self.phrase_dropout, rng)
            chosen.append((name, text))
        return chosen

    def viewed(self, item: Item, seed: int, epoch: int) -> Item:
        """The row in one of its views, which is the one for this epoch."""
        if not FORMATS[item.format].has_codes:
            return item
        first = int(keyed_generator(seed, VIEWS, item.row).integers(len(self.views) + 1))
        view = (first + epoch) % (len(self.views) + 1)
        if view and self.views[view - 1].image_sizes(item.row) != self.cache.image_sizes(item.row):
            return item  # its sequence would have another length
        return replace(item, view=view)

    def items(self, rows: Sequence[int] | np.ndarray, chosen: Sequence[tuple[str, str | None]]) -> list[Item]:
        """Rows with the choices of `choose`; rows that are too long are cropped, or left out."""
        texts = [
            self.cache.texts(int(row)) if FORMATS[name].interleaved else [] if text is None else [text]
            for row, (name, text) in zip(rows, chosen, strict=True)
        ]
        self._encode([text for row in texts for text in row])
        items = []
        for row, (name, _), row_texts in zip(rows, chosen, texts, strict=True):
            ids = [self._encoded[text] for text in row_texts]
            make = self._document_item if FORMATS[name].interleaved else self._item
            item, too_long = make(int(row), name, ids)
            if too_long and self.drop_long:
                self.dropped += 1
                continue
            self.cropped += too_long
            items.append(item)
        return items

    def _encode(self, texts: Sequence[str]) -> None:
        """Tokenize texts into `_encoded`, each once, cut to one token more than a sequence may have."""
        new = list(set(texts) - self._encoded.keys())
        if self._num_cached > CACHED_TOKENS:
            self._encoded.clear()
            self._num_cached, new = 0, list(set(texts))
        if new:
            encoded = [ids[: self.max_length + 1] for ids in self.vocabulary.encode_texts(new)]
            self._encoded.update(zip(new, encoded, strict=True))
            self._num_cached += sum(map(len, encoded)) + len(encoded)

    def _item(self, row: int, name: str, texts: list[list[int]]) -> tuple[Item, bool]:
        """A captioned row, its text cut to fit, and whether anything was cut."""
        layout = FORMATS[name]
        sizes = self.cache.image_sizes(row) if layout.has_codes else []
        read = sizes if layout.edits else sizes[-1:]
        used = layout.frame + sum(len(self.vocabulary.picture(size)) for size in read)
        room = self.max_length - used
        if room < 0:
            raise ValueError(
                f"a picture in the format {name} takes {used} tokens, more than the {self.max_length} that a sequence "
                "may have: raise --max_length"
            )
        room = min(room, self.max_caption_tokens) if layout.has_codes else room
        cropped = tuple(text[:room] for text in texts)
        return Item(row, name, cropped, length=used + sum(map(len, cropped))), any(len(text) > room for text in texts)

    def _document_item(self, row: int, name: str, texts: list[list[int]]) -> tuple[Item, bool]:
        """An interleaved row, cut where it does not fit, and whether anything was cut."""
        order, sizes = self.cache.order(row), iter(self.cache.image_sizes(row))
        kept, length = "", FORMATS[name].frame
        kept_texts: list[list[int]] = []
        for part in order:
            needed = len(self.vocabulary.picture(next(sizes))) + 2 if part == "i" else len(texts[len(kept_texts)])
            room = self.max_length - length
            if needed > room and (part == "i" or room <= 0):
                if not kept:
                    raise ValueError(
                        f"a picture in the format {name} takes {needed + length} tokens, more than the "
                        f"{self.max_length} that a sequence may have: raise --max_length"
                    )
                break
            if part == "t":
                kept_texts.append(texts[len(kept_texts)][:room])
            kept, length = kept + part, length + min(needed, room)
            if needed > room:
                break
        whole = kept == order and all(len(a) == len(b) for a, b in zip(kept_texts, texts, strict=True))
        return Item(row, name, tuple(kept_texts), kept, whole, length if whole else length - 1), not whole

    def pictures(self, row: int, view: int = 0) -> list[Picture]:
        """The pictures of a row, in order, in one of its views."""
        cache = self.views[view - 1] if view else self.cache
        codes, start, found = cache.codes(row), 0, []
        for size in cache.image_sizes(row):
            count = len(self.vocabulary.picture(size).places)
            found.append(Picture(codes[start : start + count], size))
            start += count
        return found

    def sequence(self, item: Item) -> TokenSequence:
        """The sequence of one row, with noise on its codes where the item has a key."""
        sequence = self._plain_sequence(item)
        if self.noise is None or not item.key:
            return sequence
        seed, epoch = item.key
        return self.noise.applied(sequence, keyed_generator(seed, NOISE, epoch, item.row))

    def _plain_sequence(self, item: Item) -> TokenSequence:
        if not FORMATS[item.format].interleaved:
            text = item.texts[0] if item.texts else None
            if not FORMATS[item.format].has_codes:
                return token_sequence(self.vocabulary, item.format, text)
            pictures = self.pictures(item.row, item.view)
            return token_sequence(self.vocabulary, item.format, text, *pictures[-1], source=pictures[0])
        texts, pictures_left = iter(item.texts), iter(self.pictures(item.row))
        parts: list[list[int] | Picture] = [next(texts) if part == "t" else next(pictures_left) for part in item.order]
        return document_sequence(self.vocabulary, parts, item.whole)
