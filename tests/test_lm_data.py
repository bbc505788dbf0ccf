"""The order of data: batch k depends on (seed, epoch, k) alone, and each row's choices on (seed, epoch, row)."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from lm.data.batch_order import BatchOrder, Place, packed
from lm.data.sequence_source import Item, SequenceSource, keyed_generator
from lm.data.token_cache import Document, TokenCache, code_dtype, write_manifest, write_shard
from lm.sequences import FORMATS, token_sequence
from lm.vocabulary import MultimodalVocabulary, train_text_tokenizer
from tokenizer_image.layout import build_layout

ROWS, TOKENS = 203, 4
WORDS = ["a", "red", "blue", "green", "dog", "cat", "house", "left", "of", "on", "the", "grass", "small", "large"]


def captions(row: int) -> list[str]:
    """0 to 3 captions of 1 to 9 words; row 5 has none."""
    rng = np.random.default_rng(row)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 10))) for _ in range(0 if row == 5 else 1 + row % 3)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> TokenCache:
    """Row r has the codes of r in base 4, so that every sequence tells its row."""
    folder: Path = tmp_path_factory.mktemp("cache")
    documents = [
        Document(np.array([row // 4**place % 4 for place in range(TOKENS)]), [(8, 8)], captions(row))
        for row in range(ROWS)
    ]
    for index, part in enumerate((documents[:150], documents[150:])):
        write_shard(folder / f"shard-{index:05d}", part, code_dtype(4))
    shards = [{"name": "shard-00000", "rows": 150}, {"name": "shard-00001", "rows": ROWS - 150}]
    write_manifest(folder, {"image_tokenizer_fingerprint": "none", "num_codes": 4, "shards": shards})
    return TokenCache(folder)


@pytest.fixture(scope="module")
def vocabulary(cache) -> MultimodalVocabulary:
    return MultimodalVocabulary.build(
        train_text_tokenizer(cache.all_texts(), 300),
        num_codes=4,
        layout=build_layout([(2, 2)], [[4]]).to_dict(),
        image_size=[8, 8],
        image_tokenizer_fingerprint="none",
    )


@pytest.fixture
def order(cache, vocabulary):
    def make(
        batch_size: int = 8,
        seed: int = 0,
        window: int = 64,
        mix: float = 4.0,
        pack_length: int | None = None,
        **settings,
    ) -> BatchOrder:
        return BatchOrder(SequenceSource(cache, vocabulary, **settings), batch_size, seed, window, mix, pack_length)

    return make


def rows_of(batch: dict[str, torch.Tensor], vocabulary: MultimodalVocabulary) -> list[int]:
    """Which row of the cache each sequence of a batch is."""
    codes = [row[row >= vocabulary.image_offset] - vocabulary.image_offset for row in batch["input_ids"]]
    return [int((one * 4 ** torch.arange(TOKENS)).sum()) for one in codes]


def first_batches(order: BatchOrder, count: int) -> list:
    """`count` batches of one process, each a list of its parts."""
    return [parts for _, parts in islice(order.batches(), count)]


def global_batches(order: BatchOrder, count: int, world_size: int = 1, micro_batches: int = 1) -> list:
    """`count` batches, each as the list of all ranks' parts."""
    streams = [
        order.batches(rank=rank, world_size=world_size, micro_batches=micro_batches) for rank in range(world_size)
    ]
    return [[part for stream in streams for part in next(stream)[1]] for _ in range(count)]


def lines(parts: list[dict[str, torch.Tensor]], vocabulary: MultimodalVocabulary) -> list[tuple]:
    """The sequences of a batch without padding, sorted."""
    found = []
    for part in parts:
        for ids, labels, weights in zip(part["input_ids"], part["labels"], part["loss_weights"], strict=True):
            kept = ids != vocabulary.pad_id
            found.append((ids[kept].tolist(), labels[kept].tolist(), weights[kept].tolist()))
    return sorted(found)


# Batches


PACKED = {"pack_length": 40, "max_length": 20}


