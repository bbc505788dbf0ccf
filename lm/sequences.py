"""Text and codes to the sequences that the language model reads. Every sequence format is here.

| format              | sequence                                      | learned                                   |
|---------------------|-----------------------------------------------|-------------------------------------------|
| `caption_to_image`  | bos text begin_image codes                    | codes                                     |
| `caption_and_image` | bos text begin_image codes end_image eos      | all but bos, as in DALL-E (Ramesh 2021)   |
| `image`             | bos begin_image codes                         | codes                                     |
| `image_to_caption`  | bos begin_image codes end_image text eos      | text eos                                  |
| `image_and_caption` | bos begin_image codes end_image text eos      | codes text eos                            |
| `text`              | bos text eos                                  | text eos                                  |
| `edit`              | bos text begin_image source end_image         | codes                                     |
|                     | begin_image codes                             |                                           |
| `image_to_image`    | bos begin_image source end_image begin_image  | codes                                     |
|                     | codes                                         |                                           |
| `document`          | bos then texts and pictures in the row's own  | all but bos                               |
|                     | order, then eos; a picture is begin_image     |                                           |
|                     | codes end_image                               |                                           |

`document` is for interleaved rows. Those that are edits (`lm.data.shards.EDIT_ORDERS`: a source picture, an instruction
and the result, with or without a text in front) may also take `edit`, of which dropout makes `image_to_image` or the
result's `image`, for guidance over the instruction and over the picture (Brooks et al. 2023). The instruction comes
first: then each code of the source stands at the same distance from the place of the result that it may be copied to,
which rotary positions learn at once, and what is read from the source may depend on the instruction.

Where a model draws several sizes, a size token follows each begin_image, learned where begin_image is learned (the
model then chooses the size), and end-of-row tokens are among the codes, never learned (`lm.vocabulary.PictureTokens`).

`image_and_caption` teaches to describe, and its codes, which have no text before them, what `image` teaches: beside
`caption_to_image` it takes the place of caption dropout, and the model draws about as well as one that does not
describe.

`image` is also what caption dropout makes of the first two; its prompt is the unconditional one of classifier-free
guidance (Ho and Salimans 2022). Where nothing after the last code is learned, the sequence ends with it: end_image and
eos would only cost time. Every learned token has weight 1 here; `lm.training.losses.balance` weighs the text of a
batch against its codes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from lm.vocabulary import MultimodalVocabulary, Size

IGNORED = -100


@dataclass(frozen=True)
class SequenceFormat:
    """What a sequence is made of.

    Attributes:
        parts: in order, "text", "codes", "source" (the picture that an edit starts from), "parts" (all of an
            interleaved row), or a special token: "bos", "eos", "boi", "eoi" (begin and end of image).
        learned: for each part, whether it carries loss.
    """

    parts: tuple[str, ...]
    learned: tuple[bool, ...]

    def fits(self, has_text: bool, has_codes: bool, interleaved: bool = False, edit: bool = False) -> bool:
        """Whether a row with or without a text and a picture, or an interleaved one, an `edit` or not, can take it."""
        if self.edits:
            return edit
        if interleaved or self.interleaved:
            return interleaved and self.interleaved
        return has_text >= self.has_text and has_codes >= self.has_codes

    @property
    def interleaved(self) -> bool:
        """Whether it takes all texts and pictures of a row, in the row's order."""
        return "parts" in self.parts

    @property
    def edits(self) -> bool:
        """Whether it takes two pictures, of which the second is drawn from the first."""
        return "source" in self.parts

    @property
    def has_text(self) -> bool:
        """Whether it takes a text."""
        return "text" in self.parts

    @property
    def has_codes(self) -> bool:
        """Whether it takes a picture."""
        return "codes" in self.parts

    @property
    def draws(self) -> bool:
        """Whether codes are learned."""
        return any(
            part in ("codes", "parts") and learned for part, learned in zip(self.parts, self.learned, strict=True)
        )

    @property
    def writes(self) -> bool:
        """Whether text is learned."""
        return any(part != "codes" and learned for part, learned in zip(self.parts, self.learned, strict=True))

    @property
    def draws_alone(self) -> bool:
        """Whether codes are learned that no text stands before: the unconditional half of guidance."""
        return self.draws and self.parts[:3] == ("bos", "boi", "codes")

    @property
    def drops_captions(self) -> bool:
        """Whether caption dropout makes an `image` of it: codes are learned after a text alone."""
        return self.draws and self.has_text and not self.draws_alone and not self.edits

    @property
    def describes(self) -> bool:
        """Whether a text is learned after a picture."""
        return self.writes and self.parts[-2:] == ("text", "eos") and self.has_codes

    @property
    def frame(self) -> int:
        """How many special tokens it has."""
        return sum(part not in ("text", "codes", "source", "parts") for part in self.parts)


def _format(parts: str) -> SequenceFormat:
    """Parts in order; a star marks what is learned."""
    words = parts.split()
    return SequenceFormat(tuple(word.rstrip("*") for word in words), tuple(word.endswith("*") for word in words))


