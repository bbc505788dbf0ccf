"""Folders of pictures as people have them: caption files, class folders, odd names, and what else lies there."""

import json
import os
import unicodedata
from pathlib import Path

import pytest
from test_tokenizer_loading import encoded, write, write_parquet, write_tar

from pipelines.caching.pixel_cache import decode_pictures
from tokenizer_image.pictures.loading import Preprocessing, load_pictures


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def make(folder: Path, files: dict[str, str | bytes | None]) -> Path:
    """Files by name; None: a picture."""
    for name, content in files.items():
        write(folder / name, encoded() if content is None else content)
    return folder


def captions(folder: Path) -> dict[str, list[str]]:
    """{picture: captions} of both splits; every picture can be read."""
    sources = [load_pictures(str(folder), split) for split in ("train", "validation")]
    assert all(source.image(row).size == (6, 4) for source in sources for row in range(len(source)))
    return {source.key(row): source.texts(row) for source in sources for row in range(len(source))}


def lines(folder: Path) -> str:
    return "\n".join(load_pictures(str(folder)).summary.lines())


@pytest.mark.parametrize(
    "picture, sidecar",
    [
        ("a.JPG", "a.TXT"), ("a.jpg", "A.txt"), ("sub/a.png", "sub/a.TXT"), ("a.png", "a.caption"),
        ("a.png", "a.CAPTION"), ("a.png", "a.png.txt"), ("22.05.png", "22.05.txt"), ("v1.2/a.png", "v1.2/a.txt"),
        ("caf\u00e9.png", "cafe\u0301.txt"),
        ("cafe\u0301.png", "caf\u00e9.txt"), ("a.jpe", "a.txt"), ("a.jfif", "a.txt"), ("a b.png", "a b.txt"),
    ],
)  # fmt: skip
def test_caption_files_are_found(tmp_path, picture, sidecar):
    make(tmp_path, {picture: None, sidecar: "words", "other.png": None})
    assert captions(tmp_path) == {picture: ["words"], "other.png": []}


@pytest.mark.parametrize("content", [b"", b" \r\n\t", b"\xef\xbb\xbf"])
def test_caption_files_that_are_empty(tmp_path, content):
    make(
        tmp_path, {"a.png": None, "a.txt": content, "b.png": None, "b.txt": b"one\r\n\r\ntwo\rthree\x85\xe2\x80\xa8end"}
    )
    assert captions(tmp_path) == {"a.png": [], "b.png": ["one", "two", "three…\u2028end"]}


def test_caption_files_that_are_no_text_or_have_no_picture(tmp_path):
    make(
        tmp_path, {f"{n}.png": None for n in "abc"} | {f"{n}.txt": bytes(range(256)) for n in "abc"} | {"d.txt": "lost"}
    )
    assert set(map(tuple, captions(tmp_path).values())) == {()}
    assert "captions not used: the file is no text" in lines(tmp_path)
    assert "WARNING: 1 .txt file not used: no example has this name; such as d.txt" in lines(tmp_path)


def test_two_caption_files_of_a_picture(tmp_path):
    make(tmp_path, {"a.png": None, "a.txt": "one", "a.caption": "other", "b.png": None})
    assert captions(tmp_path) == {"a.png": ["one"], "b.png": []}
    assert "1 .caption file not used: another caption file is read; such as a.caption" in lines(tmp_path)


# ---- class folders


def classes(folder: Path, names=("dog", "sports_car"), count: int = 3, extra: dict | None = None) -> Path:
    return make(folder, {f"{name}/{number}.png": None for name in names for number in range(count)} | (extra or {}))


@pytest.mark.parametrize("extra", [{"dog/1.txt": "words"}, {"dog/1.txt": "words", "sports_car/1.txt": "words"}])
def test_class_names_stay_where_a_picture_has_no_caption_file(tmp_path, extra):
    found = captions(classes(tmp_path, extra=extra))
    for picture, texts in found.items():
        name = "dog" if picture.startswith("dog") else "sports car"
        assert texts == (["words"] if picture.replace(".png", ".txt") in extra else [name])
    assert "have a caption file; the others have their folder's name" in lines(tmp_path)
    assert "names of classes" in lines(tmp_path) and "caption files" in lines(tmp_path)