@pytest.mark.parametrize("settings", [{}, PACKED], ids=["padded", "packed"])
def test_a_batch_does_not_depend_on_those_before(order, settings):
    """Starts inside windows, at their ends, in a short one and in later epochs."""
    expected = list(islice(order(**settings).batches(), 70))
    places = [Place(), *(place for place, _ in expected[:-1])]
    assert {place.epoch for place in places} == {0, 1, 2} if not settings else len({p.epoch for p in places}) > 2
    for start in (1, 7, 8, 9, 24, 25, 26, 60):
        fresh = order(**settings)
        fresh.source._encode(["something that was seen before"])
        found = list(islice(fresh.batches(places[start]), 5))
        for (ours, our_parts), (theirs, their_parts) in zip(found, expected[start:], strict=False):
            assert ours == theirs
            for name in ("input_ids", "labels", "position_ids", "loss_weights"):
                assert torch.equal(our_parts[0][name], their_parts[0][name])
    assert len(set(places)) == 70


@pytest.mark.parametrize("settings", [{}, PACKED], ids=["padded", "packed"])
def test_each_epoch_has_an_order_of_its_own(order, settings):
    """Of rows, over windows, and of the batches in a window."""
    data = order(window=64, **settings)
    windows = [
        {item.row for batch in data.window_batches(epoch, 0) for row in batch for item in row} for epoch in (0, 1)
    ]
    assert windows[0] != windows[1]
    sorted_data = order(window=203, mix=0.0, caption_dropout=0.0, **settings)
    sorted_data._rows = lambda epoch: np.arange(ROWS)  # the same in each epoch, so that only the batches' order differs
    sorted_data.source.choose = lambda seed, epoch, rows, choose=sorted_data.source.choose: choose(seed, 0, rows)
    batches = [
        [tuple(sorted(item.row for row in batch for item in row)) for batch in sorted_data.window_batches(epoch, 0)]
        for epoch in (0, 1)
    ]
    assert batches[0] != batches[1]
    if not settings:
        assert sorted(batches[0]) == sorted(batches[1])


