"""One alphabet for text and pictures: ids, ranges, files, and texts that look like tokens."""

from __future__ import annotations

import cProfile
import json
import pstats

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lm.vocabulary import FORMAT_VERSION, MultimodalVocabulary, train_text_tokenizer
from tokenizer_image.layout import build_layout

CAPTIONS = ["a red dog", "a blue cat on grass", "two red dogs left of a blue house", "a dog"]
LAYOUT = build_layout([(1, 1), (2, 2)], [[6], [4, 10]]).to_dict()
NUM_CODES = 20


def build(tokenizer: PreTrainedTokenizerFast | None = None) -> MultimodalVocabulary:
    return MultimodalVocabulary.build(
        tokenizer or train_text_tokenizer(CAPTIONS * 3, 300),
        num_codes=NUM_CODES,
        layout=LAYOUT,
        image_size=[16, 24],
        image_tokenizer_fingerprint="abc",
        default_guidance=2.5,
    )


@pytest.fixture(scope="module")
def vocabulary() -> MultimodalVocabulary:
    return build()


def pretrained(**specials: str) -> PreTrainedTokenizerFast:
    """A text tokenizer as someone else may have made it: cased, with special tokens of its own."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=list(set(specials.values())))
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials)


# Ids


def test_ids_come_in_order(vocabulary):
    specials = [vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id, vocabulary.boi_id, vocabulary.eoi_id]
    assert specials == list(range(vocabulary.image_offset - 5, vocabulary.image_offset))
    assert max(max(ids) for ids in vocabulary.encode_texts(CAPTIONS)) < specials[0]
    assert vocabulary.size == vocabulary.image_offset + NUM_CODES == len(vocabulary.tokenizer)
    assert vocabulary.tokens_per_image == 1 + 4 * 2


@pytest.mark.parametrize("make", [lambda n: torch.arange(n).view(4, -1), lambda n: np.arange(n).reshape(4, -1)])
def test_codes_to_ids_and_back(vocabulary, make):
    codes = make(NUM_CODES)
    ids = vocabulary.codes_to_ids(codes)
    assert type(ids) is type(codes) and ids.shape == codes.shape
    assert ids.min() == vocabulary.image_offset and ids.max() == vocabulary.size - 1
    assert (vocabulary.ids_to_codes(ids) == codes).all()
    assert len(vocabulary.codes_to_ids(codes[:0])) == 0


def test_id_ranges_are_text_then_each_kind_of_code(vocabulary):
    offset = vocabulary.image_offset
    assert vocabulary.id_ranges == [(0, offset), (offset, offset + 6), (offset + 6, offset + 10),
                                    (offset + 10, offset + 20)]  # fmt: skip


def test_image_tokens_are_in_the_saved_tokenizer(vocabulary, tmp_path):
    vocabulary.save_pretrained(tmp_path)
    for tokenizer in (vocabulary.tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert len(tokenizer) == vocabulary.size
        names = [f"<|image_{code}|>" for code in range(NUM_CODES)]
        assert tokenizer.convert_tokens_to_ids(names) == list(range(vocabulary.image_offset, vocabulary.size))
        assert tokenizer("<|begin_image|><|image_3|>", add_special_tokens=False)["input_ids"] == [
            vocabulary.boi_id,
            vocabulary.image_offset + 3,
        ]
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (
            vocabulary.bos_id,
            vocabulary.eos_id,
            vocabulary.pad_id,
        )


@pytest.mark.parametrize("code", [-1, NUM_CODES])
def test_codes_out_of_range(vocabulary, code):
    with pytest.raises(ValueError, match=rf"code outside 0..{NUM_CODES - 1}: values from .*{code}"):
        vocabulary.codes_to_ids(torch.tensor([[3, code]]))
    with pytest.raises(ValueError, match="code outside"):
        vocabulary.codes_to_ids(np.array([code]))


def test_ids_that_are_no_image_tokens(vocabulary):
    low, high = vocabulary.image_offset, vocabulary.size - 1
    for bad in (low - 1, high + 1, 0):
        with pytest.raises(ValueError, match=f"image token id outside {low}..{high}: .*{bad}"):
            vocabulary.ids_to_codes(torch.tensor([low, bad]))


# Text


TRICKY = [
    "<|image_3|>",
    "<|eos|>",
    "a dog <|begin_image|> <|image_0|>",
    "<|pad|><|bos|>",
    "<|end_image|>.",
    " <|eos|> ",
]


@pytest.mark.parametrize("text", TRICKY)
def test_names_of_tokens_stay_text(vocabulary, tmp_path, text):
    vocabulary.save_pretrained(tmp_path)
    for one in (vocabulary, MultimodalVocabulary.from_pretrained(tmp_path)):
        ids = one.encode_text(text)
        assert len(ids) > 3 and max(ids) < min(one.bos_id, one.eos_id, one.pad_id, one.boi_id)
        assert one.tokenizer.decode(ids).strip() == text.strip()


def test_names_of_tokens_stay_text_in_training_captions():
    vocabulary = build(train_text_tokenizer(["a <|image_3|> dog", "<|eos|> <|image_3|>"] * 20, 2000))
    assert len(vocabulary.encode_text("<|image_3|>")) > 1
    assert max(vocabulary.encode_text("<|image_3|> <|eos|>")) < vocabulary.bos_id


@pytest.mark.parametrize("text", ["", "a", "Größe 犬 🐕‍🦺", "a\nb\tc", "\x00", "ﬁ  x", "x" * 500])
def test_any_text_can_be_encoded(vocabulary, text):
    ids = vocabulary.encode_text(text)
    assert (len(ids) == 0) == (text == "") and all(0 <= one < vocabulary.bos_id for one in ids)
    assert vocabulary.encode_texts([text, "a dog"]) == [ids, vocabulary.encode_text("a dog")]


def test_upper_case_is_lower_case(vocabulary):
    assert vocabulary.encode_text("A Red DOG") == vocabulary.encode_text("a red dog")
    cased = train_text_tokenizer(CAPTIONS * 3, 300, lowercase=False)
    assert cased("A DOG")["input_ids"] != cased("a dog")["input_ids"]


def test_a_word_is_the_same_token_wherever_it_stands(vocabulary):
    dog = vocabulary.encode_text("dog")
    assert len(dog) == 1
    assert vocabulary.encode_text("a dog")[-1:] == dog


def test_composed_and_decomposed_letters_are_the_same(vocabulary):
    assert vocabulary.encode_text("caf\u00e9") == vocabulary.encode_text("cafe\u0301")


def test_texts_are_decoded_without_special_tokens(vocabulary):
    ids = vocabulary.encode_text("a Red dog")
    assert vocabulary.decode_text(ids) == "a red dog"
    assert vocabulary.decode_text([vocabulary.bos_id, *ids, vocabulary.eos_id, vocabulary.image_offset]) == "a red dog"
    assert vocabulary.decode_text([]) == ""


def test_what_can_stand_in_a_text(vocabulary):
    mask = vocabulary.text_mask()
    assert mask.shape == (vocabulary.image_offset,) and mask.dtype == bool
    special = {vocabulary.bos_id, vocabulary.pad_id, vocabulary.boi_id, vocabulary.eoi_id}
    assert set(np.flatnonzero(~mask)) == special, "eos ends a text"
    one = build(pretrained(bos_token="</s>", eos_token="</s>", unk_token="<unk>"))
    assert one.bos_id == one.eos_id and one.text_mask()[one.eos_id]
    assert not one.text_mask()[one.tokenizer.unk_token_id]


def test_a_use_that_was_not_trained_is_refused(vocabulary):
    vocabulary.check_trained("drawing", "caption_to_image", "image")
    words = "describing: this model was not trained for that .it has learned caption_to_image, image; it would need"
    with pytest.raises(ValueError, match=f"{words} image_to_caption.: train one with train_lm.py --formats image_to"):
        vocabulary.check_trained("describing", "image_to_caption")
    with pytest.raises(ValueError, match="would need text or image_to_caption.: go home"):
        vocabulary.check_trained("writing", "text", "image_to_caption", remedy="go home")


def test_vocabulary_size_is_a_limit():
    many = [f"word{number} thing{number}" for number in range(500)] * 2
    assert len(train_text_tokenizer(many, 400)) == 400
    assert len(train_text_tokenizer(["a"], 4096)) == 256, "one caption gives the bytes alone"
    assert len(train_text_tokenizer([], 4096)) == 256


# Tokenizers made elsewhere


def test_own_special_tokens_of_a_pretrained_tokenizer_are_reused(tmp_path):
    tokenizer = pretrained(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    size, ids = len(tokenizer), tokenizer("a red dog")["input_ids"]
    vocabulary = build(tokenizer)
    assert tokenizer.convert_ids_to_tokens([vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id]) == [
        "<s>",
        "</s>",
        "<pad>",
    ]
    assert vocabulary.image_offset == size + 2, "only begin and end of image are new"
    assert vocabulary.encode_text("a red dog") == ids
    assert max(vocabulary.encode_text("<s> </s>")) < size and vocabulary.bos_id not in vocabulary.encode_text("<s>")
    vocabulary.save_pretrained(tmp_path)
    assert MultimodalVocabulary.from_pretrained(tmp_path).encode_texts(TRICKY) == vocabulary.encode_texts(TRICKY)


def test_missing_special_tokens_are_added():
    tokenizer = pretrained(bos_token="<|endoftext|>", eos_token="<|endoftext|>")  # as GPT-2 has them
    size = len(tokenizer)
    vocabulary = build(tokenizer)
    assert vocabulary.bos_id == vocabulary.eos_id < size and vocabulary.pad_id == size
    assert vocabulary.image_offset == size + 3


def test_padding_gets_an_id_of_its_own(tmp_path):
    """The embedding of the padding id never learns: it may not be the one that begins and ends sequences."""
    tokenizer = pretrained(bos_token="<s>", eos_token="<s>", pad_token="<s>")
    size = len(tokenizer)
    vocabulary = build(tokenizer)
    assert vocabulary.bos_id == vocabulary.eos_id < size and vocabulary.pad_id == size
    vocabulary.save_pretrained(tmp_path)
    assert MultimodalVocabulary.from_pretrained(tmp_path).tokenizer.pad_token_id == size
    vocabulary.pad_id = vocabulary.bos_id  # as in a model folder of an earlier version
    vocabulary.save_pretrained(tmp_path)
    assert MultimodalVocabulary.from_pretrained(tmp_path).pad_id == vocabulary.bos_id


@pytest.mark.parametrize("text, same", [("a \ud83d dog", "a \ufffd dog"), ("\udc00", "\ufffd"), ("🐕", "🐕"),
                                        ("\ud83d\udc15", "🐕")])  # fmt: skip
def test_lone_surrogates_count_as_replacement_characters(vocabulary, text, same):
    assert vocabulary.encode_text(text) == vocabulary.encode_text(same)
    assert train_text_tokenizer([text] * 3, 300).get_vocab() == train_text_tokenizer([same] * 3, 300).get_vocab()


def test_a_tokenizer_that_has_image_tokens_already(vocabulary):
    with pytest.raises(ValueError, match=r"has tokens like '<\|image_0\|>', or ids .*: use another"):
        build(build().tokenizer)


# On disk


def test_save_and_load(vocabulary, tmp_path):
    vocabulary.save_pretrained(tmp_path / "lm")
    loaded = MultimodalVocabulary.from_pretrained(tmp_path / "lm")
    for name in vars(vocabulary).keys() - {"tokenizer"}:
        assert getattr(loaded, name) == getattr(vocabulary, name), name
    texts = [*CAPTIONS, *TRICKY, "", "Ünseen Wörds"]
    assert loaded.encode_texts(texts) == vocabulary.encode_texts(texts)
    assert (loaded.size, loaded.id_ranges) == (vocabulary.size, vocabulary.id_ranges)


def test_loading_does_not_copy_image_tokens_one_by_one(tmp_path):
    codes = 4096
    layout = build_layout([(1, 1)], [[codes]]).to_dict()
    MultimodalVocabulary.build(
        train_text_tokenizer(CAPTIONS * 3, 300),
        num_codes=codes,
        layout=layout,
        image_size=[16, 16],
        image_tokenizer_fingerprint="abc",
    ).save_pretrained(tmp_path)
    with cProfile.Profile() as profile:
        loaded = MultimodalVocabulary.from_pretrained(tmp_path)
    assert loaded.tokenizer.convert_tokens_to_ids("<|image_4095|>") == loaded.image_offset + 4095
    assert pstats.Stats(profile).total_calls < 20 * codes  # type: ignore[attr-defined]


def test_the_file_says_what_the_design_promises(vocabulary, tmp_path):
    vocabulary.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "vocabulary.json").read_text())
    assert values["format_version"] == FORMAT_VERSION
    assert values["image_offset"] == vocabulary.image_offset and values["num_codes"] == NUM_CODES
    assert values["special_ids"].keys() == {"bos", "eos", "pad", "begin_image", "end_image"}
    assert values["layout"] == LAYOUT and values["image_size"] == [16, 24]
    assert values["formats"] == ["caption_to_image", "image"]
    assert values["image_tokenizer_fingerprint"] == "abc" and values["default_guidance"] == 2.5


def test_a_newer_version_is_refused(vocabulary, tmp_path):
    vocabulary.save_pretrained(tmp_path)
    file = tmp_path / "vocabulary.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": FORMAT_VERSION + 1}))
    with pytest.raises(ValueError, match=f"format_version {FORMAT_VERSION + 1}.*upgrade tessera"):
        MultimodalVocabulary.from_pretrained(tmp_path)


def test_a_folder_without_a_vocabulary(tmp_path):
    with pytest.raises(ValueError, match="has no vocabulary.json: it is not the lm/ folder of a Tessera model"):
        MultimodalVocabulary.from_pretrained(tmp_path)
