"""Token caches of documents and of several picture sizes, by several writers at once, killed, damaged, and remote."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from lm.data.shards import damage
from lm.data.token_cache import Document, TokenCache, code_dtype, write_manifest, write_shard
from pipelines.caching import encoder as encoding
from pipelines.caching.encoder import PictureEncoder, check_sizes, encoded_documents
from pipelines.caching.opening import CacheOfSplit, open_caches
from pipelines.caching.sources import load_source
from pipelines.caching.writer import TokenCacheWriter
from pipelines.machine import batches
from pipelines.options.data import CacheOptions
from scripts import cache_tokens
from tokenizer_image import VQVAE, VQVAEConfig
from tokenizer_image.pictures.loading import Preprocessing, load_pictures, preprocess, to_pixel_values
from tokenizer_image.registry import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = Preprocessing(image_size=8)
SIZES = [(8, 8), (4, 12), (12, 4)]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = VQVAEConfig(
        image_size=8, patch_size=4, hidden_sizes=[8], num_res_blocks=1, code_dim=4, codebook_sizes=[200, 100],
        preprocessing=SETTINGS.to_dict(),
    )  # fmt: skip
    tokenizer = VQVAE(config)
    tokenizer.train()(torch.rand(256, 3, 8, 8) * 2 - 1)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(tokenizer_folder) -> VQVAE:
    return load_tokenizer(tokenizer_folder)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "tessera"))


def picture(number: int, size: tuple[int, int] = (9, 9)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8))


def write_pictures(folder: Path, count: int) -> Path:
    """Pictures of three shapes in turn, with captions."""
    folder.mkdir(parents=True)
    for number in range(count):
        picture(number, [(9, 9), (10, 30), (30, 10)][number % 3]).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"number {number}")
    return folder


def write_documents(folder: Path, broken: bool = False) -> Path:
    folder.mkdir(parents=True)
    for number in range(4):
        picture(number).save(folder / f"{number}.png")
    text, image = (lambda words: {"text": words}), (lambda number: {"image": f"{number}.png"})
    lines = [
        {"parts": [text("a"), image(0), image(1), text("b")]}, [text("words alone")], [image(2)],
        [image(1), text("c"), image(7 if broken else 3), image(1)], [text("d"), image(0)],
    ]  # fmt: skip
    for split in ("train", "validation"):
        (folder / split).mkdir()
        for number in range(4):
            shutil.copy(folder / f"{number}.png", folder / split)
        (folder / split / "documents.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


def options(tokenizer_folder: Path, tmp_path: Path, **changes) -> CacheOptions:
    values = {"image_tokenizer": str(tokenizer_folder), "num_workers": 0, "token_cache": str(tmp_path / "cache")}
    return CacheOptions(**(values | changes))


def opened(options: CacheOptions, tokenizer: VQVAE, split: str) -> TokenCache:
    return CacheOfSplit(options, tokenizer, Accelerator(), split, str(options.token_cache)).open()


def codes_of(tokenizer: VQVAE, image: Image.Image, sizes=()) -> np.ndarray:
    return tokenizer.encode(to_pixel_values(preprocess(image, SETTINGS, sizes)[None]))[0].numpy()


def test_a_tokenizer_without_preprocessing_settings_encodes_at_its_size(tokenizer_folder, tmp_path):
    """As made by `VQVAE(VQVAEConfig(...))` alone; pictures are prepared by default for its size."""
    saved = VQVAE.from_pretrained(tokenizer_folder)
    saved.config.preprocessing = None
    saved.save_pretrained(tmp_path / "plain")
    tokenizer, folder = load_tokenizer(tmp_path / "plain"), write_pictures(tmp_path / "pictures", 12)
    made = options(tmp_path / "plain", tmp_path, dataset=str(folder))
    cache = opened(made, tokenizer, "train")
    source = load_pictures(str(folder))
    expected = [codes_of(tokenizer, source.image(row)).tolist() for row in range(len(source))]
    assert [cache.codes(row).tolist() for row in range(len(cache))] == expected
    command = cache_tokens.Options(
        image_tokenizer=str(tmp_path / "plain"), dataset=str(folder), token_cache=str(tmp_path / "by command"),
        splits=["train"], num_workers=0,
    )  # fmt: skip
    cache_tokens.main(command)
    again = TokenCache(tmp_path / "by command" / "train")
    assert [again.codes(row).tolist() for row in range(len(again))] == expected
    encoder = PictureEncoder(str(tmp_path / "plain"))
    assert encoder({"image": [source.image(0)]})["codes"] == expected[:1]


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_cache_with_the_legacy_fingerprint(tokenizer, tokenizer_folder, tmp_path, is_whole, monkeypatch):
    """Of earlier versions, whole or interrupted: nothing in it is encoded again."""
    made = options(tokenizer_folder, tmp_path, dataset=str(write_pictures(tmp_path / "pictures", 12)))
    cache = opened(made, tokenizer, "train")
    manifest = cache.folder / "manifest.json"
    values = json.loads(manifest.read_text()) | {"image_tokenizer_fingerprint": tokenizer.legacy_fingerprint}
    manifest.write_text(json.dumps(values))
    if not is_whole:
        manifest.rename(cache.folder / "building.json")
    monkeypatch.setattr(VQVAE, "encode", None)
    again = opened(made, tokenizer, "train")
    assert [again.codes(row).tolist() for row in range(len(again))] == [
        cache.codes(r).tolist() for r in range(len(cache))
    ]
    tokenizer.encoder.head.bias.data[0] += 1
    with pytest.raises(ValueError, match="belongs to another image tokenizer"):
        opened(made, tokenizer, "train")


# Documents


def test_documents_become_rows(tokenizer, tokenizer_folder, tmp_path, monkeypatch):
    encoded: list[int] = []
    original = VQVAE.encode
    monkeypatch.setattr(VQVAE, "encode", lambda self, pixels: encoded.append(len(pixels)) or original(self, pixels))
    folder = write_documents(tmp_path / "documents")
    cache = opened(options(tokenizer_folder, tmp_path, dataset=str(folder)), tokenizer, "train")
    assert sum(encoded) == 4, "each picture once, though two of them stand in several places"
    own = [original(tokenizer, to_pixel_values(preprocess(picture(n), SETTINGS)[None]))[0].numpy() for n in range(4)]
    expected = [("tiit", ["a", "b"], [0, 1]), ("t", ["words alone"], []), ("i", [], [2]), ("itii", ["c"], [1, 3, 1]),
                ("ti", ["d"], [0])]  # fmt: skip
    assert len(cache) == 5
    for row, (order, texts, pictures) in enumerate(expected):
        document = cache.document(row)
        assert (document.order, document.texts) == (order, texts)
        assert (cache.order(row), cache.image_sizes(row)) == (order, [(8, 8)] * len(pictures))
        assert document.codes.tolist() == np.concatenate([[], *(own[n] for n in pictures)]).tolist()
    kinds = [(True, True), (True, False), (False, True), (False, False)]
    assert [[cache.count(*kind, parts) for kind in kinds] for parts in (False, True)] == [[0, 1, 1, 0], [3, 0, 0, 0]]
    assert cache.interleaved and cache.has_texts
    del cache.manifest["shards"][0]["kinds"]
    assert cache.count(True, True, True) == 3, "counted, where a manifest does not tell"


def test_a_document_without_one_of_its_pictures_is_left_out(tokenizer, tokenizer_folder, tmp_path, capsys):
    folder = write_documents(tmp_path / "documents", broken=True)
    made = options(tokenizer_folder, tmp_path, dataset=str(folder), max_unreadable_share=0.0)
    with pytest.raises(ValueError, match=r"1 of 4 pictures(?s:.*)documents.jsonl, line 4: train/7.png: FileNotFound"):
        opened(made, tokenizer, "train")
    made.max_unreadable_share = 0.25
    cache = opened(made, tokenizer, "train")
    assert [cache.order(row) for row in range(len(cache))] == ["tiit", "t", "i", "ti"]
    assert cache.manifest["rows_left_out"] == 1 and "1 of 5 rows have a picture" in capsys.readouterr().out


def test_documents_of_texts_alone(tokenizer, tokenizer_folder, tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "documents.jsonl").write_text('[{"text": "a"}]\n' * 40)
    made = options(tokenizer_folder, tmp_path, dataset=str(tmp_path / "documents"))
    cache = opened(made, tokenizer, "validation")
    assert len(cache) == 2 and cache.texts(1) == ["a"] and len(cache.codes(1)) == 0 and cache.image_sizes(1) == []


# Sizes


def test_each_picture_is_encoded_at_the_size_nearest_to_its_shape(tokenizer, tokenizer_folder, tmp_path):
    folder = write_pictures(tmp_path / "pictures", 30)
    made = options(tokenizer_folder, tmp_path, dataset=str(folder), image_sizes=["8x8", "4x12", "12x4"])
    cache = opened(made, tokenizer, "train")
    source = load_pictures(str(folder), "train")
    assert {tuple(cache.image_sizes(row)) for row in range(len(cache))} == {((8, 8),), ((4, 12),), ((12, 4),)}
    for row in range(len(cache)):
        image = source.image(row)
        assert cache.image_sizes(row) == [SIZES[int(source.key(row)[:3]) % 3]] and cache.texts(row) == source.texts(row)
        assert cache.codes(row).tolist() == codes_of(tokenizer, image, SIZES).tolist()
    assert cache.manifest["image_sizes"] == [[8, 8], [4, 12], [12, 4]]
    made.image_sizes = ["8x8"]
    message = "built with --image_sizes 8x8 4x12 12x4, not 8x8: give the same, another --token_cache folder, or delete"
    with pytest.raises(ValueError, match=message):
        opened(made, tokenizer, "train")


def test_the_tokenizers_square_needs_no_word(tokenizer, tokenizer_folder, tmp_path):
    made = options(tokenizer_folder, tmp_path, dataset=str(write_pictures(tmp_path / "pictures", 30)))
    opened(made, tokenizer, "validation")
    made.image_sizes = ["8x8"]
    assert opened(made, tokenizer, "validation").manifest["image_sizes"] == [[8, 8]]


def test_a_size_that_the_downsampling_does_not_divide(tokenizer):
    with pytest.raises(ValueError, match="--image_sizes 9x12: .*downsampling, 4, .*nearest that work are 8x12, 12x12"):
        check_sizes(tokenizer, [(8, 8), (9, 12)])
    with pytest.raises(ValueError, match="nearest that work are 4x8, 4x12"):
        check_sizes(tokenizer, [(3, 9)])
    assert check_sizes(tokenizer, []) == ((8, 8),)


# Several writers


def job(tokenizer_folder: Path, tmp_path: Path, **changes) -> cache_tokens.Options:
    values = {
        "dataset": "sprites", "max_examples": 100, "image_tokenizer": str(tokenizer_folder), "num_workers": 0,
        "token_cache": str(tmp_path / "cache"), "splits": ["train"], "shard_rows": 16, "cpu_threads": 1,
    }  # fmt: skip
    return cache_tokens.Options(**(values | changes))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(tokenizer_folder, tmp_path_factory) -> dict[str, bytes]:
    """What one undisturbed process writes of 100 sprites."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESSERA_CACHE", str(folder / "tessera"))
        cache_tokens.main(job(tokenizer_folder, folder))
    return content(folder / "cache")