def test_folders_named_by_repeats(tmp_path):
    found = captions(classes(tmp_path / "beside", ("10_dog", "5_cat"), extra={"10_dog/1.txt": "words"}))
    assert {picture for picture, texts in found.items() if texts} == {"10_dog/1.png"}
    assert captions(classes(tmp_path / "alone", ("10_dog", "5_cat")))["10_dog/1.png"] == ["10 dog"]
    assert "WARNING: the names of the folders are the captions: 10_dog -> '10 dog'" in lines(tmp_path / "alone")


def test_one_class_folder(tmp_path):
    assert set(map(tuple, captions(classes(tmp_path / "one", ("sports_car",))).values())) == {("sports car",)}
    assert "all pictures are in one folder, whose name is their caption: 'sports car'" in lines(tmp_path / "one")
    for number, name in enumerate(("images", "2021-05", "train")):
        found = captions(classes(tmp_path / str(number), (name,), extra={"val/0.png": None} if name == "train" else {}))
        assert set(map(tuple, found.values())) == {()}, name
    split = classes(tmp_path / "split", ("train/dog", "val/dog"))
    assert set(map(tuple, captions(split).values())) == {("dog",)}


def test_a_stray_picture_leaves_the_classes(tmp_path):
    found = captions(classes(tmp_path, extra={"cover.png": None}))
    assert found.pop("cover.png") == [] and set(map(tuple, found.values())) == {("dog",), ("sports car",)}
    assert "1 picture outside of the classes' folders without a class: cover.png" in lines(tmp_path)


# ---- names


def test_names_that_are_no_unicode(tmp_path):
    raw = os.fsencode(tmp_path)
    for folder, name in ((b"caf\xe9", b"\xff.png"), (b"caf\xe9", b"b.png"), (b"tea", b"c.png"), (b"tea", b"d.png")):
        os.makedirs(raw + b"/" + folder, exist_ok=True)
        with open(raw + b"/" + folder + b"/" + name, "wb") as file:
            file.write(b"broken" if name == b"\xff.png" else encoded())
    sources = [load_pictures(str(tmp_path), split) for split in ("train", "validation")]
    texts = {text for source in sources for row in range(len(source)) for text in source.texts(row)}
    assert texts == {"café", "tea"}
    for source in sources:
        "\n".join(source.summary.lines()).encode()
        how = {"cache_folder": tmp_path / "cache", "progress": False, "max_unreadable_share": 0.9}
        if any(b"\xff" in os.fsencode(source.key(row)) for row in range(len(source))):
            listing = (
                decode_pictures(source, Preprocessing(image_size=8), **how).folder / "unreadable.txt"
            ).read_text()
            assert r"caf\udce9/\udcff.png" in listing


def test_folders_and_files_that_are_no_pictures(tmp_path):
    make(
        tmp_path, {"a.png": None, "b.png": None, "x.png/c.png": None, "@eaDir/t.png": None, "empty.png/readme.md": "x"}
    )
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert set(captions(tmp_path)) == {"a.png", "b.png", "x.png/c.png"}
    assert "1 .png file, not a file" in lines(tmp_path) and "1 .png file, a broken link" in lines(tmp_path)


def test_nothing_outside_of_the_folder_is_read(tmp_path):
    secret = make(tmp_path / "secret", {"s.png": None, "s.txt": "secret", "deep/t.png": None})
    folder = make(tmp_path / "set", {"a.png": None, "b.png": None, "sub/c.png": None})
    (folder / "s.png").symlink_to(secret / "s.png")
    (folder / "a.txt").symlink_to(secret / "s.txt")
    (folder / "deep").symlink_to(secret / "deep")
    (folder / "again.png").symlink_to(folder / "a.png")
    (folder / "loop").symlink_to(folder)
    assert captions(folder) == {"a.png": [], "b.png": [], "sub/c.png": [], "again.png": []}
    assert "a link out of the folder" in lines(folder)
    write(folder / "metadata.jsonl", '{"file_name": "s.png", "text": "x"}\n{"file_name": "a.png", "text": "y"}\n')
    sources = [load_pictures(str(folder), split) for split in ("train", "validation")]
    source = next(source for source in sources if source.key(0) == "s.png")
    with pytest.raises(ValueError, match="outside of the data set's folder"):
        source.image(0)


