"""metadata.jsonl, .csv and .parquet as people write them: every caption is used, or an error names file and line."""

import json
from pathlib import Path

import pytest
from test_tokenizer_loading import encoded, not_utf8, write, write_parquet

from tokenizer_image.pictures.loading import load_pictures


def data_set(folder: Path, metadata: str | bytes, name: str = "metadata.csv", pictures: str = "abc") -> Path:
    """Pictures a.png, b.png, ... and a metadata file beside them."""
    for letter in pictures:
        write(folder / f"{letter}.png", encoded())
    write(folder / name, metadata)
    return folder


def captions(folder: Path, **options) -> dict[str, list[str]]:
    """{picture: captions} of both splits."""
    sources = [load_pictures(str(folder), split, **options) for split in ("train", "validation")]
    return {source.key(row): source.texts(row) for source in sources for row in range(len(source))}


def lines(folder: Path) -> str:
    return "\n".join(load_pictures(str(folder)).summary.lines())


@pytest.mark.parametrize(
    "content, expected",
    [
        ("file_name,text\na.png,a dog, sitting\nb.png,a cat\n", ["a dog, sitting", "a cat"]),
        ('file_name,text\na.png,"a dog, sitting"\nb.png,a 12" record\n', ["a dog, sitting", 'a 12" record']),
        ("file_name;text\na.png;a dog, sitting\nb.png;a cat\n", ["a dog, sitting", "a cat"]),
        ("sep=;\r\nfile_name;text\r\na.png;a dog\r\nb.png;a cat\r\n", ["a dog", "a cat"]),
        ("file_name\ttext\na.png\ta dog\nb.png\ta cat\n", ["a dog", "a cat"]),
        ("\ufefffile_name,text\r\na.png,a dog\r\n\r\nb.png,a cat\r\n", ["a dog", "a cat"]),
        ("file_name, text\na.png, a dog\nb.png, a cat\n", ["a dog", "a cat"]),
        ("File_Name,Caption \na.png,a dog\nb.png,a cat\n", ["a dog", "a cat"]),
        ('file_name,text\na.png,"a dog\non grass"\nb.png,a cat\n', ["a dog\non grass", "a cat"]),
        ("file_name,text\ra.png,a dog\rb.png,a cat\r", ["a dog", "a cat"]),
        ("text,file_name\na dog,a.png\na cat,b.png\n", ["a dog", "a cat"]),
        ("file_name,text\n./a.png,a dog\nB.PNG,a cat\n", ["a dog", "a cat"]),
    ],
)
def test_csv_as_people_write_it(tmp_path, content, expected):
    assert captions(data_set(tmp_path, content, pictures="ab")) == {"a.png": expected[:1], "b.png": expected[1:]}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "txt"])
