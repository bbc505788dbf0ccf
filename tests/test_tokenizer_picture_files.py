"""Picture files that come from scanners, generators and phones: what stands beside the pixels never stops one."""

import io
import struct
import sys
import types
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from test_tokenizer_loading import encoded, write

from pipelines.caching.pixel_cache import decode_pictures
from tokenizer_image.pictures import picture_files
from tokenizer_image.pictures.loading import Preprocessing, load_pictures, preprocess
from tokenizer_image.pictures.picture_files import open_picture

SETTINGS = Preprocessing(image_size=8)
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes, damaged: bool = False) -> bytes:
    checksum = zlib.crc32(kind + content) ^ damaged
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def with_chunk(png: bytes, new: bytes, place: bytes) -> bytes:
    """A PNG with a further chunk before the first one of the kind `place`."""
    start = png.index(place) - 4
    return png[:start] + new + png[start:]


PLAIN = saved(Image.fromarray(PIXELS))
LONG = zlib.compress(b"x" * (2 << 20))


@pytest.mark.parametrize("place", [b"IDAT", b"IEND"])
@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"workflow\0\0" + LONG),
        chunk(b"iTXt", b"workflow\0\1\0\0\0" + LONG),
        chunk(b"tEXt", b"workflow\0" + b"x" * (2 << 20)),
        chunk(b"zTXt", b"workflow\0\0" + LONG) * 40,
        chunk(b"iCCP", b"profile\0\0" + LONG),
        chunk(b"tEXt", b"a\0b", damaged=True),
        chunk(b"iTXt", b"broken"),
        chunk(b"pHYs", b"1"),
        chunk(b"tIME", b""),
        chunk(b"gAMA", b"\0"),
        chunk(b"cHRM", b"\0"),
    ],
)
@pytest.mark.parametrize("as_file", [True, False])
def test_what_stands_beside_the_pixels_of_a_png(tmp_path, extra, place, as_file):
    content = with_chunk(PLAIN, extra, place)
    image = open_picture(write(tmp_path / "a.png", content) if as_file else content)
    assert np.array_equal(preprocess(image, SETTINGS), PIXELS.transpose(2, 0, 1))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\5\0\0\0\1\xff\xff\xff\xff", b""]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif(tmp_path, exif, kind):
    content = saved(Image.fromarray(PIXELS), kind, exif=exif)
    assert preprocess(open_picture(content), SETTINGS).shape == (3, 8, 8)


def test_garbage_behind_a_picture_and_wrong_endings(tmp_path):
    write(tmp_path / "a.png", PLAIN + b"garbage" * 100)
    write(tmp_path / "b.jpg", PLAIN)
    for name in ("a.png", "b.jpg"):
        assert np.array_equal(preprocess(open_picture(tmp_path / name), SETTINGS), PIXELS.transpose(2, 0, 1))
    for content in (b"", b"\0" * 100, PLAIN[:40], b"GIF89a"):
        with pytest.raises((OSError, SyntaxError)):
            open_picture(write(tmp_path / "c.png", content)).load()


# ---- 16 bits


def twelve_bit_tiff() -> bytes:
    """A TIFF of 12 bits a sample, two samples in three bytes."""
    values = np.full(16, 4095)
    packed = b"".join(struct.pack(">I", int(a) << 12 | int(b))[1:] for a, b in values.reshape(-1, 2))
    entries = [(256, 3, 4), (257, 3, 4), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 4),
               (279, 4, len(packed))]  # fmt: skip
    ifd = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, kind, 1, v) for tag, kind, v in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + ifd + struct.pack("<I", 0)


def deep(value: int) -> Image.Image:
    return Image.fromarray(np.full((4, 4), value, np.uint16))


@pytest.mark.parametrize(
    "content, brightness",
    [
        (twelve_bit_tiff(), 255),
        (saved(deep(4095), "TIFF", tiffinfo={281: 4095}), 255),
        (saved(deep(2047), "TIFF", tiffinfo={281: 4000}), 127),
        (with_chunk(saved(deep(4095)), chunk(b"sBIT", b"\x0c"), b"IDAT"), 255),
        (with_chunk(saved(deep(511)), chunk(b"sBIT", b"\x0a"), b"IDAT"), 127),
        (with_chunk(saved(deep(65535)), chunk(b"sBIT", b"\x10"), b"IDAT"), 255),
        (saved(deep(4095)), 16),
        (saved(deep(65535), "TIFF"), 255),
    ],
)
def test_sixteen_bits_are_stretched_by_what_the_file_says(content, brightness):
    pixels = preprocess(open_picture(content), Preprocessing(image_size=4, num_channels=1))
    assert np.unique(pixels).tolist() == [brightness]