@pytest.mark.parametrize("world_size, micro_batches", [(2, 1), (4, 1), (1, 4), (2, 2)])
def test_any_number_of_processes_has_the_same_batches(order, vocabulary, world_size, micro_batches):
    expected = global_batches(order(), 30)
    found = global_batches(order(), 30, world_size, micro_batches)
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == world_size * micro_batches
        assert {len(part["input_ids"]) for part in ours} == {8 // len(ours)}, "equal shares"
        assert lines(ours, vocabulary) == lines(theirs, vocabulary)


def test_every_row_comes_once_an_epoch(order, vocabulary):
    stream, epochs = order().batches(), []
    for _ in range(2):
        epochs.append([row for _ in range(25) for row in rows_of(next(stream)[1][0], vocabulary)])
    for rows in epochs:
        assert len(rows) == len(set(rows)) == 200 and set(rows) <= set(range(ROWS)), "all but the remainder"
    assert epochs[0] != epochs[1]
    assert set(range(ROWS)) - set(epochs[0]) != set(range(ROWS)) - set(epochs[1]), "another remainder each time"


def test_seeds_give_other_orders(order, vocabulary):
    first, again, other = ([rows_of(b[0], vocabulary) for b in first_batches(order(seed=seed), 25)]
                           for seed in (0, 0, 1))  # fmt: skip
    assert first == again != other


def test_rows_of_a_batch_are_about_equally_long(order, vocabulary):
    def padding(**settings) -> float:
        batches = [batch[0]["input_ids"] for batch in first_batches(order(**settings), 25)]
        return float(np.mean([(ids == vocabulary.pad_id).float().mean() for ids in batches]))

    mixed = padding(mix=1000.0)
    assert padding(window=200, mix=0.0) < 0.3 * mixed
    assert padding(window=200) < 0.6 * mixed
    # And long ones do not come first or last: blocks are shuffled.
    lengths = [batch[0]["input_ids"].shape[1] for batch in first_batches(order(window=200, mix=0.0), 25)]
    assert lengths != sorted(lengths) and lengths != sorted(lengths, reverse=True)


def test_sequences_are_those_of_their_rows(order, vocabulary, cache):
    for batch in first_batches(order(caption_dropout=0.0, mixture={"caption_and_image": 1.0}), 25):
        for row, ids, labels in zip(
            rows_of(batch[0], vocabulary), batch[0]["input_ids"], batch[0]["labels"], strict=True
        ):
            encoded = [vocabulary.encode_text(text) for text in cache.texts(row)] or [None]
            names = ["image" if one is None else "caption_and_image" for one in encoded]
            possible = [token_sequence(vocabulary, *one, cache.codes(row)) for one in zip(names, encoded, strict=True)]
            kept = ids != vocabulary.pad_id
            assert (ids[kept].tolist(), labels[kept].tolist()) in [
                (one.input_ids.tolist(), one.labels.tolist()) for one in possible
            ]


def test_batches_that_do_not_divide(order):
    with pytest.raises(ValueError, match=r"batch_size 8 is not a multiple of 6 .2 processes x 3 accumulation steps"):
        next(order().batches(world_size=2, micro_batches=3))
    with pytest.raises(ValueError, match="batch_size 204 is larger than the data set, 203 rows: lower it"):
        order(batch_size=204)
    assert order(batch_size=203).windows == 1
    (place, (batch,)) = next(order(batch_size=203).batches())
    assert len(batch["input_ids"]) == 203 and place == Place(1)


def test_windows_are_of_whole_batches_and_hold_enough_to_pack(order):
    assert [order(window=window).window for window in (1, 8, 67)] == [8, 8, 64]
    data = order(window=8, batch_size=2, **PACKED)
    mean = np.mean([item.length for item in data._items(0, np.arange(ROWS))])
    assert data.window == int(32 * 2 * 40 / mean) and data.windows == -(-ROWS // data.window)
    assert order(window=5000, **PACKED).window == 5000
    assert BatchOrder(order().source, 8).seed == 0


# Choices


def test_choices_are_keyed_by_row(cache, vocabulary):
    source = SequenceSource(cache, vocabulary, caption_dropout=0.3)
    rows = np.arange(ROWS)
    together = source.choose(3, 1, rows)
    assert together == [source.choose(3, 1, np.array([row]))[0] for row in rows], "whatever the neighbours"
    assert together[::-1] == SequenceSource(cache, vocabulary, caption_dropout=0.3).choose(3, 1, rows[::-1])
    assert together != source.choose(3, 2, rows) and together != source.choose(4, 1, rows)
    for row, (name, caption) in zip(rows, together, strict=True):
        assert caption in cache.texts(row) if name == "caption_to_image" else (name, caption) == ("image", None)


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5, 1.0])
def test_captions_are_dropped_as_often_as_asked(cache, vocabulary, dropout):
    source = SequenceSource(cache, vocabulary, caption_dropout=dropout)
    rows = np.delete(np.arange(ROWS), 5)
    dropped = np.mean([caption is None for epoch in range(30) for _, caption in source.choose(0, epoch, rows)])
    assert dropped == pytest.approx(dropout, abs=0.02)
    assert source.choose(0, 0, np.array([5])) == [("image", None)], "a row without captions has none to drop"


def test_a_bounded_number_of_token_ids_is_kept(cache, vocabulary, monkeypatch):
    rows = np.arange(ROWS)

    def found(bound: int) -> tuple[list[list[int]], list[int]]:
        monkeypatch.setattr("lm.data.sequence_source.CACHED_TOKENS", bound)
        source, sequences, held = SequenceSource(cache, vocabulary), [], []
        for some in [*np.array_split(rows, 20)] * 2:
            items = source.items(some, source.choose(0, 0, some))
            sequences += [source.sequence(item).input_ids.tolist() for item in items]
            held.append(sum(map(len, source._encoded.values())))
        return sequences, held

    (expected, free), (same, bounded) = found(1 << 30), found(100)
    assert same == expected
    most = max(b - a for a, b in zip([0, *free], free, strict=False))  # of one batch
    assert free[-1] > 1000 and max(bounded) <= 100 + 2 * most


