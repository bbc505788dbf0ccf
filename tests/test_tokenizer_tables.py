"""Parquet files and saved data sets as people have them."""

import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_tokenizer_loading import COLOURS, contents, encoded, not_utf8, write, write_parquet

from tokenizer_image.pictures.loading import load_pictures


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def opened(folder: Path, columns: dict[str, list], name: str = "train.parquet", **options):
    """A Parquet file as the training split; a second one is there for validation."""
    write_parquet(folder / name, columns)
    write_parquet(folder / "val.parquet", {"image": [encoded()]})
    return load_pictures(str(folder), **options)


def lines(source) -> str:
    return "\n".join(source.summary.lines())


BYTES = [encoded(colour) for colour in COLOURS]


@pytest.mark.parametrize("column", ["images", "image", "Pictures"])
def test_lists_of_pictures(tmp_path, column):
    cells = [[{"bytes": content, "path": None}, {"bytes": BYTES[0], "path": None}] for content in BYTES]
    source = opened(tmp_path, {column: cells, "text": list(COLOURS)})
    assert contents(source) == {colour: [colour] for colour in COLOURS}
    assert f"column {column} holds lists of pictures: the first of each is used" in lines(source)


def test_paths_are_found_beside_the_file_and_in_the_folder(tmp_path):
    for place, colour in (("data/a.png", "red"), ("b.png", "green"), ("data/sub/c.png", "blue")):
        write(tmp_path / place, encoded(colour))
    paths = ["a.png", "b.png", str(tmp_path / "data" / "sub" / "c.png")]
    source = opened(tmp_path, {"image": paths, "text": list(COLOURS)}, "data/train.parquet")
    assert contents(source) == {colour: [colour] for colour in COLOURS}


def test_paths_in_another_case_or_unicode_form(tmp_path):
    for name, colour in (("café.png", "red"), ("sub/b.PNG", "green"), ("c.png", "blue")):
        write(tmp_path / "data" / name, encoded(colour))
    paths = ["cafe\u0301.png", "data\\SUB\\b.png", "./c.png"]
    source = opened(tmp_path, {"image": paths, "text": list(COLOURS)}, "data/train.parquet")
    assert contents(pickle.loads(pickle.dumps(source))) == {colour: [colour] for colour in COLOURS}


@pytest.mark.parametrize(
    "path", ["../secret.png", "/etc/hostname", "link.png", "http://example.org/a.png", "C:\\a.png", "a\0b"]
)
def test_paths_that_lead_out_are_not_read(tmp_path, path):
    write(tmp_path / "secret.png", encoded())
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "secret.png")
    source = opened(tmp_path / "set", {"image": [path, None]})
    with pytest.raises((ValueError, FileNotFoundError), match="outside|web address|no such file"):
        source.image(0)
    with pytest.raises(ValueError, match="no picture in this row"):
        source.image(1)


def test_a_picture_behind_a_path_counts(tmp_path):
    write(tmp_path / "a.png", encoded("red"))
    columns = {"image": ["a.png"], "text": ["x"]}
    before = opened(tmp_path, columns).fingerprint
    assert load_pictures(str(tmp_path)).fingerprint == before
    write(tmp_path / "a.png", encoded("blue") + b" ")
    assert load_pictures(str(tmp_path)).fingerprint != before


def test_dictionaries_bytes_nulls_and_numbers(tmp_path):
    import pyarrow as pa

    for number, (values, expected) in enumerate(
        [
            (pa.array(["x", "y", None]).dictionary_encode(), [["x"], ["y"], []]),
            (pa.array(["café".encode(), "café".encode("cp1252"), b""]), [["café"], ["café"], []]),
            (pa.array([1, None, 3]), [["1"], [], ["3"]]),
            (pa.array([float("nan"), 2.5, None]), [[], ["2.5"], []]),
            (pa.array([["a", None, " "], [], None]), [["a"], [], []]),
            (pa.array([{"raw": "a"}, {"raw": None}, None]), [["a"], [], []]),
            (pa.array(["a\0b", "\ufeffb", "\t"]), [["a b"], ["b"], []]),
        ]
    ):
        source = opened(tmp_path / str(number), {"image": BYTES, "caption": values})
        assert [source.texts(row) for row in range(3)] == expected