def test_encodings(tmp_path, encoding, kind):
    text = "a dog’s café"
    content = {
        "csv": f"file_name,text\na.png,{text}\nb.png,{text}\n",
        "jsonl": "".join(json.dumps({"file_name": f"{n}.png", "text": text}, ensure_ascii=False) + "\n" for n in "ab"),
        "txt": text,
    }[kind].encode(encoding)
    names = ["a.txt", "b.txt"] if kind == "txt" else [f"metadata.{kind}"]
    for name in names:
        data_set(tmp_path, content, name, "ab")
    assert captions(tmp_path) == {"a.png": [text], "b.png": [text]}
    if encoding != "utf-8-sig":
        assert ("Windows-1252: 1" if encoding == "cp1252" else "read as UTF-16: 1") in lines(tmp_path)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("metadata.csv", 'file_name,text\na.png,a\nb.png,"a cat\nc.png,a fish\n', "metadata.csv, line 3: .*quote"),
        (
            "metadata.csv",
            'file_name,text\na.png,"a dog\nb.png,"\nc.png,x\n',
            "metadata.csv, line 2: a quoted text holds",
        ),
        ("metadata.csv", 'file_name,text\na.png,"a "red" dog"\n', "metadata.csv, line 2: .*quote"),
        ("metadata.csv", f"file_name,text\na.png,b\nb.png,{'x' * 140_000}\n", "metadata.csv, line 3: field larger"),
        (
            "metadata.csv",
            "file_name,text,label\na.png,a dog, sitting,1\n",
            "metadata.csv, line 2: 4 cells for 3 columns",
        ),
        ("metadata.csv", "file_name,file_name\na.png,b\n", "metadata.csv, line 1: two columns are called 'file_name'"),
        ("metadata.csv", "file_name,text\n,a dog\n", "metadata.csv, line 2: the line names no picture file"),
        ("metadata.csv", "a.png,a dog\nb.png,a cat\n", "metadata.csv needs a column file_name.*first line should name"),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "x", "text ": "y"}\n',
            "line 1: two columns are called 'text'",
        ),
        ("metadata.jsonl", "5\n", "metadata.jsonl, line 1: 5 is no object"),
        ("metadata.jsonl", "null\n", "metadata.jsonl, line 1: null is no object"),
        ("metadata.jsonl", '["a.png", "a dog"]\n', "metadata.jsonl, line 1: .* is no object"),
        ("metadata.jsonl", '{"file_name": "a.png"}\n"x"\n', "metadata.jsonl, line 2: .* is no object"),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "x", "text": "y"}\n',
            "line 1: the key 'text' occurs twice",
        ),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "file_name": "b.png"}\n',
            "line 1: the key 'file_name' occurs twice",
        ),
        ("metadata.jsonl", '{"file_name": "a.png",}\n', "metadata.jsonl, line 1, is not JSON"),
        ("metadata.jsonl", '{"file_name": ["a.png"]}\n', "metadata.jsonl, line 1: the line names no picture file"),
        ("metadata.jsonl", '{"file_name": "a\\u0000.png"}\n', "metadata.jsonl, line 1: the line names no picture file"),
        ("metadata.jsonl", '{"file_name": "a.png", "label": {"x": 1}}\n', "metadata.jsonl, line 1: the class is"),
        ("metadata.jsonl", '{"file_name": "a.png", "label": [1]}\n', "metadata.jsonl, line 1: the class is"),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "label": 3}\n{"file_name": "b.png", "label": "dog"}\n',
            "metadata.jsonl, line 2: the class is 'dog', but others are numbers",
        ),
        ("metadata.jsonl", "[" * 100_000, "metadata.jsonl: the JSON is nested too deeply"),
        ("metadata.jsonl", f'{{"file_name": "a.png", "n": {"9" * 5000}}}', "metadata.jsonl, line 1: "),
        ("metadata.jsonl", bytes(range(256)) * 4, "metadata.jsonl is not text"),
        ("metadata.jsonl", '{"file_name": "x.png"}\n', "none of the 1 pictures that metadata.jsonl names is there"),
        ("metadata.parquet", b"PAR1 and no more", "metadata.parquet cannot be read as Parquet"),
        ("metadata.csv", b"", "holds no pictures: metadata.csv has no lines"),
    ],
)
def test_mistakes_are_named_with_file_and_line(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        load_pictures(str(data_set(tmp_path, content, name)))


@pytest.mark.parametrize(
    "values, expected",
    [
        ({"text": 7}, ["7"]),
        ({"text": 2.5}, ["2.5"]),
        ({"caption_0": "one", "caption_1": "two", "caption_10": "eleven"}, ["one", "two", "eleven"]),
        ({"caption": "one", "caption_2": ["two", None, " "]}, ["one", "two"]),
        ({"text": {"raw": "one"}}, ["one"]),
        ({"text": ["one", 7, "two"]}, ["one", "7", "two"]),
        ({"text": [1, 2, 3]}, None),
        ({"text": {"en": "one"}}, None),
        ({"text": True}, None),
        ({"text": "hi \ud83d"}, ["hi \ufffd"]),
        ({"text": "hi \ud83d\ude00"}, ["hi \U0001f600"]),
        ({"text": "a\u0000b\u0007c"}, ["a b c"]),
        ({"text": "\ufeffone\u200b"}, ["one"]),
        ({"text": float("nan")}, []),
        ({"text": float("inf")}, None),
        ({"text": None}, []),
        ({"text": " \n"}, []),
    ],
)
def test_values_that_stand_for_captions(tmp_path, values, expected):
    content = "".join(json.dumps({"file_name": f"{name}.png", **values}) + "\n" for name in "ab")
    data_set(tmp_path, content, "metadata.jsonl", "ab")
    found = captions(tmp_path)
    assert found == dict.fromkeys(("a.png", "b.png"), expected or [])
    assert ("WARNING: 2 captions not used" in lines(tmp_path)) == (expected is None)
    if found["a.png"] == []:
        with pytest.raises(ValueError, match="has no captions"):
            load_pictures(str(tmp_path), need_captions=True)


def test_metadata_that_is_one_array_and_lines_with_commas(tmp_path):
    entries = [{"file_name": f"{name}.png", "text": name} for name in "ab"]
    data_set(tmp_path / "array", json.dumps(entries, indent=1), "metadata.jsonl", "ab")
    data_set(tmp_path / "commas", ",\n".join(map(json.dumps, entries)) + ",\n", "metadata.jsonl", "ab")
    for folder in (tmp_path / "array", tmp_path / "commas"):
        assert captions(folder) == {"a.png": ["a"], "b.png": ["b"]}
        assert "repaired" in lines(folder)


@pytest.mark.parametrize(
    "name",
    ["x.jpg", "train/x.jpg", "./x.jpg", "X.JPG", "{root}/train/x.jpg", "..\\train\\x.jpg", "sub\\y.jpg", "my%20dog.jpg",
     "cafe\u0301.jpg", "CAFÉ.jpg", " x.jpg "],
)  # fmt: skip
def test_pictures_are_found_however_they_are_named(tmp_path, name):
    for file in ("x.jpg", "sub/y.jpg", "my dog.jpg", "café.jpg"):
        write(tmp_path / "train" / file, encoded())
    line = {"file_name": name.replace("{root}", str(tmp_path)), "text": "words"}
    write(tmp_path / "train" / "metadata.jsonl", json.dumps(line))
    write(tmp_path / "test" / "z.jpg", encoded())
    write(tmp_path / "test" / "metadata.jsonl", '{"file_name": "z.jpg", "text": "z"}')
    source = load_pictures(str(tmp_path))
    assert len(source) == 1 and source.texts(0) == ["words"] and source.image(0).size == (6, 4)


def test_pictures_that_are_named_without_their_endings(tmp_path):
    assert captions(data_set(tmp_path, "file_name,text\na,x\nb,y\n", pictures="ab")) == {"a.png": ["x"], "b.png": ["y"]}


def test_a_name_that_fits_two_files_is_not_guessed(tmp_path):
    data_set(
        tmp_path, '{"file_name": "A.PNG", "text": "x"}\n{"file_name": "b.png", "text": "y"}', "metadata.jsonl", "b"
    )
    write(tmp_path / "a.png", encoded())
    write(tmp_path / "A.png", encoded())
    assert "1 of 2 pictures that metadata names are not there: A.PNG" in lines(tmp_path)


def test_each_metadata_file_has_its_own_columns(tmp_path):
    data_set(tmp_path / "train", "file_name,text\na.png,a dog\n")
    data_set(tmp_path / "val", "image,caption\nb.png,a cat\n")
    assert captions(tmp_path) == {"train/a.png": ["a dog"], "val/b.png": ["a cat"]}


def test_what_metadata_does_not_use_is_told(tmp_path):
    data_set(tmp_path, '{"file_name": "a.png", "text": "t", "prompt": "p"}\n{"file_name": "b.png"}\n', "metadata.jsonl")
    write(tmp_path / "a.txt", "another")
    write(tmp_path / "b.txt", "beside the picture")
    assert captions(tmp_path) == {"a.png": ["t"], "b.png": ["beside the picture"]}
    text = lines(tmp_path)
    assert "prompt not used" in text and "1 .txt file not used: metadata.jsonl has the captions; such as a.txt" in text
    assert "left out: 1 .png file, metadata.jsonl does not name it; such as c.png" in text


def test_a_column_that_holds_no_captions_is_told(tmp_path):
    turns = [{"from": "human", "value": "what is this?"}]
    content = "".join(json.dumps({"file_name": f"{name}.png", "conversations": turns}) + "\n" for name in "ab")
    data_set(tmp_path, content, "metadata.jsonl", "ab")
    with pytest.raises(
        ValueError, match="no captions in 'conversations' .*a mapping without a key such as caption or text"
    ):
        load_pictures(str(tmp_path), caption_column="conversations", need_captions=True)


def test_columns_that_may_hold_captions_are_told(tmp_path):
    content = "file_name,blip_caption,width\na.png,a dog,3\nb.png,a cat,4\n"
    data_set(tmp_path, content, pictures="ab")
    with pytest.raises(ValueError, match="no column has a usual name for captions, .* it has blip_caption, width"):
        load_pictures(str(tmp_path), need_captions=True)
    assert captions(tmp_path, caption_column="blip_caption") == {"a.png": ["a dog"], "b.png": ["a cat"]}
    data_set(tmp_path, content.replace("width", "text"), pictures="ab")
    assert "captions are read from text; blip_caption not used" in lines(tmp_path)
    data_set(tmp_path, "file_name,label\na.png,dog\nb.png,cat\n", pictures="ab")
    assert "WARNING" not in lines(tmp_path) and captions(tmp_path) == {"a.png": ["dog"], "b.png": ["cat"]}


def test_metadata_in_tsv_and_parquet(tmp_path):
    data_set(tmp_path / "tsv", "file_name\ttext\na.png\ta dog, sitting\nb.png\tx\n", "METADATA.TSV", "ab")
    data_set(tmp_path / "parquet", b"", "x.md", "ab")
    write_parquet(
        tmp_path / "parquet" / "metadata.parquet", {"file_name": ["a.png", "b.png"], "text": ["a dog, sitting", "x"]}
    )
    for folder in (tmp_path / "tsv", tmp_path / "parquet"):
        assert captions(folder) == {"a.png": ["a dog, sitting"], "b.png": ["x"]}


@pytest.mark.parametrize(
    "content",
    [
        'text,file_name\n"a dog,a.png\na cat,b.png\na bird",c.png\n', 'file_name,text\na,"a dog\nb,a cat"\nc,a bird\n',
        'file_name;text\na.png;"a dog\nb.png;a cat"\nc.png;a bird\n', 
        'text\tfile_name\n"a dog\ta\na cat"\tb\na bird\tc\n',
        'file_name,text\r\na,"a dog\r\nb,a cat"\r\nc,a bird\r\n',
    ],
)  # fmt: skip
def test_a_quote_that_a_later_line_closes(tmp_path, content):
    data_set(tmp_path, content)
    with pytest.raises(ValueError, match=r"metadata\.csv, line 2: a quoted text holds what looks like the next lines"):
        load_pictures(str(tmp_path))


def test_captions_of_several_lines(tmp_path):
    content = 'file_name,text\na.png,"a dog,\nsitting, on grass"\nb.png,"a\n\nc\n"\nc.png,"see the file b.png"\n'
    expected = {"a.png": ["a dog,\nsitting, on grass"], "b.png": ["a\n\nc"], "c.png": ["see the file b.png"]}
    assert captions(data_set(tmp_path, content)) == expected


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "null", "<NA>", "#N/A", "NA", "#NAME?"])
def test_words_for_missing_values_are_no_captions(tmp_path, word):
    data_set(tmp_path, f"file_name,text\na.png,{word}\nb.png,{word}\nc.png,{word} of these\n")
    assert captions(tmp_path) == {"a.png": [], "b.png": [], "c.png": [f"{word} of these"]}
    assert f"not used: {word!r}, which stands for a missing value" in lines(tmp_path)