def test_all_captions_of_a_row_are_used_alike(cache, vocabulary):
    source = SequenceSource(cache, vocabulary, caption_dropout=0.2)
    row = next(row for row in range(ROWS) if len(set(captions(row))) == 3)
    chosen = [source.choose(0, epoch, np.array([row]))[0][1] for epoch in range(600)]
    shares = [chosen.count(text) / 600 for text in cache.texts(row)]
    assert shares == pytest.approx([0.8 / 3] * 3, abs=0.06)
    # What is dropped in one epoch is not what is dropped in all of them.
    both = [[caption is None for _, caption in source.choose(0, epoch, np.arange(ROWS))] for epoch in range(2)]
    assert both[0] != both[1]


def test_long_captions_lose_their_end_and_are_counted(cache, vocabulary):
    room, rows = 3, list(range(ROWS))
    for mixture in ({"caption_to_image": 1.0}, {"caption_and_image": 1.0}, {"image": 1.0, "image_to_caption": 1.0}):
        frame = max(FORMATS[name].frame for name in mixture)
        length = room + frame + TOKENS
        source = SequenceSource(cache, vocabulary, 0.1, mixture, length)
        chosen = source.choose(0, 0, np.array(rows))
        items = source.items(rows, chosen)
        full = [None if text is None else vocabulary.encode_text(text) for _, text in chosen]
        for item, ids in zip(items, full, strict=True):
            assert item.texts == (() if ids is None else (ids[: length - TOKENS - FORMATS[item.format].frame],))
            assert len(source.sequence(item)) == item.length <= length
        too_long = sum(
            ids is not None and len(ids) > length - TOKENS - FORMATS[item.format].frame
            for item, ids in zip(items, full, strict=True)
        )
        assert (source.cropped, source.dropped) == (too_long, 0) and too_long > 10
        dropping = SequenceSource(cache, vocabulary, 0.1, mixture, length, drop_long=True)
        kept = dropping.items(rows, chosen)
        assert (dropping.cropped, dropping.dropped, len(kept)) == (0, too_long, ROWS - too_long)
        assert kept == [item for item in items if item in kept]
    with pytest.raises(ValueError, match="takes 6 tokens, more than the 5 that .* may have: raise --max_length"):
        SequenceSource(cache, vocabulary, max_length=5).items([0], [("image", None)])


def test_captions_beside_a_picture_have_a_limit_of_their_own(cache, vocabulary):
    source = SequenceSource(cache, vocabulary, max_caption_tokens=2)
    long = next(row for row in range(ROWS) if captions(row) and len(vocabulary.encode_text(captions(row)[0])) > 4)
    ids, text = vocabulary.encode_text(captions(long)[0]), captions(long)[0]
    drawn, described, alone = source.items(
        [long] * 3, [("caption_to_image", text), ("image_to_caption", text), ("text", text)]
    )
    assert drawn.texts == described.texts == (ids[:2],) and source.cropped == 2
    assert alone.texts == (ids,), "a text without a picture is whole"
    assert [item.length for item in (drawn, alone)] == [2 + 2 + TOKENS, 2 + len(ids)]


# Packing

PICTURES = {"caption_to_image": 3.0, "image_to_caption": 2.0}  # every sequence tells its row


def test_packed_rows_hold_whole_sequences_with_little_room_left(order, vocabulary):
    padded, dense = order(mixture=PICTURES, max_length=20), order(mixture=PICTURES, window=200, **PACKED)
    epoch = [parts[0] for place, parts in islice(dense.batches(), 12) if place.epoch == 0]
    assert {tuple(part["input_ids"].shape) for part in epoch} == {(8, 40)}
    share = np.mean([(part["input_ids"] == vocabulary.pad_id).float().mean() for part in epoch])
    assert share < 0.05 < np.mean([(part[0]["input_ids"] == vocabulary.pad_id).float().mean()
                                   for part in first_batches(padded, 12)])  # fmt: skip
    items = {tuple(padded.source.sequence(item).input_ids): item.row
             for item in dense._items(0, np.arange(ROWS))}  # fmt: skip
    seen = []
    for part in epoch:
        for ids, positions in zip(part["input_ids"], part["position_ids"], strict=True):
            starts = [*(positions == 0).nonzero().flatten().tolist(), 40]
            for first, last in zip(starts, starts[1:], strict=False):
                assert positions[first:last].tolist() == list(range(last - first))
                if ids[first] != vocabulary.pad_id:
                    seen.append(items[tuple(ids[first:last].tolist())])
                else:
                    assert (ids[first:] == vocabulary.pad_id).all()
    assert len(seen) == len(set(seen)) > 150, "each once"