@pytest.mark.parametrize(
    "kind",
    [pa.large_string(), pa.string_view(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int8(), pa.string())],
)
def test_captions_of_every_type_of_text(tmp_path, kind):
    texts = pa.array(["one", None, "three"]).cast(kind) if "dictionary" not in str(kind) else None
    texts = texts if texts is not None else pa.array(["one", None, "three"]).dictionary_encode()
    for number, values in enumerate([texts, pa.StructArray.from_arrays([texts], ["caption"])]):
        source = opened(tmp_path / str(number), {"image": BYTES, "caption": values})
        assert [source.texts(row) for row in range(3)] == [["one"], [], ["three"]]
        assert [load_pictures(str(tmp_path / str(number)), caption_column="caption").texts(row) for row in (0, 2)]


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), "dictionary", "struct", "list", "large", "fixed"]
)
def test_pictures_of_every_type_of_bytes(tmp_path, kind):
    cells = pa.array([*BYTES, None], pa.binary())
    pictures = {
        "dictionary": lambda: cells.dictionary_encode(),
        "struct": lambda: pa.array([*({"bytes": content} for content in BYTES), None]),
        "list": lambda: pa.array([*([content] for content in BYTES), []]),
        "fixed": lambda: pa.array([*([content] for content in BYTES), None], pa.list_(pa.binary(), 1)),
        "large": lambda: pa.array([*([content] for content in BYTES), None], pa.large_list(pa.large_binary())),
    }.get(kind, lambda: cells.cast(kind))()
    source = opened(tmp_path, {"image": pictures, "text": [*COLOURS, "none"]})
    assert contents(source.select(np.arange(3))) == {colour: [colour] for colour in COLOURS}
    with pytest.raises(ValueError, match="no picture in this row"):
        source.image(3)


def test_names_of_classes_that_are_blank(tmp_path):
    import datasets

    features = datasets.Features(
        {"image": datasets.Value("binary"), "label": datasets.ClassLabel(names=["___", "dog"])}
    )
    rows = datasets.Dataset.from_dict({"image": BYTES, "label": [0, 1, 0]}, features=features)
    (tmp_path / "set").mkdir()
    rows.to_parquet(tmp_path / "set" / "train.parquet")
    write_parquet(tmp_path / "set" / "val.parquet", {"image": [encoded()]})
    source = load_pictures(str(tmp_path / "set"))
    assert [source.texts(row) for row in range(3)] == [[], ["dog"], []]


def test_several_columns_of_captions(tmp_path):
    columns = {"image": BYTES, "caption_1": ["b"] * 3, "caption_0": ["a"] * 3, "text": ["t"] * 3}
    source = opened(tmp_path, columns)
    assert source.texts(0) == ["a", "b"] and "text not used (--caption_column chooses)" in lines(source)
    assert load_pictures(str(tmp_path), caption_column="text").texts(0) == ["t"]


def test_columns_that_may_hold_captions_are_told(tmp_path):
    source = opened(tmp_path, {"image": BYTES, "long_caption": ["t"] * 3, "label": [1, 2, 3]})
    assert source.texts(0) == [] and "it has long_caption (--caption_column chooses)" in lines(source)


def test_a_column_of_turns_or_numbers_is_no_caption(tmp_path):
    turns = [[{"from": "human", "value": "hi"}]] * 3
    with pytest.raises(
        ValueError, match="'conversations' .--caption_column. holds .*a column of captions holds texts, lists"
    ):
        opened(tmp_path, {"image": BYTES, "conversations": turns}, caption_column="conversations")
    source = opened(tmp_path / "numbers", {"image": BYTES, "text": [[1, 2]] * 3})
    assert source.texts(0) == [] and "3 captions not used: a list of numbers" in lines(source)


def test_tables_without_pictures_beside_the_data(tmp_path):
    write_parquet(tmp_path / "embeddings.parquet", {"id": [1], "vector": [[0.5]]})
    write(tmp_path / "broken.parquet", b"PAR1")
    source = opened(tmp_path, {"image": BYTES, "text": list(COLOURS)})
    assert contents(source) == {colour: [colour] for colour in COLOURS}
    assert "no pictures in it: it has no column of pictures, but id, vector" in lines(source)
    assert "broken.parquet" in lines(source)