def test_captions_that_are_nested_too_deeply(tmp_path):
    nested = "[" * 900 + '"a dog"' + "]" * 900
    rows = [f'{{"file_name": "{letter}.png", "text": {nested}}}' for letter in "abc"]
    data_set(tmp_path, "\n".join(rows), "metadata.jsonl")
    assert captions(tmp_path) == {"a.png": [], "b.png": [], "c.png": []}
    assert "3 captions not used: lists or mappings that are nested too deeply" in lines(tmp_path)


def test_a_file_name_that_no_file_system_takes(tmp_path):
    rows = [
        json.dumps({"file_name": name, "text": "a dog"}) for name in ("a.png", "b.png", "c.png", "x" * 5000 + ".png")
    ]
    data_set(tmp_path, "\n".join(rows), "metadata.jsonl")
    assert "1 of 4 pictures that metadata names are not there" in lines(tmp_path)


def test_parquet_with_blanks_in_names_and_text_that_is_not_utf8(tmp_path):
    data_set(tmp_path, b"", pictures="abc")
    (tmp_path / "metadata.csv").unlink()
    write_parquet(tmp_path / "metadata.parquet", {
        " file_name ": ["a.png", "b.png", "c.png"],
        "text ": not_utf8([b"caf\xe9", b"a cat", b"a bird"]),
    })  # fmt: skip
    assert captions(tmp_path) == {"a.png": ["caf\u00e9"], "b.png": ["a cat"], "c.png": ["a bird"]}


def test_parquet_with_two_columns_of_a_name(tmp_path):
    write_parquet(tmp_path / "metadata.parquet", {"file_name": ["a.png"], "text": ["x"], "text ": ["y"]})
    with pytest.raises(ValueError, match=r"metadata\.parquet: two columns are called 'text'; rename one"):
        load_pictures(str(tmp_path))


def test_metadata_that_names_one_picture_says_what_is_left_out(tmp_path):
    data_set(tmp_path, "file_name,text\na.png,a dog\n")
    with pytest.raises(
        ValueError, match=r"holds 1 picture; 2 are needed.* 2 .png files left out \(metadata.csv does not"
    ):
        load_pictures(str(tmp_path))
