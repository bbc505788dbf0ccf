"""Every sequence format, its labels and weights written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lm.sequences import IGNORED, collate, image_prompt, image_sequence
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
FORMATS = {
    # name: caption ids, text_loss_weight, input_ids, labels, weights
    "caption_to_image": (
        [10, 11], 0.0,
        ["bos", 10, 11, "boi", *IMAGE],
        [X, X, X, X, *IMAGE],
        [0, 0, 0, 0, 1, 1, 1, 1],
    ),
    "caption_to_image, caption learned": (
        [10, 11], 0.5,
        ["bos", 10, 11, "boi", *IMAGE, "eoi", "eos"],
        [X, 10, 11, "boi", *IMAGE, "eoi", "eos"],
        [0, 0.5, 0.5, 0.5, 1, 1, 1, 1, 0.5, 0.5],
    ),
    "image": (
        None, 0.0,
        ["bos", "boi", *IMAGE],
        [X, X, *IMAGE],
        [0, 0, 1, 1, 1, 1],
    ),
    "image, caption learned": (
        None, 0.5,
        ["bos", "boi", *IMAGE, "eoi", "eos"],
        [X, X, *IMAGE, "eoi", "eos"],
        [0, 0, 1, 1, 1, 1, 0.5, 0.5],
    ),
    "an empty caption": (
        [], 0.5,
        ["bos", "boi", *IMAGE, "eoi", "eos"],
        [X, "boi", *IMAGE, "eoi", "eos"],
        [0, 0.5, 1, 1, 1, 1, 0.5, 0.5],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_ids_labels_and_weights(vocabulary, name):
    caption_ids, text_loss_weight, input_ids, labels, weights = FORMATS[name]
    sequence = image_sequence(vocabulary, caption_ids, CODES, text_loss_weight=text_loss_weight)
    assert sequence.input_ids.tolist() == written_out(vocabulary, input_ids)
    assert sequence.labels.tolist() == written_out(vocabulary, labels)
    assert sequence.loss_weights.tolist() == weights
    assert (sequence.input_ids.dtype, sequence.labels.dtype) == (np.int64, np.int64)
    assert sequence.loss_weights.dtype == np.float32 and len(sequence) == len(input_ids)


@pytest.mark.parametrize("caption", [None, "", "a dog"])
def test_a_prompt_is_the_head_of_its_sequence(vocabulary, caption):
    prompt = image_prompt(vocabulary, caption)
    caption_ids = None if caption is None else vocabulary.encode_text(caption)
    sequence = image_sequence(vocabulary, caption_ids, CODES)
    assert sequence.input_ids[: len(prompt)].tolist() == prompt and prompt[-1] == vocabulary.boi_id
    assert sequence.input_ids[len(prompt)] == vocabulary.image_offset + 1


def test_codes_of_any_integer_type_and_only_codes(vocabulary):
    for dtype in (np.uint8, np.uint16, np.int64):
        assert image_sequence(vocabulary, None, CODES.astype(dtype)).input_ids.tolist()[2:] == [
            vocabulary.image_offset + int(code) for code in CODES
        ]
    with pytest.raises(ValueError, match=r"code outside 0..7: values from 1 to 200"):
        image_sequence(vocabulary, None, np.array([1, 200], np.uint8))


def test_collate_pads_on_the_right(vocabulary):
    rows = [image_sequence(vocabulary, ids, CODES, text_loss_weight=0.5) for ids in ([10, 11], None, [12])]
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


def test_collate_to_a_multiple(vocabulary):
    rows = [image_sequence(vocabulary, None, CODES)]
    assert [collate(rows, 0, multiple_of=m)["input_ids"].shape[1] for m in (1, 3, 4, 6, 16)] == [6, 6, 8, 6, 16]