def test_jobs_share_the_work_in_any_order(tokenizer_folder, tmp_path, whole, capsys):
    for index in (2, 0):
        cache_tokens.main(job(tokenizer_folder, tmp_path, shard_index=index, num_shards=3))
    assert "5 of 7 shards are there" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"not a .whole. token cache"):
        TokenCache(tmp_path / "cache" / "train")
    cache_tokens.main(job(tokenizer_folder, tmp_path, shard_index=1, num_shards=3))
    assert "train is whole: 100 rows" in capsys.readouterr().out
    assert content(tmp_path / "cache") == whole


def test_a_job_reads_its_own_pictures_alone(tokenizer_folder, tmp_path):
    cache_tokens.main(job(tokenizer_folder, tmp_path, shard_index=1, num_shards=7))
    manifests = list((tmp_path / "tessera" / "pictures").glob("*/manifest.json"))
    assert [json.loads(file.read_text())["num_rows"] for file in manifests] == [16]


@pytest.mark.parametrize("kind", ["pictures", "documents"])
def test_jobs_leave_out_what_cannot_be_read(tokenizer, tokenizer_folder, tmp_path, kind):
    """Rows of a shard do not depend on what is unreadable in another one."""
    if kind == "documents":
        folder = write_documents(tmp_path / "set", broken=True)
    else:
        folder = write_pictures(tmp_path / "set", 60)
        for number in range(0, 20):
            (folder / f"{number:03d}.png").write_bytes(b"broken")
    common = {"dataset": str(folder), "max_unreadable_share": 0.9, "max_examples": None}
    cache_tokens.main(job(tokenizer_folder, tmp_path, token_cache=str(tmp_path / "one"), shard_rows=3, **common))
    for index in (1, 2, 0):
        cache_tokens.main(job(tokenizer_folder, tmp_path, shard_rows=3, shard_index=index, num_shards=3, **common))
    source = load_pictures(str(folder), "train")
    kept = [source.key(row) for row in range(len(source)) if source.key(row) >= "020"]
    one, three = TokenCache(tmp_path / "one" / "train"), TokenCache(tmp_path / "cache" / "train")
    assert len(one) == len(three) == (4 if kind == "documents" else len(kept))
    for row in range(len(one)):
        first, second = one.document(row), three.document(row)
        assert first.codes.tolist() == second.codes.tolist() and first.texts == second.texts
        if kind == "pictures":
            number = int(first.texts[0].split()[1])
            with Image.open(folder / f"{number:03d}.png") as image:
                assert first.codes.tolist() == codes_of(tokenizer, image).tolist()


