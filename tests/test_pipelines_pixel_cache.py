"""Pictures read once into a file: whole, reused, and honest about what could not be read."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from pipelines.caching.pixel_cache import decode_pictures
from tokenizer_image.pictures.loading import Preprocessing, load_pictures, preprocess

SETTINGS = Preprocessing(image_size=8)


class Noise:
    """A picture source for tests: random pictures of 12x10, some rows of which cannot be read."""

    name, label_names = "noise", None

    def __init__(self, length: int, broken: tuple[int, ...] = (), delay: float = 0.0) -> None:
        self.length, self.broken, self.delay = length, broken, delay
        self.fingerprint = f"noise {length} {broken}"

    def __len__(self) -> int:
        return self.length

    def image(self, row: int) -> Image.Image:
        if row in self.broken:
            raise OSError(f"row {row}\nis broken")
        time.sleep(self.delay)
        pixels = np.random.default_rng(row).integers(0, 256, (10, 12, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    def texts(self, row: int) -> list[str]:
        return []

    def label(self, row: int) -> int:
        return -1

    def attributes(self, row: int) -> None:
        return None


def expected(source: Noise) -> np.ndarray:
    rows = [row for row in range(len(source)) if row not in source.broken]
    return np.stack([preprocess(source.image(row), SETTINGS) for row in rows])


def decode(source, folder, **options):
    return decode_pictures(source, SETTINGS, cache_folder=folder, progress=False, **options)


def test_every_picture_in_order(tmp_path):
    source = Noise(300)
    decoded = decode(source, tmp_path)
    assert isinstance(decoded.pictures, np.memmap) and not decoded.pictures.flags.writeable
    np.testing.assert_array_equal(decoded.pictures, expected(source))
    assert decoded.rows.tolist() == list(range(300)) and len(decoded) == 300 and decoded.unreadable == []
    np.testing.assert_array_equal(decoded[7], decoded.pictures[7])
    np.testing.assert_array_equal(decoded.batch([5, 2, 2]), decoded.pictures[[5, 2, 2]])
    with pytest.raises(IndexError):
        decoded[300]
    assert len(pickle.dumps(decoded)) < decoded.pictures.nbytes / 5
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(decoded)).pictures, decoded.pictures)


def test_two_workers_write_the_same(tmp_path):
    source = Noise(600, broken=(0, 255, 256, 599))
    decoded = decode(source, tmp_path, num_workers=2)
    np.testing.assert_array_equal(decoded.pictures, expected(source))
    assert [row for row, _ in decoded.unreadable] == [0, 255, 256, 599] and decoded.rows[0] == 1
    assert multiprocessing.active_children() == []


class Deadly(Noise):
    def image(self, row: int) -> Image.Image:
        os._exit(1)  # as the system ends a process that takes too much memory


def test_a_worker_that_dies_is_reported(tmp_path):
    with pytest.raises(RuntimeError, match="out of memory.*num_workers=0"):
        decode(Deadly(600), tmp_path, num_workers=2)
    assert not list(tmp_path.rglob("*.part-*"))


def test_workers_start_without_torch_and_datasets():
    code = "import sys, tokenizer_image.pictures.loading; print({'torch', 'datasets', 'pyarrow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_the_file_is_used_again_while_it_is_whole(tmp_path):
    decoded = decode(Noise(20), tmp_path)
    file = decoded.folder / "pictures.npy"
    made = file.stat().st_mtime_ns
    assert decode(Noise(20), tmp_path).folder.joinpath("pictures.npy").stat().st_mtime_ns == made
    assert decode(Noise(21), tmp_path).folder != decoded.folder
    other = decode_pictures(Noise(20), Preprocessing(image_size=4), cache_folder=tmp_path, progress=False)
    assert other.folder != decoded.folder and other[0].shape == (3, 4, 4)
    with open(file, "r+b") as shortened:
        shortened.truncate(file.stat().st_size - 1)
    np.testing.assert_array_equal(decode(Noise(20), tmp_path).pictures, expected(Noise(20)))
    manifest = decoded.folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 0}))
    assert len(decode(Noise(20), tmp_path)) == 20
    assert not list(tmp_path.rglob("*.part-*"))


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "here"))
    decoded = decode(Noise(3), None)
    assert decoded.folder.parent == tmp_path / "here" / "pictures"


def test_unreadable_pictures_are_skipped_and_listed(tmp_path, capsys):
    source = Noise(100, broken=(3, 50))
    options = {"cache_folder": tmp_path, "max_unreadable_share": 0.02}
    decoded = decode_pictures(source, SETTINGS, **options)
    assert "2 of 100 pictures (2.0%) cannot be read" in capsys.readouterr().out
    np.testing.assert_array_equal(decoded.pictures, expected(source))
    assert decoded.unreadable == [(3, "OSError: row 3 is broken"), (50, "OSError: row 50 is broken")]
    assert decoded.rows.tolist() == [row for row in range(100) if row not in (3, 50)]
    listed = (decoded.folder / "unreadable.txt").read_text().splitlines()
    assert listed == ["3\trow 3\tOSError: row 3 is broken", "50\trow 50\tOSError: row 50 is broken"]


def test_too_many_unreadable_pictures(tmp_path):
    source = Noise(100, broken=tuple(range(5)))
    with pytest.raises(ValueError) as error:
        decode(source, tmp_path)
    message = str(error.value)
    assert "5 of 100 pictures (5.0%)" in message and "--max_unreadable_share (now 0.01)" in message
    assert "row 0: OSError: row 0 is broken" in message and "unreadable.txt" in message
    assert len(decode(source, tmp_path, max_unreadable_share=0.05)) == 95
    with pytest.raises(ValueError, match="Nothing is left"):
        decode(Noise(2, broken=(0, 1)), tmp_path, max_unreadable_share=1.0)
    with pytest.raises(ValueError, match="between 0 and 1, got 5"):
        decode(source, tmp_path, max_unreadable_share=5)


def test_the_share_of_unreadable_pictures_is_of_the_whole_data_set(tmp_path):
    for number in range(200):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{number:03}.png")
    held_out = load_pictures(str(tmp_path), "validation")
    for row, refused in ((0, False), (1, False), (2, True)):
        (tmp_path / held_out.key(row)).write_bytes(b"broken")
        source = load_pictures(str(tmp_path), "validation")
        if refused:
            with pytest.raises(ValueError, match=r"3 of 200 pictures \(1.5%\) cannot be read"):
                decode(source, tmp_path / "cache")
        else:
            assert len(decode(source, tmp_path / "cache")) == 10 - row - 1
    assert len(decode(load_pictures(str(tmp_path)), tmp_path / "cache")) == 190


def test_one_bad_picture_is_skipped_in_a_small_data_set(tmp_path):
    assert len(decode(Noise(20, broken=(3,)), tmp_path)) == 19
    with pytest.raises(ValueError, match="1 of 20"):
        decode(Noise(20, broken=(3,)), tmp_path, max_unreadable_share=0.0)


def test_another_try_after_too_many_were_unreadable(tmp_path):
    source = Noise(10, broken=(0, 1))
    with pytest.raises(ValueError, match="2 of 10"):
        decode(source, tmp_path)
    source.broken = ()  # mended, by a cause outside of the files: the same fingerprint
    assert len(decode(source, tmp_path)) == 10


def test_damaged_files_of_a_folder(tmp_path):
    for number in range(8):
        Image.effect_noise((40, 30), 50).save(tmp_path / f"{number}.jpg")
    whole = (tmp_path / "0.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    source = load_pictures(str(tmp_path))
    held_out = load_pictures(str(tmp_path), "validation")
    sources = [decode(part, tmp_path / "cache", max_unreadable_share=1.0) for part in (source, held_out)]
    assert sum(map(len, sources)) == 8
    reasons = {source.key(row): why for row, why in sources[0].unreadable}
    reasons |= {held_out.key(row): why for row, why in sources[1].unreadable}
    assert set(reasons) == {"cut.jpg", "empty.png"} and "truncated" in reasons["cut.jpg"]


def test_more_than_the_limit_is_decoded_on_the_fly(tmp_path, capsys):
    source = Noise(40, broken=(3,))
    options = {"cache_folder": tmp_path, "max_unreadable_share": 0.1, "max_bytes": 1000, "num_workers": 2}
    decoded = decode_pictures(source, SETTINGS, **options)
    assert "decoding on the fly" in capsys.readouterr().out
    assert not decoded.stored and not list(tmp_path.rglob("pictures.npy"))
    np.testing.assert_array_equal(decoded.batch(range(39)), expected(source))
    np.testing.assert_array_equal(decoded[3], expected(source)[3])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(decoded)).batch([38]), expected(source)[[38]])
    with pytest.raises(ValueError, match=r"use \[i\] or batch"):
        decoded.pictures  # noqa: B018
    assert decode(source, tmp_path, max_unreadable_share=0.1).stored  # once the limit allows


def test_large_jpegs_are_read_at_reduced_scale(tmp_path):
    for number, size in enumerate(((400, 304), (403, 301))):
        gradient = Image.linear_gradient("L").resize(size)
        picture = Image.merge("RGB", [gradient, gradient.transpose(Image.Transpose.ROTATE_180), gradient])
        picture.save(tmp_path / f"{number}.jpg", quality=95)
    for split in ("train", "validation"):
        source = load_pictures(str(tmp_path), split)
        full = preprocess(source.image(0), SETTINGS).astype(int)
        assert np.abs(decode(source, tmp_path / "cache")[0] - full).max() <= 2


def test_a_killed_run_leaves_no_worker_and_no_half_file(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_pipelines_pixel_cache import Noise, decode\n"
        "if __name__ == '__main__': decode(Noise(600, delay=0.05), sys.argv[2], num_workers=2)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    command = [sys.executable, str(script), os.path.dirname(__file__), str(tmp_path / "cache")]
    import psutil

    process = subprocess.Popen(command)
    parent = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    while len(parent.children(recursive=True)) < 3 and time.monotonic() < deadline:  # 2 workers and a tracker
        time.sleep(0.1)
    workers = parent.children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not psutil.wait_procs(workers, timeout=60)[1]
    assert not list((tmp_path / "cache").rglob("manifest.json"))
    assert list((tmp_path / "cache").rglob("*.part-*"))
    assert len(decode(Noise(600), tmp_path / "cache")) == 600
    assert not list((tmp_path / "cache").rglob("*.part-*"))


# Several sizes


class Shapes(Noise):
    """Pictures of 20x10, 10x20 and 12x12, in turn."""

    def image(self, row: int) -> Image.Image:
        if row in self.broken:
            raise OSError("broken")
        width, height = ((20, 10), (10, 20), (12, 12))[row % 3]
        return Image.fromarray(np.random.default_rng(row).integers(0, 256, (height, width, 3), dtype=np.uint8))


SIZES = [(8, 8), (4, 8), (12, 8)]


@pytest.mark.parametrize("stored", [True, False])
def test_pictures_of_several_sizes(tmp_path, stored):
    source = Shapes(30, broken=(4, 5))
    how = {"cache_folder": tmp_path, "progress": False, "max_unreadable_share": 0.1, "sizes": SIZES}
    decoded = decode_pictures(source, SETTINGS, **how, **({} if stored else {"max_bytes": 100}))
    rows = [row for row in range(30) if row not in (4, 5)]
    assert decoded.stored == stored and decoded.rows.tolist() == rows
    assert [decoded.sizes[which] for which in decoded.which] == [[(4, 8), (12, 8), (8, 8)][row % 3] for row in rows]
    for position, row in enumerate(rows):
        assert np.array_equal(decoded[position], preprocess(source.image(row), SETTINGS, SIZES))
    wide = [position for position, row in enumerate(rows) if row % 3 == 0]
    batch = decoded.batch(wide)
    assert batch.shape == (10, 3, 4, 8) and np.array_equal(batch[2], decoded[wide[2]])
    with pytest.raises(ValueError, match="several sizes .8x8, 4x8, 12x8.*one size at a time"):
        decoded.batch([0, 1, 2])
    if stored:
        assert decoded.pictures.shape == (28, 3 * 12 * 8), "room of the largest, no more"


def test_other_sizes_are_other_pictures(tmp_path):
    how = {"cache_folder": tmp_path, "progress": False}
    folders = {
        decode_pictures(Shapes(9), SETTINGS, sizes=sizes, **how).folder
        for sizes in ((), [(8, 8)], SIZES, SIZES[:2], SIZES[::-1])
    }
    assert len(folders) == 4, "the square is the same, said or not"


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_write_several_sizes(tmp_path, monkeypatch, workers):
    monkeypatch.setattr("tokenizer_image.pictures.decode_workers.MIN_PER_WORKER", 1)
    source = Shapes(600)
    decoded = decode_pictures(source, SETTINGS, sizes=SIZES, cache_folder=tmp_path, num_workers=workers, progress=False)
    for row in (0, 1, 255, 256, 299, 599):
        assert np.array_equal(decoded[row], preprocess(source.image(row), SETTINGS, SIZES))