def test_a_snapshot_of_the_hubs_cache_is_read(tmp_path):
    store = make(tmp_path / "datasets--x" / "blobs", {"1": None, "2": None})
    snapshot = tmp_path / "datasets--x" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for number in "12":
        (snapshot / f"{number}.png").symlink_to(store / number)
    assert set(captions(snapshot)) == {"1.png", "2.png"}


# ---- what else lies there


CAPTIONED = {f"{number}.png": None for number in range(8)} | {f"{number}.txt": "words" for number in range(8)}


@pytest.mark.parametrize(
    "stray", ["old/backup.tar", "emb.parquet", "data.PARQUET", "old/metadata.jsonl", "old/documents.jsonl"]
)
def test_captioned_pictures_are_the_data_set_whatever_else_lies_there(tmp_path, stray):
    make(tmp_path, CAPTIONED)
    if stray.endswith(".tar"):
        write_tar(tmp_path / stray, {f"{number}.png": encoded() for number in range(20)})
    elif stray == "emb.parquet":
        write_parquet(tmp_path / stray, {"image": ["0.png"] * 20, "embedding": [[0.5]] * 20})
    elif stray == "data.PARQUET":
        write_parquet(tmp_path / stray, {"image": [encoded()] * 20})
    else:
        make(tmp_path / "old", {"x.png": None, "metadata.jsonl": '{"file_name": "x.png"}'})
        os.rename(tmp_path / "old" / "metadata.jsonl", tmp_path / stray)
        if "documents" in stray:
            (tmp_path / stray).write_text('[{"image": "x.png"}]\n')
    found = captions(tmp_path)
    assert {f"{number}.png" for number in range(8)} <= set(found) and found["0.png"] == ["words"]
    assert f"WARNING: 1 {os.path.splitext(stray)[1].lower()} file not used" in lines(tmp_path)
    named = tmp_path / "old" if stray.endswith(".jsonl") else tmp_path / stray
    assert f"--dataset {named} reads it" in lines(tmp_path)


def test_most_pictures_win_where_none_has_a_caption(tmp_path):
    make(tmp_path, {"a.png": None, "b.png": None})
    write_tar(tmp_path / "A.TAR", {f"{number}.png": encoded() for number in range(9)})
    assert len(captions(tmp_path)) == 9
    assert "left out: 2 .png files, the archives are the data set; such as a.png, b.png" in lines(tmp_path)
    make(tmp_path, {f"{number}.png": None for number in range(20)})
    assert len(captions(tmp_path)) == 22


def test_endings_in_any_case(tmp_path):
    write_tar(tmp_path / "one" / "A.TAR", {f"{number}.PNG": encoded() for number in range(3)})
    write_parquet(tmp_path / "two" / "X.PARQUET", {"image": [encoded()] * 3, "text": list("abc")})
    assert len(captions(tmp_path / "one")) == len(captions(tmp_path / "two")) == 3


def test_pictures_of_other_kinds_are_counted(tmp_path):
    make(
        tmp_path,
        {
            "a.jfif": None,
            "b.JPE": None,
            "c.heic": b"x",
            "d.psd": b"x",
            "e.PSD": b"x",
            "f.jxl": b"x",
            "notes.docx": b"x",
        },
    )
    assert set(captions(tmp_path)) == {"a.jfif", "b.JPE"}
    text = lines(tmp_path)
    assert "1 .heic file, needs a package: pip install pillow-heif; such as c.heic" in text
    assert "2 .psd files, a kind of picture that is not read; convert it to PNG or JPEG; such as d.psd, e.PSD" in text
    assert "1 .jxl file, needs a package" in text and "notes.docx" in text
    for name in ("a.jfif", "b.JPE"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match="holds no pictures: it has files of the kinds .*pip install pillow-heif"):
        load_pictures(str(tmp_path))


def test_a_name_in_another_form_than_its_captions(tmp_path):
    name = "e\u0301t\u00e9"
    for form in ("NFC", "NFD"):
        make(tmp_path / form, {f"{unicodedata.normalize(form, name)}.png": None, f"{name}.txt": "words", "b.png": None})
        assert sorted(captions(tmp_path / form).values()) == [[], ["words"]]


def test_control_characters_in_a_caption_file_are_replaced(tmp_path):
    make(tmp_path, {"a.png": None, "a.txt": b"a\0\x07 dog \x1b[31m", "b.png": None, "b.txt": b"\0\0\0\0"})
    assert captions(tmp_path) == {"a.png": ["a   dog  [31m"], "b.png": []}
    assert "control characters replaced by spaces: 1" in lines(tmp_path), "of the training split"


