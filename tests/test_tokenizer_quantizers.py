"""Quantizers: nearest codes, codebook updates, gradients and losses, and calls that must not change state."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.options.image_tokenizer import ImageTokenizerOptions
from tokenizer_image import (
    VQVAE,
    GroupedQuantizer,
    Quantizer,
    QuantizerOutput,
    ResidualQuantizer,
    VectorQuantizer,
    VQVAEConfig,
    build_quantizer,
    register_quantizer,
)
from tokenizer_image.quantizers import KINDS as ALL_KINDS
from tokenizer_image.quantizers import FiniteScalarQuantizer, LookupFreeQuantizer
from tokenizer_image.quantizers.distributed import NotFiniteError, all_reduce, broadcast, sample_rows
from tokenizer_image.quantizers.estimators import rotate, straight_through_with_loss
from tokenizer_image.quantizers.finite_scalar import levels_for
from tokenizer_image.quantizers.interface import RANGES, check_values

EXAMPLE = json.loads((Path(__file__).parent / "data" / "worked_example.json").read_text())


SETTINGS: dict[str, tuple[str, list[int], dict]] = {
    "ema": ("ema", [16], {}),
    "gradient": ("gradient", [16], {}),
    "cosine": ("cosine", [16], {"codebook_dim": 3}),
    "residual": ("residual", [16, 8, 12], {}),
    "residual, shared": ("residual", [16, 16], {"shared_codebook": True}),
    "grouped": ("grouped", [16, 8], {}),
    "grouped_residual": ("grouped_residual", [16, 8, 12, 8], {}),
    "finite_scalar": ("finite_scalar", [240], {}),
    "lookup_free": ("lookup_free", [16], {}),
    "binary_spherical": ("binary_spherical", [16], {}),
}
KINDS = {name: partial(build_quantizer, kind, sizes, 4, options) for name, (kind, sizes, options) in SETTINGS.items()}
PROJECTED = {"cosine", "finite_scalar", "lookup_free", "binary_spherical"}  # reached through a linear map


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def started(codebook: Tensor, counts: Tensor | float = 1.0, **options: float) -> VectorQuantizer:
    """An initialised quantizer in train mode with this codebook."""
    quantizer = VectorQuantizer(*codebook.shape, **{"revival_threshold": 0.0, **options})
    with torch.no_grad():
        quantizer.codebook.copy_(codebook)
        quantizer.ema_counts.copy_(torch.as_tensor(counts).expand(len(codebook)))
        if quantizer.learning == "ema":
            quantizer.ema_sums.copy_(codebook * quantizer.ema_counts[:, None])
        quantizer.initialized.fill_(True)
    return quantizer


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_unchanged(module: torch.nn.Module, before: dict[str, Tensor]) -> None:
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} changed"


def test_worked_example():
    codebook, vectors = torch.tensor(EXAMPLE["codebook"]), torch.tensor(EXAMPLE["vectors"])
    quantizer = started(codebook).eval()
    codes = quantizer.encode(vectors)
    assert codes.dtype == torch.int64 and codes[..., 0].tolist() == EXAMPLE["codes"]
    assert torch.equal(quantizer.decode(codes), codebook[torch.tensor(EXAMPLE["codes"])])
    output = quantizer(vectors)
    assert output.codes[..., 0].tolist() == EXAMPLE["codes"]
    assert torch.allclose(output.quantized, quantizer.decode(codes), atol=1e-6)


# Gradient and loss


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - PROJECTED))
@pytest.mark.parametrize("training", [False, True])
def test_straight_through_gradient_is_exactly_one(kind, training):
    quantizer = KINDS[kind]().train(training)
    latents = torch.randn(2, 5, 5, 4, requires_grad=True)
    output = quantizer(latents)
    weights = torch.randn_like(latents)
    (output.quantized * weights).sum().backward()
    assert torch.equal(latents.grad, weights)


def test_commitment_loss_and_its_gradient():
    codebook = torch.tensor([[0.0, 0.0], [10.0, 10.0]])
    quantizer = started(codebook, commitment_weight=0.5)
    latents = torch.tensor([[1.0, 2.0], [9.0, 10.0]], requires_grad=True)
    output = quantizer(latents)
    assert output.loss.item() == pytest.approx(0.5 * (1 + 4 + 1 + 0) / 4)
    output.loss.backward()
    assert torch.allclose(latents.grad, 0.5 * 2 / 4 * torch.tensor([[1.0, 2.0], [-1.0, 0.0]]))


def test_residual_commitment_loss_reaches_the_latents_at_every_depth():
    first, second = torch.tensor([[0.0], [10.0]]), torch.tensor([[-1.0], [2.0]])
    quantizer = residual_of(first, second, commitment_weight=1.0)
    latents = torch.tensor([[1.5], [8.5]], requires_grad=True)
    output = quantizer(latents)  # rows 0 and 10, residuals 1.5 and -1.5; rows 2 and -1, residuals -0.5 and -0.5
    assert output.codes.tolist() == [[0, 1], [1, 0]]
    assert output.loss.item() == pytest.approx(((1.5**2 + 1.5**2) / 2 + (0.5**2 + 0.5**2) / 2) / 2)
    output.loss.backward()
    assert torch.allclose(latents.grad, torch.tensor([[(1.5 - 0.5) / 2], [(-1.5 - 0.5) / 2]]))


def residual_of(*codebooks: Tensor, **options: float) -> ResidualQuantizer:
    sizes, dim = [len(codebook) for codebook in codebooks], codebooks[0].shape[1]
    quantizer = ResidualQuantizer(sizes, dim, **options)
    for depth, codebook in enumerate(codebooks):
        quantizer.depths[depth] = started(codebook, **options)
    return quantizer


# One step of the codebook


def test_an_ema_step_by_hand():
    codebook = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 8.0]])
    quantizer = started(codebook, torch.tensor([2.0, 1.0, 5.0]), ema_decay=0.9, epsilon=0.01)
    latents = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 0.0]])  # two for code 0, one for code 1
    quantized = quantizer(latents).quantized
    assert torch.allclose(quantized, codebook[[0, 0, 1]]), "what was nearest before the update"
    counts = torch.tensor([0.9 * 2 + 0.1 * 2, 0.9 * 1 + 0.1 * 1, 0.9 * 5])
    sums = torch.tensor([[0.1, 0.1], [0.9 * 4 + 0.1 * 5, 0.0], [0.0, 0.9 * 40]])
    smoothed = (counts + 0.01) / (counts.sum() + 3 * 0.01) * counts.sum()
    assert torch.allclose(quantizer.ema_counts, counts)
    assert torch.allclose(quantizer.ema_sums, sums)
    assert torch.allclose(quantizer.codebook, sums / smoothed[:, None])


def test_ema_steps_equal_vector_quantize_pytorch():
    library = pytest.importorskip("vector_quantize_pytorch")
    size, dim, options = 32, 8, {"commitment_weight": 0.25}
    theirs = library.VectorQuantize(
        dim, size, decay=0.95, eps=1e-5, rotation_trick=False, threshold_ema_dead_code=0, **options
    )
    codebook = torch.randn(size, dim)
    theirs._codebook.embed.data.copy_(codebook)
    theirs._codebook.embed_avg.data.copy_(codebook)
    theirs._codebook.cluster_size.fill_(1.0)
    ours = started(codebook, ema_decay=0.95, **options)
    for _ in range(5):
        latents = torch.randn(3, 40, dim)
        mine, yours = latents.clone().requires_grad_(), latents.clone().requires_grad_()
        output = ours(mine)
        quantized, codes, loss = theirs.train()(yours)
        assert torch.equal(output.codes[..., 0], codes)
        assert torch.allclose(output.quantized, quantized, atol=1e-6)
        assert torch.allclose(output.loss, loss.sum(), atol=1e-6)
        (output.quantized.square().sum() + output.loss).backward()
        (quantized.square().sum() + loss.sum()).backward()
        assert torch.allclose(mine.grad, yours.grad, atol=1e-5)
        assert torch.allclose(ours.ema_counts, theirs._codebook.cluster_size[0], atol=1e-5)
        assert torch.allclose(ours.ema_sums, theirs._codebook.embed_avg[0], atol=1e-5)
        assert torch.allclose(ours.codebook, theirs._codebook.embed[0], atol=1e-5)
    assert not torch.allclose(ours.codebook, codebook, atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_no_update_and_no_randomness_outside_train_mode(kind):
    quantizer = KINDS[kind]()
    quantizer(torch.randn(50, 4))
    before, state = snapshot(quantizer.eval()), torch.get_rng_state()
    latents = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    output = quantizer(latents)
    assert_unchanged(quantizer, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(output.codes, quantizer.encode(latents)) and output.revived == 0
    assert torch.allclose(output.quantized, quantizer.decode(output.codes), atol=1e-6)


@pytest.mark.parametrize("is_started", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_encode_changes_nothing_in_train_mode(kind, is_started):
    quantizer = KINDS[kind]()
    if is_started:
        quantizer(torch.randn(100, 4))
    quantizer.train()
    before, state = snapshot(quantizer), torch.get_rng_state()
    quantizer.decode(quantizer.encode(torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(1))))
    assert_unchanged(quantizer, before)
    assert torch.equal(torch.get_rng_state(), state)


# Start and revival


def test_kmeans_start_finds_clusters():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    latents = (centres[:, None] + 0.1 * torch.randn(4, 50, 2)).reshape(-1, 2)
    quantizer = VectorQuantizer(8, 2)
    error = (quantizer(latents).quantized - latents).square().sum(1)
    assert bool(quantizer.initialized)
    assert error.max() < 0.5, "every cluster has a code"
    distances = torch.cdist(quantizer.codebook, centres).min(1).values
    assert distances.max() < 0.5, "and every code is in a cluster"


def test_start_happens_once():
    quantizer = started(torch.tensor([[0.0], [1.0]]), ema_decay=0.99)
    quantizer(torch.full((10, 1), 100.0))
    assert quantizer.codebook[0].abs() < 1e-3


@pytest.mark.parametrize("count", [1, 5])
def test_start_with_fewer_vectors_than_codes(count):
    quantizer = VectorQuantizer(16, 4)
    latents = torch.randn(count, 4)
    with pytest.warns(UserWarning, match=f"from {count} latents for 16 codes"):
        output = quantizer(latents)
    assert torch.isfinite(quantizer.codebook).all() and bool(quantizer.initialized)
    assert torch.allclose(output.quantized, latents, atol=1e-5), "each vector equals a code"
    for _ in range(3):
        output = quantizer(torch.randn(count, 4))
    assert torch.isfinite(quantizer.codebook).all() and torch.isfinite(output.loss)


def test_a_revived_code_survives_the_next_update():
    codebook = torch.tensor([[0.0, 0.0], [1.0, 1.0], [50.0, 50.0]])
    counts = torch.tensor([10.0, 10.0, 0.001])  # the last code is unused
    quantizer = started(codebook, counts, ema_decay=0.9, revival_threshold=0.1)
    latents = torch.tensor([[0.1, -0.1], [0.9, 1.2], [-0.2, 0.1], [1.1, 0.8]])
    output = quantizer(latents)
    assert output.dead == 1 and output.revived == 1
    revived = quantizer.codebook[2].clone()
    assert (latents == revived).all(1).any(), "one of the batch's latents"
    mean = (0.9 * 10 + 0.1 * 2) * 2 / 3 + 0.9 * 0.001 / 3  # of the counts just before the revival
    assert quantizer.ema_counts[2].item() == pytest.approx(mean, rel=1e-5)
    assert torch.allclose(quantizer.ema_sums[2], revived * mean)
    # The next batch is far from the revived code, which an update from a stale sum would move.
    assert quantizer(torch.tensor([[-3.0, -3.0], [-3.0, -3.1]])).revived == 0
    assert torch.allclose(quantizer.codebook[2], revived, atol=1e-4)


def test_revival_can_be_off():
    quantizer = started(torch.tensor([[0.0], [1.0], [50.0]]), torch.tensor([1.0, 1.0, 1e-6]), revival_threshold=0.0)
    output = quantizer(torch.rand(20, 1))
    assert output.revived == 0 and output.dead == 1, "dead codes are still counted"


def test_revival_spreads_codes_that_start_at_one_point():
    quantizer = started(torch.zeros(32, 2) + 0.001 * torch.randn(32, 2), ema_decay=0.8, revival_threshold=0.1)
    for _ in range(60):
        output = quantizer(torch.rand(256, 2))
    assert len(output.codes.unique()) >= 30


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("is_started", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_latents_that_are_not_finite_raise_and_change_nothing(kind, is_started, bad):
    quantizer = KINDS[kind]()
    if is_started:
        quantizer(torch.randn(50, 4))
    before = snapshot(quantizer)
    latents = torch.randn(50, 4)
    latents[17, 3] = bad
    with pytest.raises(NotFiniteError, match="latents with NaN or infinity.*codebook was"):
        quantizer(latents)
    assert_unchanged(quantizer, before)


# Residual depths


def test_residual_rows_add_up():
    quantizer = ResidualQuantizer([16, 8, 4], 6)
    quantizer(torch.randn(200, 6))
    quantizer.eval()
    latents = torch.randn(5, 7, 6)
    codes = quantizer.encode(latents)
    assert codes.shape == (5, 7, 3) and quantizer.codebook_sizes == [16, 8, 4]
    residual, total = latents, torch.zeros_like(latents)
    for depth, size in enumerate((16, 8, 4)):
        codebook = quantizer.depths[depth].codebook
        assert codebook.shape == (size, 6)
        expected = torch.cdist(residual.reshape(-1, 6), codebook).argmin(1).view(5, 7)
        assert torch.equal(codes[..., depth], expected)
        total = total + F.embedding(codes[..., depth], codebook)
        residual = latents - total
    assert torch.allclose(quantizer.decode(codes), total, atol=1e-6)
    output = quantizer(latents)
    assert torch.equal(output.codes, codes) and torch.allclose(output.quantized, total, atol=1e-6)


def test_each_depth_learns_from_the_residual_of_the_one_before():
    first, second = torch.tensor([[0.0], [10.0]]), torch.tensor([[-1.0], [1.0]])
    quantizer = residual_of(first, second, ema_decay=0.5)
    quantizer(torch.tensor([[0.8], [9.4]]))
    assert torch.allclose(quantizer.depths[0].ema_sums, torch.tensor([[0.4], [5 + 4.7]]))
    assert torch.allclose(quantizer.depths[1].ema_sums, torch.tensor([[-0.5 - 0.3], [0.5 + 0.4]]))


def test_each_depth_is_refitted_to_the_residual_of_the_one_before():
    first, second = torch.tensor([[0.0], [10.0]]), torch.tensor([[-1.0], [1.0]])
    quantizer = residual_of(first, second)
    quantizer.refit([torch.tensor([[0.8], [9.4]]), torch.tensor([[10.2]])])
    assert torch.allclose(quantizer.depths[0].codebook, torch.tensor([[0.8], [9.8]]))
    assert torch.allclose(quantizer.depths[1].codebook, torch.tensor([[-0.2], [0.4]])), "of residuals 0, -0.4 and 0.4"


def test_a_shared_codebook_is_refitted_to_the_residuals_of_all_depths():
    quantizer = ResidualQuantizer([2, 2], 1, shared_codebook=True)
    quantizer.depths[0] = started(torch.tensor([[0.0], [10.0]]))
    quantizer.refit([torch.tensor([[1.0], [12.0]])])  # leaves residuals 1 and 2, both nearest to the first code
    assert torch.allclose(quantizer.depths[0].codebook, torch.tensor([[(1 + 1 + 2) / 3], [12.0]]))


@pytest.mark.parametrize("kind", ["residual", "grouped"])
def test_dead_and_revived_codes_of_all_codebooks_count(kind):
    parts = [
        started(torch.randn(3, 2), torch.tensor(counts), revival_threshold=0.5)
        for counts in ([1.0, 1.0, 1e-4], [1.0, 1e-4, 1e-4])
    ]
    quantizer = ResidualQuantizer([3, 3], 2) if kind == "residual" else GroupedQuantizer(parts)
    if kind == "residual":
        quantizer.depths = torch.nn.ModuleList(parts)
    output = quantizer(torch.randn(1, quantizer.code_dim))
    assert (output.dead, output.revived) == (3, 3)


def test_depths_that_share_a_codebook():
    quantizer = build_quantizer("residual", [16, 16, 16], 4, {"shared_codebook": True})
    assert list(snapshot(quantizer)) == [
        f"depths.0.{name}" for name in ("codebook", "ema_sums", "ema_counts", "initialized")
    ]
    quantizer(torch.randn(200, 4))
    latents = torch.randn(7, 4)
    codes, codebook = quantizer.encode(latents), quantizer.depths[0].codebook
    assert codes.shape == (7, 3) and quantizer.codebook_size == 16 and quantizer.shares_codebook
    assert torch.allclose(quantizer.decode(codes), codebook[codes].sum(1), atol=1e-6)
    with pytest.raises(ValueError, match=r"codebook_sizes \[16, 8\]: depths that share a codebook have one size"):
        build_quantizer("residual", [16, 8], 4, {"shared_codebook": True})


def test_one_depth_is_a_vector_quantizer():
    torch.manual_seed(1)
    single = VectorQuantizer(16, 4)
    torch.manual_seed(1)
    stack = ResidualQuantizer([16], 4)
    for seed in range(3):
        latents = torch.randn(64, 4, generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(seed)
        one = single(latents)
        torch.manual_seed(seed)
        other = stack(latents)
        assert torch.equal(one.codes, other.codes) and torch.equal(one.loss, other.loss)
    assert torch.equal(single.codebook, stack.depths[0].codebook)


# Groups


def test_groups_are_independent_quantizers():
    quantizer = build_quantizer("grouped", [16, 8], 6)
    latents = torch.randn(100, 6)
    quantizer(latents)
    parts = [VectorQuantizer(16, 3), VectorQuantizer(8, 3)]
    for part, original in zip(parts, quantizer.quantizers, strict=True):
        part.load_state_dict(original.state_dict())
    output = quantizer(latents)
    outputs = [part(latents[:, 3 * number : 3 * number + 3]) for number, part in enumerate(parts)]
    assert torch.equal(output.codes, torch.cat([part.codes for part in outputs], dim=-1))
    assert torch.equal(output.quantized, torch.cat([part.quantized for part in outputs], dim=-1))
    assert torch.allclose(output.loss, (outputs[0].loss + outputs[1].loss) / 2)
    for part, original in zip(parts, quantizer.quantizers, strict=True):
        assert_unchanged(original, part.state_dict())
    codes = quantizer.encode(latents.view(10, 10, 6))
    assert codes.shape == (10, 10, 2) and quantizer.codebook_sizes == [16, 8] and quantizer.codes_per_position == 2
    rows = [part.codebook[codes[..., index]] for index, part in enumerate(quantizer.quantizers)]
    assert torch.equal(quantizer.decode(codes), torch.cat(rows, dim=-1))
    with pytest.raises(ValueError, match="code_dim 7 cannot be split into the 2 equal parts"):
        build_quantizer("grouped", [16, 8], 7)


def test_groups_of_depths():
    quantizer = build_quantizer("grouped_residual", [16, 8, 12, 8], 6)
    latents = torch.randn(100, 6)
    quantizer(latents)
    codes = quantizer.encode(latents)
    first, second = quantizer.quantizers
    assert quantizer.codebook_sizes == [16, 8, 12, 8] and quantizer.codebook_size == 44
    assert torch.equal(codes, torch.cat([first.encode(latents[:, :3]), second.encode(latents[:, 3:])], dim=1))
    assert torch.equal(
        quantizer.decode(codes), torch.cat([first.decode(codes[:, :2]), second.decode(codes[:, 2:])], dim=1)
    )
    with pytest.raises(ValueError, match="cannot be split evenly among num_groups 3"):
        build_quantizer("grouped_residual", [16, 8, 12, 8], 6, {"num_groups": 3})
    assert len(build_quantizer("grouped_residual", [16, 8], 6, {"num_groups": 1}).quantizers) == 1


def test_groups_of_different_widths():
    quantizer = GroupedQuantizer([VectorQuantizer(8, 1), FiniteScalarQuantizer([3, 3])])
    output = quantizer(torch.randn(50, 3))
    assert quantizer.code_dim == 3 and output.codes.shape == (50, 2) and quantizer.codebook_sizes == [8, 9]


# Directions, grids and bits


def test_cosine_codes_are_the_nearest_directions():
    quantizer = VectorQuantizer(16, 5, normalize=True)
    latents = torch.randn(300, 5) * torch.rand(300, 1) * 10
    quantizer(latents)
    output = quantizer.eval()(latents)
    cosines = F.normalize(latents, dim=1) @ F.normalize(quantizer.codebook, dim=1).T
    assert torch.equal(output.codes[:, 0], cosines.argmax(1))
    assert torch.allclose(output.quantized.norm(dim=1), torch.ones(300), atol=1e-5)
    assert torch.equal(quantizer.encode(latents * 3), output.codes)
    kind = build_quantizer("cosine", [16], 5)
    kind(latents)
    assert torch.allclose(kind.inner.code_vectors()[0].norm(dim=1), torch.ones(16), atol=1e-5)
    assert kind.inner.code_dim == 8, "without codebook_dim"


@pytest.mark.parametrize("levels", [(8, 6, 5), (3, 3), (2,), (7, 5, 5, 5, 5)])
def test_finite_scalar_codes_are_a_whole_grid(levels):
    """Every code can be reached, decodes to a distinct point in [-1, 1], and is the code of that point."""
    quantizer = FiniteScalarQuantizer(levels)
    every = torch.arange(math.prod(levels))[:, None]
    points = quantizer.decode(every)
    assert points.abs().max() == 1 and len(points.unique(dim=0)) == len(every)
    half = torch.tensor([(size - 1) / 2 for size in levels])
    even = torch.tensor([0.0 if size % 2 else 0.5 for size in levels])
    middle = torch.tensor([size // 2 for size in levels])
    before_tanh = torch.atanh(((points * middle + even) / half / 1.001).clamp(-0.9999, 0.9999))
    shift = torch.where(torch.tensor(levels) > 2, torch.atanh((even / half / 1.001).clamp(max=0.9)), 0.0)
    latents = before_tanh - shift
    assert torch.equal(quantizer.encode(latents), every)
    extreme = quantizer.decode(quantizer.encode(torch.tensor([[-50.0] * len(levels), [50.0] * len(levels)])))
    assert torch.equal(extreme[0], points.amin(0)) and torch.equal(extreme[1], points.amax(0))


def test_finite_scalar_bounds_are_those_of_the_paper():
    """Appendix A.1 of Mentzer et al. 2023, for one element of 8 levels and one of 5."""
    latents = torch.linspace(-4, 4, 50)[:, None].expand(-1, 2)
    even = 3.5 * 1.001 * torch.tanh(latents[:, 0] + math.atanh(0.5 / (3.5 * 1.001))) - 0.5
    odd = 2 * 1.001 * torch.tanh(latents[:, 1])
    assert torch.allclose(FiniteScalarQuantizer([8, 5]).bound(latents), torch.stack([even, odd], 1), atol=1e-6)


def test_extreme_latents_have_the_outermost_of_very_many_levels():
    """Where the widened range reaches beyond it."""
    assert FiniteScalarQuantizer([3001]).encode(torch.tensor([[-50.0], [50.0]])).flatten().tolist() == [0, 3000]


def test_levels_are_those_of_the_paper():
    """Its table 1, and the nearest of it for sizes between."""
    assert {bits: levels_for(2**bits) for bits in (8, 10, 12, 14, 16)} == {
        8: (8, 6, 5), 10: (8, 5, 5, 5), 12: (7, 5, 5, 5, 5), 14: (8, 8, 8, 6, 5), 16: (8, 8, 8, 5, 5, 5)
    }  # fmt: skip
    assert levels_for(480) == (8, 6, 5) and levels_for(500) == (8, 5, 5, 5), "sqrt(240 x 1000) is 490"


def test_finite_scalar_gradient_is_that_of_the_tanh():
    quantizer, latents = FiniteScalarQuantizer([5, 4]), torch.randn(10, 2, requires_grad=True)
    output = quantizer(latents)
    output.quantized.sum().backward()
    twin = latents.detach().clone().requires_grad_()
    (quantizer.bound(twin) / 2).sum().backward()
    assert torch.allclose(latents.grad, twin.grad) and output.loss == 0


def test_invalid_levels():
    with pytest.raises(ValueError, match=r"levels=\[4, 1\]: each element of a latent needs at least 2"):
        FiniteScalarQuantizer([4, 1])


def test_numbers_of_bits():
    for bits in (0, 31):
        with pytest.raises(ValueError, match=f"num_bits={bits}: choose 1 to 30"):
            LookupFreeQuantizer(bits)
    assert [LookupFreeQuantizer(bits).codebook_sizes for bits in (1, 30)] == [[2], [2**30]]


@pytest.mark.parametrize("spherical, corner", [(False, 1.0), (True, 0.5)])
def test_bits_are_signs(spherical, corner):
    quantizer = LookupFreeQuantizer(4, spherical=spherical)
    output = quantizer.eval()(torch.tensor([[0.3, -2.0, 0.1, -0.1], [-1.0, 1.0, -1.0, 5.0]]))
    assert output.codes.flatten().tolist() == [0b0101, 0b1010]
    assert torch.allclose(output.quantized, corner * torch.tensor([[1.0, -1, 1, -1], [-1, 1, -1, 1]]))
    assert torch.allclose(quantizer.decode(output.codes), output.quantized)


@pytest.mark.parametrize("bits", [1, 5, 12])
@pytest.mark.parametrize("spherical", [False, True])
def test_entropy_loss_by_brute_force(spherical, bits):
    """Over all codes, each with probability proportional to exp(-|z - c|^2 / temperature)."""
    quantizer = LookupFreeQuantizer(bits, spherical=spherical, entropy_temperature=0.7, diversity=0.8)
    vectors = quantizer.prepare(torch.randn(30, bits))
    corners = quantizer.decode(torch.arange(2**bits)[:, None])
    p = torch.softmax(-torch.cdist(vectors, corners).square() / 0.7, dim=1)
    single, together = -(p * p.log()).sum(1).mean(), -(p.mean(0) * p.mean(0).log()).sum()
    assert quantizer.entropy_loss(vectors).item() == pytest.approx((single - 0.8 * together).item() / bits, abs=1e-5)


def test_beyond_sixteen_bits_groups_count_as_independent():
    quantizer = LookupFreeQuantizer(18)
    vectors = torch.randn(40, 18)
    first, last = (
        LookupFreeQuantizer(16).entropy_loss(vectors[:, :16]),
        LookupFreeQuantizer(2).entropy_loss(vectors[:, 16:]),
    )
    assert quantizer.entropy_loss(vectors).item() == pytest.approx((16 * first + 2 * last).item() / 18, abs=1e-5)


@pytest.mark.parametrize("entropy_temperature", [1.0, 0.01])
def test_constant_bits_have_a_finite_gradient(entropy_temperature):
    """The logarithm has an infinite slope at a probability of 0, which must not become NaN."""
    quantizer = LookupFreeQuantizer(10, entropy_temperature=entropy_temperature).train()
    latents = torch.randn(1024, 10)
    latents[:, 0] = 50.0
    latents.requires_grad_()
    quantizer(latents).loss.backward()
    assert torch.isfinite(latents.grad).all() and latents.grad.abs().sum() > 0


def test_two_levels_are_the_sign():
    quantizer, latents = FiniteScalarQuantizer([2, 2]), torch.randn(200, 2)
    assert torch.equal(quantizer.encode(latents)[:, 0], (latents > 0).long() @ torch.tensor([1, 2]))


# Options of codebooks


def test_gradient_learned_codebook_follows_its_loss():
    codebook = torch.tensor([[0.0, 0.0], [10.0, 10.0]])
    quantizer = started(codebook, learning="gradient", commitment_weight=0.5)
    latents = torch.tensor([[1.0, 2.0], [9.0, 10.0]], requires_grad=True)
    loss = quantizer(latents).loss
    assert loss.item() == pytest.approx(1.5 * (1 + 4 + 1 + 0) / 4)
    loss.backward()
    assert torch.allclose(quantizer.codebook.grad, 2 / 4 * torch.tensor([[-1.0, -2.0], [1.0, 0.0]]))
    assert torch.allclose(latents.grad, 0.5 * 2 / 4 * torch.tensor([[1.0, 2.0], [-1.0, 0.0]]))
    assert torch.equal(quantizer.codebook, codebook), "only an optimizer changes it"


@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_rotation_keeps_the_angle_between_gradient_and_code(scale):
    latents = (scale * torch.randn(20, 6)).requires_grad_()
    quantized = torch.randn(20, 6)
    output = rotate(latents, quantized)
    assert torch.allclose(output, quantized, atol=1e-5)
    gradient = torch.randn(20, 6)
    output.backward(gradient)
    before = F.cosine_similarity(gradient, quantized)
    assert torch.allclose(F.cosine_similarity(latents.grad, latents.detach()), before, atol=1e-4)
    ratio = quantized.norm(dim=1) / latents.detach().norm(dim=1)
    assert torch.allclose(latents.grad.norm(dim=1), ratio * gradient.norm(dim=1), rtol=1e-4)


def test_rotation_of_pictures_is_that_of_each_latent():
    latents, quantized, gradient = torch.randn(3, 2, 3, 4, 6)
    pictures, rows = latents.clone().requires_grad_(), latents.reshape(-1, 6).requires_grad_()
    rotate(pictures, quantized).backward(gradient)
    rotate(rows, quantized.reshape(-1, 6)).backward(gradient.reshape(-1, 6))
    assert torch.allclose(pictures.grad.reshape(-1, 6), rows.grad)


def test_a_second_derivative_of_the_straight_through_loss_is_refused():
    """Its backward takes the difference for a constant, so that the second derivative would be wrong."""
    latents = torch.randn(5, 3, requires_grad=True)
    loss = straight_through_with_loss(latents, torch.randn(5, 3))[1].square()
    (first,) = torch.autograd.grad(loss, latents, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("kind", ["ema", "residual"])
def test_rotation_is_an_option(kind):
    quantizer = build_quantizer(kind, [16], 4, {"rotation_trick": True})
    quantizer(torch.randn(100, 4))
    quantizer.freeze()
    latents, weights = torch.randn(50, 4, requires_grad=True), torch.randn(50, 4)
    output = quantizer(latents)
    assert torch.allclose(output.quantized, quantizer.decode(output.codes), atol=1e-5)
    (output.quantized * weights).sum().backward()
    assert not torch.allclose(latents.grad, weights, atol=1e-3)


def test_a_latent_at_zero_has_its_code_under_rotation():
    quantizer = started(torch.tensor([[1.0, 2.0], [9.0, 9.0]]), rotation_trick=True).eval()
    latents = torch.tensor([[0.0, 0.0], [2e-8, 0.0], [1.0, 1.0]], requires_grad=True)
    output = quantizer(latents)
    assert torch.equal(output.quantized, torch.tensor([[1.0, 2.0]]).expand(3, 2))
    output.quantized.sum().backward()
    assert torch.isfinite(latents.grad).all() and torch.equal(latents.grad[0], torch.ones(2))


def test_a_gradient_codebook_of_directions_survives_a_revival():
    quantizer = VectorQuantizer(64, 8, learning="gradient", normalize=True, revival_threshold=0.9, ema_decay=0.5)
    revived = 0
    for _ in range(5):
        output = quantizer(torch.randn(128, 8, requires_grad=True))
        (output.quantized.sum() + output.loss).backward()
        revived += output.revived
    assert revived > 0 and torch.isfinite(quantizer.codebook.grad).all()


def test_unused_normalised_codes_keep_unit_length():
    quantizer = started(torch.eye(4), normalize=True, ema_decay=0.0)
    quantizer(torch.tensor([[1.0, 0.1, 0.0, 0.0]]))
    assert torch.allclose(quantizer.rows().norm(dim=1), torch.ones(4), atol=1e-5)


def test_an_ema_step_of_directions_by_hand():
    quantizer = started(torch.eye(2), normalize=True, ema_decay=0.5)
    quantizer(torch.tensor([[8.0, 6.0]]))  # the direction (0.8, 0.6), nearest to the first code
    assert torch.allclose(quantizer.codebook, torch.tensor([[0.5 + 0.4, 0.3], [0.0, 1.0]]), atol=1e-4)


def test_codebooks_in_half_precision_do_not_learn():
    quantizer = VectorQuantizer(16, 4, kmeans_start=False).bfloat16()
    with pytest.raises(TypeError, match="bfloat16 cannot learn: keep float32"):
        quantizer.train()(torch.randn(20, 4))
    assert quantizer.eval()(torch.randn(20, 4)).codes.shape == (20, 1)


def test_codes_drawn_by_temperature_have_the_right_shares():
    codebook = torch.tensor([[0.0], [1.0], [3.0]])
    quantizer = started(codebook, temperature=2.0, commitment_weight=0.0).train()
    quantizer.freeze()
    codes = quantizer(torch.full((20000, 1), 0.8)).codes
    expected = torch.softmax(-(0.8 - codebook[:, 0]).square() / 2.0, dim=0)
    assert torch.allclose(torch.bincount(codes.flatten()) / 20000, expected, atol=0.015)
    assert quantizer.eval()(torch.full((5, 1), 0.8)).codes.unique().tolist() == [1], "outside training the nearest"


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_quantizer_learns_nothing_and_passes_gradients(kind):
    quantizer = KINDS[kind]()
    quantizer(torch.randn(100, 4))
    quantizer.freeze()
    buffers = {name: tensor.clone() for name, tensor in quantizer.named_buffers()}
    latents = torch.randn(60, 4, requires_grad=True)
    output = quantizer.train()(latents)
    (output.quantized.square().sum() + output.loss).backward()
    assert latents.grad.abs().sum() > 0 and output.revived == 0
    for name, tensor in quantizer.named_buffers():
        assert torch.equal(tensor, buffers[name]), name
    for module in quantizer.modules():
        if isinstance(module, VectorQuantizer) and module.learning == "gradient":
            assert module.codebook.grad is None or not module.codebook.grad.any()
    quantizer.freeze(False)
    assert quantizer.learns


def test_without_kmeans_the_start_is_random():
    quantizer = VectorQuantizer(16, 4, kmeans_start=False)
    assert bool(quantizer.initialized) and quantizer.codebook.std() > 0.5
    before = quantizer.codebook.clone()
    quantizer(torch.randn(64, 4))
    assert not torch.equal(quantizer.codebook, before) and torch.isfinite(quantizer.codebook).all()


def test_one_process_alone_needs_no_process_group():
    tensor = torch.arange(3.0)
    all_reduce(tensor)
    assert broadcast(tensor) is tensor and tensor.tolist() == [0, 1, 2]


def test_sampled_rows_repeat_only_where_there_are_too_few():
    vectors = torch.arange(5.0)[:, None]
    assert sample_rows(vectors, 5).sort(0).values.equal(vectors)
    assert len(sample_rows(vectors, 3).unique()) == 3 and len(sample_rows(vectors, 6)) == 6


# Registry, and custom quantizers


def test_every_kind_is_tested():
    assert {kind for kind, _, _ in SETTINGS.values()} == ALL_KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(9,), (3, 5), (2, 3, 4), (2, 3, 4, 5)])
def test_any_number_of_leading_dimensions(kind, shape):
    quantizer = KINDS[kind]()
    quantizer(torch.randn(100, 4))
    latents = torch.randn(*shape, 4)
    output = quantizer.eval()(latents)
    depths = quantizer.codes_per_position
    assert output.quantized.shape == latents.shape and output.codes.shape == (*shape, depths)
    assert output.quantized.dtype == torch.float32 and output.codes.dtype == torch.int64 and output.loss.shape == ()
    flat = quantizer(latents.reshape(-1, 4))
    assert torch.equal(output.codes.reshape(-1, depths), flat.codes)
    sizes = torch.tensor(quantizer.codebook_sizes)
    assert (output.codes >= 0).all() and (output.codes < sizes).all()


@pytest.mark.parametrize("kind", KINDS)
def test_codes_do_not_depend_on_autocast(kind):
    quantizer = KINDS[kind]()
    quantizer(torch.randn(200, 4))
    quantizer.eval()
    latents = torch.randn(500, 4)
    codes, quantized = quantizer.encode(latents), quantizer.decode(quantizer.encode(latents))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(latents), codes) and torch.equal(quantizer(latents).codes, codes)
        assert torch.equal(quantizer.decode(codes), quantized)
    if kind in PROJECTED:  # in float32 outside of autocast, too
        down = F.linear(latents, quantizer.into.weight, quantizer.into.bias)
        assert torch.equal(quantizer.down(latents), down)
        assert torch.equal(quantizer.up(down), F.linear(down, quantizer.out_of.weight, quantizer.out_of.bias))


def test_unknown_names_and_options():
    with pytest.raises(ValueError, match="unknown quantizer 'vq': choose one of ema, gradient, cosine, residual"):
        build_quantizer("vq", [8], 4)
    with pytest.raises(ValueError, match=r"codebook_sizes \[8, 8\]: quantizer 'ema' has one codebook"):
        build_quantizer("ema", [8, 8], 4)
    for size in (1, 24):
        with pytest.raises(ValueError, match=rf"\[{size}\]: quantizer 'lookup_free' needs a power of two"):
            build_quantizer("lookup_free", [size], 4)
    with pytest.raises(ValueError, match="no quantizer option 'ema_decay': 'finite_scalar' takes levels"):
        build_quantizer("finite_scalar", [240], 4, {"ema_decay": 0.9})


@pytest.mark.parametrize("settings, message", [
    ({"codebook_decay": 1.5}, r"--codebook_decay 1.5 must be in \[0, 1\)"),
    ({"code_temperature": -1.0}, "--code_temperature -1.0 must be at least 0"),
    ({"commitment_weight": -1.0}, "--commitment_weight -1.0 must be at least 0"),
    ({"codebook_dim": 0, "quantizer": "cosine"}, "--codebook_dim 0 must be at least 1"),
    ({"codebook_decay": 0.9, "quantizer": "finite_scalar"}, "no quantizer option --codebook_decay: 'finite_scalar'"),
    ({"entropy_weight": 1.0, "quantizer": "ema"}, "'ema' takes --commitment_weight, --codebook_decay, .*--code_temp"),
    ({"quantizer": "vq"}, "--quantizer 'vq': choose ema, gradient"),
])  # fmt: skip
def test_the_command_names_its_own_options(settings, message):
    """Some have other names than the quantizers' arguments, which may be those of other options."""
    with pytest.raises(ValueError, match=message):
        ImageTokenizerOptions(**settings)