def start_job(tokenizer_folder: Path, tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [
        sys.executable, str(ROOT / "scripts" / "cache_tokens.py"), "--image_tokenizer", str(tokenizer_folder),
        "--token_cache", str(tmp_path / "cache"), "--splits", "train", "--num_workers", "0", "--cpu_threads", "1",
        *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_a_killed_job_goes_on_where_it_stopped(tokenizer_folder, tmp_path):
    many = ("--max_examples", "3000", "--shard_rows", "8")
    process = start_job(tokenizer_folder, tmp_path, *many)
    folder = tmp_path / "cache" / "train"
    while process.poll() is None and not (folder / "shard-00004").is_dir():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (folder / "manifest.json").exists()
    process.communicate()
    before = {path.name: (path / "codes.npy").stat().st_mtime_ns for path in folder.glob("shard-?????")}
    assert 5 <= len(before) < 375 and all(damage(folder / name) is None for name in before)
    (folder / f"shard-00300.part-{os.uname().nodename}-{process.pid}-abc123").mkdir()  # what a kill in a shard leaves
    again = start_job(tokenizer_folder, tmp_path, *many)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0 and "is whole: 3,000 rows" in output, output
    after = {path.name: (path / "codes.npy").stat().st_mtime_ns for path in folder.glob("shard-?????")}
    assert len(after) == 375 and {name: after[name] for name in before} == before, (
        "what was whole was not written again"
    )
    assert not list(folder.glob("*.part*")) and not (folder / "building.json").exists()


def test_two_writers_of_the_same_shards_at_once(tokenizer_folder, tmp_path, whole):
    jobs = [start_job(tokenizer_folder, tmp_path, "--max_examples", "100", "--shard_rows", "16") for _ in range(2)]
    said = [one.communicate(timeout=300)[0] for one in jobs]
    assert [one.returncode for one in jobs] == [0, 0], said
    # The one that ends first may find a shard in the other's hands, and then leaves the manifest to it.
    assert any("is whole: 100 rows" in output for output in said), said
    assert content(tmp_path / "cache") == whole


def write_often(folder: str, label: int) -> None:
    for _ in range(60):
        write_shard(Path(folder), [Document(np.full(50, label), [(8, 8)], ["text"])] * 20, code_dtype(9))


def test_a_shard_that_is_there_already_is_never_missing(tmp_path):
    """Two jobs of the same shards: the later one leaves what it finds, and replaces what differs."""
    folder, places = tmp_path / "shard-00000", []
    for label in (1, 1, 2):
        documents = [Document(np.full(50, label), [(8, 8)], ["text"])] * 20
        write_shard(folder, documents, code_dtype(9))
        places.append(folder.stat().st_ino)
        assert np.load(folder / "codes.npy")[0] == label
        assert [path.name for path in tmp_path.iterdir()] == ["shard-00000"]
    assert places[0] == places[1] != places[2]


def test_a_shard_is_whole_however_many_write_it(tmp_path):
    folder = tmp_path / "shard-00000"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(str(folder), label)) for label in (1, 2, 3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    write_manifest(tmp_path, {"image_tokenizer_fingerprint": "abc", "shards": [{"name": folder.name, "rows": 20}]})
    cache = TokenCache(tmp_path)
    label = cache.codes(0)[0]
    assert label in (1, 2, 3) and all((cache.codes(row) == label).all() for row in range(20))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["manifest.json", "shard-00000"]


@pytest.mark.parametrize("harm", ["missing", "truncated", "another's"])
@pytest.mark.parametrize("how", ["job", "training"])
def test_a_damaged_shard_alone_is_written_again(
    tokenizer, tokenizer_folder, tmp_path, whole, harm, how, capsys, monkeypatch
):
    made = job(tokenizer_folder, tmp_path)
    cache_tokens.main(made)
    folder = tmp_path / "cache" / "train"
    before = {path.name: path.stat().st_ctime_ns for path in folder.iterdir() if path.is_dir()}
    if harm == "missing":
        shutil.rmtree(folder / "shard-00002")
    else:
        (folder / "shard-00002" / "codes.npy").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"shard .*shard-00002 is (missing or damaged|truncated).*cache_tokens.py. again"
    ):
        TokenCache(folder)
    if how == "job":
        cache_tokens.main(made)
    else:
        monkeypatch.setattr("pipelines.caching.writer.SHARD_ROWS", 16)
        opened(options(tokenizer_folder, tmp_path, max_examples=100), tokenizer, "train")
    assert "shard-00002 is " in capsys.readouterr().out
    assert content(tmp_path / "cache") == whole
    after = {path.name: path.stat().st_ctime_ns for path in folder.iterdir() if path.is_dir()}
    assert {name for name in before if before[name] != after[name]} == {"shard-00002"}


def test_a_shard_that_cannot_be_repaired_says_why(tokenizer, tokenizer_folder, tmp_path):
    folder = write_pictures(tmp_path / "pictures", 30)
    made = options(tokenizer_folder, tmp_path, dataset=str(folder))
    opened(made, tokenizer, "train")
    shutil.rmtree(tmp_path / "cache" / "train" / "shard-00000")
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="shard-00000 is missing.*cannot be repaired: dataset .* does not exist"):
        opened(made, tokenizer, "train")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"shard_index": 3, "num_shards": 3}, "--shard_index 3 is out of range: with --num_shards 3 give 0 to 2"),
        ({"token_cache": "s3://bucket/cache"}, "s3://bucket/cache: nothing is written to remote addresses"),
        ({"num_shards": 0}, "--num_shards 0 must be above zero"),
        ({"image_sizes": ["9x8"]}, "nearest that work are 8x8, 12x8"),
    ],
)
def test_jobs_that_cannot_be(tokenizer_folder, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        cache_tokens.main(job(tokenizer_folder, tmp_path, **changes))


def test_other_shard_rows_are_refused(tokenizer_folder, tmp_path):
    cache_tokens.main(job(tokenizer_folder, tmp_path, shard_index=1, num_shards=2))
    with pytest.raises(ValueError, match=r"another --shard_rows, or version of tessera .16, not 20..*delete this one"):
        cache_tokens.main(job(tokenizer_folder, tmp_path, shard_rows=20))


# Encoding elsewhere


def encode_in_worker(work: tuple[PictureEncoder, dict]) -> dict:
    encoder, batch = work
    return encoder(batch)


def test_the_encoder_maps_in_spawned_workers_and_its_rows_become_a_cache(tokenizer, tokenizer_folder, tmp_path):
    folder = write_pictures(tmp_path / "pictures", 12)
    encoder = PictureEncoder(str(tokenizer_folder), image_sizes=["8x8", "4x12", "12x4"], device="cpu")
    assert encoder.tokenizer is not None and len(pickle.dumps(encoder)) < 1000, "weights do not travel"
    files = sorted(folder.glob("*.png"))

    def converted(file: Path) -> Image.Image:
        return Image.open(file).convert("RGB")

    forms = [
        str, Path.read_bytes, converted, lambda file: {"bytes": None, "path": str(file)},
        lambda file: {"bytes": file.read_bytes(), "path": None}, lambda file: np.asarray(converted(file)),
    ]  # fmt: skip
    batches = []
    for start, form in zip(range(0, 12, 2), forms, strict=True):
        two = files[start : start + 2]
        batches.append({"image": [form(file) for file in two], "caption": [file.stem for file in two]})
    batches[0]["image"][1] = b"broken"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.map(encode_in_worker, [(encoder, batch) for batch in batches])
    assert [error for batch in found for error in batch["error"]].count("") == 11, found
    rows = [dict(zip(batch, values, strict=True)) for batch in found for values in zip(*batch.values(), strict=True)]
    assert rows[1]["error"].startswith("UnidentifiedImageError") and rows[1]["codes"] == [] and not rows[0]["error"]
    write_shard(tmp_path / "cache" / "shard-00000", encoded_documents(rows), code_dtype(tokenizer.num_codes))
    write_manifest(tmp_path / "cache", {"image_tokenizer_fingerprint": tokenizer.fingerprint,
                                        "shards": [{"name": "shard-00000", "rows": 11}]})  # fmt: skip
    cache = TokenCache(tmp_path / "cache")
    kept = [index for index in range(12) if index != 1]
    for row, index in enumerate(kept):
        assert cache.codes(row).tolist() == codes_of(tokenizer, Image.open(files[index]), SIZES).tolist()
        assert (cache.texts(row), cache.image_sizes(row)) == ([files[index].stem], [SIZES[index % 3]])


def test_a_batch_without_the_column(tokenizer_folder):
    with pytest.raises(ValueError, match="no column 'image'; it has: picture. Give column="):
        PictureEncoder(str(tokenizer_folder))({"picture": []})


def test_large_batches_are_encoded_in_parts(tokenizer, monkeypatch):
    monkeypatch.setattr(batches, "PIXELS_AT_ONCE", 3 * 64)
    pictures = np.stack([preprocess(picture(number), SETTINGS) for number in range(10)])
    sizes: list[int] = []

    def read(places: np.ndarray) -> np.ndarray:
        sizes.append(len(places))
        return pictures[places]

    codes = encoding.encode_pictures(tokenizer, np.zeros(10, np.uint8), read, [(8, 8)], "cpu")
    assert sizes == [3, 3, 3, 1] and np.array_equal(
        np.stack(codes), tokenizer.encode(to_pixel_values(pictures)).numpy()
    )


# Elsewhere


@pytest.fixture
def remote(tokenizer, tokenizer_folder, tmp_path) -> str:
    """A whole cache at a memory:// address."""
    import fsspec

    made = options(tokenizer_folder, tmp_path, dataset=str(write_pictures(tmp_path / "pictures", 40)))
    for split in ("train", "validation"):
        opened(made, tokenizer, split)
    system = fsspec.filesystem("memory")
    system.put(str(tmp_path / "cache"), "/bucket/cache", recursive=True)
    yield "memory://bucket/cache"
    system.rm("/bucket", recursive=True)


def test_a_remote_cache_is_fetched_once_shard_by_shard(remote, tokenizer, tokenizer_folder, tmp_path, monkeypatch):
    import fsspec

    local = TokenCache(tmp_path / "cache" / "train")
    fetched: list[str] = []
    system = fsspec.filesystem("memory")
    original = type(system).get
    monkeypatch.setattr(type(system), "get", lambda self, files, *a: fetched.extend(files) or original(self, files, *a))
    made = options(tokenizer_folder, tmp_path, token_cache=remote, dataset=str(tmp_path / "pictures"))
    cache = opened(made, tokenizer, "train")
    assert len(cache) == len(local) == 38 and cache.count(True, True) == 38
    assert fetched == [], "opening reads the manifest alone"
    assert isinstance(cache.codes(3), np.memmap)
    for row in range(38):
        assert cache.document(row).codes.tolist() == local.codes(row).tolist() and cache.texts(row) == local.texts(row)
    assert len(fetched) == 6 and list(cache.all_texts()) == list(local.all_texts())
    again = TokenCache(f"{remote}/train")
    assert again.texts(0) == local.texts(0) and len(fetched) == 6, "a later run takes the copy"
    assert list((tmp_path / "tessera" / "remote").glob("*/shard-00000"))


def test_remote_caches_that_are_not_there(remote, tokenizer, tokenizer_folder, tmp_path):
    import fsspec

    with pytest.raises(ValueError, match=r"memory://nowhere is not a .whole. token cache: it has no manifest.json"):
        TokenCache("memory://nowhere")
    fsspec.filesystem("memory").rm("/bucket/cache/train/shard-00000", recursive=True)
    cache = TokenCache(f"{remote}/train")
    with pytest.raises(ValueError, match="memory://bucket/cache/train/shard-00000 is missing or cannot be copied"):
        cache.codes(0)
    with pytest.raises(ValueError, match="fsspec knows no protocol what://.*give s3://"):
        TokenCache("what://bucket/cache")


def test_a_file_address(tokenizer, tokenizer_folder, tmp_path):
    made = options(tokenizer_folder, tmp_path, dataset=str(write_pictures(tmp_path / "pictures", 40)))
    local = opened(made, tokenizer, "train")
    cache = TokenCache(f"file://{tmp_path}/cache/train")
    assert cache.codes(5).tolist() == local.codes(5).tolist()


def test_a_missing_package_is_named(monkeypatch):
    from fsspec.registry import known_implementations

    entry = {"class": "no_such_package.FileSystem", "err": "Install no_such_package"}
    monkeypatch.setitem(known_implementations, "nopackage", entry)
    with pytest.raises(ValueError, match="lacks a package for nopackage:// .Install no_such_package.: pip install it"):
        TokenCache("nopackage://bucket/cache")


def test_some_texts_are_those_of_rows_at_even_distances(tmp_path):
    for index in range(3):
        documents = [Document(np.zeros(1), [(8, 8)], [f"{index} {row}", "x"][: 1 + row % 2]) for row in range(4)]
        write_shard(tmp_path / f"shard-{index}", documents, code_dtype(9))
    shards = [{"name": f"shard-{index}", "rows": 4} for index in range(3)]
    write_manifest(tmp_path, {"image_tokenizer_fingerprint": "abc", "shards": shards})
    cache = TokenCache(tmp_path)
    assert list(cache.some_texts(3)) == ["0 0", "1 1", "x", "2 3", "x"]
    assert list(cache.some_texts(12)) == list(cache.some_texts(99)) == list(cache.all_texts())


def test_the_writer_needs_pictures(tokenizer, tmp_path):
    source = load_pictures("sprites", max_examples=4)
    with pytest.raises(ValueError, match="no pictures: give `decoded`, or call `read`"):
        TokenCacheWriter(tmp_path, tokenizer, source).write()


# A data set that changes


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """How many pictures each call of `VQVAE.encode` gets."""
    counts: list[int] = []
    original = VQVAE.encode
    monkeypatch.setattr(VQVAE, "encode", lambda self, pixels: counts.append(len(pixels)) or original(self, pixels))
    return counts


def both(made: CacheOptions, tokenizer: VQVAE) -> list[TokenCache]:
    return list(open_caches(made, tokenizer, Accelerator(), root=str(made.token_cache))[:2])


def assert_current(caches: list[TokenCache], tokenizer: VQVAE, folder: Path) -> None:
    for cache, split in zip(caches, ("train", "validation"), strict=True):
        source = load_pictures(str(folder), split)
        assert [cache.texts(row) for row in range(len(cache))] == [source.texts(row) for row in range(len(source))]
        for row in range(0, len(source), 7):
            assert cache.codes(row).tolist() == codes_of(tokenizer, source.image(row)).tolist()


@pytest.mark.parametrize("by_command", [False, True])
def test_only_pictures_that_are_added_are_encoded(tokenizer, tokenizer_folder, tmp_path, encoded, capsys, by_command):
    folder = write_pictures(tmp_path / "pictures", 200)
    made = options(tokenizer_folder, tmp_path, dataset=str(folder))
    both(made, tokenizer)
    assert sum(encoded) == 200
    for number in range(200, 210):
        picture(number).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text("added")
    (folder / "004.txt").write_text("rewritten")
    (folder / "005.png").unlink()
    encoded.clear(), capsys.readouterr()
    if by_command:
        cache_tokens.main(cache_tokens.Options(**vars(made)))
        assert sum(encoded) == 10
    caches = both(made, tokenizer)
    assert sum(encoded) == 10
    output = capsys.readouterr().out
    assert output.count("has changed since the token cache") == 2 and "pictures keep their codes" in output
    assert sum(map(len, caches)) == 209
    assert_current(caches, tokenizer, folder)
    assert not [path for cache in caches for path in cache.folder.glob("shard-00000")], "replaced shards are deleted"
    encoded.clear()
    both(made, tokenizer)
    assert not encoded and "has changed" not in capsys.readouterr().out


def test_captions_are_read_again_without_encoding(tokenizer, tokenizer_folder, tmp_path, encoded):
    folder = write_pictures(tmp_path / "pictures", 40)
    (folder / "007.png").write_bytes(b"broken")
    made = options(tokenizer_folder, tmp_path, dataset=str(folder), max_unreadable_share=0.1)
    caches = both(made, tokenizer)
    encoded.clear()
    for number in range(40):
        (folder / f"{number:03d}.txt").write_text(f"another caption {number}")
    made.dataset = f"{folder}/"  # the same folder by another name
    caches = both(made, tokenizer)
    assert sum(encoded) == 0 and sum(map(len, caches)) == 39
    assert all("another" in text for cache in caches for text in cache.all_texts())


def test_a_repainted_picture_is_encoded_again(tokenizer, tokenizer_folder, tmp_path, encoded):
    folder = write_pictures(tmp_path / "pictures", 40)
    made = options(tokenizer_folder, tmp_path, dataset=str(folder))
    both(made, tokenizer)
    picture(999).save(folder / "004.png")
    encoded.clear()
    caches = both(made, tokenizer)
    assert sum(encoded) == 1
    assert_current(caches, tokenizer, folder)


@pytest.mark.parametrize("kind", ["tar", "parquet", "documents"])
def test_archives_tables_and_documents_keep_their_codes(tokenizer, tokenizer_folder, tmp_path, encoded, kind):
    folder = tmp_path / "data"
    made = options(tokenizer_folder, tmp_path, dataset=str(folder))
    for count in (40, 42):
        shutil.rmtree(folder, ignore_errors=True)
        pictures = [encoded_png(number) for number in range(count)]
        folder.mkdir()
        if kind == "tar":
            with tarfile.open(folder / "a.tar", "w") as archive:
                for number, content in enumerate(pictures):
                    for ending, data in (("png", content), ("txt", f"{count}".encode())):
                        member = tarfile.TarInfo(f"{number:03d}.{ending}")
                        member.size = len(data)
                        archive.addfile(member, io.BytesIO(data))
        elif kind == "parquet":
            table = pa.table({"image": pictures, "caption": [str(count)] * count})
            parquet.write_table(table, folder / "a.parquet")
        else:
            for number, content in enumerate(pictures):
                (folder / f"{number:03d}.png").write_bytes(content)
                os.utime(folder / f"{number:03d}.png", (1, 1))
            parts = [[{"image": f"{number:03d}.png"}, {"text": str(count)}] for number in range(count)]
            (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, parts)))
        encoded.clear()
        caches = both(made, tokenizer)
    assert sum(encoded) == 2 and sum(map(len, caches)) == 42
    assert {text for cache in caches for text in cache.all_texts()} == {"42"}
    for cache, split in zip(caches, ("train", "validation"), strict=True):
        source = load_pictures(str(folder), split)
        expected = [codes_of(tokenizer, source.image(row)).tolist() for row in range(len(source))]
        assert [cache.codes(row).tolist() for row in range(len(cache))] == expected


