"""Token caches that a Ray cluster of this machine encodes: those of one process, whatever happens to its workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from tiny import tiny_tokenizer

from lm.data.shards import Document
from pipelines.caching.pixel_cache import decode_pictures
from pipelines.caching.ray_worker import EncodingPlan, EncodingWorker, PicturesInMemory, as_document, as_row
from pipelines.options.data import CacheOptions
from scripts import cache_tokens
from tokenizer_image.pictures.decode_workers import Reading
from tokenizer_image.pictures.loading import Preprocessing, load_pictures

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
SHARD_ROWS = 300  # more than one batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    pictures(folder / "pictures", 40)
    documents(folder / "documents")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESSERA_CACHE", str(folder / "tessera"))
        for name in ("sprites", "pictures", "documents"):
            cache_tokens.main(options(folder, name, f"one-{name}"))
        yield folder


def pictures(folder: Path, count: int) -> None:
    """Pictures of several shapes with captions, some of which forbid a mirror image, and two that cannot be read."""
    folder.mkdir()
    draws = np.random.default_rng(0)
    with (folder / "metadata.jsonl").open("w") as file:
        for number in range(count):
            shape = ((16, 16), (8, 24), (40, 20))[number % 3]
            Image.fromarray(draws.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(folder / f"{number:02d}.png")
            text = f"picture {number}" + " on the left" * (number % 4 == 0)
            file.write(json.dumps({"file_name": f"{number:02d}.png", "text": text}) + "\n")
    for number in (7, 20):
        (folder / f"{number:02d}.png").write_bytes(b"broken")


def documents(folder: Path) -> None:
    """Documents that share pictures, in one shard and in several, one of them with a picture that cannot be read."""
    pictures(folder, 24)
    (folder / "metadata.jsonl").unlink()
    with (folder / "documents.jsonl").open("w") as file:
        for number in range(30):
            names = [f"{(number * step) % 24:02d}.png" for step in (1, 5, 7)]
            parts = [{"text": f"document {number}"}, *({"image": name} for name in names), {"text": "end"}]
            file.write(json.dumps({"parts": parts}) + "\n")


def options(folder: Path, name: str, cache: str, **changes) -> cache_tokens.Options:
    kinds = {
        "sprites": dict(dataset="sprites", max_examples=2000, shard_rows=SHARD_ROWS, splits=["train"]),
        "pictures": dict(dataset=str(folder / "pictures"), shard_rows=4, crops=2, random_flip=True),
        "documents": dict(dataset=str(folder / "documents"), shard_rows=4),
    }
    common = dict(image_tokenizer=str(folder / "tokenizer"), token_cache=str(folder / cache), cpu_threads=1,
                  num_workers=0, max_unreadable_share=0.5)  # fmt: skip
    if name != "sprites":
        common["image_sizes"] = ["16x16", "8x24"]
    return cache_tokens.Options(**{**common, **kinds[name], **changes})


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def kill_a_worker(first_shard: Path, killed: list[int]) -> None:
    """SIGKILL to one of two workers, as soon as something is encoded."""
    while not first_shard.is_dir():
        time.sleep(0.005)
    found = [one for one in psutil.Process().children(recursive=True) if "EncodingWorker" in " ".join(one.cmdline())]
    os.kill(found[0].pid, signal.SIGKILL)
    killed += [one.pid for one in found]


def test_the_cache_of_a_cluster_of_which_a_worker_is_killed(folder, capsys):
    asked = options(folder, "sprites", "ray-sprites", engine="ray", ray_workers=2)
    cache, killed = folder / "ray-sprites" / "train", []
    killer = threading.Thread(target=kill_a_worker, args=(cache / "shard-00000", killed), daemon=True)
    killer.start()
    cache_tokens.main(asked)
    killer.join()
    assert len(killed) == 2 and not psutil.pid_exists(killed[0])
    assert content(folder / "ray-sprites") == content(folder / "one-sprites")
    assert "train is whole: 2,000 rows" in capsys.readouterr().out
    assert not ray.is_initialized()
    ended = time.monotonic() + 30  # a worker ends by itself, which takes a while on a busy machine
    while psutil.pid_exists(killed[1]) and time.monotonic() < ended:
        time.sleep(0.1)
    assert not psutil.pid_exists(killed[1])


def test_what_an_interrupted_run_has_written_stays(folder, answered):
    asked, cache = options(folder, "sprites", "interrupted", engine="ray"), folder / "interrupted" / "train"
    shutil.copytree(folder / "one-sprites", folder / "interrupted")
    (cache / "manifest.json").unlink()
    (cache / "shard-00002" / "codes.npy").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in cache.glob("shard-*")}
    cache_tokens.main(asked)
    after = {path.name: path.stat().st_mtime_ns for path in cache.glob("shard-*")}
    assert [name for name in after if after[name] != before[name]] == ["shard-00002"]
    assert content(folder / "interrupted") == content(folder / "one-sprites")


@pytest.fixture
def answered(monkeypatch):
    """The workers' part without Ray: tasks in reverse order, each answered by a worker that has done nothing else."""
    from contextlib import nullcontext

    import pyarrow

    from pipelines.caching import ray_engine

    def answers(rows, plan, workers, number):
        for row in reversed(rows):
            task = pyarrow.Table.from_pylist([row])
            yield from EncodingWorker(plan)(task).to_pylist()

    monkeypatch.setattr(ray_engine, "_answers", answers)
    monkeypatch.setattr(ray_engine, "ray_cluster", lambda *given: nullcontext())
    monkeypatch.setattr(ray_engine, "workers_that_fit", lambda *given: 1)


