"""documents.jsonl: documents in, pictures once, mistakes by file and line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.caching.pixel_cache import decode_pictures
from tokenizer_image.pictures.loading import Preprocessing, load_pictures


def text(words: str) -> dict[str, str]:
    return {"text": words}


def image(path: str) -> dict[str, str]:
    return {"image": path}


def write_documents(folder: Path, documents: list[Any], name: str = "documents.jsonl") -> Path:
    """A documents.jsonl, and every picture that it names."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in documents))
    for line in documents:
        for part in [] if isinstance(line, str) else line["parts"] if isinstance(line, dict) else line:
            if "image" in part and "missing" not in part["image"]:
                path = file.parent / part["image"]
                path.parent.mkdir(parents=True, exist_ok=True)
                number = int(path.stem)
                Image.new("RGB", (10, 8), (number % 256, 3, 7)).save(path)
    return folder


FEW = [
    {"parts": [text("first"), image("p/0.png"), image("p/1.png"), text("last ")]},
    [image("p/1.png")],
    "",
    {"parts": [text("words alone")], "id": 7},
    [image("p/2.png"), text(" "), text("after")],
]


def test_documents_and_their_pictures(tmp_path):
    write_documents(tmp_path, FEW, "train/documents.jsonl")
    write_documents(tmp_path, [[image("9.png")]], "val/documents.jsonl")
    source = load_pictures(str(tmp_path), "train", need_captions=True)
    assert [source.key(row) for row in range(len(source))] == [
        "train/documents.jsonl, line 1: train/p/0.png", "train/documents.jsonl, line 1: train/p/1.png",
        "train/documents.jsonl, line 5: train/p/2.png",
    ]  # fmt: skip
    assert [tuple(document) for document in source.documents] == [
        ("tiit", ("first", "last "), (0, 1)), ("i", (), (1,)), ("t", ("words alone",), ()), ("it", ("after",), (2,)),
    ]  # fmt: skip
    assert source.texts(0) == [] and source.label(0) == -1
    assert [source.image(row).getpixel((0, 0))[0] for row in range(3)] == [0, 1, 2]
    other = load_pictures(str(tmp_path), "validation")
    assert other.documents[0].order == "i" and len(other) == 1 and other.fingerprint != source.fingerprint


def test_some_of_the_documents(tmp_path):
    source = load_pictures(str(write_documents(tmp_path, FEW, "train/documents.jsonl")), "train", max_examples=3)
    part = source.part(np.array([2, 0]))
    assert part.documents[1].order == source.documents[0].order and part.fingerprint != source.fingerprint
    assert [part.documents[0].texts, part.documents[1].texts] == [source.documents[2].texts, source.documents[0].texts]


def test_a_share_of_the_documents_is_held_out(tmp_path):
    documents = [[text(f"number {number}"), image(f"{number}.png")] for number in range(40)]
    write_documents(tmp_path, documents)
    train, validation = (load_pictures(str(tmp_path), split) for split in ("train", "validation"))
    assert (len(train.documents), len(validation.documents)) == (38, 2) == (len(train), len(validation))
    assert {d.texts for d in train.documents}.isdisjoint({d.texts for d in validation.documents})
    fewer = load_pictures(str(tmp_path), "train", max_examples=5)
    assert len(fewer.documents) == 5 and {d.texts for d in fewer.documents} <= {d.texts for d in train.documents}
    with pytest.raises(ValueError, match="holds 1 document; 2 are needed"):
        load_pictures(str(write_documents(tmp_path / "one", [[text("a")]])))


def test_workers_get_the_pictures_alone(tmp_path):
    source = load_pictures(str(write_documents(tmp_path, [[text("x" * 100_000), image("3.png")]] * 2)))
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 5_000
    assert copy.image(0).getpixel((0, 0)) == (3, 3, 7) and copy.fingerprint == source.fingerprint


