"""One alphabet for text and pictures. The only file that knows where codes sit among token ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lm.surrogates import replace_surrogates

FORMAT_VERSION = 1
FILE_NAME = "vocabulary.json"
BOS, EOS, PAD, BEGIN_IMAGE, END_IMAGE = "<|bos|>", "<|eos|>", "<|pad|>", "<|begin_image|>", "<|end_image|>"
END_ROW = "<|end_row|>"

Layout = dict[str, list[int]]  # level, depth, row, column, low, high: one entry for each code of a picture
Size = tuple[int, int]  # height and width in pixels

Integers = TypeVar("Integers", np.ndarray, torch.Tensor)


def train_text_tokenizer(
    texts: Iterable[str], vocab_size: int = 4096, lowercase: bool = True
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE (Sennrich et al. 2016) on `texts`. Any string can be encoded: there is no unknown token.

    Args:
        texts: the captions.
        vocab_size: most text tokens that it may have; few captions give fewer.
        lowercase: treat "A Dog" as "a dog".
    """
    tokenizer = Tokenizer(BPE())
    steps: list[normalizers.Normalizer] = [normalizers.NFC()] + ([normalizers.Lowercase()] if lowercase else [])
    tokenizer.normalizer = normalizers.Sequence(steps)
    # With a space before the first word, "dog" is the same token wherever it stands.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(replace_surrogates, texts), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


@dataclass(frozen=True)
class PictureTokens:
    """The tokens between begin_image and end_image of pictures of one size.

    Where a model draws several sizes, a picture starts with the token of its size, and each row of codes (of each
    level) ends with a token that says so, as in Emu3 (Wang et al. 2024): without them the model could not tell which
    code is below which. End-of-row tokens follow from the size, so only the size token is ever learned.

    Attributes:
        ids: (L,) int64 token ids, -1 where a code goes.
        places: (T,) int64, where in `ids` the codes go.
        layout: of the T codes.
    """

    ids: np.ndarray
    places: np.ndarray
    layout: Layout

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def between(self) -> list[list[int]]:
        """T lists: the tokens after each code and before the next, the end of a row of codes; none after the last."""
        bounds = self.places.tolist()
        return [self.ids[first + 1 : last].tolist() for first, last in zip(bounds, bounds[1:], strict=False)] + [[]]