def test_what_a_custom_quantizer_must_write():
    quantizer, latents = Quantizer(), torch.zeros(1, 4)
    for member in (lambda: quantizer.codebook_sizes, lambda: quantizer.codes_per_position,
                   lambda: quantizer(latents), lambda: quantizer.encode(latents),
                   lambda: quantizer.decode(latents.long())):  # fmt: skip
        with pytest.raises(NotImplementedError):
            member()
    assert quantizer.code_vectors() is None and quantizer.prepare(latents.double()).dtype == torch.float32
    output = QuantizerOutput(latents, latents.long(), latents.sum())
    assert output.dead == output.revived == 0 and not (quantizer.frozen or quantizer.shares_codebook)


def test_a_custom_quantizer():
    class Thirds(Quantizer):
        """Each latent's first number, in thirds of [0, 1)."""

        def __init__(self, code_dim: int) -> None:
            super().__init__()
            self.code_dim = code_dim
            self.scale = torch.nn.Linear(code_dim, code_dim, bias=False)

        @property
        def codebook_sizes(self) -> list[int]:
            return [3]

        def encode(self, latents: Tensor) -> Tensor:
            return (latents[..., :1].sigmoid() * 3).long().clamp(max=2)

        def decode(self, codes: Tensor, absent: Tensor | None = None) -> Tensor:
            return codes.expand(*codes.shape[:-1], self.code_dim).float()

        def forward(self, latents: Tensor) -> QuantizerOutput:
            codes, scaled = self.encode(latents), self.scale(latents)
            return QuantizerOutput(scaled + (self.decode(codes) - scaled).detach(), codes, latents.new_zeros(()))

    register_quantizer("thirds", lambda sizes, code_dim: Thirds(code_dim))
    try:
        tokenizer = VQVAE(VQVAEConfig(image_size=16, hidden_sizes=[8, 8], codebook_sizes=[3], quantizer="thirds"))
        pixel_values = torch.rand(2, 3, 16, 16)
        tokenizer(pixel_values).loss.backward()
        codes = tokenizer.encode(pixel_values)
        assert tokenizer.num_codes == 3 and codes.shape == (2, 4) and codes.max() < 3
        assert tokenizer.code_vectors() is None
        assert tokenizer.decode(codes).shape == (2, 3, 16, 16)
        with pytest.raises(ValueError, match="quantizer 'thirds' is registered already"):
            register_quantizer("thirds", Thirds)
    finally:
        del ALL_KINDS["thirds"]