def test_sixteen_bits_are_stretched_by_the_data_where_that_is_asked_for(tmp_path, capsys):
    for number in range(20):
        write(tmp_path / "set" / f"{number}.png", saved(deep(4095)))
    source = load_pictures(str(tmp_path / "set"))
    dark = decode_pictures(source, SETTINGS, cache_folder=tmp_path / "cache")
    text = capsys.readouterr().out
    assert dark[0].max() == 16 and "19 pictures of 16 bits" in text and "--sixteen_bit data" in text
    stretched = Preprocessing(image_size=8, sixteen_bit="data")
    assert decode_pictures(source, stretched, cache_folder=tmp_path / "cache")[0].min() == 255
    assert "16 bits" not in capsys.readouterr().out
    assert Preprocessing.from_dict(stretched.to_dict()) == stretched and "sixteen_bit" not in SETTINGS.to_dict()
    with pytest.raises(ValueError, match="sixteen_bit must be one of full, data, got 'auto'"):
        Preprocessing(sixteen_bit="auto")


# ---- pictures of very many pixels


def test_a_large_jpeg_is_read_reduced(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 5_000)
    gradient = Image.linear_gradient("L").resize((200, 203))
    write(tmp_path / "a.jpg", saved(gradient, "JPEG"))
    image = open_picture(tmp_path / "a.jpg")
    assert (
        image.size == (25, 26)
        and np.abs(preprocess(image, SETTINGS) - preprocess(gradient, SETTINGS).astype(int)).max() < 8
    )
    for name, content in (("b.png", saved(gradient)), ("c.jpg", saved(gradient, "JPEG", progressive=True))):
        with pytest.raises(
            ValueError, match=r"Image size \(40600 pixels\) exceeds limit of 10000 pixels; .*--max_image_pixels"
        ):
            open_picture(write(tmp_path / name, content))


def test_the_limit_of_pixels_can_be_raised(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1_000)
    for number in range(3):
        write(tmp_path / "set" / f"{number}.png", saved(Image.new("L", (60, 60))))
    how = {"cache_folder": tmp_path / "cache", "progress": False}
    source = load_pictures(str(tmp_path / "set"))
    with pytest.raises(ValueError, match="2 of 3 pictures.*cannot be read(?s:.*)--max_image_pixels"):
        decode_pictures(source, SETTINGS, **how)
    for name in ("small.png", "tiny.png"):
        write(tmp_path / "set" / name, encoded())
    source = load_pictures(str(tmp_path / "set"))
    few = {**how, "max_unreadable_share": 0.9}
    before = len(decode_pictures(source, SETTINGS, **few))
    assert before < 4 == len(decode_pictures(source, SETTINGS, max_image_pixels=3600, **few))


# ---- kinds of pictures


@pytest.mark.parametrize(
    "name, kind", [("a.jfif", "JPEG"), ("a.jpe", "JPEG"), ("a.JP2", "JPEG2000"), ("a.avif", "AVIF"), ("a.tga", "TGA")]
)
def test_what_pillow_reads_is_read(tmp_path, name, kind):
    for number in range(2):
        write(tmp_path / f"{number}{name}", saved(Image.fromarray(PIXELS), kind))
    assert load_pictures(str(tmp_path)).image(0).size == (8, 8)


def test_a_plug_in_is_used_where_it_is_installed(tmp_path, monkeypatch):
    for number in range(2):
        write(tmp_path / f"{number}.HEIC", encoded())
    with pytest.raises(ValueError, match="pip install pillow-heif"):
        load_pictures(str(tmp_path))
    plugin, registered = types.ModuleType("pillow_heif"), []
    plugin.register_heif_opener = lambda: registered.append(1)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    monkeypatch.setattr(picture_files, "_is_installed", lambda module: module == "pillow_heif")
    assert load_pictures(str(tmp_path)).image(0).size == (6, 4) and registered


def test_pillows_limits_on_texts_are_what_this_is_about():
    """Else the tests above would show nothing."""
    with pytest.raises(ValueError, match="MAX_TEXT_CHUNK"):
        Image.open(io.BytesIO(with_chunk(PLAIN, chunk(b"zTXt", b"a\0\0" + LONG), b"IDAT")))
    assert PngImagePlugin.MAX_TEXT_CHUNK < 2 << 20