def encoded_png(number: int) -> bytes:
    stream = io.BytesIO()
    picture(number).save(stream, "png")
    return stream.getvalue()


def test_an_interrupted_update_leaves_the_earlier_cache(tokenizer, tokenizer_folder, tmp_path, encoded, monkeypatch):
    folder = write_pictures(tmp_path / "pictures", 40)
    made = options(tokenizer_folder, tmp_path, dataset=str(folder))
    both(made, tokenizer)
    picture(40).save(folder / "040.png")
    with monkeypatch.context() as patch:
        patch.setattr(TokenCacheWriter, "finish", None)
        with pytest.raises(TypeError):
            both(made, tokenizer)
    assert len(TokenCache(tmp_path / "cache" / "train")) == 38
    encoded.clear()
    assert_current(both(made, tokenizer), tokenizer, folder)


def test_a_cache_without_its_data_set_or_without_keys(tokenizer, tokenizer_folder, tmp_path, encoded, capsys):
    folder = write_pictures(tmp_path / "pictures", 40)
    made = options(tokenizer_folder, tmp_path, dataset=str(folder))
    before = [cache.codes(3).tolist() for cache in [both(made, tokenizer)[0]]]
    encoded.clear()
    (folder / "004.txt").write_text("rewritten")
    for keys in (tmp_path / "cache").rglob("picture_keys.npy"):
        keys.unlink()  # as in a cache of an earlier version
    caches = both(made, tokenizer)
    assert "used as it is" in capsys.readouterr().out and sum(map(len, caches)) == 40
    shutil.rmtree(folder)
    assert [cache.codes(3).tolist() for cache in [both(made, tokenizer)[0]]] == before and not encoded