@pytest.mark.parametrize("kind", KINDS)
def test_code_vectors_add_up_to_what_is_decoded(kind):
    quantizer = KINDS[kind]()
    quantizer.train()(torch.randn(500, 4))
    vectors = quantizer.code_vectors()
    assert vectors is not None
    assert [tuple(table.shape) for table in vectors] == [(size, 4) for size in quantizer.codebook_sizes]
    codes = quantizer.encode(torch.randn(20, 4))
    total = sum(table[codes[:, d]] for d, table in enumerate(vectors))
    rest = quantizer.decode(codes) - total
    # The projection back has a bias, which belongs to no single code.
    assert torch.allclose(rest, rest[:1].expand_as(rest) if kind in PROJECTED else torch.zeros_like(rest), atol=1e-5)


@pytest.mark.parametrize("kind", ["residual", "grouped"])
def test_absent_codes_are_the_mean_of_their_codebook(kind):
    quantizer = KINDS[kind]()
    quantizer(torch.randn(100, 4))
    codes = quantizer.encode(torch.randn(6, 4))
    absent = torch.zeros_like(codes, dtype=torch.bool)
    absent[1, -1] = absent[2] = True
    means = [part.ema_counts / part.ema_counts.sum() @ part.codebook for part in quantizer.quantizers]
    rows = [part.codebook[codes[:, depth]] for depth, part in enumerate(quantizer.quantizers)]
    filled = [torch.where(absent[:, [depth]], means[depth], row) for depth, row in enumerate(rows)]
    expected = torch.cat(filled, dim=-1) if kind == "grouped" else torch.stack(filled).sum(0)
    assert torch.allclose(quantizer.decode(codes, absent), expected, atol=1e-6)