@pytest.mark.parametrize("name", ["pictures", "documents"])
def test_any_order_of_tasks_gives_the_cache_of_one_process(folder, answered, name, capsys):
    """Several sizes, views, captions that forbid mirror images, shared pictures, and pictures that cannot be read."""
    cache_tokens.main(options(folder, name, f"ray-{name}", engine="ray"))
    assert content(folder / f"ray-{name}") == content(folder / f"one-{name}")
    said = capsys.readouterr().out
    assert "cannot be read and are left out" in said and said.count("is whole") == (4 if name == "pictures" else 2)


def test_too_many_pictures_that_cannot_be_read(folder, answered):
    asked = options(folder, "pictures", "ray-unreadable", engine="ray", max_unreadable_share=0.04)
    with pytest.raises(
        ValueError, match=r"2 of 40 pictures \(5.0%\).*:\n  07.png: .*\n  20.png: .*\n.*raise --max_unread"
    ):
        cache_tokens.main(asked)


def test_an_update_is_that_of_one_process(folder, answered, tmp_path, capsys):
    """The caches, and how many pictures keep their codes."""
    pictures(tmp_path / "set", 30)
    common = dict(dataset=str(tmp_path / "set"), crops=0, random_flip=False)
    both = [
        options(folder, "pictures", "", **common, token_cache=str(tmp_path / name / "cache"), engine=engine)
        for name, engine in (("one", "process"), ("ours", "ray"))
    ]
    for asked in both:
        cache_tokens.main(asked)
    Image.new("RGB", (16, 16)).save(tmp_path / "set" / "30.png")
    with (tmp_path / "set" / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": "30.png", "text": "black"}) + "\n")
    capsys.readouterr()
    said = []
    for asked in both:
        cache_tokens.main(asked)
        lines = capsys.readouterr().out.splitlines()
        said.append([line.split("token cache")[1].split("cache/")[1] for line in lines if "keep their codes" in line])
    assert said[0] == said[1] and len(said[0]) == 2 and "27 pictures keep their codes, 3 are encoded" in said[0][0]
    assert content(tmp_path / "ours") == content(tmp_path / "one")


def test_a_worker_that_sees_other_pictures(folder):
    settings = CacheOptions(dataset=str(folder / "pictures"), image_tokenizer=str(folder / "tokenizer"))
    plan = EncodingPlan(settings, {("train", 0): str(folder / "none")}, {"train": "another"}, 4, 1, "cpu")
    answer = EncodingWorker(plan).answer(0, "train", 0, [0, 4])
    assert "a worker of the Ray cluster sees other pictures in" in answer["problem"]


def test_pictures_in_memory_are_those_of_the_pixel_cache(folder, monkeypatch):
    source = load_pictures(str(folder / "pictures"), "train")
    sizes = ((16, 16), (8, 24))
    settings = Preprocessing(image_size=16)
    cached = decode_pictures(source, settings, sizes=sizes, max_unreadable_share=0.5, progress=False)
    for most in (2**29, 3000):  # the second: too many to keep
        monkeypatch.setattr("pipelines.caching.ray_worker.MOST_BYTES", most)
        ours = PicturesInMemory(source, Reading(settings, sizes))
        assert np.array_equal(ours.rows, cached.rows) and np.array_equal(ours.which, cached.which)
        assert ours.unreadable == cached.unreadable and len(ours) == len(cached)
        for number in range(2):
            places = np.flatnonzero(cached.which == number)
            assert np.array_equal(ours.batch(places), cached.batch(places))


def test_documents_go_over_the_wire_unchanged():
    document = Document(np.array([3, 260], np.uint16), [(8, 24), (4, 4)], ["ein Hund \udcff", ""], "tii", [2**63, 1])
    row = as_row(document, 300)
    again = as_document(row, 300)
    assert again.codes.tolist() == [3, 260] and again.codes.dtype == np.uint16
    assert (again.image_sizes, again.texts) == (document.image_sizes, document.texts)
    assert (again.order, again.picture_keys) == (document.order, document.picture_keys)


@pytest.mark.parametrize("changes, message", [
    (dict(engine="ray", num_shards=2), "--num_shards 2 is for job arrays: --engine ray shares the work by itself"),
    (dict(ray_workers=2), "--ray_workers 2 is for --engine ray"),
    (dict(ray_address="auto"), "--ray_address auto is for --engine ray"),
    (dict(engine="ray", device="cuda"), "--device cuda with --engine ray: say how much of a GPU a worker gets"),
    (dict(engine="spark"), "--engine 'spark': choose process or ray"),
])  # fmt: skip
def test_options_that_do_not_belong_together(changes, message):
    with pytest.raises(ValueError, match=message):
        cache_tokens.Options(**changes)


def test_without_ray_one_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--engine ray needs the package ray, .* pip install 'tessera\[ray\]'"):
        cache_tokens.Options(engine="ray")


def test_no_cluster_at_the_address(folder):
    asked = options(folder, "sprites", "none", engine="ray", ray_address="127.0.0.1:1")
    with pytest.raises(ValueError, match="--ray_address 127.0.0.1:1: no Ray cluster answers there"):
        cache_tokens.main(asked)
