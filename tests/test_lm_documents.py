"""Interleaved rows, and pictures of several sizes: their sequences written out by hand, and what is cut."""

from __future__ import annotations

import numpy as np
import pytest

from lm.data.batch_order import BatchOrder
from lm.data.sequence_source import SequenceSource
from lm.data.token_cache import Document, TokenCache, code_dtype, write_manifest, write_shard
from lm.sequences import IGNORED, image_prompt
from lm.vocabulary import MultimodalVocabulary, train_text_tokenizer
from tokenizer_image.layout import build_layout

X = IGNORED
SMALL, WIDE = (8, 8), (8, 16)  # of 1x2 places (one level) and 1x4, codes 0 to 3
DOCUMENTS = [
    (["red dog", "blue"], [SMALL, WIDE], "titi"),
    (["dog"], [WIDE, SMALL], "iit"),
    (["red", "blue", "dog dog dog dog"], [], "ttt"),
    (["red"], [WIDE], ""),  # a captioned picture
    (["red"], [], "t"),
    ([], [SMALL], "i"),
]


def codes_of(sizes: list[tuple[int, int]], start: int) -> np.ndarray:
    return (np.arange(sum(2 * width // 8 for _, width in sizes)) + start) % 4


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> TokenCache:
    folder = tmp_path_factory.mktemp("documents")
    documents = [Document(codes_of(sizes, row), sizes, texts, order)
                 for row, (texts, sizes, order) in enumerate(DOCUMENTS)]  # fmt: skip
    write_shard(folder / "shard-00000", documents, code_dtype(4))
    shards = [{"name": "shard-00000", "rows": len(documents)}]
    write_manifest(folder, {"image_tokenizer_fingerprint": "none", "num_codes": 4, "shards": shards})
    return TokenCache(folder)


def build(**settings) -> MultimodalVocabulary:
    return MultimodalVocabulary.build(
        train_text_tokenizer(["red dog blue"] * 3, 300), num_codes=4, layout=build_layout([(1, 2)], [[4]]).to_dict(),
        image_size=list(SMALL), image_tokenizer_fingerprint="none", **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary() -> MultimodalVocabulary:
    """Two sizes."""
    return build(other_layouts={WIDE: build_layout([(2, 2)], [[4]]).to_dict()})


def written(vocabulary: MultimodalVocabulary, words: str) -> list[int]:
    """Token ids of "bos red <8x8> 0 1 row ...": digits are codes."""
    names = {name: getattr(vocabulary, f"{name}_id") for name in ("bos", "eos", "boi", "eoi")}
    names |= {"row": vocabulary.end_row_id, "-": X}
    names |= {f"<{height}x{width}>": number for (height, width), number in vocabulary.size_ids.items()}
    found: list[int] = []
    for word in words.split():
        code = [vocabulary.image_offset + int(word)] if word.isdigit() else vocabulary.encode_text(word)
        found += [names[word]] if word in names else code
    return found


def test_a_document_of_two_sizes_written_out(vocabulary, cache):
    source = SequenceSource(cache, vocabulary)
    sequence = source.sequence(source.items([0], [("document", None)])[0])
    assert sequence.input_ids.tolist() == written(
        vocabulary,
        "bos red dog boi <8x8> 0 1 row eoi blue boi <8x16> 2 3 row 0 1 row eoi eos",
    )
    assert sequence.labels.tolist() == written(
        vocabulary,
        "- red dog boi <8x8> 0 1 - eoi blue boi <8x16> 2 3 - 0 1 - eoi eos",
    )


@pytest.mark.parametrize("name, ids, labels", [
    ("caption_to_image", "bos red boi <8x16> 3 0 row 1 2 row", "- - - - 3 0 - 1 2 -"),
    ("image", "bos boi <8x16> 3 0 row 1 2 row", "- - - 3 0 - 1 2 -"),
    ("caption_and_image", "bos red boi <8x16> 3 0 row 1 2 row eoi eos", "- red boi <8x16> 3 0 - 1 2 - eoi eos"),
    ("image_to_caption", "bos boi <8x16> 3 0 row 1 2 row eoi red eos", "- - - - - - - - - - red eos"),
])  # fmt: skip
def test_sizes_in_other_formats(vocabulary, cache, name, ids, labels):
    source = SequenceSource(cache, vocabulary)
    sequence = source.sequence(source.items([3], [(name, None if name == "image" else "red")])[0])
    assert sequence.input_ids.tolist() == written(vocabulary, ids)
    assert sequence.labels.tolist() == written(vocabulary, labels)


def test_levels_and_depths_end_their_own_rows():
    """Two levels, 1x1 and 2x1 places, two codes a place."""
    layout = build_layout([(1, 1), (2, 1)], [[1, 1], [1, 1]]).to_dict()
    vocabulary = build(other_layouts={(16, 8): layout})
    ids = vocabulary.picture((16, 8)).ids.tolist()
    end = vocabulary.end_row_id
    assert ids == [vocabulary.size_ids[16, 8], -1, -1, end, -1, -1, end, -1, -1, end]
    assert vocabulary.picture((16, 8)).places.tolist() == [1, 2, 4, 5, 7, 8]


def test_one_size_needs_no_tokens_for_it(cache):
    vocabulary = build()
    assert vocabulary.end_row_id is None and not vocabulary.size_ids
    assert vocabulary.picture_ids(np.array([1, 2])).tolist() == [
        vocabulary.image_offset + 1,
        vocabulary.image_offset + 2,
    ]
    with pytest.raises(ValueError, match=r"pictures of 8x16 \(height x width\): this model's are 8x8"):
        vocabulary.picture(WIDE)


def test_prompts_name_the_size(vocabulary):
    assert image_prompt(vocabulary, "red") == written(vocabulary, "bos red boi <8x8>")
    assert image_prompt(vocabulary, None, WIDE) == written(vocabulary, "bos boi <8x16>")


def test_a_vocabulary_of_sizes_is_saved(vocabulary, tmp_path):
    vocabulary.save_pretrained(tmp_path)
    loaded = MultimodalVocabulary.from_pretrained(tmp_path)
    assert loaded.layouts == vocabulary.layouts and list(loaded.layouts) == list(vocabulary.layouts)
    assert (loaded.size_ids, loaded.end_row_id) == (vocabulary.size_ids, vocabulary.end_row_id)
    assert not loaded.text_mask()[[*loaded.size_ids.values(), loaded.end_row_id]].any(), "no text has them"


def test_rows_take_the_formats_that_they_can(vocabulary, cache):
    source = SequenceSource(cache, vocabulary, caption_dropout=0.0)
    names = [name for name, _ in source.choose(0, 0, np.arange(len(cache)))]
    assert names == ["document", "document", "document", "caption_to_image", "text", "image"]
    assert source.trained_formats() == ["caption_to_image", "image", "text", "document"]
    assert cache.interleaved


@pytest.mark.parametrize("max_length, ids", [
    (20, "bos red dog boi <8x8> 0 1 row eoi blue boi <8x16> 2 3 row 0 1 row eoi eos"),
    (19, "bos red dog boi <8x8> 0 1 row eoi blue"),
    (9, "bos red dog"),
    (3, "bos red"),
])  # fmt: skip
def test_a_long_document_is_cut_where_it_does_not_fit(vocabulary, cache, max_length, ids):
    source = SequenceSource(cache, vocabulary, max_length=max_length)
    (item,) = source.items([0], [("document", None)])
    found = source.sequence(item).input_ids.tolist()
    whole = ids.endswith("eos")
    assert found == written(vocabulary, ids) and len(found) == item.length <= max_length
    assert item.whole == whole and source.cropped == (not whole)
    dropping = SequenceSource(cache, vocabulary, max_length=max_length, drop_long=True)
    assert len(dropping.items([0], [("document", None)])) == whole and dropping.dropped == (not whole)


def test_packed_documents(vocabulary, cache):
    order = BatchOrder(SequenceSource(cache, vocabulary, max_length=40), batch_size=1, pack_length=80)
    place, (batch,) = next(order.batches())
    ids = batch["input_ids"][0].tolist()
    assert ids.count(vocabulary.bos_id) >= 2 and batch["input_ids"].shape == (1, 80)
    assert ((batch["position_ids"][0] == 0).nonzero().flatten().tolist()[: ids.count(vocabulary.bos_id)]
            == [index for index, one in enumerate(ids) if one == vocabulary.bos_id])  # fmt: skip