# The codebook's mean, refits, and invalid codes and settings


def test_mean_code_is_weighted_by_use():
    quantizer = started(torch.tensor([[0.0, 4.0], [8.0, 0.0]]), torch.tensor([3.0, 1.0]))
    assert torch.allclose(quantizer.mean_code(), torch.tensor([2.0, 3.0]))
    quantizer.ema_counts.zero_()
    assert torch.allclose(quantizer.mean_code(), torch.tensor([4.0, 2.0]))


def test_refit_moves_codes_that_have_latents():
    quantizer = started(torch.tensor([[1.0], [2.0], [3.0]]))
    quantizer.refit([torch.tensor([[0.5], [1.5], [0.0]]), torch.tensor([[5.0], [4.0], [0.0]])])
    assert quantizer.codebook.flatten().tolist() == [0.5, 2.0, 4.5]
    # The counts keep their total of 3.
    assert quantizer.ema_counts.tolist() == [2, 0, 1] and quantizer.ema_sums.flatten().tolist() == [1, 0, 4.5]


def test_refit_counts_where_nothing_has_been_counted():
    quantizer = started(torch.tensor([[1.0], [2.0]]), counts=0.0)
    quantizer.refit([torch.tensor([[0.0], [5.0], [6.0]])])
    assert quantizer.ema_counts.tolist() == [1, 2] and quantizer.ema_sums.flatten().tolist() == [0, 11]