def test_best_fit_decreasing():
    items = [Item(row, "text", (), length=length) for row, length in enumerate([4, 7, 3, 6, 10, 1])]
    assert [[item.length for item in row] for row in packed(items, 10)] == [[10], [7, 3], [6, 4], [1]]
    assert packed([], 10) == []


def test_packing_that_cannot_be(order, monkeypatch):
    with pytest.raises(ValueError, match="pack_length 16 is shorter than the longest sequence, 20 tokens: raise it"):
        order(pack_length=16, max_length=20)
    with pytest.raises(ValueError, match="the 203 rows do not fill one batch of 999 rows of 40 tokens: lower"):
        next(order(batch_size=999, **PACKED).batches())
    dropping = order(max_length=6, drop_long=True, caption_dropout=0.0)
    with pytest.raises(ValueError, match="the 203 rows do not fill one batch of 8 rows: lower --batch_size"):
        next(dropping.batches())
    monkeypatch.setattr(SequenceSource, "items", lambda self, rows, chosen: [])
    with pytest.raises(ValueError, match="the 203 rows do not fill one batch of 8 rows of 40 tokens"):
        next(order(**PACKED).batches())


# Formats

MIXTURE = {"caption_to_image": 3.0, "image_to_caption": 2.0, "text": 1.0, "image": 0.5}


def test_formats_come_as_often_as_asked_and_keyed_by_row(cache, vocabulary):
    source = SequenceSource(cache, vocabulary, caption_dropout=0.2, mixture=MIXTURE)
    rows = np.delete(np.arange(ROWS), 5)
    epochs = [source.choose(0, epoch, rows) for epoch in range(40)]
    names = [name for chosen in epochs for name, _ in chosen]
    shares = {name: names.count(name) / len(names) for name in FORMATS}
    assert shares == pytest.approx({
        "caption_to_image": 0.8 * 3 / 6.5, "caption_and_image": 0, "image": (0.5 + 0.2 * 3) / 6.5,
        "image_to_caption": 2 / 6.5, "text": 1 / 6.5, "document": 0, "image_and_caption": 0, "edit": 0,
        "image_to_image": 0,
    }, abs=0.02)  # fmt: skip
    assert epochs[7][::-1] == source.choose(0, 7, rows[::-1])
    # Which format, which caption and whether it is dropped do not hang together.
    for row, (name, caption) in zip(rows, epochs[0], strict=True):
        assert (caption in cache.texts(row)) if FORMATS[name].has_text else caption is None
    three = [row for row in rows if len(set(captions(row))) == 3]
    places = [cache.texts(row).index(text) for epoch in range(40)
              for row, (name, text) in zip(three, source.choose(0, epoch, np.array(three)), strict=True)
              if name == "image_to_caption"]  # fmt: skip
    assert [places.count(place) / len(places) for place in range(3)] == pytest.approx([1 / 3] * 3, abs=0.06)


def test_the_choice_of_captions_does_not_depend_on_the_mixture(cache, vocabulary):
    rows = np.arange(ROWS)
    drawing = SequenceSource(cache, vocabulary, caption_dropout=0.3).choose(0, 0, rows)
    mixed = SequenceSource(cache, vocabulary, caption_dropout=0.3, mixture=MIXTURE).choose(0, 0, rows)
    same = [ours == theirs for ours, theirs in zip(mixed, drawing, strict=True) if ours[0] == "caption_to_image"]
    assert len(same) > 50 and all(same)


