"""WebDataset tars as people pack them: every picture and caption is used, or the summary says which is not."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from test_tokenizer_loading import encoded, write, write_tar

from tokenizer_image.pictures.loading import Preprocessing, decode_pictures, load_pictures


def opened(folder: Path, members: dict[str, bytes], **options):
    """The archive as a training split; a second one is there for validation."""
    write_tar(folder / "train.tar", members)
    write_tar(folder / "val.tar", {"v.png": encoded()})
    return load_pictures(str(folder), **options)


def captions(source) -> dict[str, list[str]]:
    return {source.key(row).removeprefix("train.tar/"): source.texts(row) for row in range(len(source))}


def lines(source) -> str:
    return "\n".join(source.summary.lines())


@pytest.mark.parametrize(
    "names",
    [
        ["22.05", "22.06", "23.01", "24"],
        ["1.0", "1.1", "2.0", "2.1"],
        ["Screenshot 2024-01-05 at 10.22.05", "Screenshot 2024-01-05 at 10.22.17", "a", "b"],
        ["www.example.com_a", "www.example.com_b", "www.example.org", "x"],
        ["photo.v2", "photo.v3", "other.v2", "dir.with.dots/c"],
        ["train.x/1", "train.x/2", "val.y/1", "./z"],
        ["22", "22.05", "23", "23.05"],
    ],
)
@pytest.mark.parametrize("with_texts", [True, False])
def test_names_with_dots(tmp_path, names, with_texts):
    members = {}
    for name in names:
        members[f"{name}.png"] = encoded()
        if with_texts:
            members[f"{name}.txt"] = name.encode()
    found = captions(opened(tmp_path, members))
    assert len(found) == 4
    if with_texts:
        assert sorted(text for texts in found.values() for text in texts) == sorted(names)


def test_several_pictures_of_an_example(tmp_path):
    members = {}
    for number in range(3):
        members |= {f"{number}.input.png": encoded("red"), f"{number}.target.png": encoded("blue")}
        members[f"{number}.txt"] = str(number).encode()
    source = opened(tmp_path, members)
    assert captions(source) == {str(number): [str(number)] for number in range(3)}
    assert "left out: 3 .png files, another picture of its example (--image_column chooses)" in lines(source)
    assert load_pictures(str(tmp_path), image_column="target.png").image(0).getpixel((0, 0)) == (0, 0, 255)


def test_texts_that_are_empty_missing_or_broken(tmp_path):
    members = {f"{number}.png": encoded() for number in range(5)}
    source = opened(tmp_path / "txt", members | {"0.txt": b"", "1.txt": b"words", "9.txt": b"nobody's"})
    assert captions(source) == {"0": [], "1": ["words"], "2": [], "3": [], "4": []}
    assert "WARNING: 1 .txt file not used: no picture has this name; such as train.tar/9.txt" in lines(source)
    texts = {"0.json": b"", "1.json": b'{"caption": "words"}', "2.json": b'{"caption": "wor', "4.json": b"[1]"}
    source = opened(tmp_path / "json", members | texts, need_captions=True)
    assert captions(source) == {"0": [], "1": ["words"], "2": [], "3": [], "4": []}
    text = lines(source)
    assert "broken .json, so its picture is skipped" in text and "train.tar/2.json" in text and "is no object" in text
    decoded = decode_pictures(source, Preprocessing(image_size=8), cache_folder=tmp_path / "cache", progress=False)
    assert [row for row, _ in decoded.unreadable] == [2] and "broken .json" in decoded.unreadable[0][1]


@pytest.mark.parametrize(
    "content, caption",
    [
        ("café".encode(), "café"), ("café".encode("cp1252"), "café"), ("café".encode("utf-16"), "café"),
        (b"\xef\xbb\xbfcaf\xc3\xa9\r\n", "café"),
    ],
)  # fmt: skip
def test_encodings(tmp_path, content, caption):
    assert captions(opened(tmp_path, {"1.png": encoded(), "1.TXT": content})) == {"1": [caption]}


def test_json_with_several_captions_numbers_and_surrogates(tmp_path):
    meta = json.dumps({"caption_0": "hi \ud83d", "caption_1": 7, "text_length": 3}).encode()
    assert captions(opened(tmp_path, {"1.jpg": encoded(), "1.json": meta})) == {"1": ["hi \ufffd", "7"]}


def test_captions_in_two_kinds_of_members_are_told(tmp_path):
    source = opened(tmp_path, {"1.png": encoded(), "1.txt": b"one", "1.json": b'{"caption": "other", "width": 3}'})
    assert captions(source) == {"1": ["one"]} and "caption in .json members not used" in lines(source)
    source = opened(tmp_path, {"1.png": encoded(), "1.json": b'{"blip": "other"}'})
    assert captions(source) == {"1": []} and "it has blip (--caption_column chooses)" in lines(source)


def test_members_that_lead_elsewhere(tmp_path):
    write(tmp_path / "secret.png", encoded())
    write(tmp_path / "val.tar", b"")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for name in ("../up.png", "/abs/olute.png", "1.png", "1.png", "./2.png", "x.png/3.png"):
            info = tarfile.TarInfo(name)
            info.size = len(encoded())
            archive.addfile(info, io.BytesIO(encoded()))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"link{kind[0]}.png")
            info.type, info.linkname = kind, str(tmp_path / "secret.png")
            archive.addfile(info)
    (tmp_path / "val.tar").unlink()
    (tmp_path / "secret.png").unlink()
    sources = [load_pictures(str(tmp_path / "set.tar"), split) for split in ("train", "validation")]
    keys = sorted(source.key(row) for source in sources for row in range(len(source)))
    assert [key.removeprefix("set.tar/") for key in keys] == ["../up", "./2", "1", "abs/olute", "x.png/3"]
    assert "3 .png files, a link, or no plain file, in an archive" in lines(sources[0])
    assert "1 .png file, a later member of the archive has the same name; such as set.tar/1.png" in lines(sources[0])
    assert not list(tmp_path.rglob("up.png"))


def test_endings_in_any_case(tmp_path):
    assert captions(opened(tmp_path, {"1.JPG": encoded(), "1.Txt": b"one", "2.jfif": encoded(), "2.JSON": b""})) == {
        "1": ["one"],
        "2": [],
    }


@pytest.mark.parametrize("field, content", [("json", b'["a dog", "a cat"]'), ("cls", b"1"), ("npy", b"1")])
def test_members_without_captions_are_told(tmp_path, field, content):
    members = {f"a{number}.png": encoded() for number in range(4)}
    source = opened(tmp_path, members | {f"a{number}.{field}": content for number in range(4)})
    assert not any(captions(source).values())
    assert f"WARNING: {tmp_path}: no captions in its .{field} members" in lines(source)


def test_an_archive_that_is_cut_off_between_two_members_is_told(tmp_path):
    members = {f"a{number}.{field}": content for number in range(6) for field, content in
               (("png", encoded()), ("txt", b"a dog"))}  # fmt: skip
    file = write_tar(tmp_path / "a.tar", members)
    whole = load_pictures(str(tmp_path), "train")
    assert "cut off" not in lines(whole) and len(whole) == 5
    with tarfile.open(file) as archive:
        seventh = archive.getmembers()[6].offset
    file.write_bytes(file.read_bytes()[:seventh])
    cut = load_pictures(str(tmp_path), "train")
    assert len(cut) == 2 and "WARNING: a.tar has no end mark: it may be cut off" in lines(cut)


def test_damage_inside_of_an_archive(tmp_path):
    opened(tmp_path, {name: encoded() for name in ("a.png", "b.png", "c.png")})
    with tarfile.open(tmp_path / "train.tar") as archive:
        second = archive.getmembers()[1].offset
    content = bytearray((tmp_path / "train.tar").read_bytes())
    content[second : second + 512] = b"x" * 512
    write(tmp_path / "train.tar", bytes(content))
    source = load_pictures(str(tmp_path))
    assert f"train.tar is damaged at byte {second}: the members behind it are not read" in lines(source)


def test_an_archive_that_is_cut_in_a_header(tmp_path):
    opened(tmp_path, {name: encoded() for name in ("a.png", "b.png", "c.png")})
    with tarfile.open(tmp_path / "train.tar") as archive:
        last = archive.getmembers()[-1].offset
    write(tmp_path / "train.tar", (tmp_path / "train.tar").read_bytes()[: last + 100])
    assert "train.tar has no end mark: it may be cut off" in lines(load_pictures(str(tmp_path)))


def test_archives_that_were_joined(tmp_path):
    opened(tmp_path, {"a.png": encoded(), "b.png": encoded()})
    write(tmp_path / "train.tar", 2 * (tmp_path / "train.tar").read_bytes())
    assert "train.tar goes on behind its end mark" in lines(load_pictures(str(tmp_path)))


def test_examples_with_either_kind_of_caption_member(tmp_path):
    members = {"a.png": encoded(), "a.txt": b"a dog", "b.png": encoded(), "b.caption": b"a cat"}
    source = opened(tmp_path, members | {"c.png": encoded(), "c.txt": b"a bird", "c.caption": b""})
    assert captions(source) == {"a": ["a dog"], "b": ["a cat"], "c": ["a bird"]}


def test_members_that_are_not_read_are_told_with_the_reason(tmp_path):
    source = opened(tmp_path, {"a.png": encoded(), "b.psd": b"8BPS", "c": encoded()})
    assert "1 .psd file, a kind of picture that is not read" in lines(source)
    assert "1 no ending file, its name has no ending" in lines(source)
