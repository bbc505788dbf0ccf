"""Mutated folders end in a loaded data set or in a ValueError that names a file, whatever lies in them.

More runs than the suite's: `python tests/test_tokenizer_fuzz.py 10000`.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.caching.pixel_cache import decode_pictures
from tokenizer_image.pictures.dataset import PictureSource
from tokenizer_image.pictures.folder_files import is_hidden, is_of_system
from tokenizer_image.pictures.folder_pictures import FolderPictures
from tokenizer_image.pictures.loading import Preprocessing, load_pictures
from tokenizer_image.pictures.metadata import METADATA_FILES

SECRET = b"this text lies outside of the folder"
STEMS = [
    "a",
    "b",
    "22.05",
    "22.06",
    "caf\u00e9",
    "cafe\u0301",
    "A",
    "dog/1",
    "cat/1",
    "train/a",
    "val/b",
    "10_dog/x",
    "..a",
    ".hidden/a",
    "__MACOSX/a",
    "._a",
    "cat/train/1",
]
TEXT_NAMES = ["metadata.csv", "metadata.jsonl", "train/metadata.jsonl", "metadata.tsv", "documents.jsonl", "notes.csv"]


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (200, 10, 10)).save(file, kind)
    return file.getvalue()


PICTURES = [picture(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")]
pictures = st.sampled_from(PICTURES)
names = st.builds(
    str.__add__,
    st.sampled_from(STEMS),
    st.sampled_from([".png", ".JPG", ".txt", ".caption", ".heic", ".json", ".psd", ""]),
)
paths = st.one_of(
    names, st.sampled_from(["../secret.txt", "/etc/hostname", "\\a.png", "C:\\a.png", "", "a\0", "link.png", "."])
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), paths),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["text", "en", "path"]), inner, max_size=2)
    ),
    max_leaves=4,
)  # fmt: skip
columns = st.sampled_from(["file_name", "image", "text", "caption_0", "caption_1", "label", "parts", "bytes"])
objects = st.dictionaries(columns, st.one_of(values, paths), max_size=4)
parts = st.lists(
    st.one_of(st.builds(lambda p: {"image": p}, paths), st.builds(lambda t: {"text": t}, st.text()), values)
)


@st.composite
def mutated(draw, contents: st.SearchStrategy[bytes]) -> bytes:
    """Some bytes as they are, cut off, with a few others in them, or in another encoding."""
    content = draw(contents)
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(content)))
        content = content[:place] + draw(st.binary(max_size=4)) + content[place + draw(st.integers(0, 4)) :]
    return content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 9)) == 0 else content


def json_line(value: object) -> bytes:
    return json.dumps(value).encode()


def csv_text(rows: list[list[str]], delimiter: str) -> bytes:
    return "\n".join(delimiter.join(row) for row in rows).encode(errors="replace")


cells = st.one_of(paths, st.sampled_from(['"', '"a, b"', 'a "b" c', "7", "", "file_name", "text"]), st.text(max_size=6))
csvs = st.builds(
    lambda rows, delimiter: csv_text([["file_name", "text", "label"], *rows], delimiter),
    st.lists(st.lists(cells, max_size=4), max_size=4),
    st.sampled_from([",", ";", "\t"]),
)
jsonls = st.builds(b"\n".join, st.lists(st.builds(json_line, st.one_of(objects, parts, values)), max_size=4))


def tar(members: list[tuple[str, bytes, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content, kind in members:
            info = tarfile.TarInfo(name.replace("\0", "_"))
            info.type, info.linkname, info.size = kind, "../secret.txt", len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


captions = st.builds(
    lambda text, encoding: text.encode(encoding, errors="replace"),
    st.text(max_size=12)
    | st.sampled_from(["None", "a dog", "\u72d7 \u4e00", "0 .5 .5 .1 .1", '{"caption": "a"}']),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252", "gb18030", "shift_jis"]),
)  # fmt: skip
kinds = st.sampled_from([tarfile.REGTYPE] * 8 + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
tar_contents = st.one_of(pictures, jsonls, captions, st.binary(max_size=9))
one_tar = st.builds(tar, st.lists(st.tuples(paths, tar_contents, kinds), max_size=5))
tars = st.one_of(one_tar, st.builds(bytes.__add__, one_tar, one_tar))


def parquet(columns: dict[str, list]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as writer

    file = io.BytesIO()
    length = max(map(len, columns.values()), default=0)
    try:
        table = pa.table({name: [*values, *[None] * (length - len(values))] for name, values in columns.items()})
        writer.write_table(table, file)
    except Exception:  # values of several types in one column
        return b""
    return file.getvalue()


image_cells = st.one_of(
    st.lists(pictures, max_size=3), st.lists(paths, max_size=3), st.lists(st.lists(pictures, max_size=2), max_size=3),
    st.lists(st.fixed_dictionaries({"bytes": pictures, "path": paths}), max_size=3),
)  # fmt: skip
texts = st.one_of(
    st.lists(st.text(max_size=5), max_size=3),
    st.lists(st.integers(0, 9), max_size=3),
    st.lists(st.floats(), max_size=3),
)
parquets = st.builds(lambda images, captions: parquet({"image": images, "text": captions}), image_cells, texts)
files = st.one_of(
    st.tuples(names, mutated(pictures)),
    st.tuples(names, mutated(st.one_of(captions, jsonls, st.binary(max_size=12)))),
    st.tuples(st.sampled_from(TEXT_NAMES), mutated(st.one_of(csvs, jsonls))),
    st.tuples(st.sampled_from(["a.tar", "old/B.TAR"]), mutated(tars)),
    st.tuples(st.sampled_from(["train.parquet", "metadata.parquet", "x/test.PARQUET"]), mutated(parquets)),
)
folders = st.lists(files, max_size=8)


def unexplained(root: Path, sources: list[PictureSource]) -> set[str]:
    """Files that are neither used nor told to be left out, where pictures in folders are the data set."""
    folders = [getattr(source, "source", source) for source in sources]
    if not folders or not all(type(source) is FolderPictures for source in folders):
        return set()
    known = {name for source in folders for name in (*source.files, *source._captions.sidecars) if name}
    known |= folders[0].notes.counted
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    told = {file for file in files if is_of_system(file) or is_hidden(file) or file in known}
    return {file for file in files - told if file.rpartition("/")[2].lower() not in METADATA_FILES}


def write_folder(root: Path, contents: list[tuple[str, bytes]]) -> None:
    (root / "secret.txt").write_bytes(SECRET)
    folder = root / "set"
    folder.mkdir()
    (folder / "link.png").symlink_to(root / "secret.txt")
    (folder / "a.TXT").symlink_to(root / "secret.txt")
    for name, content in contents:
        path = folder / name
        if not path.is_symlink():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def check_folder(contents: list[tuple[str, bytes]]) -> None:
    """Load, summarise and decode both splits of a folder."""
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(temporary)
        write_folder(root, contents)
        before = sorted(root.rglob("*"))
        sources = []
        for split in ("train", "validation"):
            try:
                source = load_pictures(str(root / "set"), split)
                sources.append(source)
                summary = source.summary
                text = "\n".join(summary.lines()).encode().decode() + json.dumps(summary.to_dict())
                assert SECRET.decode() not in text and SECRET.decode() not in repr(
                    list(source.captioned_rows(source.notes))
                )
                how = {"cache_folder": root / "cache", "max_unreadable_share": 1.0, "progress": False}
                decode_pictures(source, Preprocessing(image_size=4), **how)
            except ValueError as error:
                message = str(error)
                message.encode()
                assert str(root / "set") in message or any(name in message for name, _ in contents), message
        assert len(sources) < 2 or not unexplained(root / "set", sources), unexplained(root / "set", sources)
        assert [path for path in sorted(root.rglob("*")) if root / "cache" not in (path, *path.parents)] == before


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(folders)
def test_mutated_folders(contents):
    check_folder(contents)


if __name__ == "__main__":
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        datasets.config.HF_DATASETS_CACHE = cache
        np.random.seed(0)
        budget = settings(
            max_examples=int(sys.argv[1]), deadline=10_000, suppress_health_check=list(HealthCheck), database=None
        )
        budget(given(folders)(check_folder))()
    print(f"{sys.argv[1]} mutated folders: each was loaded, or refused with the name of a file")
