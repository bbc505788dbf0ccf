"""Every kind of picture source, with tiny pictures made on the spot: rows, captions, splits, messages."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.caching.pixel_cache import decode_pictures
from tokenizer_image.pictures.loading import Preprocessing, load_pictures

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def picture(colour: str = "red") -> Image.Image:
    return Image.new("RGB", (6, 4), COLOURS[colour])


def encoded(colour: str = "red") -> bytes:
    file = io.BytesIO()
    picture(colour).save(file, "PNG")
    return file.getvalue()


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_parquet(path: Path, columns: dict[str, list]) -> Path:
    import pyarrow.parquet as parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)
    return path


def not_utf8(texts: list[bytes]) -> pa.Array:
    """A column that calls itself text, whatever its bytes are."""
    return pa.Array.from_buffers(pa.string(), len(texts), pa.array(texts).buffers())


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder for a data set; the cache of `datasets` is elsewhere below tmp_path."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "my [pictures]").mkdir()
    return tmp_path / "my [pictures]"


@pytest.fixture
def classes(folder) -> Path:
    """40 pictures in two class folders, without splits."""
    for number in range(20):
        write(folder / "sports_car" / f"{number:02}.png", encoded("red"))
        write(folder / "dog" / f"{number:02}.png", encoded("blue"))
    return folder


def colour_of(source, row: int) -> str:
    pixel = source.image(row).convert("RGB").getpixel((2, 2))
    return next(name for name, value in COLOURS.items() if value == pixel)


def contents(source) -> dict[str, list[str]]:
    """{colour of the picture: captions}; every row with another colour."""
    return {colour_of(source, row): source.texts(row) for row in range(len(source))}


# ---- kinds of sources. A validation split stands by, so that training has every row.


def test_metadata_jsonl(folder):
    lines = [
        {"file_name": "a/1.png", "caption": "one", "n": 1},
        {"file_name": "b/1.png", "caption": ["two", "two ", "deux"]},
        {"file_name": "a/1.png", "caption": "uno"},  # a second caption, not a second picture
        {"file_name": "c.png", "caption": None},
    ]
    for name, colour in (("a/1.png", "red"), ("b/1.png", "green"), ("c.png", "blue"), ("unlisted.png", "red")):
        write(folder / "train" / name, encoded(colour))
    write(folder / "train" / "metadata.jsonl", "\n".join(map(json.dumps, lines)))
    write(folder / "val" / "metadata.jsonl", json.dumps({"file_name": "v.png", "caption": "val"}))
    write(folder / "val" / "v.png", encoded())
    train = load_pictures(str(folder), need_captions=True)
    assert contents(train) == {"red": ["one", "uno"], "green": ["two", "deux"], "blue": []}
    assert (train.label(0), train.label_names, train.attributes(0)) == (-1, None, None)
    assert load_pictures(str(folder), "validation").texts(0) == ["val"]


def test_metadata_csv_with_named_columns_and_classes(folder):
    rows = "img,words,class\nx/1.png,a dog,dog\nx/2.png,a cat,cat\n"
    write(folder / "metadata.csv", "\ufeff" + rows)
    for name in ("x/1.png", "x/2.png"):
        write(folder / name, encoded())
    source = load_pictures(str(folder), "train", image_column="img", caption_column="words", max_examples=9)
    assert len(source) == 1  # the other one is held out
    assert source.texts(0) in (["a dog"], ["a cat"]) and source.label_names == ["cat", "dog"]
    by_class = load_pictures(str(folder), "train", image_column="img")
    assert by_class.texts(0) == [by_class.label_names[by_class.label(0)]]


def test_sidecar_captions_with_equal_names_in_different_folders(folder):
    for name, colour, text in (
        ("train/a/1.png", "red", "first\n\n  second \n"),
        ("train/b/1.png", "green", "third"),
        ("train/b/2.jpeg", "blue", None),
        ("test/1.png", "red", "fourth"),
    ):
        write(folder / name, encoded(colour))
        if text:
            write((folder / name).with_suffix(".txt"), text)
    write(folder / "train/.hidden.png", encoded())
    assert contents(load_pictures(str(folder))) == {"red": ["first", "second"], "green": ["third"], "blue": []}
    assert load_pictures(str(folder), "validation").texts(0) == ["fourth"]


def test_class_folders(classes):
    train, validation = (load_pictures(str(classes), split, need_captions=True) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (38, 2) and train.label_names == ["dog", "sports_car"]
    for source in (train, validation):
        for row in range(len(source)):
            expected = (0, ["dog"]) if colour_of(source, row) == "blue" else (1, ["sports car"])
            assert (source.label(row), source.texts(row)) == expected


def test_a_class_called_train_beside_others_is_no_split(folder):
    for name in ("train/1.png", "train/2.png", "boat/1.png", "boat/2.png"):
        write(folder / "images" / name, encoded())
    assert load_pictures(str(folder)).label_names == ["boat", "train"]


def test_parquet_in_the_form_of_datasets(folder):
    import datasets

    features = datasets.Features(
        {
            "label": datasets.ClassLabel(names=["sports_car", "dog"]),
            "photo": datasets.Image(),
            "text": datasets.Value("string"),
        }
    )
    rows = [{"label": 1, "photo": picture(colour), "text": f"a {colour} dog"} for colour in COLOURS]
    (folder / "data").mkdir()
    for split in ("train-00000-of-00001", "test-00000-of-00001"):
        datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "data" / f"{split}.parquet")
    source = load_pictures(str(folder), need_captions=True)
    assert contents(source) == {colour: [f"a {colour} dog"] for colour in COLOURS}
    assert source.label(0) == 1 and source.label_names == ["sports_car", "dog"]
    assert load_pictures(str(folder), caption_column="label").texts(0) == ["dog"]
    assert source.fingerprint == load_pictures(str(folder)).fingerprint
    others = [load_pictures(str(folder), "test"), load_pictures(str(folder), caption_column="label")]
    assert len({source.fingerprint, *(other.fingerprint for other in others)}) == 3
    copy = pickle.loads(pickle.dumps(source))
    assert contents(copy) == contents(source) and len(pickle.dumps(source)) < 2000


def test_plain_parquet_with_bytes_lists_and_paths(folder):
    write(folder / "pictures" / "one.png", encoded("green"))
    columns = {"jpg": [encoded("red"), encoded("blue")], "captions": [["a", "b"], []]}
    write_parquet(folder / "train.parquet", columns)
    write_parquet(folder / "dev.parquet", {"image": ["pictures/one.png"], "prompt": ["c"]})
    assert contents(load_pictures(str(folder))) == {"red": ["a", "b"], "blue": []}
    assert contents(load_pictures(str(folder), "validation")) == {"green": ["c"]}
    assert len(load_pictures(str(folder / "train.parquet"))) == 1  # a single file: one of two rows is held out


def test_webdataset_tars(folder):
    write_tar(
        folder / "train-000.tar",
        {
            "x/1.jpg": encoded("red"),
            "x/1.txt": b"one\nuno",
            "x/1.cls": b"7",
            "x/2.png": encoded("green"),
            "y/2.txt": b"of another picture",
            "y/2.png": encoded("blue"),
            "x/3.json": b"{}",
        },
    )
    meta = json.dumps({"prompt": "from json", "alt": ["two", "three"]}).encode()
    write_tar(folder / "test-000.tar", {"1.seg.png": encoded("red"), "1.png": encoded("blue"), "1.json": meta})
    source = load_pictures(str(folder), need_captions=True)
    assert contents(source) == {"red": ["one", "uno"], "green": [], "blue": ["of another picture"]}
    assert [source.label(row) for row in range(3)] == [7, -1, -1]
    assert contents(load_pictures(str(folder), "test")) == {"blue": ["from json"]}
    chosen = load_pictures(str(folder), "test", caption_column="alt", image_column="seg.png")
    assert contents(chosen) == {"red": ["two", "three"]}
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)


def test_what_save_to_disk_wrote(folder):
    import datasets

    rows = datasets.Dataset.from_dict({"image": [encoded(c) for c in COLOURS], "description": list(COLOURS)})
    rows = rows.cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": rows, "valid": rows.select([2])}).save_to_disk(folder)
    assert contents(load_pictures(str(folder))) == {colour: [colour] for colour in COLOURS}
    assert contents(load_pictures(str(folder), "validation")) == {"blue": ["blue"]}


def test_sprites():
    train, validation = load_pictures(max_examples=3), load_pictures(split="validation", max_examples=2)
    assert (len(train), len(validation)) == (3, 2) and train.attributes(0) and train.texts(0)
    assert len(load_pictures("sprites", "held_out")) == 2_000
    with pytest.raises(ValueError, match="no split 'test'.*held_out"):
        load_pictures("sprites", "test")


# ---- splits and choices


def rows_of(folder: Path, split: str = "train", **options) -> set[str]:
    source = load_pictures(str(folder), split, **options)
    return {source.key(row) for row in range(len(source))}


def test_held_out_rows_are_the_same_every_time_and_do_not_move(classes):
    train, held_out = rows_of(classes), rows_of(classes, "validation")
    assert not train & held_out and len(train | held_out) == 40
    assert rows_of(classes, "validation", seed=5) == held_out
    for name in sorted(train)[:3]:  # other rows go, these stay held out
        (classes / name).unlink()
    assert rows_of(classes, "validation") <= held_out


def test_held_out_rows_of_a_table_are_at_most_two_thousand(folder):
    write_parquet(folder / "all.parquet", {"image": [b""] * 50_000, "text": [""] * 50_000})
    sizes = [len(load_pictures(str(folder), split)) for split in ("train", "validation")]
    assert sizes == [48_000, 2_000]
    held_out = load_pictures(str(folder), "validation").rows
    assert np.histogram(held_out, bins=10, range=(0, 50_000))[0].min() > 140  # from everywhere


def test_max_examples_is_a_growing_choice_from_everywhere(classes):
    five, ten = rows_of(classes, max_examples=5), rows_of(classes, max_examples=10)
    assert len(five) == 5 and len(ten) == 10 and five < ten
    assert {name.split("/")[0] for name in ten} == {"dog", "sports_car"}
    assert rows_of(classes, max_examples=10, seed=1) != ten
    assert not rows_of(classes, max_examples=38) & rows_of(classes, "validation")
    source = load_pictures(str(classes), max_examples=5)
    assert [source.key(row) for row in range(5)] == sorted(five)


def test_fingerprints_follow_the_files(classes):
    def fingerprint(split="train", **options):
        return load_pictures(str(classes), split, **options).fingerprint

    before = fingerprint()
    assert before == fingerprint() != fingerprint("validation") and before != fingerprint(max_examples=5)
    write(classes / "dog" / "00.png", encoded("green") + b" ")
    assert fingerprint() != before


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_unreadable_pictures_are_a_share_of_the_whole_data_set(folder, kind):
    good, bad = [encoded()] * 298, [b"broken"] * 2
    if kind == "parquet":
        write_parquet(folder / "train.parquet", {"image": good})
        write_parquet(folder / "val.parquet", {"image": good[:8] + bad})
    else:
        write_tar(folder / "train.tar", {f"{number}.png": content for number, content in enumerate(good)})
        write_tar(folder / "val.tar", {f"{number}.png": content for number, content in enumerate(good[:8] + bad)})
    source = load_pictures(str(folder), "validation")
    how = {"cache_folder": folder.parent / "pixels", "progress": False}
    assert len(decode_pictures(source, Preprocessing(image_size=4), **how)) == 8, "2 of 308"
    with pytest.raises(ValueError, match="2 of 308 pictures"):
        decode_pictures(source, Preprocessing(image_size=4), **how, max_unreadable_share=0.005)


# ---- messages


def test_a_path_that_does_not_exist(folder):
    (folder / "dogs").mkdir()
    with pytest.raises(ValueError, match="'.*cats' does not exist; in .* there are: dogs.*sprites"):
        load_pictures(str(folder / "cats"))
    with pytest.raises(ValueError, match="is empty"):
        load_pictures(str(folder / "dogs" / "cats" / "small"))


def test_a_name_that_is_not_on_the_hub(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="'nobody/no-such-pictures:x' is nothing on this machine .*Hub"):
        load_pictures("nobody/no-such-pictures:x")


def test_splits_that_do_not_exist(classes, folder):
    with pytest.raises(ValueError, match="no split 'test'; it has: train"):
        load_pictures(str(classes), "test")
    with pytest.raises(ValueError, match="max_examples must be at least 1, got 0"):
        load_pictures(str(classes), max_examples=0)


def test_one_picture_cannot_be_split(folder):
    write(folder / "1.png", encoded())
    with pytest.raises(ValueError, match="holds 1 picture; 2 are needed"):
        load_pictures(str(folder))


def test_folders_without_pictures(folder):
    with pytest.raises(ValueError, match="holds no pictures: the folder is empty"):
        load_pictures(str(folder))
    write(folder / "pictures.zip", b"")
    with pytest.raises(ValueError, match=r"of the kinds .zip, .*Unpack"):
        load_pictures(str(folder))
    write_tar(folder / "x.tar", {"1.txt": b"text"})
    with pytest.raises(ValueError, match="its .tar archives hold txt"):
        load_pictures(str(folder))
    with pytest.raises(ValueError, match="no tar archive"):
        load_pictures(str(write(folder / "other" / "x.tar", b"not a tar" * 100)))
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        load_pictures(str(write(folder / "x.parquet", b"not Parquet" * 100)))


def test_columns_that_do_not_exist(folder):
    table = write_parquet(folder / "t.parquet", {"picture": [encoded()] * 2, "words": ["a", "b"], "n": [1, 2]})
    for options, message in (
        ({"caption_column": "caption"}, "no column 'caption' .--caption_column.; it has: picture, words, n"),
        ({"image_column": "image"}, "no column 'image' .--image_column.; it has: picture, words, n"),
        ({"image_column": "n"}, "no pictures in its column 'n'"),
        ({"caption_column": "n"}, "column 'n' .--caption_column. holds .*int64"),
    ):
        with pytest.raises(ValueError, match=message):
            load_pictures(str(table), **options)
    with pytest.raises(ValueError, match="no column with pictures; name one by --image_column, of: words"):
        load_pictures(str(write_parquet(folder / "u.parquet", {"words": ["a", "b"]})))
    tar = write_tar(folder / "t.tar", {"1.png": encoded(), "1.json": b'{"alt": "x"}'})
    with pytest.raises(ValueError, match="no column 'caption' .* it has: json, png, alt"):
        load_pictures(str(tar), caption_column="caption")


def test_columns_of_folders(classes):
    with pytest.raises(ValueError, match="no column 'text' .--caption_column.: a folder of pictures"):
        load_pictures(str(classes), caption_column="text")
    write(classes / "metadata.jsonl", '{"name": "dog/00.png", "caption": "x"}\n')
    with pytest.raises(ValueError, match="metadata.jsonl needs a column file_name .*it has: name, caption"):
        load_pictures(str(classes))
    write(classes / "metadata.jsonl", '{"file_name": "dog/00.png"}\nfile_name: dog/01.png\n')
    with pytest.raises(ValueError, match="metadata.jsonl, line 2, is not JSON"):
        load_pictures(str(classes))
    write(classes / "metadata.jsonl", '{"file_name": "../dog/00.png"}\n')
    with pytest.raises(ValueError, match="outside of the folder"):
        load_pictures(str(classes))


def test_captions_are_needed(folder):
    write(folder / "1.png", encoded())
    write(folder / "2.png", encoded())
    assert load_pictures(str(folder)).texts(0) == []
    with pytest.raises(ValueError, match=r"no captions.*--caption_column.*\.txt.*--unconditional"):
        load_pictures(str(folder), need_captions=True)