def test_a_missing_picture_is_named_with_its_line(tmp_path):
    write_documents(tmp_path, [*FEW, [image("missing.png")]], "train/documents.jsonl")
    write_documents(tmp_path, FEW, "test/documents.jsonl")
    source = load_pictures(str(tmp_path))
    with pytest.raises(ValueError) as error:
        decode_pictures(
            source,
            Preprocessing(image_size=8),
            cache_folder=tmp_path / "cache",
            max_unreadable_share=0.0,
            progress=False,
        )
    message = str(error.value)
    assert "1 of " in message and "raise --max_unreadable_share" in message
    assert "train/documents.jsonl, line 6: train/missing.png: FileNotFoundError" in message


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"parts": [', "documents.jsonl, line 2, is not JSON"),
        ('"words"', "documents.jsonl, line 2: .* is no document; it should be"),
        ('{"part": []}', "documents.jsonl, line 2: .* is no document"),
        ("[]", "documents.jsonl, line 2: the document is empty; .*leave the line out"),
        ('[{"text": " "}]', "documents.jsonl, line 2: the document is empty"),
        ('[{"text": "a"}, {"image": ""}]', "line 2: part 2 names no picture"),
        ('[{"text": "a", "image": "b.png"}]', "line 2: part 1 is .*either a text or an image"),
        ('[{"image": 3}]', "line 2: part 1 is .*either a text or an image"),
        ('["words"]', "line 2: part 1 is .*either a text or an image"),
        ('[{"image": "../b.png"}]', "line 2: the picture '../b.png' is outside of the data set's folder"),
        ('[{"image": "/b.png"}]', "line 2: the picture '/b.png' is outside"),
    ],
)
def test_lines_that_are_no_documents(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        load_pictures(str(write_documents(tmp_path, [[text("a")], line])))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_documents_as_people_write_them(tmp_path, encoding):
    write_documents(tmp_path, [[image("0.png")], [image("1.png")]], "train/caf\u00e9/documents.jsonl")
    lines = [
        '[{"text": "caf\u00e9 "}, {"image": "0.PNG"}],',
        "",
        '[{"image": "train/caf\u00e9/1.png"}, {"text": "a\\ud83d"}]',
    ]
    (tmp_path / "train" / "caf\u00e9" / "documents.jsonl").write_bytes("\r\n".join(lines).encode(encoding))
    write_documents(tmp_path, [[image("9.png")]], "val/documents.jsonl")
    source = load_pictures(str(tmp_path))
    assert [document.texts for document in source.documents] == [("caf\u00e9 ",), ("a\ufffd",)]
    assert [source.image(row).getpixel((0, 0))[0] for row in range(2)] == [0, 1]
    assert "a comma behind a line of JSON" in "".join(source.summary.lines())


def test_a_key_that_occurs_twice_in_a_document(tmp_path):
    with pytest.raises(ValueError, match="documents.jsonl, line 1: the key 'image' occurs twice"):
        load_pictures(str(write_documents(tmp_path, ['[{"image": "a.png", "image": "b.png"}]'])))


def test_files_that_hold_nothing(tmp_path):
    with pytest.raises(ValueError, match="holds no documents: documents.jsonl has no lines"):
        load_pictures(str(write_documents(tmp_path, ["", " "])))
    with pytest.raises(ValueError, match="no column 'text' .--caption_column.: documents.jsonl has no columns"):
        load_pictures(str(tmp_path), caption_column="text")
    write_documents(tmp_path, [[image("1.png")], [image("2.png")]])
    with pytest.raises(ValueError, match="has no captions"):
        load_pictures(str(tmp_path), need_captions=True)


def test_captions_beside_the_parts_and_metadata_beside_the_documents_are_told(tmp_path):
    documents = [{"parts": [{"text": "one"}, {"image": f"{letter}.png"}], "caption": "lost"} for letter in "ab"]
    for letter in "ab":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{letter}.png")
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,words\n")
    text = "\n".join(load_pictures(str(tmp_path)).summary.lines())
    assert "2 captions not used: a key beside the parts of a document (caption); such as" in text
    assert "1 .csv file not used: documents.jsonl has the texts; such as metadata.csv" in text
