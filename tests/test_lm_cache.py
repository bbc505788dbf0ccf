"""The token cache: what goes in comes out, and what is damaged, newer or another tokenizer's says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pipelines.caching.writer
from lm.data import token_cache
from lm.data.shards import _ends
from lm.data.token_cache import FORMAT_VERSION, Document, TokenCache, code_dtype, write_manifest, write_shard
from pipelines.caching.pixel_cache import decode_pictures
from pipelines.caching.writer import TokenCacheWriter
from tokenizer_image import VQVAE, VQVAEConfig
from tokenizer_image.pictures.loading import Preprocessing, preprocess, to_pixel_values

DOCUMENTS = [
    Document(np.array([3, 1, 2, 0]), [(8, 8)], ["a dog", "Größe 犬 🐕‍🦺", ""]),
    Document(np.array([0, 0, 0, 0]), [(8, 8)]),
    Document(np.array([255, 254, 253, 252]), [(8, 8)], ["", "two\nlines, \u2028 and a tab\t"]),
    Document(np.array([9, 9, 9, 9]), [(8, 8)], ["<|image_3|>"]),
    Document(np.array([7, 6, 5, 4]), [(8, 8)], ["x" * 10_000]),
]
FILES = ("codes.npy", "code_ends.npy", "text_ends.npy", "image_sizes.npy", "texts.bin")


def write_cache(folder: Path, shards: list[list[Document]], num_codes: int = 256, fingerprint: str = "abc") -> Path:
    for index, documents in enumerate(shards):
        write_shard(folder / f"shard-{index:05d}", documents, code_dtype(num_codes))
    listing = [{"name": f"shard-{index:05d}", "rows": len(documents)} for index, documents in enumerate(shards)]
    write_manifest(folder, {"image_tokenizer_fingerprint": fingerprint, "num_codes": num_codes, "shards": listing})
    return folder


def assert_same(found: Document, expected: Document) -> None:
    assert np.array_equal(found.codes, expected.codes)
    assert (found.texts, found.order) == (expected.texts, expected.order)
    assert found.image_sizes == expected.image_sizes


# Rows


@pytest.mark.parametrize("cuts", [[5], [2, 3], [1, 1, 1, 1, 1]])
def test_what_goes_in_comes_out(tmp_path, cuts):
    starts = np.cumsum([0, *cuts])
    shards = [DOCUMENTS[first:last] for first, last in zip(starts[:-1], starts[1:], strict=True)]
    cache = TokenCache(write_cache(tmp_path / "cache", shards))
    assert len(cache) == 5
    for row, document in enumerate(DOCUMENTS):
        assert_same(cache.document(row), document)
        assert np.array_equal(cache.codes(row), document.codes) and cache.texts(row) == document.texts
    assert list(cache.all_texts()) == [text for document in DOCUMENTS for text in document.texts]
    for row in (-1, 5):
        with pytest.raises(IndexError, match=f"row {row} of a token cache of 5 rows"):
            cache.codes(row)
    leftovers = [path.name for path in tmp_path.rglob("*.part")]
    assert leftovers == []


def test_interleaved_documents(tmp_path):
    """Pictures of several sizes between texts; rows without an order are captioned pictures."""
    documents = [
        Document(np.arange(4), [(8, 8)], ["a dog"]),
        Document(np.arange(10), [(8, 8), (8, 24)], ["before", "between", "after"], order="titit"),
        Document(np.arange(2), [(8, 8)], ["end"], order="it"),
    ]
    cache = TokenCache(write_cache(tmp_path, [documents, documents[:1]]))
    for row, document in enumerate([*documents, documents[0]]):
        assert_same(cache.document(row), document)
    assert [cache.order(row) for row in range(4)] == ["", "titit", "it", ""]
    assert [cache.image_sizes(row) for row in range(4)] == [[(8, 8)], [(8, 8), (8, 24)], [(8, 8)], [(8, 8)]]
    assert not (tmp_path / "shard-00001" / "orders.bin").exists()


def test_caches_with_and_without_labels_load(tmp_path):
    """Class labels were part of a shard before; no shard that is written now has them."""
    write_cache(tmp_path, [DOCUMENTS])
    assert not list(tmp_path.rglob("labels.npy"))
    np.save(tmp_path / "shard-00000" / "labels.npy", np.full(len(DOCUMENTS), -1, np.int32))
    cache = TokenCache(tmp_path)
    for row, document in enumerate(DOCUMENTS):
        assert_same(cache.document(row), document)


def test_lone_surrogates_in_a_text_are_replaced(tmp_path):
    cache = TokenCache(write_cache(tmp_path, [[Document(np.arange(4), [(8, 8)], ["a \ud83d", "\ud83d\udc15", "c"])]]))
    assert cache.texts(0) == ["a \ufffd", "🐕", "c"]


def test_zero_bytes_in_a_text_do_not_split_it(tmp_path):
    cache = TokenCache(write_cache(tmp_path, [[Document(np.arange(4), [(8, 8)], ["a\0b", "c"])]]))
    assert cache.texts(0) == ["a b", "c"]


@pytest.mark.parametrize("num_codes, dtype", [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"),
                                              (65537, "uint32")])  # fmt: skip
def test_codes_take_the_smallest_type_that_fits(tmp_path, num_codes, dtype):
    assert code_dtype(num_codes) == dtype
    document = Document(np.array([num_codes - 1, 0]), [(8, 8)])
    cache = TokenCache(write_cache(tmp_path, [[document]], num_codes))
    assert cache.codes(0).dtype == dtype and cache.codes(0).tolist() == [num_codes - 1, 0]


def test_rows_end_where_the_smallest_type_can_say():
    for last, dtype in ((2**32 - 1, np.uint32), (2**32, np.uint64)):
        assert _ends([1, last - 1]).dtype == dtype and _ends([1, last - 1]).tolist() == [1, last]
    assert _ends([]).dtype == np.uint32 and len(_ends([])) == 0


def test_rows_of_each_kind_are_counted(tmp_path):
    none = np.zeros(0, np.int64)
    documents = {
        (True, True, False): [Document(np.arange(4), [(8, 8)], ["a dog"])] * 3,
        (False, True, False): [Document(np.arange(4), [(8, 8)])] * 2,
        (True, False, False): [Document(none, [], ["text alone"], order="t")] * 4,
        (True, True, True): [Document(np.arange(4), [(8, 8)], ["before"], order="ti")] * 5,
        (True, False, True): [Document(none, [], ["two", "texts"], order="tt")],
        (False, True, True): [Document(np.arange(8), [(8, 8)] * 2, [], order="ii")] * 6,
    }
    cache = TokenCache(write_cache(tmp_path / "all", [sum(documents.values(), []), DOCUMENTS[:1]]))
    counts = {kind: len(rows) for kind, rows in documents.items()}
    counts[True, True, False] += 1
    assert {kind: cache.count(*kind) for kind in counts} == counts and cache.count(False, False) == 0
    for kind, rows in documents.items():
        one = TokenCache(write_cache(tmp_path / str(kind), [rows]))
        assert (one.has_texts, one.interleaved) == (kind[0], kind[2])


def test_some_texts_are_those_of_rows_at_even_distances(tmp_path):
    documents = [Document(np.arange(4), [(8, 8)], [f"{row}", f"{row}, again"][: (row + 1) % 3]) for row in range(9)]
    cache = TokenCache(write_cache(tmp_path, [documents[:2], documents[2:3], documents[3:]]))
    for rows, chosen in ((3, [0, 4, 8]), (2, [0, 8]), (1, [0]), (9, range(9)), (20, range(9))):
        assert list(cache.some_texts(rows)) == [text for row in chosen for text in documents[row].texts]


@pytest.mark.parametrize(
    ("limits", "allowed"),
    [((1033, 5000), (1034, 5000)), ((1034, 5000), None), ((256, 5000), (1034, 5000)), ((256, 600), (600, 600)),
     ((256, "unlimited"), (1034, "unlimited")), (("unlimited", "unlimited"), None)],
)  # fmt: skip
def test_as_many_files_may_be_open_as_a_cache_needs(limits, allowed, monkeypatch):
    import resource

    def number(limit: int | str) -> int:
        return resource.RLIM_INFINITY if limit == "unlimited" else int(limit)

    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(map(number, limits)))
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: asked.append(pair))
    token_cache._allow_files(10)
    assert asked == ([] if allowed is None else [tuple(map(number, allowed))])


def test_rows_cost_little_beside_codes_and_texts(tmp_path):
    rows, codes, text = 4000, 32, "a small red dog on the left"
    documents = [Document(np.zeros(codes, np.int64), [(32, 32)], [text])] * rows
    write_cache(tmp_path, [documents], 1024)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    overhead = (size - rows * (2 * codes + len(text))) / rows
    assert overhead <= 24 + 2048 / rows, "headers of the files, and the manifest, are paid once"


def test_reading_maps_files_and_copies_nothing(tmp_path):
    cache = TokenCache(write_cache(tmp_path, [DOCUMENTS]))
    codes = cache.codes(2)
    assert isinstance(codes, np.memmap) and not codes.flags.writeable


# Damage


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_names_its_shard(tmp_path, name):
    write_cache(tmp_path, [DOCUMENTS[:2], DOCUMENTS[2:]])
    (tmp_path / "shard-00001" / name).unlink()
    with pytest.raises(ValueError, match="shard-00001 is missing or damaged.*build it again"):
        TokenCache(tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_names_its_shard(tmp_path, name, kept):
    write_cache(tmp_path, [DOCUMENTS[:2], DOCUMENTS[2:]])
    file = tmp_path / "shard-00001" / name
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match="shard-00001 is (missing or damaged|truncated).*build it again"):
        TokenCache(tmp_path)


def test_orders_that_are_cut_off_name_their_shard(tmp_path):
    documents = [Document(np.arange(2), [(8, 8)], ["end"], order="it")] * 3
    write_cache(tmp_path, [documents])
    (tmp_path / "shard-00000" / "orders.bin").write_bytes(b"it\0it")
    with pytest.raises(ValueError, match="shard-00000 is truncated"):
        TokenCache(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    write_cache(tmp_path, [DOCUMENTS[:2], DOCUMENTS[2:]])
    shutil.rmtree(tmp_path / "shard-00000")
    with pytest.raises(ValueError, match="shard-00000 is missing or damaged"):
        TokenCache(tmp_path)


def test_a_shard_of_another_length_is_refused(tmp_path):
    write_cache(tmp_path, [DOCUMENTS[:2], DOCUMENTS[2:]])
    write_shard(tmp_path / "shard-00001", DOCUMENTS[:1], code_dtype(256))
    with pytest.raises(ValueError, match=r"shard-00001 is truncated \(3 rows expected\)"):
        TokenCache(tmp_path)


def test_a_folder_that_is_no_cache(tmp_path):
    with pytest.raises(ValueError, match="is not a .whole. token cache: it has no manifest.json"):
        TokenCache(tmp_path)


@pytest.mark.parametrize("change, remedy", [(1, "upgrade tessera"), (-1, "delete .* to build it again")])
def test_another_format_is_refused(tmp_path, change, remedy):
    write_cache(tmp_path, [DOCUMENTS])
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": FORMAT_VERSION + change}))
    with pytest.raises(ValueError, match=f"format_version {FORMAT_VERSION + change}, .*{remedy}"):
        TokenCache(tmp_path)


def test_an_empty_text_is_not_no_text(tmp_path):
    texts = [[], [""], ["", ""], ["a", ""], ["", "a"]]
    documents = [Document(np.zeros(1, np.int64), [(8, 8)], row) for row in texts]
    cache = TokenCache(write_cache(tmp_path, [documents]))
    assert [cache.texts(row) for row in range(5)] == texts


def test_another_tokenizer_is_refused(tmp_path):
    cache = TokenCache(write_cache(tmp_path, [DOCUMENTS]))
    cache.check_fingerprint("abc")
    with pytest.raises(ValueError, match="another image tokenizer .fingerprint abc, not xyz.*--token_cache"):
        cache.check_fingerprint("xyz")


# Writing one from pictures


class Noise:
    """Random captioned pictures, one of which cannot be read."""

    name, label_names = "noise", None

    def __init__(self, length: int = 50, fingerprint: str = "noise") -> None:
        self.length, self.fingerprint = length, fingerprint

    def __len__(self) -> int:
        return self.length

    def image(self, row: int) -> Image.Image:
        if row == 7:
            raise OSError("broken")
        return Image.fromarray(np.random.default_rng(row).integers(0, 256, (8, 8, 3), dtype=np.uint8))

    def texts(self, row: int) -> list[str]:
        return [f"picture {row}", "noise"][: row % 3]

    def label(self, row: int) -> int:
        return row % 10 - 1

    def attributes(self, row: int) -> None:
        return None


def tiny_tokenizer(seed: int = 0) -> VQVAE:
    torch.manual_seed(seed)
    settings = {"hidden_sizes": [8], "num_res_blocks": 1, "code_dim": 4, "codebook_sizes": [200, 100]}
    tokenizer = VQVAE(VQVAEConfig(image_size=8, preprocessing=Preprocessing(image_size=8).to_dict(), **settings))
    tokenizer.train()(torch.rand(256, 3, 8, 8) * 2 - 1)
    return tokenizer.eval()


@pytest.fixture(scope="module")
def tokenizer() -> VQVAE:
    return tiny_tokenizer()


@pytest.fixture
def make_writer(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(pipelines.caching.writer, "SHARD_ROWS", 16)

    def make(source: Noise | None = None, tokenizer: VQVAE = tokenizer) -> TokenCacheWriter:
        source = source or Noise()
        decoded = decode_pictures(
            source, Preprocessing(image_size=8), cache_folder=tmp_path / "pictures", max_unreadable_share=0.1,
            progress=False,
        )  # fmt: skip
        return TokenCacheWriter(tmp_path / "cache", tokenizer, source, decoded)

    return make


def assert_whole(cache: TokenCache, tokenizer: VQVAE) -> None:
    source, settings = Noise(), Preprocessing(image_size=8)
    rows = [row for row in range(50) if row != 7]
    assert len(cache) == 49 and cache.codes(0).dtype == np.uint16
    pixel_values = to_pixel_values(np.stack([preprocess(source.image(row), settings) for row in rows]))
    codes = tokenizer.encode(pixel_values).numpy()
    for index, row in enumerate(rows):
        expected = Document(codes[index], [(8, 8)], source.texts(row))
        assert_same(cache.document(index), expected)


def test_the_writer_encodes_every_picture(make_writer, tokenizer):
    writer = make_writer()
    assert not writer.finished
    writer.prepare()
    writer.write(batch_size=5)
    cache = writer.finish()
    assert_whole(cache, tokenizer)
    assert cache.fingerprint == tokenizer.fingerprint and cache.manifest["num_codes"] == 300
    assert make_writer().finished
    assert sorted(path.name for path in cache.folder.iterdir()) == [
        "manifest.json", "shard-00000", "shard-00001", "shard-00002", "shard-00003"
    ]  # fmt: skip


def test_two_processes_share_the_work(make_writer, tokenizer):
    writer = make_writer()
    writer.prepare()
    writer.write(process_index=1, num_processes=2)
    with pytest.raises(ValueError, match="shards shard-00000, shard-00002 are missing; run the command again"):
        writer.finish()
    writer.write(process_index=0, num_processes=2)
    assert_whole(writer.finish(), tokenizer)


def test_an_interrupted_build_goes_on(make_writer, tokenizer, monkeypatch):
    class Killed(BaseException):
        pass

    encoded: list[int] = []
    original = TokenCacheWriter._encode

    def encode(self, first, last, device):
        if len(encoded) == 5:
            raise Killed
        encoded.append(first)
        return original(self, first, last, device)

    with monkeypatch.context() as patch:
        patch.setattr(TokenCacheWriter, "_encode", encode)
        writer = make_writer()
        writer.prepare()
        with pytest.raises(Killed):
            writer.write(batch_size=8)
    assert encoded == [0, 8, 16, 24, 32]
    with pytest.raises(ValueError, match="has no manifest.json"):
        TokenCache(writer.folder)
    (writer.folder / "shard-00002.part").mkdir()  # what a kill in the middle of a shard leaves
    (writer.folder / "shard-00002.part" / "codes.npy").write_bytes(b"half")
    again = make_writer()
    assert not again.finished
    encoded.clear()
    monkeypatch.setattr(TokenCacheWriter, "_encode", lambda *a: encoded.append(a[1]) or original(*a))
    again.prepare()
    again.write(batch_size=8)
    assert encoded == [32, 40, 48], "whole shards are not encoded again"
    assert_whole(again.finish(), tokenizer)


@pytest.mark.parametrize("whole", [False, True])
def test_a_folder_of_another_tokenizer_or_data_set(make_writer, whole):
    writer = make_writer()
    writer.prepare()
    writer.write()
    if whole:
        writer.finish()
    with pytest.raises(ValueError, match="belongs to another image tokenizer.*--token_cache"):
        _ = make_writer(tokenizer=tiny_tokenizer(1)).finished
    with pytest.raises(ValueError, match="belongs to another data set.*--token_cache"):
        _ = make_writer(Noise(fingerprint="other noise")).finished
    assert make_writer().finished == whole


def test_a_build_note_is_never_half_written(make_writer, monkeypatch):
    """A kill while the note is written must not leave something that no later run can read."""
    writer = make_writer()
    names = []
    original = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda self, *a, **k: names.append(self.name) or original(self, *a, **k))
    writer.prepare()
    assert names and "building.json" not in names, "written under another name, then renamed"