# Seeds


def test_the_seed_chooses_training_rows_alone(tokenizer, tokenizer_folder, tmp_path):
    folder = write_pictures(tmp_path / "pictures", 60)
    made = options(tokenizer_folder, tmp_path, dataset=str(folder), max_examples=20)
    texts = [list(cache.all_texts()) for cache in both(made, tokenizer)]
    made.seed = 1
    with pytest.raises(ValueError, match="was built from --seed 0, not 1: give the same, another --token_cache folder"):
        both(made, tokenizer)
    made.token_cache = str(tmp_path / "other")
    other = [list(cache.all_texts()) for cache in both(made, tokenizer)]
    assert other[0] != texts[0] and other[1] == texts[1]
    sprites = [load_source(CacheOptions(seed=seed), "validation", image_size=8).fingerprint for seed in (0, 1)]
    assert sprites[0] == sprites[1]


def test_a_cache_that_keeps_no_seed_is_used_with_any(tokenizer, tokenizer_folder, tmp_path):
    folder = write_pictures(tmp_path / "pictures", 60)
    made = options(tokenizer_folder, tmp_path, dataset=str(folder), max_examples=20)
    cache = opened(made, tokenizer, "train")
    manifest = cache.folder / "manifest.json"
    values = json.loads(manifest.read_text())
    del values["settings"]["seed"]
    manifest.write_text(json.dumps(values))
    shutil.rmtree(folder)
    made.seed = 1
    assert list(opened(made, tokenizer, "train").all_texts()) == list(cache.all_texts())