@dataclass
class MultimodalVocabulary:
    """Text ids first, then special tokens, then one id per image code: `id = image_offset + code`.

    Attributes:
        tokenizer: a transformers fast tokenizer that holds all of them, image tokens included.
        image_offset: id of code 0.
        num_codes: codes are 0 .. num_codes - 1.
        bos_id, eos_id, pad_id, boi_id, eoi_id: begin, end, padding, begin and end of a picture.
        layout: code layout of a picture of the default size, as plain lists, one entry for each position.
        image_size: [height, width] of the default size.
        image_tokenizer_fingerprint: which image tokenizer the codes belong to.
        formats: sequence formats that the model was trained on.
        default_guidance: guidance scale used when none is given.
        default_temperature: temperature that pictures are drawn at when none is given.
        default_image_guidance: guidance scale over the source picture of an edit, used when none is given.
        other_layouts: code layouts of further sizes (height, width).
        size_ids: the token of each size, the default's among them; empty where there is one size.
        end_row_id: the token that ends a row of codes; None where there is one size.
    """

    tokenizer: PreTrainedTokenizerBase
    image_offset: int
    num_codes: int
    bos_id: int
    eos_id: int
    pad_id: int
    boi_id: int
    eoi_id: int
    layout: dict[str, list[int]]
    image_size: list[int]
    image_tokenizer_fingerprint: str
    formats: list[str] = field(default_factory=lambda: ["caption_to_image", "image"])
    default_guidance: float = 2.0
    other_layouts: dict[Size, Layout] = field(default_factory=dict)
    size_ids: dict[Size, int] = field(default_factory=dict)
    end_row_id: int | None = None
    default_temperature: float = 1.0
    default_image_guidance: float = 1.0

    def __post_init__(self) -> None:
        self._pictures: dict[Size, PictureTokens] = {}

    @classmethod
    def build(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        *,
        num_codes: int,
        layout: Layout,
        image_size: list[int],
        image_tokenizer_fingerprint: str,
        default_guidance: float = 2.0,
        other_layouts: dict[Size, Layout] | None = None,
    ) -> MultimodalVocabulary:
        """Extend a text tokenizer by the special tokens that it lacks and by one token per image code; where there are
        `other_layouts`, by one for each size and one that ends a row."""
        for role, text in (("bos_token", BOS), ("eos_token", EOS), ("pad_token", PAD)):
            if getattr(tokenizer, role) is None:
                tokenizer.add_special_tokens({role: text})
        if tokenizer.pad_token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            # Embeddings of the padding id get no gradient: it must be no token that is learned.
            tokenizer.add_special_tokens({"pad_token": PAD})
        tokenizer.add_tokens([AddedToken(BEGIN_IMAGE, special=True), AddedToken(END_IMAGE, special=True)])
        others = other_layouts or {}
        sizes = [(int(image_size[0]), int(image_size[1])), *others] if others else []
        size_names = [f"<|size_{height}x{width}|>" for height, width in sizes]
        if sizes:
            tokenizer.add_tokens([AddedToken(name, special=True) for name in (*size_names, END_ROW)])
        before = len(tokenizer)
        names = [AddedToken(f"<|image_{code}|>", special=True, normalized=False) for code in range(num_codes)]
        tokenizer.add_tokens(names)
        image_offset = tokenizer.convert_tokens_to_ids(names[0].content)  # not `before`, where ids were left out
        ids = set(tokenizer.get_vocab().values())
        if len(ids) != before + num_codes or max(ids) != image_offset + num_codes - 1:
            raise ValueError(
                f"the text tokenizer has tokens like {names[0].content!r}, or ids where new ones go: use another one"
            )
        boi_id, eoi_id = tokenizer.convert_tokens_to_ids([BEGIN_IMAGE, END_IMAGE])
        return cls(
            tokenizer=tokenizer,
            image_offset=image_offset,
            num_codes=num_codes,
            bos_id=tokenizer.bos_token_id,
            eos_id=tokenizer.eos_token_id,
            pad_id=tokenizer.pad_token_id,
            boi_id=boi_id,
            eoi_id=eoi_id,
            layout=layout,
            image_size=list(image_size),
            image_tokenizer_fingerprint=image_tokenizer_fingerprint,
            default_guidance=default_guidance,
            other_layouts=others,
            size_ids=dict(zip(sizes, tokenizer.convert_tokens_to_ids(size_names), strict=True)),
            end_row_id=tokenizer.convert_tokens_to_ids(END_ROW) if sizes else None,
        )

    @property
    def size(self) -> int:
        """Number of token ids."""
        return self.image_offset + self.num_codes

    @property
    def tokens_per_image(self) -> int:
        """Codes of a picture of the default size."""
        return len(self.layout["low"])

    @property
    def layouts(self) -> dict[Size, Layout]:
        """Code layouts of all sizes (height, width), the default's first."""
        return {(self.image_size[0], self.image_size[1]): self.layout, **self.other_layouts}

    @property
    def longest_picture(self) -> int:
        """Most tokens between begin_image and end_image."""
        return max(len(self.picture(size)) for size in self.layouts)

    def picture(self, size: Size | None = None) -> PictureTokens:
        """The tokens of pictures of a size (default: the default one).

        Raises:
            ValueError: the model does not know this size.
        """
        size = size or (self.image_size[0], self.image_size[1])
        if size not in self._pictures:
            if size not in self.layouts:
                known = ", ".join(f"{height}x{width}" for height, width in self.layouts)
                raise ValueError(f"pictures of {size[0]}x{size[1]} (height x width): this model's are {known}")
            self._pictures[size] = self._picture(size)
        return self._pictures[size]

    def _picture(self, size: Size) -> PictureTokens:
        layout = self.layouts[size]
        row_of = list(zip(layout["level"], layout["row"], strict=True))
        ids = [self.size_ids[size]] if self.size_ids else []
        places = []
        for position, row in enumerate(row_of):
            places.append(len(ids))
            ids.append(-1)
            if self.end_row_id is not None and row_of[position + 1 : position + 2] != [row]:
                ids.append(self.end_row_id)
        return PictureTokens(np.asarray(ids, np.int64), np.asarray(places, np.int64), layout)

    def picture_ids(self, codes: np.ndarray, size: Size | None = None) -> np.ndarray:
        """Codes (T,) of a picture to its token ids (L,) int64.

        Raises:
            ValueError: not as many codes as pictures of this size have, or a code that there is not.
        """
        picture = self.picture(size)
        if len(codes) != len(picture.places):
            raise ValueError(f"{len(codes)} codes for a picture of {len(picture.places)}")
        ids = picture.ids.copy()
        ids[picture.places] = self.codes_to_ids(codes.astype(np.int64))
        return ids

    @property
    def id_ranges(self) -> list[tuple[int, int]]:
        """Which ids compete for a place, as [low, high): text and special tokens, then each range of image codes."""
        ranges = sorted(set(zip(self.layout["low"], self.layout["high"], strict=True)))
        return [(0, self.image_offset), *((low + self.image_offset, high + self.image_offset) for low, high in ranges)]

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens. A text that contains the name of a special or image token
        stays text; a lone surrogate in it counts as U+FFFD."""
        return self.encode_texts([text])[0]

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_text` for many texts at once."""
        readable = [replace_surrogates(text) for text in texts]
        encoded = self.tokenizer(readable, add_special_tokens=False, split_special_tokens=True)
        return encoded["input_ids"]

    def decode_text(self, ids: Sequence[int]) -> str:
        """The text of token ids; special tokens are left out, and space at both ends."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).strip()

    def text_mask(self) -> np.ndarray:
        """(image_offset,) bool: which ids can stand in a text or, as eos does, end it."""
        special = [number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special]
        mask = np.zeros(self.image_offset, bool)  # some tokenizers leave ids out
        mask[[number for number in self.tokenizer.get_vocab().values() if number < self.image_offset]] = True
        mask[[number for number in special if number < self.image_offset]] = False
        mask[[self.bos_id, self.pad_id, self.boi_id, self.eoi_id]] = False
        mask[self.eos_id] = True  # last: in some tokenizers it is bos too
        return mask

    def check_trained(self, use: str, *formats: str, remedy: str = "") -> None:
        """Raise ValueError, naming `use` and ending in `remedy`, unless the model was trained in one of `formats`."""
        if not set(formats) & set(self.formats):
            raise ValueError(
                f"{use}: this model was not trained for that (it has learned {', '.join(self.formats)}; it would need "
                f"{' or '.join(formats)}): {remedy or f'train one with train_lm.py --formats {formats[0]}'}"
            )

    def codes_to_ids(self, codes: Integers) -> Integers:
        """Image codes to token ids (arrays or tensors of any shape).

        Raises:
            ValueError: a code is outside 0 .. num_codes - 1.
        """
        self._check(codes, 0, "code")
        return codes + self.image_offset

    def ids_to_codes(self, ids: Integers) -> Integers:
        """Token ids to image codes, the inverse of `codes_to_ids`.

        Raises:
            ValueError: an id is not an image token.
        """
        self._check(ids, self.image_offset, "image token id")
        return ids - self.image_offset

    def _check(self, values: Any, low: int, what: str) -> None:
        high = low + self.num_codes
        size = values.numel() if isinstance(values, torch.Tensor) else values.size
        if size and (int(values.min()) < low or int(values.max()) >= high):
            raise ValueError(
                f"{what} outside {low}..{high - 1}: values from {int(values.min())} to {int(values.max())}"
            )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files and vocabulary.json into `folder` (a model folder's lm/)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        values: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "image_offset": self.image_offset,
            "num_codes": self.num_codes,
            "special_ids": {
                "bos": self.bos_id,
                "eos": self.eos_id,
                "pad": self.pad_id,
                "begin_image": self.boi_id,
                "end_image": self.eoi_id,
            },
            "image_size": self.image_size,
            "formats": self.formats,
            "image_tokenizer_fingerprint": self.image_tokenizer_fingerprint,
            "default_guidance": self.default_guidance,
            "default_temperature": self.default_temperature,
            "default_image_guidance": self.default_image_guidance,
            "layout": self.layout,
        }
        if self.size_ids:
            values["sizes"] = [
                {"image_size": list(size), "id": number, "layout": self.layouts[size]}
                for size, number in self.size_ids.items()
            ]
            values["special_ids"]["end_row"] = self.end_row_id
        (folder / FILE_NAME).write_text(json.dumps(values) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> MultimodalVocabulary:
        """Read what `save_pretrained` wrote.

        Raises:
            ValueError: the folder has no vocabulary.json, or one from a newer version.
        """
        folder = Path(folder)
        file = folder / FILE_NAME
        if not file.is_file():
            raise ValueError(f"{folder} has no {FILE_NAME}: it is not the lm/ folder of a Tessera model")
        values = json.loads(file.read_text())
        if values["format_version"] > FORMAT_VERSION:
            raise ValueError(
                f"{file} has format_version {values['format_version']}, this version reads up to {FORMAT_VERSION}: "
                "upgrade tessera"
            )
        ids, sizes = values["special_ids"], values.get("sizes", [])
        layouts = {tuple(entry["image_size"]): entry["layout"] for entry in sizes}
        layouts.pop(tuple(values["image_size"]), None)
        return cls(
            tokenizer=_load_tokenizer(folder),
            image_offset=values["image_offset"],
            num_codes=values["num_codes"],
            bos_id=ids["bos"],
            eos_id=ids["eos"],
            pad_id=ids["pad"],
            boi_id=ids["begin_image"],
            eoi_id=ids["end_image"],
            layout=values["layout"],
            image_size=values["image_size"],
            image_tokenizer_fingerprint=values["image_tokenizer_fingerprint"],
            formats=values["formats"],
            default_guidance=values["default_guidance"],
            other_layouts=layouts,
            size_ids={tuple(entry["image_size"]): entry["id"] for entry in sizes},
            end_row_id=ids.get("end_row"),
            default_temperature=values.get("default_temperature", 1.0),
            default_image_guidance=values.get("default_image_guidance", 1.0),
        )


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`.

    `tokenizer.json` holds the added tokens. Without `added_tokens_decoder`, transformers makes a Python object of each
    and copies it: of 262,144 image tokens, that takes half a minute.
    """
    return PreTrainedTokenizerFast.from_pretrained(folder, added_tokens_decoder={})