def test_splits_named_with_a_year(tmp_path):
    make(tmp_path, {f"{split}/{number}.png": None for split in ("train2017", "val2017") for number in range(3)})
    for split in ("train", "validation"):
        assert len(load_pictures(str(tmp_path), split)) == 3
    assert "WARNING" not in lines(tmp_path), "no class names"


def test_a_folder_of_links_out_of_it_says_so(tmp_path):
    make(tmp_path / "elsewhere", {"a.png": None})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    with pytest.raises(
        ValueError, match=r"holds no pictures: 1 .png file left out \(a link out of the folder; copy in"
    ):
        load_pictures(str(tmp_path / "data"), "train")


def test_a_link_to_itself(tmp_path):
    make(tmp_path, {"a.png": None, "b.png": None})
    (tmp_path / "c.png").symlink_to(tmp_path / "c.png")
    assert sorted(captions(tmp_path)) == ["a.png", "b.png"]
    assert "1 .png file, a broken link" in lines(tmp_path)


def test_folders_whose_names_say_nothing_give_no_captions(tmp_path):
    make(tmp_path, {"___/a.png": None, "dog/b.png": None})
    assert captions(tmp_path) == {"___/a.png": [], "dog/b.png": ["dog"]}


@pytest.mark.parametrize(
    "pictures, told",
    [
        (["train/a", "train/c", "extra/b"], "train"), (["train/a", "train/c", "b"], "train"),
        (["cat/train/a", "cat/val/b", "dog/train/c", "dog/val/d"], "cat/train"),
        (["train/a", "train/c", "val/b"], None), (["cat/train/a", "cat/train/c", "cat/val/b"], None),
        (["train/train/a", "train/boat/b", "val/boat/c"], None), (["dog/a", "cat/b"], None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("with_metadata", [False, True])
def test_folders_with_names_of_splits_that_are_none(tmp_path, pictures, told, with_metadata):
    make(tmp_path, {f"{picture}.png": None for picture in pictures})
    if with_metadata:
        rows = (f'{{"file_name": "{picture}.png", "text": "words"}}\n' for picture in pictures)
        write(tmp_path / "metadata.jsonl", "".join(rows))
    text = lines(tmp_path)
    assert ("named like a split" in text) == (told is not None)
    if told is not None:
        assert f"WARNING: the folder {told} is named like a split, but is none" in text


# ---- captions in files beside the pictures, of several kinds


@pytest.mark.parametrize("blank", ["", " \r\n", "\ufeff", "None\n"])
def test_a_caption_file_without_a_caption_hides_no_other(tmp_path, blank):
    make(tmp_path, {"a.png": None, "a.txt": blank, "a.caption": "a dog", "b.png": None, "b.txt": "a cat"})
    assert captions(tmp_path) == {"a.png": ["a dog"], "b.png": ["a cat"]}
    assert "WARNING: 1 .txt file not used: it holds no caption; such as a.txt" in lines(tmp_path)


@pytest.mark.parametrize(
    "content, expected",
    [
        ({"caption": "a dog", "url": "x", "width": 3}, ["a dog"]), ({"prompt": "a dog", "seed": 1}, ["a dog"]),
        ({"text": ["a dog", "a hound"]}, ["a dog", "a hound"]), ({"Caption": " a dog "}, ["a dog"]),
        ({"shapes": []}, []), ({"caption": "", "prompt": "a dog"}, ["a dog"]),
        ({"caption": None}, []), ([1, 2], []), ("a dog", []),
    ],
)  # fmt: skip
def test_json_beside_pictures(tmp_path, content, expected):
    make(tmp_path, {f"{name}.png": None for name in "ab"} | {f"{name}.json": json.dumps(content) for name in "ab"})
    assert captions(tmp_path) == {"a.png": expected, "b.png": expected}
    text = lines(tmp_path)
    assert "caption files" in text if expected else "WARNING: 2 .json files not used: no text" in text


def test_json_beside_pictures_that_is_broken_or_second(tmp_path):
    make(tmp_path, {"a.png": None, "a.json": '{"caption": "a d', "b.png": None, "b.txt": "b", "c.png": None})
    make(tmp_path, {"b.json": '{"caption": "other"}', "c.json": '{"caption": "' + "x" * 2_000_000 + '"}'})
    make(tmp_path, {"meta.json": '{"caption": "x"}', "d.png": None, "d.json": "[" * 100_000})
    assert captions(tmp_path) == {"a.png": [], "b.png": ["b"], "c.png": [], "d.png": []}
    text = lines(tmp_path)
    assert "2 .json files not used: it is not JSON" in text and "a.json" in text
    assert "1 .json file not used: another caption file is read; such as b.json" in text
    assert "1 .json file not used: larger than 1 MB; such as c.json" in text
    assert "meta.json" in text


def test_json_without_captions_leaves_the_names_of_classes(tmp_path):
    make(tmp_path, {f"{kind}/{number}.{end}": None if end == "png" else '{"shapes": []}'
                    for kind in ("dog", "cat") for number in range(3) for end in ("png", "json")})  # fmt: skip
    assert set(map(tuple, captions(tmp_path).values())) == {("dog",), ("cat",)}


# ---- what is not looked at


def test_hidden_files_and_archives_are_told(tmp_path):
    make(
        tmp_path, {"a.png": None, "b.png": None, ".c.png": None, "._a.png": b"x", ".DS_Store": b"x", "Thumbs.db": b"x"}
    )
    make(tmp_path, {".cache/x.png": None, "desktop.ini": b"x", "__MACOSX/a.png": b"x", ".gitignore": b"x"})
    make(tmp_path, {"more.zip": b"PK", "more.tar.gz": b"x", "set.TGZ": b"x", "c.7z": b"x"})
    assert sorted(captions(tmp_path)) == ["a.png", "b.png"]
    text = lines(tmp_path)
    assert "left out: 1 .png file, hidden: its name begins with a dot; such as .c.png" in text
    assert "left out: 1 folder, hidden: its name begins with a dot; such as .cache" in text
    for name, kind in (("more.zip", ".zip"), ("more.tar.gz", ".gz"), ("set.TGZ", ".tgz"), ("c.7z", ".7z")):
        assert (
            f"WARNING: 1 {kind} file not used: a compressed archive; unpack it to use what it holds; such as {name}"
            in text
        )
    assert not any(name in text for name in ("._a", "DS_Store", "Thumbs", "desktop", "MACOSX", "gitignore"))


def test_all_pictures_in_a_hidden_folder(tmp_path):
    make(tmp_path, {".pictures/a.png": None})
    with pytest.raises(ValueError, match=r"holds no pictures: 1 folder left out \(hidden"):
        load_pictures(str(tmp_path))


# ---- encodings of caption files


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["一只狗 在草地上", "犬が走る\n", "한 마리 개", "собака", "a dog", "قطة على العشب"])
def test_utf16_without_a_mark(tmp_path, encoding, text):
    make(tmp_path, {f"{name}.png": None for name in "ab"} | {f"{name}.txt": text.encode(encoding) for name in "ab"})
    assert captions(tmp_path) == {"a.png": [text.strip()], "b.png": [text.strip()]}
    assert "repaired: read as UTF-16: 1; such as" in lines(tmp_path)


@pytest.mark.parametrize(
    "encoding, text",
    [
        ("gb18030", "一只狗在草地上"), ("shift_jis", "犬が走る"), ("shift_jis", "カタカナ"), ("big5", "一隻狗"), 
        ("euc_kr", "개"),        ("cp1251", "собака на траве"), ("utf-16-le", "草地上"),
    ],
)  # fmt: skip
def test_other_encodings_are_told(tmp_path, encoding, text):
    make(tmp_path, {f"{name}.png": None for name in "abc"} | {f"{name}.txt": text.encode(encoding) for name in "abc"})
    summary = lines(tmp_path)
    assert "WARNING: 2 texts may be in another encoding than Windows-1252; save them as UTF-8; such as" in summary
    assert "not UTF-8, read as Windows-1252: 2" in summary


@pytest.mark.parametrize(
    "text", ["un café crème, s’il vous plaît", "Fußgänger überquert Straße", "¿Qué señor?", "“ok” then"]
)
def test_western_texts_are_no_doubt(tmp_path, text):
    make(tmp_path, {f"{name}.png": None for name in "ab"} | {f"{name}.txt": text.encode("cp1252") for name in "ab"})
    assert captions(tmp_path) == {"a.png": [text], "b.png": [text]} and "WARNING" not in lines(tmp_path)


# ---- captions that are none, and names that mislead


def test_labels_of_a_detector_are_doubted(tmp_path):
    make(
        tmp_path,
        {f"{name}.png": None for name in "ab"} | {"a.txt": "0 .5 0.5 0.1 0.25\n3 0.1 0.2 0.3 0.4", "b.txt": "7"},
    )
    both = "".join("\n".join(load_pictures(str(tmp_path), split).summary.lines()) for split in ("train", "validation"))
    assert "WARNING: 1 text may be a detector's labels, not captions; such as a.txt" in both and "such as b" not in both


@pytest.mark.timeout(20)
def test_a_caption_of_many_numbers_is_read_at_once(tmp_path):
    text = "0 " + "1111 " * 60 + "times"
    make(tmp_path, {"a.png": None, "b.png": None, "a.txt": text, "b.txt": text})
    assert captions(tmp_path) == {"a.png": [text], "b.png": [text]}


def test_a_link_to_a_folder_does_not_name_a_class(tmp_path):
    make(tmp_path, {f"{name}/{number}.png": None for name in ("dog", "cat") for number in range(2)})
    (tmp_path / "zoo").symlink_to(tmp_path / "dog")
    assert set(map(tuple, captions(tmp_path).values())) == {("dog",), ("cat",)}


def test_a_name_with_line_ends_stays_in_its_line(tmp_path):
    make(tmp_path, {"a\nWARNING: b.heic": b"x", "a.png": None, "b.png": None, "c\n.png": None, "c\n.txt": "words"})
    assert "such as a\\nWARNING: b.heic" in lines(tmp_path) and "\nWARNING" not in lines(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        '[{"text": "犬が走る"}, {"image": "a.png"}]\n[{"text": "猫"}, {"image": "b.png"}]',
        "狗 on grass, 草地 and a tree",
    ],
)
@pytest.mark.parametrize("encoding", ["gb18030", "shift_jis", "euc_jp"])
def test_other_encodings_among_latin_letters_are_told(tmp_path, text, encoding):
    name = "documents.jsonl" if text.startswith("[") else "a.txt"
    make(tmp_path, {"a.png": None, "b.png": None, name: text.encode(encoding, errors="ignore")})
    sources = [load_pictures(str(tmp_path), split) for split in ("train", "validation")]
    told = "".join("\n".join(source.summary.lines()) for source in sources)
    assert "WARNING: 1 text may be in another encoding than Windows-1252; save" in told


def test_a_damaged_byte_among_other_scripts_is_no_doubt(tmp_path):
    make(
        tmp_path,
        {
            "a.png": None,
            "b.png": None,
            "a.txt": "一只狗, caf".encode() + b"\xe9",
            "b.txt": "一只狗, caf".encode() + b"\xe9",
        },
    )
    assert captions(tmp_path) == {"a.png": ["一只狗, café"], "b.png": ["一只狗, café"]} and "WARNING" not in lines(
        tmp_path
    )


def test_caption_files_behind_the_whole_name(tmp_path):
    make(
        tmp_path, {"a.png": None, "a.txt": "", "a.png.txt": "one", "b.png": None, "b.txt": "two", "b.png.txt": "other"}
    )
    assert captions(tmp_path) == {"a.png": ["one"], "b.png": ["two"]}
    text = lines(tmp_path)
    assert "1 .txt file not used: it holds no caption; such as a.txt" in text
    assert "1 .txt file not used: another caption file is read; such as b.png.txt" in text


@pytest.mark.parametrize("suffix", [".text", ".prompt", ".captions", ".xml"])
def test_other_files_with_texts_are_warned_of(tmp_path, suffix):
    make(tmp_path, {"a.png": None, "b.png": None, f"a{suffix}": "words"})
    assert f"WARNING: 1 {suffix} file not used: not a kind of file that is read here; such as a{suffix}" in lines(
        tmp_path
    )


@pytest.mark.parametrize("text", ["['a dog', 'a hound']", '["a dog"]'])
def test_lists_that_were_written_as_text_are_doubted(tmp_path, text):
    make(tmp_path, {"a.png": None, "b.png": None, "a.txt": text, "b.txt": text})
    assert "WARNING: 1 text may be a list that was written as text; such as" in lines(tmp_path)