def test_saved_data_sets(tmp_path):
    import datasets

    rows = datasets.Dataset.from_dict({"image": ["../secret.png", "a.png"], "caption": ["x", 7 * "y"]})
    rows.save_to_disk(tmp_path / "saved")
    write(tmp_path / "saved" / "a.png", encoded())
    write(tmp_path / "secret.png", encoded())
    sources = [load_pictures(str(tmp_path / "saved"), split) for split in ("train", "validation")]
    by_caption = {source.texts(0)[0]: source for source in sources}
    assert by_caption["yyyyyyy"].image(0).size == (6, 4)
    with pytest.raises(ValueError, match="outside of the data set's folder"):
        by_caption["x"].image(0)
    os.truncate(next((tmp_path / "saved").glob("*.arrow")), 10)
    with pytest.raises(ValueError, match="cannot be read as what datasets saved"):
        load_pictures(str(tmp_path / "saved"))


def test_pairs_of_no_bytes_and_a_path_name_the_pictures_beside_the_file(tmp_path):
    """As `datasets` writes an image column whose files lie beside the table."""
    for number in range(4):
        write(tmp_path / f"{number}.png", encoded())
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pairs = pa.array([{"bytes": None, "path": f"{number}.png"} for number in range(4)], kind)
    pq.write_table(pa.table({"image": pairs, "caption": ["a", "b", "c", "d"]}), tmp_path / "train.parquet")
    source = load_pictures(str(tmp_path), "train")
    assert len(source) == 3 and all(len(source.texts(row)) == 1 for row in range(3))
    assert source.image(0).size[0] > 0


def test_a_table_without_rows(tmp_path):
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="train.parquet cannot be read as Parquet: it has no rows"):
        load_pictures(str(tmp_path), "train")


def test_text_that_is_not_utf8(tmp_path):
    source = opened(tmp_path, {"image": BYTES, "text": not_utf8([b"caf\xe9", b"a cat", b"a bird"])})
    assert [source.texts(row) for row in range(3)] == [["caf\u00e9"], ["a cat"], ["a bird"]]
    assert "not UTF-8, read as Windows-1252: 1; such as row 0, text" in lines(source)


def test_lists_and_structs_of_texts_that_are_not_utf8(tmp_path):
    words = not_utf8([b"a dog", b"caf\xe9", b"\1\2\3\4\xff"])
    for number, texts in enumerate(
        [pa.ListArray.from_arrays([0, 1, 2, 3], words), pa.StructArray.from_arrays([words], ["raw"]), words]
    ):
        source = opened(tmp_path / str(number), {"image": BYTES, "text": texts})
        assert [source.texts(row) for row in range(3)] == [["a dog"], ["caf\u00e9"], []]
        assert "1 caption not used: the file is no text; such as row 2" in lines(source)


def test_columns_with_blanks_around_their_names(tmp_path):
    source = opened(tmp_path, {" image ": BYTES, "text ": list(COLOURS)})
    assert contents(source) == {colour: [colour] for colour in COLOURS}


def test_names_of_classes_that_are_not_used(tmp_path):
    source = opened(tmp_path, {"image": BYTES, "label": ["dog", "cat", "dog"]})
    assert "the names of classes in label are not used (--caption_column chooses)" in lines(source)


@pytest.mark.parametrize("columns", [{"image": [[[1, 2]]]}, {"words": ["a dog"]}, None])
def test_a_split_whose_tables_cannot_be_used_says_why(tmp_path, columns):
    write_parquet(tmp_path / "val.parquet", {"image": [encoded()]})
    write_parquet(tmp_path / "train.parquet", columns or {"image": BYTES})
    if columns is None:
        os.truncate(tmp_path / "train.parquet", 100)
    reason = "has no column of pictures" if columns else "cannot be read as Parquet"
    with pytest.raises(ValueError, match=f"no split 'train'; it has: validation. Not used: train.parquet .*{reason}"):
        load_pictures(str(tmp_path))


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.string(), 2), pa.list_(pa.string_view()), pa.large_list(pa.large_string())]
)
def test_captions_of_every_type_of_list(tmp_path, kind):
    texts = pa.array([["one", "uno"], None, ["three", None]], kind)
    source = opened(tmp_path, {"image": BYTES, "words": texts})
    write_parquet(tmp_path / "val.parquet", {"image": [encoded()], "words": [["v"]]})
    source = load_pictures(str(tmp_path), caption_column="words")
    assert [source.texts(row) for row in range(3)] == [["one", "uno"], [], ["three"]]
