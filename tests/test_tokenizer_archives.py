"""WebDataset tars as people pack them: every picture and caption is used, or the summary says which is not."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from test_tokenizer_loading import encoded, write, write_tar

from pipelines.caching.pixel_cache import decode_pictures
from tokenizer_image.pictures.loading import Preprocessing, load_pictures


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
    assert "WARNING: 1 .txt file not used: no example has this name; such as train.tar/9.txt" in lines(source)
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


def damaged(file: Path, start: int, content: bytes) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[:start] + content + whole[start + len(content) :])


def offsets(file: Path) -> list[int]:
    """Where the header of each member begins."""
    with tarfile.open(file) as archive:
        return [member.offset for member in archive.getmembers()]


PICTURES = {name: encoded() for name in ("a.png", "b.png", "c.png", "d.png")}


def test_members_behind_a_damaged_place_are_read(tmp_path):
    opened(tmp_path, PICTURES)
    second = offsets(tmp_path / "train.tar")[1]
    damaged(tmp_path / "train.tar", second, b"x" * 512)
    source = load_pictures(str(tmp_path))
    assert set(captions(source)) == {"a", "c", "d"}
    assert f"WARNING: train.tar is damaged at byte {second:,}: what lay there is lost" in lines(source)


def test_an_archive_that_is_cut_in_a_header_or_in_a_picture(tmp_path):
    opened(tmp_path, PICTURES)
    content, last = (tmp_path / "train.tar").read_bytes(), offsets(tmp_path / "train.tar")[-1]
    for length, message in ((last + 100, "has no end mark: it may be cut off"), (last + 530, "is cut off in d.png")):
        write(tmp_path / "train.tar", content[:length])
        source = load_pictures(str(tmp_path))
        assert set(captions(source)) == {"a", "b", "c"} and f"WARNING: train.tar {message}" in lines(source)


def test_archives_that_were_joined(tmp_path):
    opened(tmp_path, {"a.png": encoded(), "b.png": encoded()})
    write_tar(tmp_path / "other.tar", {"c.png": encoded(), "c.txt": b"a cat"})
    write(tmp_path / "train.tar", (tmp_path / "train.tar").read_bytes() + (tmp_path / "other.tar").read_bytes())
    (tmp_path / "other.tar").unlink()
    source = load_pictures(str(tmp_path))
    assert captions(source) == {"a": [], "b": [], "c": ["a cat"]}
    assert "repaired: archives that were joined in one file: 1; such as train.tar" in lines(source)


def test_a_header_with_a_negative_size_ends(tmp_path):
    opened(tmp_path, PICTURES)
    third = offsets(tmp_path / "train.tar")[2]
    header = bytearray((tmp_path / "train.tar").read_bytes()[third : third + 512])
    header[124:136] = (-4096).to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    damaged(tmp_path / "train.tar", third, bytes(header))
    source = load_pictures(str(tmp_path))
    assert set(captions(source)) == {"a", "b", "d"} and "train.tar is damaged" in lines(source)


@pytest.mark.parametrize("content", [b"\x1f\x8b" + b"x" * 3000, b"PK\3\4" + b"x" * 3000, b"x" * 3000, b""])
def test_files_that_are_no_archives(tmp_path, content):
    with pytest.raises(ValueError, match=r"set\.tar is (no tar archive|a compressed archive|empty)"):
        load_pictures(str(write(tmp_path / "set.tar", content)))


def test_examples_with_several_kinds_of_caption_members(tmp_path):
    members = {
        "a.png": encoded(), "a.txt": b"a dog", "b.png": encoded(), "b.caption": b"a cat", "c.png": encoded(),
        "c.txt": b"a bird", "c.caption": b"", "d.png": encoded(), "d.text": b"a fish", "d.caption": b"a fish, wet",
        "e.png": encoded(), "e.json": b'{"caption": "a horse"}', "f.png": encoded(), "f.prompt": b"a cow",
    }  # fmt: skip
    source = opened(tmp_path, members)
    assert captions(source) == {
        "a": ["a dog"], "b": ["a cat"], "c": ["a bird"], "d": ["a fish, wet"], "e": ["a horse"], "f": ["a cow"],
    }  # fmt: skip
    assert "WARNING: 1 caption not used: another caption member is read; such as train.tar/d.text" in lines(source)


def test_json_members_without_a_caption_are_counted(tmp_path):
    members = {f"{number:03}.png": encoded() for number in range(70)}
    members |= {f"{number:03}.json": b'{"caption": "a dog"}' if number > 66 else b'{"w": 3}' for number in range(70)}
    source = opened(tmp_path, members)
    assert [texts for texts in captions(source).values() if texts] == [["a dog"]] * 3
    assert "WARNING: 67 captions not used: a mapping without a key such as caption or text (it has w)" in lines(source)


def test_members_that_are_not_read_are_told_with_the_reason(tmp_path):
    members = {"a.png": encoded(), "a.psd": b"8BPS", "a.npy": b"1", "b.psd": b"8BPS", "c": encoded(), ".d.png": b"x"}
    text = lines(opened(tmp_path, members))
    assert "2 .psd files, a kind of picture that is not read" in text
    assert "1 .npy file, not a kind of member that is read; such as train.tar/a.npy" in text
    assert "1 file without an ending, its name has no ending" in text
    assert "1 .png file, hidden: its name, or its folder's, begins with a dot; such as train.tar/.d.png" in text


def test_what_systems_put_beside_pictures_counts_for_nothing(tmp_path):
    members = {"set/a.png": encoded(), "__MACOSX/set/._a.png": b"\0\5\x16\7", "set/._a.png": b"\0\5\x16\7"}
    source = opened(tmp_path, members | {"__MACOSX/a.txt": b"x", "set/.DS_Store": b"x", "set/Thumbs.db": b"x"})
    assert captions(source) == {"set/a": []} and "left out" not in lines(source)


def test_names_in_another_case_or_unicode_form(tmp_path):
    members = {
        "caf\u00e9.png": encoded(), "cafe\u0301.txt": b"one", "B.PNG": encoded(), "b.txt": b"two", "c.png": encoded(),
        "C.png": encoded(), "c.txt": b"three", "d.png": encoded(), "d.txt": b"four", "D.txt": b"other",
    }  # fmt: skip
    source = opened(tmp_path, members)
    assert captions(source) == {"caf\u00e9": ["one"], "B": ["two"], "c": ["three"], "C": [], "d": ["four"]}
    assert "1 .txt file not used: no example has this name; such as train.tar/D.txt" in lines(source)


def test_names_of_folders_in_archives_are_told_to_be_no_captions(tmp_path):
    source = opened(tmp_path, {"dog/a.png": encoded(), "cat/b.png": encoded()})
    assert "WARNING: the names of folders in archives are no captions: cat, dog; put a .txt beside each" in lines(
        source
    )


def test_archives_that_hold_no_picture_say_why(tmp_path):
    with pytest.raises(
        ValueError, match=r"hold nothing.* 2 files without an ending left out \(its name has no ending\)"
    ):
        load_pictures(str(write_tar(tmp_path / "a.tar", {"a": encoded(), "b": encoded()})))


def test_reasons_with_a_chosen_column_and_with_keys_without_text(tmp_path):
    members = {"a.png": encoded(), "a.txt": b"x", "a.json": b'{"alt": "y"}', "b.png": encoded()}
    source = opened(tmp_path / "alt", members, caption_column="alt")
    assert captions(source) == {"a": ["y"], "b": []}
    assert "WARNING: 1 .txt file not used: --caption_column alt is read; such as train.tar/a.txt" in lines(source)
    members = {
        "a.png": encoded(),
        "a.json": b'{"caption": null, "text": "x"}',
        "b.png": encoded(),
        "b.json": b'{"caption": "y"}',
    }
    source = opened(tmp_path / "null", members)
    assert captions(source) == {"a": ["x"], "b": ["y"]}
