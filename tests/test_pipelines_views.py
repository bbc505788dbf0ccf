"""Further views of training pictures: which pixels they show, which captions forbid them, which one comes when."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from lm.data.batch_order import BatchOrder
from lm.data.sequence_source import SequenceSource, drop_phrases
from lm.data.token_cache import TokenCache
from lm.vocabulary import MultimodalVocabulary, train_text_tokenizer
from pipelines.caching.opening import open_caches
from pipelines.caching.views import View, has_direction, views_of
from pipelines.options.data import CacheOptions
from scripts import cache_tokens
from tokenizer_image import VQVAE, VQVAEConfig
from tokenizer_image.pictures.loading import Preprocessing, load_pictures, preprocess, to_pixel_values

SIDE, ROWS = 8, 20
CAPTIONS = ["a red bird", "a bird that looks LEFT", "a bright bird", "turned clockwise, red"]


@pytest.fixture(scope="module")
def tokenizer() -> VQVAE:
    torch.manual_seed(0)
    config = VQVAEConfig(
        image_size=SIDE, patch_size=4, hidden_sizes=[8], num_res_blocks=1, code_dim=4, codebook_sizes=[256],
        preprocessing=Preprocessing(image_size=SIDE).to_dict(),
    )  # fmt: skip
    model = VQVAE(config)
    model.train()(torch.rand(256, 3, SIDE, SIDE) * 2 - 1)
    return model.eval()


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "tessera"))


def write_pictures(folder: Path, count: int = ROWS) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (18, 18, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(CAPTIONS[number % len(CAPTIONS)])
    return folder


def opened(folder: Path, root: Path, tokenizer: VQVAE, **changes) -> tuple[TokenCache, TokenCache, list[TokenCache]]:
    options = CacheOptions(dataset=str(folder), num_workers=0, **changes)
    return open_caches(options, tokenizer, Accelerator(), root=str(root))


def all_codes(cache: TokenCache) -> list[list[int]]:
    return [cache.codes(row).tolist() for row in range(len(cache))]


def test_a_crop_shows_a_part_of_the_larger_picture_and_is_the_same_for_any_neighbours():
    view = View(1, crops=True, mirrored=0.5)
    ((height, width),) = view.decoded_sizes([(16, 24)])
    assert (height, width) == (18, 27)
    pictures = np.random.default_rng(0).integers(0, 256, (200, 3, height, width), dtype=np.uint8)
    shown = view.applied(pictures, range(200), (16, 24), [False] * 200)
    places, mirrored = set(), 0
    for picture, part in zip(pictures, shown, strict=True):
        found = [
            (top, left, flipped) for top in range(3) for left in range(4) for flipped in (False, True)
            if (picture[:, top : top + 16, left : left + 24][..., :: -1 if flipped else 1] == part).all()
        ]  # fmt: skip
        (one,) = found
        places.add(one[:2])
        mirrored += one[2]
    assert len(places) == 12 and 70 < mirrored < 130
    assert (view.applied(pictures[7:8], [7], (16, 24), [False]) == shown[7:8]).all()
    assert (View(2, True, 0.5).applied(pictures, range(200), (16, 24), [False] * 200) != shown).any()
    fixed = view.applied(pictures, range(200), (16, 24), [True] * 200)
    assert all((one == other).all() or (one == other[..., ::-1]).all() for one, other in zip(fixed, shown, strict=True))
    assert (fixed != shown).any(axis=(1, 2, 3)).sum() == mirrored


def test_which_views_the_options_ask_for():
    assert views_of(0, False) == []
    assert [view.name for view in views_of(0, True)] == ["mirrored"]
    assert [view.name for view in views_of(2, False)] == ["crop-1", "crop-2"]
    assert [view.name for view in views_of(2, True)] == ["crop-mirrored-1", "crop-mirrored-2"]
    with pytest.raises(ValueError, match="--crops -1 must be at least zero"):
        CacheOptions(crops=-1)


@pytest.mark.parametrize(
    "text", ["Left of it", "the right eye", "anti-clockwise", "nach links", "左边的狗", "à gauche"]
)
def test_captions_that_tell_left_from_right(text):
    assert has_direction(["a dog", text])


@pytest.mark.parametrize("text", ["bright light", "a leftover copyright", "an upright bird", ""])
def test_captions_that_do_not(text):
    assert not has_direction([text])


def test_mirrored_pictures_are_encoded_but_not_those_whose_caption_forbids_it(tokenizer, tmp_path, capsys):
    folder = write_pictures(tmp_path / "birds")
    cache, _, (mirrored,) = opened(folder, tmp_path / "cache", tokenizer, random_flip=True)
    printed = capsys.readouterr()
    warning = "".join(line for line in (printed.out + printed.err).splitlines() if "tell left from right" in line)
    assert warning.count("'") == 6 and "LEFT" in warning and "clockwise" in warning
    source = load_pictures(str(folder), "train")
    for row in range(len(source)):
        pixels = preprocess(source.image(row), Preprocessing(image_size=SIDE))[None]
        if not has_direction(source.texts(row)):
            pixels = pixels[..., ::-1].copy()
        assert mirrored.codes(row).tolist() == tokenizer.encode(to_pixel_values(pixels))[0].tolist()
        assert mirrored.texts(row) == cache.texts(row)


def test_views_are_kept_apart_used_again_and_updated(tokenizer, tmp_path):
    folder, root = write_pictures(tmp_path / "birds"), tmp_path / "cache"
    cache, _, views = opened(folder, root, tokenizer, crops=2)
    assert sorted(path.name for path in root.iterdir()) == ["train", "train-crop-1", "train-crop-2", "validation"]
    codes = [all_codes(one) for one in (cache, *views)]
    assert len({str(one) for one in codes}) == 3 and all(len(one) == len(cache) for one in views)
    before = {file: file.stat().st_mtime_ns for file in root.rglob("codes.npy")}
    again, _, same = opened(folder, root, tokenizer, crops=2)
    assert [all_codes(one) for one in (again, *same)] == codes
    assert {file: file.stat().st_mtime_ns for file in root.rglob("codes.npy")} == before
    for number in (91, 92, 93):
        shutil.copy(folder / "000.png", folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("new")
    updated, _, new_views = opened(folder, root, tokenizer, crops=2)
    assert len(updated) > len(cache) and [len(one) for one in new_views] == [len(updated)] * 2
    for before_codes, one in zip(codes[1:], new_views, strict=True):
        assert sum(row in all_codes(one) for row in before_codes) == len(before_codes), "kept codes of their own view"


def test_the_command_writes_the_views_that_training_reads(tokenizer, tmp_path):
    folder = write_pictures(tmp_path / "birds")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    cache_tokens.main(
        cache_tokens.Options(
            dataset=str(folder), image_tokenizer=str(tmp_path / "tokenizer"), token_cache=str(tmp_path / "by command"),
            num_workers=0, crops=1, random_flip=True,
        )
    )  # fmt: skip
    _, _, (view,) = opened(folder, tmp_path / "cache", tokenizer, crops=1, random_flip=True)
    written = TokenCache(tmp_path / "by command" / "train-crop-mirrored-1")
    assert all_codes(written) == all_codes(view)


def test_interleaved_documents_have_no_views(tokenizer, tmp_path):
    folder = write_pictures(tmp_path / "documents")
    lines = [{"parts": [{"text": "a"}, {"image": f"{number:03d}.png"}, {"text": "b"}]} for number in range(ROWS)]
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match="--crops and --random_flip are for captioned pictures"):
        opened(folder, tmp_path / "cache", tokenizer, crops=1)


@pytest.fixture
def source(tokenizer, tmp_path) -> SequenceSource:
    cache, _, views = opened(write_pictures(tmp_path / "birds"), tmp_path / "cache", tokenizer, crops=2)
    vocabulary = MultimodalVocabulary.build(
        train_text_tokenizer(cache.all_texts(), 300), num_codes=tokenizer.num_codes,
        layout=tokenizer.layout((SIDE, SIDE)).to_dict(), image_size=[SIDE, SIDE], image_tokenizer_fingerprint="",
    )  # fmt: skip
    return SequenceSource(cache, vocabulary, caption_dropout=0.0, views=views)


def test_every_epoch_takes_one_view_of_a_row_and_three_epochs_take_all(source):
    caches = [source.cache, *source.views]
    order = BatchOrder(source, batch_size=len(source.cache), seed=3)
    seen: dict[int, list[list[int]]] = {row: [] for row in range(len(source.cache))}
    for epoch in range(3):
        (batch,) = order.window_batches(epoch, 0)
        for (item,) in batch:
            ids = source.sequence(item).input_ids
            seen[item.row].append(
                (ids[ids >= source.vocabulary.image_offset] - source.vocabulary.image_offset).tolist()
            )
    for row, codes in seen.items():
        assert sorted(codes) == sorted(cache.codes(row).tolist() for cache in caches)
    views = [[item.view for (item,) in BatchOrder(source, 4, seed).window_batches(0, 0)[0]] for seed in range(8)]
    assert len({tuple(one) for one in views}) > 1, "keyed by the seed"


def test_a_view_of_other_rows_is_refused(source, tokenizer, tmp_path):
    other, _, _ = opened(write_pictures(tmp_path / "more", 30), tmp_path / "other", tokenizer)
    with pytest.raises(ValueError, match=r"other/train has \d+ rows, that of the plain pictures \d+: delete"):
        SequenceSource(source.cache, source.vocabulary, views=[other])


def test_phrases_are_left_out_in_their_order():
    text, rng = "a large house, blue, with a door and a roof; at night", np.random.default_rng(0)
    drawn = [drop_phrases(text, 0.4, rng) for _ in range(300)]
    parts = ["a large house", "blue", "with a door", "and a roof", "at night"]
    for one in drawn:
        places = [one.find(part) for part in parts if part in one]
        assert one and places == sorted(places)
        assert one[-1] not in ",; "
    kept = [np.mean([part in one for one in drawn]) for part in parts]
    assert all(0.5 < share < 0.72 for share in kept)
    assert len(set(drawn)) > 15 and text in drawn
    assert drop_phrases("a dog", 0.9, rng) == "a dog"
    assert all(drop_phrases(text, 0.99, rng) for _ in range(50)), "one phrase is always kept"


def test_phrase_dropout_is_keyed_by_seed_epoch_and_row(source):
    rows = np.arange(len(source.cache))
    plain = source.choose(0, 1, rows)
    source.phrase_dropout = 0.5
    thinned = source.choose(0, 1, rows)
    assert thinned == source.choose(0, 1, rows) and thinned[::-1] == source.choose(0, 1, rows[::-1])
    assert thinned != plain
    assert {text for _, text in thinned} - {text for _, text in plain} <= {"turned clockwise", "red"}