FORMATS: dict[str, SequenceFormat] = {
    "caption_to_image": _format("bos text boi codes*"),
    "caption_and_image": _format("bos text* boi* codes* eoi* eos*"),
    "image": _format("bos boi codes*"),
    "image_to_caption": _format("bos boi codes eoi text* eos*"),
    "image_and_caption": _format("bos boi codes* eoi text* eos*"),
    "text": _format("bos text* eos*"),
    "edit": _format("bos text boi source eoi boi codes*"),
    "image_to_image": _format("bos boi source eoi boi codes*"),
    "document": _format("bos parts* eos*"),
}


# Formats that teach a use, for `MultimodalVocabulary.check_trained`.
DESCRIBING = tuple(name for name, layout in FORMATS.items() if layout.describes)
DRAWING_ALONE = tuple(name for name, layout in FORMATS.items() if layout.draws_alone)
DRAWING_CAPTIONS = tuple(name for name, layout in FORMATS.items() if layout.drops_captions)
EDITING = tuple(name for name, layout in FORMATS.items() if layout.edits and layout.has_text)


def check_mixture(weights: Mapping[str, float]) -> None:
    """Raise ValueError unless these are weights of known formats that sum to something."""
    for name, weight in weights.items():
        if name not in FORMATS:
            raise ValueError(f"unknown sequence format {name!r}: choose among {', '.join(FORMATS)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"sequence format {name} has weight {weight}: give a number that is at least zero")
    if not sum(weights.values()) > 0:
        given = " ".join(f"{name}={weight:g}" for name, weight in weights.items()) or "none"
        raise ValueError(f"the weights of the sequence formats sum to nothing ({given}): give one a weight above zero")


def parse_mixture(words: Sequence[str]) -> dict[str, float]:
    """["caption_to_image=3", "image_to_caption"] to the weight of each format that has one above zero; alone, a name
    has weight 1.

    Raises:
        ValueError: an unknown format, one that is named twice, or weights that `check_mixture` refuses.
    """
    weights: dict[str, float] = {}
    for word in words:
        name, equals, number = word.partition("=")
        if name in weights:
            raise ValueError(f"sequence format {name} is named twice: give it one weight")
        try:
            weights[name] = float(number) if equals else 1.0
        except ValueError:
            raise ValueError(f"sequence format {word!r}: write {name}=NUMBER, for example {name}=1") from None
    check_mixture(weights)
    return {name: weight for name, weight in weights.items() if weight > 0}


def learned_kinds(names: Collection[str]) -> tuple[bool, bool]:
    """Whether text, and whether image codes, are learned in any of the formats of these names."""
    formats = [FORMATS[name] for name in names]
    return any(each.writes for each in formats), any(each.draws for each in formats)


def loss_shares(names: Collection[str], text_loss_weight: float, image_loss_weight: float) -> tuple[float, float]:
    """Shares of text and of image codes in the loss, with sum 1: in proportion to the weights (above zero) where the
    formats of these names learn both, (1, 0) or (0, 1) where they learn one kind alone."""
    text, image = learned_kinds(names)
    total = text_loss_weight * text + image_loss_weight * image
    return text_loss_weight * text / total, image_loss_weight * image / total


@dataclass
class TokenSequence:
    """One sequence, all of shape (L,).

    Attributes:
        input_ids: int64 token ids.
        labels: int64, equal to `input_ids` where the token is learned and -100 elsewhere.
        loss_weights: float32, weight of each label's loss, 0 where nothing is learned.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    loss_weights: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)


class Picture(NamedTuple):
    """A picture's codes (T,), and its size where it is not the vocabulary's default."""

    codes: np.ndarray
    size: Size | None = None


# One stretch of a sequence: token ids, and for each whether it carries loss.
_Stretch = tuple[np.ndarray, np.ndarray]


def image_prompt(vocabulary: MultimodalVocabulary, caption: str | None, size: Size | None = None) -> list[int]:
    """Token ids before a picture's first code; a caption of None gives the unconditional prompt."""
    caption_ids = [] if caption is None else vocabulary.encode_text(caption)
    picture = vocabulary.picture(size)
    return [vocabulary.bos_id, *caption_ids, vocabulary.boi_id, *picture.ids[: picture.places[0]].tolist()]


def edit_prompt(
    vocabulary: MultimodalVocabulary, instruction: str | None, source: Picture, size: Size | None = None
) -> list[int]:
    """Token ids before the first code of an edit's result of a size; None as the instruction: the picture alone."""
    text = [] if instruction is None else vocabulary.encode_text(instruction)
    picture = vocabulary.picture(size)
    codes = vocabulary.picture_ids(source.codes, source.size).tolist()
    head = picture.ids[: picture.places[0]].tolist()
    return [vocabulary.bos_id, *text, vocabulary.boi_id, *codes, vocabulary.eoi_id, vocabulary.boi_id, *head]


def edit_text(texts: Sequence[str]) -> str:
    """The text of an edit: its instruction, after what the source shows where that is said, too."""
    return "\n".join(texts)


def description_prompt(vocabulary: MultimodalVocabulary, codes: np.ndarray, size: Size | None = None) -> list[int]:
    """Token ids of a picture, up to and including end_image: a caption follows it. `codes`: (T,) integers."""
    return [vocabulary.bos_id, vocabulary.boi_id, *vocabulary.picture_ids(codes, size).tolist(), vocabulary.eoi_id]


def token_sequence(
    vocabulary: MultimodalVocabulary,
    name: str,
    text_ids: Sequence[int] | None = None,
    codes: np.ndarray | None = None,
    size: Size | None = None,
    source: Picture | None = None,
) -> TokenSequence:
    """A text, a picture, or both, in the format `name`; interleaved rows: `document_sequence`.

    Args:
        text_ids: text token ids; ignored where the format has no text.
        codes: (T,) integers; ignored where the format has no picture.
        size: of the picture, (height, width); default: the vocabulary's default.
        source: the picture that an edit starts from; ignored in other formats.
    """
    stretches: list[_Stretch] = []
    before = False
    for part, learned in zip(FORMATS[name].parts, FORMATS[name].learned, strict=True):
        if part == "text":
            assert text_ids is not None
            stretches.append(_text(text_ids, learned))
        elif part == "source":
            assert source is not None
            stretches.append(_picture(vocabulary, source, learned, size_learned=learned))
        elif part == "codes":
            assert codes is not None
            stretches.append(_picture(vocabulary, Picture(codes, size), learned, size_learned=before))
        else:
            stretches.append(_text([getattr(vocabulary, f"{part}_id")], learned))
        before = learned
    return _sequence(stretches)


def document_sequence(
    vocabulary: MultimodalVocabulary, parts: Sequence[Sequence[int] | Picture], whole: bool = True
) -> TokenSequence:
    """Texts (token ids) and pictures in order, in the format `document`; without eos unless it is the `whole` row."""
    stretches = [_text([vocabulary.bos_id], learned=False)]
    for part in parts:
        if isinstance(part, Picture):
            stretches.append(_text([vocabulary.boi_id], learned=True))
            stretches.append(_picture(vocabulary, part, learned=True, size_learned=True))
            stretches.append(_text([vocabulary.eoi_id], learned=True))
        else:
            stretches.append(_text(part, learned=True))
    if whole:
        stretches.append(_text([vocabulary.eos_id], learned=True))
    return _sequence(stretches)


def _text(ids: Sequence[int], learned: bool) -> _Stretch:
    return np.asarray(ids, np.int64), np.full(len(ids), learned)


def _picture(vocabulary: MultimodalVocabulary, picture: Picture, learned: bool, size_learned: bool) -> _Stretch:
    tokens = vocabulary.picture(picture.size)
    mask = np.zeros(len(tokens), bool)
    mask[: tokens.places[0]] = size_learned
    mask[tokens.places] = learned
    return vocabulary.picture_ids(picture.codes, picture.size), mask


def _sequence(stretches: Sequence[_Stretch]) -> TokenSequence:
    input_ids, learned = (np.concatenate(column) for column in zip(*stretches, strict=True))
    return TokenSequence(input_ids, np.where(learned, input_ids, IGNORED), learned.astype(np.float32))


def collate(
    rows: Sequence[TokenSequence | Sequence[TokenSequence]], pad_id: int, length: int | None = None
) -> dict[str, torch.Tensor]:
    """Rows of one or several sequences as (B, L) input_ids, labels, position_ids (int64) and loss_weights (float32).

    Padding is on the right. There is no attention mask: what is on the right of a token cannot reach it, since
    attention is causal, and where positions begin again at 0 transformers lets no token see what was before (it finds
    this out by itself where there is neither a mask nor a cache).

    Args:
        rows: each a sequence, or several to stand one after the other.
        length: L; default: that of the longest row.
    """
    packs = [[row] if isinstance(row, TokenSequence) else row for row in rows]
    sizes = [sum(map(len, pack)) for pack in packs]
    packed = length is not None or any(len(pack) > 1 for pack in packs)
    length = length or max(sizes)
    shape = (len(rows), length)
    input_ids, labels = np.full(shape, pad_id, np.int64), np.full(shape, IGNORED, np.int64)
    loss_weights, positions = np.zeros(shape, np.float32), np.empty(shape, np.int64)
    for index, (pack, size) in enumerate(zip(packs, sizes, strict=True)):
        input_ids[index, :size] = np.concatenate([sequence.input_ids for sequence in pack])
        labels[index, :size] = np.concatenate([sequence.labels for sequence in pack])
        loss_weights[index, :size] = np.concatenate([sequence.loss_weights for sequence in pack])
        if packed:
            # Padding is one more document; its positions stay below those of the longest, since a model may have few.
            ends = np.arange(length - size) % max(map(len, pack))
            positions[index] = np.concatenate([*(np.arange(len(sequence)) for sequence in pack), ends])
        else:
            positions[index] = np.arange(length)  # the same for all rows, padding or not
    return {
        "input_ids": torch.from_numpy(input_ids),
        "labels": torch.from_numpy(labels),
        "position_ids": torch.from_numpy(positions),
        "loss_weights": torch.from_numpy(loss_weights),
    }
