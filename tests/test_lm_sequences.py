"""Every sequence format, its labels and weights written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lm import sequences
from lm.sequences import (
    DESCRIBING,
    DRAWING_ALONE,
    DRAWING_CAPTIONS,
    EDITING,
    FORMATS,
    IGNORED,
    Picture,
    check_mixture,
    collate,
    description_prompt,
    document_sequence,
    image_prompt,
    loss_shares,
    parse_mixture,
    token_sequence,
)
from lm.vocabulary import MultimodalVocabulary, train_text_tokenizer
from tokenizer_image.layout import build_layout

CODES = np.array([1, 5, 0, 7], np.uint8)


@pytest.fixture(scope="module")
def vocabulary() -> MultimodalVocabulary:
    return MultimodalVocabulary.build(
        train_text_tokenizer(["a dog"] * 3, 300),
        num_codes=8,
        layout=build_layout([(1, 2)], [[4, 4]]).to_dict(),
        image_size=[8, 16],
        image_tokenizer_fingerprint="none",
    )


def written_out(vocabulary: MultimodalVocabulary, row: list) -> list[int]:
    """Names and codes ("code 3") to ids, text ids as they are."""
    names = {name: getattr(vocabulary, f"{name}_id") for name in ("bos", "eos", "boi", "eoi", "pad")}
    codes = {f"code {code}": vocabulary.image_offset + code for code in range(8)}
    return [{**names, **codes}.get(one, one) for one in row]


X = IGNORED
IMAGE = ["code 1", "code 5", "code 0", "code 7"]
SOURCE = ["code 2", "code 4", "code 1", "code 6"]
WRITTEN_OUT = {
    # name: text ids, input_ids, labels
    "caption_to_image": (
        [10, 11],
        ["bos", 10, 11, "boi", *IMAGE],
        [X, X, X, X, *IMAGE],
    ),
    "caption_and_image": (
        [10, 11],
        ["bos", 10, 11, "boi", *IMAGE, "eoi", "eos"],
        [X, 10, 11, "boi", *IMAGE, "eoi", "eos"],
    ),
    "caption_and_image, an empty caption": (
        [],
        ["bos", "boi", *IMAGE, "eoi", "eos"],
        [X, "boi", *IMAGE, "eoi", "eos"],
    ),
    "image": (
        None,
        ["bos", "boi", *IMAGE],
        [X, X, *IMAGE],
    ),
    "image_to_caption": (
        [10, 11],
        ["bos", "boi", *IMAGE, "eoi", 10, 11, "eos"],
        [X, X, X, X, X, X, X, 10, 11, "eos"],
    ),
    "image_and_caption": (
        [10, 11],
        ["bos", "boi", *IMAGE, "eoi", 10, 11, "eos"],
        [X, X, *IMAGE, X, 10, 11, "eos"],
    ),
    "text": (
        [10, 11],
        ["bos", 10, 11, "eos"],
        [X, 10, 11, "eos"],
    ),
    "edit": (
        [10, 11],
        ["bos", 10, 11, "boi", *SOURCE, "eoi", "boi", *IMAGE],
        [X] * 10 + IMAGE,
    ),
    "image_to_image": (
        [10, 11],
        ["bos", "boi", *SOURCE, "eoi", "boi", *IMAGE],
        [X] * 8 + IMAGE,
    ),
    "document": (
        [10, 11],
        ["bos", 10, 11, "boi", *IMAGE, "eoi", 12, "eos"],
        [X, 10, 11, "boi", *IMAGE, "eoi", 12, "eos"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_ids_labels_and_weights(vocabulary, name):
    text_ids, input_ids, labels = WRITTEN_OUT[name]
    if name == "document":
        sequence = document_sequence(vocabulary, [text_ids, Picture(CODES), [12]])
    else:
        source = Picture(np.array([2, 4, 1, 6], np.uint8))
        sequence = token_sequence(vocabulary, name.split(",")[0], text_ids, CODES, source=source)
    assert sequence.input_ids.tolist() == written_out(vocabulary, input_ids)
    assert sequence.labels.tolist() == written_out(vocabulary, labels)
    assert sequence.loss_weights.tolist() == [float(label != X) for label in labels]
    assert (sequence.input_ids.dtype, sequence.labels.dtype) == (np.int64, np.int64)
    assert sequence.loss_weights.dtype == np.float32 and len(sequence) == len(input_ids)


def test_every_format_is_written_out_here_and_in_the_table():
    assert {name.split(",")[0] for name in WRITTEN_OUT} == FORMATS.keys()
    table = [line.split("`")[1] for line in str(sequences.__doc__).splitlines() if line.startswith("| `")]
    assert table == list(FORMATS)


def test_what_formats_are_good_for():
    assert [name for name, one in FORMATS.items() if one.draws] == [
        "caption_to_image", "caption_and_image", "image", "image_and_caption", "edit", "image_to_image", "document",
    ]  # fmt: skip
    assert [name for name, one in FORMATS.items() if one.writes] == [
        "caption_and_image", "image_to_caption", "image_and_caption", "text", "document",
    ]  # fmt: skip
    assert (DESCRIBING, DRAWING_ALONE, DRAWING_CAPTIONS) == (
        ("image_to_caption", "image_and_caption"), ("image", "image_and_caption"),
        ("caption_to_image", "caption_and_image"),
    )  # fmt: skip
    fitting = [name for name, one in FORMATS.items() if one.fits(True, True, True, edit=True)]
    assert fitting == ["edit", "image_to_image", "document"] and EDITING == ("edit",)
    for has_text, has_codes in ((True, True), (True, False), (False, True)):
        assert [name for name, one in FORMATS.items() if one.fits(has_text, has_codes, True)] == ["document"]
    assert [name for name, one in FORMATS.items() if one.drops_captions] == ["caption_to_image", "caption_and_image"]
    assert [name for name, one in FORMATS.items() if one.fits(True, False)] == ["text"]
    assert [name for name, one in FORMATS.items() if one.fits(False, True)] == ["image"]
    assert {name: one.frame for name, one in FORMATS.items()} == {
        "caption_to_image": 2, "caption_and_image": 4, "image": 2, "image_to_caption": 4, "image_and_caption": 4,
        "text": 2, "document": 2, "edit": 4, "image_to_image": 4,
    }  # fmt: skip


def test_weights_of_formats():
    assert parse_mixture(["caption_to_image=3", "image_to_caption", "text=0"]) == {
        "caption_to_image": 3.0, "image_to_caption": 1.0
    }  # fmt: skip
    for words, message in (
        (["image=0", "text=0"], r"sum to nothing \(image=0 text=0\): give one a weight above zero"),
        ([], r"sum to nothing \(none\)"),
        (["picture=1"], "unknown sequence format 'picture': choose among caption_to_image, .*text"),
        (["image=-1"], "sequence format image has weight -1.0: give a number that is at least zero"),
        (["image=nan"], "has weight nan"),
        (["image=inf"], "has weight inf"),
        (["image=x"], "'image=x': write image=NUMBER, for example image=1"),
        (["image=", "text"], "'image=': write image=NUMBER"),
        (["image=1", "image=2"], "image is named twice"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_mixture(words)
    with pytest.raises(ValueError, match="sum to nothing"):
        check_mixture({})


def test_the_prompt_of_a_description_is_the_head_of_its_sequence(vocabulary):
    prompt = description_prompt(vocabulary, CODES)
    sequence = token_sequence(vocabulary, "image_to_caption", [10], CODES)
    assert sequence.input_ids.tolist() == [*prompt, 10, vocabulary.eos_id]


@pytest.mark.parametrize("caption", [None, "", "a dog"])
def test_a_prompt_is_the_head_of_its_sequence(vocabulary, caption):
    prompt = image_prompt(vocabulary, caption)
    caption_ids = None if caption is None else vocabulary.encode_text(caption)
    sequence = token_sequence(vocabulary, "image" if caption is None else "caption_to_image", caption_ids, CODES)
    assert sequence.input_ids[: len(prompt)].tolist() == prompt and prompt[-1] == vocabulary.boi_id
    assert sequence.input_ids[len(prompt)] == vocabulary.image_offset + 1


def test_codes_of_any_integer_type_and_only_codes(vocabulary):
    for dtype in (np.uint8, np.uint16, np.int64):
        assert token_sequence(vocabulary, "image", None, CODES.astype(dtype)).input_ids.tolist()[2:] == [
            vocabulary.image_offset + int(code) for code in CODES
        ]
    with pytest.raises(ValueError, match=r"code outside 0..7: values from 1 to 200"):
        token_sequence(vocabulary, "image", None, np.array([1, 200, 1, 1], np.uint8))
    with pytest.raises(ValueError, match="3 codes for a picture of 4"):
        token_sequence(vocabulary, "image", None, CODES[:3])


def test_collate_pads_on_the_right(vocabulary):
    formats = ("caption_and_image", "caption_to_image", "image_to_caption")
    rows = [
        token_sequence(vocabulary, name, ids, CODES)
        for name, ids in zip(formats, ([10, 11], [1, 2], [12]), strict=True)
    ]
    batch = collate(rows, vocabulary.pad_id)
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in batch.items()} == {
        "input_ids": ((3, 10), torch.int64),
        "labels": ((3, 10), torch.int64),
        "position_ids": ((3, 10), torch.int64),
        "loss_weights": ((3, 10), torch.float32),
    }
    for row, (sequence, length) in enumerate(zip(rows, (10, 8, 9), strict=True)):
        assert batch["input_ids"][row].tolist() == [*sequence.input_ids, *[vocabulary.pad_id] * (10 - length)]
        assert batch["labels"][row].tolist() == [*sequence.labels, *[IGNORED] * (10 - length)]
        assert batch["loss_weights"][row].tolist() == [*sequence.loss_weights, *[0] * (10 - length)]
        assert batch["position_ids"][row].tolist() == list(range(10))


def test_positions_begin_again_with_each_sequence_of_a_row(vocabulary):
    image = token_sequence(vocabulary, "image", None, CODES)
    batch = collate([[image, image], image], vocabulary.pad_id)
    assert batch["position_ids"].tolist() == [[*range(6), *range(6)]] * 2, "padding is one more sequence"
    assert batch["input_ids"][0].tolist() == [*image.input_ids, *image.input_ids]


def test_padding_of_a_packed_row_needs_no_more_positions_than_its_sequences(vocabulary):
    """Also where each row has one sequence alone: a model may have fewer positions than a row has tokens."""
    rows = [[token_sequence(vocabulary, "image", None, CODES)]]
    positions = collate(rows, vocabulary.pad_id, length=40)["position_ids"][0]
    assert positions[:6].tolist() == list(range(6)) and len(positions) == 40 and int(positions.max()) == 5


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["caption_to_image"], (0, 1)), (["image_to_caption", "text"], (1, 0)), (["caption_and_image"], (0.25, 0.75)),
     (["image_to_caption", "image"], (0.25, 0.75)), (["document"], (0.25, 0.75))],
)  # fmt: skip
def test_shares_of_the_loss_are_by_weight_where_both_kinds_are_learned(names, expected):
    assert loss_shares(names, 0.5, 1.5) == expected