def test_rows_that_cannot_take_a_format_take_one_that_they_can(cache, vocabulary, tmp_path):
    codes, none = np.arange(TOKENS) % 4, np.zeros(0, np.uint8)
    documents = [
        Document(codes, [(8, 8)]),
        Document(none, [], ["a red dog"], "t"),
        Document(codes, [(8, 8)], ["a cat"]),
    ]
    write_shard(tmp_path / "shard-00000", documents, code_dtype(4))
    shards = [{"name": "shard-00000", "rows": 3}]
    write_manifest(tmp_path, {"image_tokenizer_fingerprint": "none", "num_codes": 4, "shards": shards})
    poor = TokenCache(tmp_path)
    assert [poor.count(*has) for has in ((True, True), (True, False), (False, True), (False, False))] == [1, 1, 1, 0]

    def chosen(mixture: dict[str, float]) -> list[set[str]]:
        source = SequenceSource(poor, vocabulary, caption_dropout=0.0, mixture=mixture)
        epochs = [source.choose(0, epoch, np.arange(3)) for epoch in range(50)]
        for items in (source.items(range(3), one) for one in epochs):
            assert all(len(source.sequence(item)) > 2 for item in items)
        names = [{epoch[row][0] for epoch in epochs} for row in range(3)]
        assert set().union(*names) == set(source.trained_formats()), "what vocabulary.json says is what was learned"
        return names

    assert chosen({"caption_to_image": 1.0}) == [{"image"}, {"text"}, {"caption_to_image"}]
    assert chosen({"image_to_caption": 1.0, "text": 1.0}) == [{"image"}, {"text"}, {"image_to_caption", "text"}]
    assert chosen({"image": 1.0}) == [{"image"}, {"text"}, {"image"}]


def test_pictures_of_one_code_are_pictures(vocabulary, tmp_path):
    documents = [Document(np.ones(1, np.uint8), [(8, 8)], ["a cat"]), Document(np.zeros(0, np.uint8), [], ["a"], "t")]
    write_shard(tmp_path / "shard-00000", documents, code_dtype(4))
    shards = [{"name": "shard-00000", "rows": 2}]
    write_manifest(tmp_path, {"image_tokenizer_fingerprint": "none", "num_codes": 4, "shards": shards})
    source = SequenceSource(TokenCache(tmp_path), vocabulary, caption_dropout=0.0)
    assert source.choose(0, 0, np.arange(2)) == [("caption_to_image", "a cat"), ("text", "a")]
    assert source.trained_formats() == ["caption_to_image", "text"], "no caption is dropped"
    assert source.possible(True, True) == {"caption_to_image": 1.0} and source.possible(True, True, True) == {
        "document": 1.0
    }


def test_formats_that_were_trained(cache, vocabulary):
    def found(**settings) -> list[str]:
        return SequenceSource(cache, vocabulary, **settings).trained_formats()

    assert found() == ["caption_to_image", "image"], "row 5 has no caption, and a tenth lose theirs"
    assert found(mixture={"image_to_caption": 1.0, "text": 0.0}) == ["image", "image_to_caption"]
    with pytest.raises(ValueError, match="unknown sequence format 'caption'"):
        found(mixture={"caption": 1.0})
    with pytest.raises(ValueError, match="sum to nothing"):
        found(mixture={"image": 0.0})


def test_batches_hold_all_formats_in_about_their_shares(order, vocabulary):
    batches = [batch[0] for batch in first_batches(order(batch_size=40, window=200, mixture=MIXTURE), 20)]
    for batch in batches:
        labels = batch["labels"]
        assert (labels >= vocabulary.image_offset).any() and ((labels >= 0) & (labels < vocabulary.image_offset)).any()


def test_keyed_generators_are_distinct_and_repeat():
    keys = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 2, 0, 1), (0, 3, 0, 1), (0, 2, 1, 0)]
    draws = [keyed_generator(*key).integers(0, 2**63) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws == [keyed_generator(*key).integers(0, 2**63) for key in keys]
