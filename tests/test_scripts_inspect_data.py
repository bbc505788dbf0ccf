"""`scripts/inspect_data.py`: figures, sheet and exit code, for every kind of source."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.evaluation.data_inspection import inspect_pictures
from scripts.inspect_data import InspectionOptions, main
from tokenizer_image.pictures import picture_files
from tokenizer_image.pictures.loading import load_pictures

ROOT = Path(__file__).resolve().parents[1]


def picture(number: int, size: tuple[int, int] = (12, 12)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, "PNG")
    return buffer.getvalue()


def folder_of(tmp_path: Path, kind: str) -> Path:
    """Six captioned pictures as a source of one kind; numbers 0 and 5 are the same."""
    folder = tmp_path / kind
    folder.mkdir()
    contents = [png(number % 5) for number in range(6)]
    if kind == "parquet":
        pq.write_table(
            pa.table({"image": contents, "caption": [f"number {n}" for n in range(6)]}), folder / "a.parquet"
        )
        return folder
    if kind == "tar":
        with tarfile.open(folder / "a.tar", "w") as archive:
            for number, content in enumerate(contents):
                for name, data in ((f"{number}.png", content), (f"{number}.txt", b"a dog")):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        return folder
    for number, content in enumerate(contents):
        (folder / f"{number}.png").write_bytes(content)
        if kind == "files":
            (folder / f"{number}.txt").write_text(f"number {number}")
    if kind == "documents":
        parts = [[{"text": f"number {n}"}, {"image": f"{n}.png"}] for n in range(6)]
        (folder / "documents.jsonl").write_text("".join(json.dumps({"parts": part}) + "\n" for part in parts))
    return folder


def inspect(folder: Path | str, tmp_path: Path, **options) -> Image.Image:
    sheet = tmp_path / "made" / "sheet.png"
    main(InspectionOptions(dataset=str(folder), output=str(sheet), image_size=8, num_workers=2, **options))
    return Image.open(sheet)


@pytest.mark.parametrize("kind", ["files", "parquet", "tar", "documents"])
def test_every_kind_of_source(tmp_path, capsys, kind):
    sheet = inspect(folder_of(tmp_path, kind), tmp_path)
    text = capsys.readouterr().out
    assert "train: 5 pictures" in text and "captions: 5" in text
    assert "smallest: 12x12 pixels" in text and "unreadable: 0" in text
    assert sheet.width > 4 * 2 * 160 and len(sheet.getcolors(1 << 24)) > 100


def test_sprites(tmp_path, capsys):
    sheet = inspect("sprites", tmp_path, max_examples=30)
    assert "sprites, train: 30 pictures" in capsys.readouterr().out
    assert sheet.height > 6 * 160


def test_sizes_and_duplicates(tmp_path):
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    (tmp_path / "set" / "validation").mkdir()
    picture(9).save(tmp_path / "set" / "validation" / "held_out.png")
    for number in range(5):
        picture(0).save(folder / f"same{number}.png")
    picture(1, (30, 40)).save(folder / "large.png")
    picture(2, (6, 9)).save(folder / "small.png")
    Image.new("RGB", (10, 10)).save(folder / "z10.png")
    Image.new("RGB", (20, 20)).save(folder / "z20.png")  # black as z10.png is, of another size
    source = load_pictures(str(tmp_path / "set"))
    found = inspect_pictures(source, 8, 2)
    names = [Path(source.key(row)).name for row in range(len(source))]
    copies = [name for name in names if name.startswith("same")]
    assert found.smallest == (names.index("small.png"), 6, 9)
    assert found.largest == (names.index("large.png"), 30, 40)
    assert found.num_duplicates == len(copies) - 1
    assert [(names[row], names[first]) for row, first in found.duplicates] == [
        (name, copies[0]) for name in copies[1:4]
    ]


def test_a_jpeg_that_is_read_reduced_has_its_size(tmp_path, monkeypatch):
    for name in ("a", "b"):
        picture(0, (80, 48)).save(tmp_path / f"{name}.jpg")
    monkeypatch.setattr(picture_files.Image, "MAX_IMAGE_PIXELS", 1000)
    found = inspect_pictures(load_pictures(str(tmp_path)), 8, 0)
    assert found.largest is not None and found.largest[1:] == (80, 48)


@pytest.mark.parametrize(
    "case, options, message",
    [
        ("nothing", {}, "holds no pictures"),
        ("without_captions", {}, "has no captions.*--unconditional"),
        ("unreadable", {}, "2 of 8 pictures .25.0%. cannot be read: .*--max_unreadable_share"),
        ("all_unreadable", {}, "none of .* can be read"),
        ("without_captions", {"split": "test"}, "test"),
        ("without_captions", {"caption_column": "text"}, "--caption_column"),
    ],
)
def test_what_would_stop_training(tmp_path, case, options, message):
    folder = folder_of(tmp_path, "without_captions" if case != "unreadable" else "files")
    for file in folder.iterdir():
        if case == "nothing":
            file.unlink()
        elif case == "all_unreadable":
            file.write_bytes(b"no picture")
    if case == "unreadable":
        for number in range(2):
            (folder / f"broken{number}.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=message):
        inspect(folder, tmp_path, **options)


def test_captions_need_not_be_there(tmp_path):
    assert inspect(folder_of(tmp_path, "without_captions"), tmp_path, unconditional=True)


def test_exit_codes(tmp_path):
    def run(folder: Path) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "scripts" / "inspect_data.py"), "--dataset", str(folder)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    good, bad = run(folder_of(tmp_path, "files")), run(folder_of(tmp_path, "without_captions"))
    assert good.returncode == 0 and (tmp_path / "sheet.png").is_file(), good.stderr
    last = bad.stderr.strip().splitlines()[-1]
    assert bad.returncode == 1 and "Traceback" not in bad.stderr and last.startswith("inspect_data.py: error: ")
