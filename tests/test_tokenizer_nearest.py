"""Nearest codes: exact for every block size, precision setting and CPU, with and without bfloat16 screening."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenizer_image.quantizers import nearest, screening
from tokenizer_image.quantizers.nearest import nearest_codes, sample_codes, sums_per_code
from tokenizer_image.quantizers.screening import screened_codes


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def in_float32(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The search without screening, on CPUs with bfloat16 instructions, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "screening_pays", lambda vectors, codebook: False)
        return nearest_codes(vectors, codebook)


def distances_of(vectors: Tensor, codebook: Tensor) -> Tensor:
    """(N, K) float64, squared."""
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(vectors.double(), codebook.double(), compute_mode=exact).square()


SEARCHES = pytest.mark.parametrize("search", [in_float32, screened_codes])


def assert_nearest(codes: Tensor, vectors: Tensor, codebook: Tensor) -> None:
    """A code differs from that of float64 in less than 1% of vectors, and only at nearly the same distance."""
    distances = distances_of(vectors, codebook)
    best, expected = distances.min(dim=1)
    chosen = distances.gather(1, codes[:, None])[:, 0]
    assert codes.shape == (len(vectors),) and codes.dtype == torch.int64
    assert (chosen - best < 1e-4).all()
    assert (codes == expected).float().mean() > 0.99


@SEARCHES
@pytest.mark.parametrize(
    "count, size, dim",
    [(1000, 512, 32), (3, 7, 1), (1, 4096, 8), (2000, 2, 4), (500, 777, 5), (300, 1024, 256), (500, 256, 4)],
)
def test_nearest_codes_equal_brute_force_in_float64(search, count, size, dim):
    vectors, codebook = torch.randn(count, dim), torch.randn(size, dim)
    assert_nearest(search(vectors, codebook), vectors, codebook)


@SEARCHES
@pytest.mark.parametrize("offset, scale", [(30.0, 1.0), (0.0, 1e-4), (-2.0, 1e-2)])
def test_nearest_codes_of_shifted_and_scaled_latents(search, offset, scale):
    """Far from the origin or close together, where bfloat16 hardly resolves the distances."""
    vectors, codebook = torch.randn(500, 16) * scale + offset, torch.randn(2048, 16) * scale + offset
    codes = search(vectors, codebook)
    distances = distances_of(vectors, codebook)
    chosen = distances.gather(1, codes[:, None])[:, 0]
    # The bound: rounding the elements to float32, which counts twice in a product.
    assert (chosen - distances.amin(1) < 1e-6 * (offset**2 * 16 + scale**2 * 16)).all()


@pytest.mark.parametrize("size", [257, 300, 1000])
def test_padding_of_the_codebook_never_wins(size):
    """Codes far from the origin have negative scores, less than the 0 of an unmarked padding row."""
    vectors, codebook = torch.randn(50, 4), torch.randn(size, 4) + 20
    assert torch.equal(in_float32(vectors, codebook), distances_of(vectors, codebook).argmin(1))


@SEARCHES
def test_a_latent_that_is_a_code_has_that_code(search):
    codebook = torch.randn(2048, 24)
    assert torch.equal(search(codebook, codebook), torch.arange(2048))


@pytest.mark.parametrize("size, dim", [(1024, 256), (4096, 8), (1536, 64)])
def test_screening_leaves_few_codes_to_compare(size, dim, monkeypatch):
    """Few candidates make screening fast; the nearest code must be among them."""
    vectors, codebook = torch.randn(2000, dim), torch.randn(size, dim)
    compared = 0
    compare = screening._nearest

    def counted(vectors: Tensor, codebook: Tensor, row: Tensor, code: Tensor) -> Tensor:
        nonlocal compared
        compared += len(row)
        return compare(vectors, codebook, row, code)

    monkeypatch.setattr(screening, "_nearest", counted)
    codes = screened_codes(vectors, codebook)
    assert_nearest(codes, vectors, codebook)
    assert 2000 <= compared < 4 * 2000


def test_screening_gives_up_where_all_codes_are_alike(monkeypatch):
    monkeypatch.setattr(nearest, "screening_pays", lambda vectors, codebook: True)
    vectors, codebook = torch.randn(3000, 8), torch.ones(2048, 8)
    assert len(screened_codes(vectors, codebook)) == 0
    assert nearest_codes(vectors, codebook).tolist() == [0] * 3000
    # in the second block, vectors have the same distance to all codes
    monkeypatch.setattr(screening, "BLOCK_ROWS", 1024)
    vectors[:1024, 0] += 100
    vectors[1024:2048] = 0
    codebook = torch.zeros(2048, 8)
    codebook[torch.arange(2048), torch.arange(2048) % 8] = torch.where(torch.arange(2048) % 16 < 8, 1.0, -1.0)
    codebook[7] = torch.tensor([2.0, 0, 0, 0, 0, 0, 0, 0])
    assert len(screened_codes(vectors, codebook)) == 1024
    assert torch.equal(nearest_codes(vectors, codebook), in_float32(vectors, codebook))


def test_nearest_codes_work_in_blocks(monkeypatch):
    vectors, codebook = torch.randn(1000, 8), torch.randn(100, 8)
    whole = nearest_codes(vectors, codebook)
    rows = []
    largest = nearest._largest
    monkeypatch.setattr(nearest, "_largest", lambda scores, size: rows.append(len(scores)) or largest(scores, size))
    for floats, expected in ((100 * 300, [300, 300, 300, 100]), (100, [64] * 15 + [40])):  # 64 rows at least
        monkeypatch.setattr(nearest, "BLOCK_FLOATS", floats)
        rows.clear()
        assert torch.equal(nearest_codes(vectors, codebook), whole) and rows == expected


def test_the_buffer_is_kept_on_a_cpu_alone():
    first = nearest._buffer(100, torch.device("cpu"))
    assert nearest._buffer(50, torch.device("cpu")).data_ptr() == first.data_ptr()
    assert nearest._buffer(100, torch.device("meta")).is_meta


def test_vectors_and_a_codebook_that_learn_are_no_hindrance():
    vectors, codebook = torch.randn(20, 4, requires_grad=True), torch.randn(300, 4, requires_grad=True)
    assert torch.equal(nearest_codes(vectors, codebook), in_float32(vectors.detach(), codebook.detach()))
    assert sample_codes(vectors, codebook, 1.0).shape == (20,)


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_screening_is_for_large_searches_on_cpus_with_bfloat16(has_bfloat16, monkeypatch):
    monkeypatch.setattr(screening, "has_bfloat16", lambda: has_bfloat16)

    def pays(count: int, size: int, device: str = "cpu") -> bool:
        return screening.screening_pays(torch.empty(count, 4, device=device), torch.empty(size, 4, device=device))

    assert pays(2048, 2048) == pays(100_000, 2048) == has_bfloat16
    assert not (pays(100, 2048) or pays(2048, 100) or pays(2048, 2048, "meta"))


def test_the_buffer_serves_inside_and_outside_inference_mode():
    vectors, codebook = torch.randn(1000, 8), torch.randn(100, 8)
    nearest._thread_local.__dict__.clear()
    with torch.inference_mode():
        inside = nearest_codes(vectors, codebook)
    assert torch.equal(nearest_codes(vectors, codebook), inside)
    smaller = nearest_codes(vectors[:10], codebook[:50])
    assert torch.equal(smaller, in_float32(vectors[:10].clone(), codebook[:50].clone()))


@SEARCHES
def test_ties_go_to_the_lowest_index(search):
    codebook = torch.tensor([[5.0, 5.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert search(torch.tensor([[1.0, 0.0], [0.0, 3.0], [-2.0, 0.0]]), codebook).tolist() == [1, 1, 3]


@SEARCHES
@pytest.mark.parametrize("size", [200, 300, 1000, 4096])
def test_ties_among_many_go_to_the_lowest_index(search, size):
    """Each vector of the codebook occurs about five times; its lowest index must win."""
    places = torch.randint(size // 5, (size,))
    codebook = torch.randn(size // 5, 3)[places]
    lowest = (codebook[:, None] == codebook[None]).all(-1).int().argmax(1)
    assert torch.equal(search(codebook + 1e-4, codebook), lowest) and (lowest < torch.arange(size)).any()


@pytest.mark.parametrize("size", [256, 2048])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nearest_codes_do_not_depend_on_autocast(dtype, size):
    vectors, codebook = torch.randn(1500, 16).to(dtype), torch.randn(size, 16)
    outside = nearest_codes(vectors, codebook)
    assert torch.equal(outside, nearest_codes(vectors.float(), codebook))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_codes(vectors, codebook), outside)


def test_nearest_codes_do_not_depend_on_settings_for_faster_products(monkeypatch):
    """Codes do not change where products in TF32 or bfloat16 are allowed; the setting is restored afterwards."""
    matmul = torch.backends.mkldnn.matmul
    seen = []
    monkeypatch.setattr(
        nearest, "_largest", lambda scores, size: seen.append(matmul.fp32_precision) or scores.argmax(1)
    )
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "bf16"
        nearest_codes(torch.randn(10, 4), torch.randn(20, 4))
        assert matmul.fp32_precision == "bf16" and seen == ["ieee"]
    finally:
        matmul.fp32_precision = before


@pytest.mark.parametrize("screening", [False, True])
@pytest.mark.parametrize("size", [100, 300])
@pytest.mark.parametrize("count", [20, 2000])
def test_codes_of_latents_that_are_not_finite_are_codes(screening, size, count, monkeypatch):
    """Outside training there is no check: codes must still be in range, and other latents keep their codes."""
    monkeypatch.setattr(nearest, "screening_pays", lambda vectors, codebook: screening)
    latents, codebook = torch.randn(count, 4), torch.randn(size, 4)
    expected = nearest_codes(latents, codebook)
    latents[0, 0], latents[1, 1] = float("inf"), float("nan")
    codes = nearest_codes(latents, codebook)
    assert codes.min() >= 0 and codes.max() < size
    assert torch.equal(codes[2:], expected[2:])


def test_sums_per_code():
    vectors = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    counts, sums = sums_per_code(vectors, torch.tensor([2, 0, 2]), 4)
    assert counts.tolist() == [1, 0, 2, 0]
    assert sums.tolist() == [[3, 4], [0, 0], [6, 8], [0, 0]]