def test_refit_leaves_the_codebook_without_latents_with_nan_and_when_frozen():
    quantizer = started(torch.randn(8, 4))
    before = snapshot(quantizer)
    quantizer.refit([])
    with pytest.raises(NotFiniteError, match="was not refitted"):
        quantizer.refit([torch.full((3, 4), float("nan"))])
    quantizer.freeze()
    quantizer.refit([torch.randn(50, 4)])
    assert_unchanged(quantizer, before)


@pytest.mark.parametrize("code", [-1, 8])
def test_codes_out_of_range(code):
    quantizer = started(torch.randn(8, 4))
    with pytest.raises(ValueError, match=f"codes from .*{code}.*: this codebook has codes 0 to 7"):
        quantizer.decode(torch.tensor([[0], [code]]).sort(0).values)


EDGES = {
    # name: values that are just allowed, values that are just refused
    **dict.fromkeys(("commitment_weight", "temperature", "epsilon", "entropy_weight", "diversity"), ([0], [-0.01])),
    **dict.fromkeys(("ema_decay", "revival_threshold"), ([0, 0.999], [-0.01, 1])),
    "depth_dropout": ([0, 1], [-0.01, 1.01]),
    "entropy_temperature": ([0.001], [0]),
    "codebook_dim": ([1], [0]),
}


@pytest.mark.parametrize("name", RANGES)
def test_the_edges_of_each_range(name):
    allowed, refused = EDGES[name]
    for value in allowed:
        check_values({name: value})
    for value in refused:
        with pytest.raises(ValueError, match=f"{name}={value} must be "):
            check_values({name: value})


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="codebook_size=1"):
        VectorQuantizer(1, 4)
    with pytest.raises(ValueError, match=r"ema_decay=1.0 must be in \[0, 1\)"):
        VectorQuantizer(8, 4, ema_decay=1.0)
    with pytest.raises(ValueError, match="commitment_weight=-1 must be at least 0"):
        VectorQuantizer(8, 4, commitment_weight=-1)
    with pytest.raises(ValueError, match="revival_threshold=5 must be in"):
        VectorQuantizer(8, 4, revival_threshold=5)
    with pytest.raises(ValueError, match="cannot be split evenly among num_groups 0"):
        build_quantizer("grouped_residual", [8, 8], 4, {"num_groups": 0})
    for size in (0, 1):
        with pytest.raises(ValueError, match=rf"codebook_sizes \[{size}\]: a codebook needs at least 2 codes"):
            build_quantizer("finite_scalar", [size], 4)
