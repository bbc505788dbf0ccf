"""What may stand between encoder and decoder in a quantizer's place: each against a hand computation or a library."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.func import jacrev, vmap

from tokenizer_image.bottlenecks import (
    ConditionalBottleneck,
    ContractiveBottleneck,
    Encoded,
    GaussianBottleneck,
    InputNoise,
    KLSchedule,
    KSparseBottleneck,
    PlainBottleneck,
    SparseBottleneck,
    build_bottleneck,
    register_bottleneck,
)
from tokenizer_image.bottlenecks.contractive import estimated_jacobian, perceptron_jacobian
from tokenizer_image.bottlenecks.divergence import Gaussian, kl_between, kl_to_standard
from tokenizer_image.bottlenecks.hierarchical import HierarchicalBottleneck, combined
from tokenizer_image.bottlenecks.interface import Bottleneck, BottleneckOutput, hoyer_sparsity, noise_like
from tokenizer_image.bottlenecks.k_sparse import keep_largest
from tokenizer_image.bottlenecks.kinds import BOTTLENECKS
from tokenizer_image.bottlenecks.sparse import bernoulli_kl
from tokenizer_image.hierarchy import level_networks
from tokenizer_image.networks import Encoder, NetworkShape, perceptron


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def encoded(features: torch.Tensor, **settings: object) -> Encoded:
    """Features as a bottleneck reads them, of pictures that do not matter."""
    return Encoded(features, torch.zeros(len(features), 3, 8, 8), **settings)


# ---- plain and sparse


def test_a_plain_bottleneck_changes_nothing():
    features = torch.randn(2, 3, 3, 4)
    output = PlainBottleneck(4)(encoded(features))
    assert output.latents is features and output.loss == 0 and output.figures == {}
    assert PlainBottleneck(4).encode(features)[0] is features


def test_the_rate_penalty_is_the_divergence_of_two_coins():
    rates = torch.tensor([0.05, 0.2, 0.9])
    wanted = kl_divergence(Bernoulli(torch.tensor(0.05)), Bernoulli(rates))
    assert torch.allclose(bernoulli_kl(0.05, rates), wanted, atol=1e-6)
    assert torch.isfinite(bernoulli_kl(0.05, torch.tensor([0.0, 1.0]))).all(), "units that are always off, or on"


def test_sparse_rates_are_of_the_batch_and_count_once_a_position():
    features = torch.randn(4, 2, 3, 5)
    bottleneck = SparseBottleneck(5, rate=0.1, weight=2.0)
    output = bottleneck(encoded(features))
    rates = torch.sigmoid(features).mean(dim=(0, 1, 2))
    wanted = 2.0 * 2 * 3 * kl_divergence(Bernoulli(torch.tensor(0.1)), Bernoulli(rates)).sum()
    assert output.loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert output.figures["active_rate"].item() == pytest.approx(rates.mean().item())
    assert torch.equal(output.latents, torch.sigmoid(features))


def test_the_l1_penalty_by_hand():
    features = torch.tensor([[[[1.0, -2.0]]], [[[0.0, 4.0]]]])
    output = SparseBottleneck(2, penalty="l1", weight=0.5)(encoded(features))
    assert output.loss.item() == 0.5 * (3 + 4) / 2 and torch.equal(output.latents, features)


def test_sparsity_of_hoyer():
    one, all_equal = torch.zeros(1, 1, 1, 4), torch.ones(1, 1, 1, 4)
    one[..., 2] = -3
    assert hoyer_sparsity(one).item() == pytest.approx(1) and hoyer_sparsity(all_equal).item() == pytest.approx(0)
    assert hoyer_sparsity(torch.tensor([[[[3.0, 4.0]]]])).item() == pytest.approx((2**0.5 - 7 / 5) / (2**0.5 - 1))
    assert hoyer_sparsity(torch.zeros(1, 1, 1, 4)).isfinite() and hoyer_sparsity(torch.ones(2, 1, 1, 1)) == 0


def test_k_sparse_by_hand():
    features = torch.tensor([[[[3.0, -5.0, 1.0, 2.0]]], [[[-1.0, -2.0, -3.0, -4.0]]]], requires_grad=True)
    bottleneck = KSparseBottleneck(4, k=1, alpha=2.0)
    output = bottleneck(encoded(features))
    assert output.latents.tolist() == [[[[3, 0, 0, 0]]], [[[-1, 0, 0, 0]]]], "the largest, not the largest in size"
    assert bottleneck.encode(features)[0].tolist() == [[[[3, 0, 0, 2]]], [[[-1, -2, 0, 0]]]], "alpha k at encoding"
    output.latents.sum().backward()
    assert features.grad.tolist() == [[[[1, 0, 0, 0]]], [[[1, 0, 0, 0]]]]


def test_k_sparse_keeps_exactly_k_of_equals_and_at_most_all():
    assert keep_largest(torch.ones(3, 5), 2).sum(dim=1).tolist() == [2, 2, 2]
    features = torch.randn(2, 2, 2, 4)
    assert torch.equal(KSparseBottleneck(4, k=3, alpha=9.0).encode(features)[0], features)


# ---- contractive


@pytest.mark.parametrize("sizes", [[6, 5, 4], [6, 7, 5, 3]])
def test_the_jacobian_of_a_perceptron_is_exact(sizes):
    layers, inputs = perceptron(sizes), torch.randn(3, sizes[0])
    jacobians = vmap(jacrev(layers))(inputs)
    assert torch.allclose(perceptron_jacobian(layers, inputs), jacobians.square().sum(dim=(1, 2)), rtol=1e-5)


def test_the_exact_penalty_teaches_what_autograd_teaches():
    layers, inputs = perceptron([6, 7, 5, 3]), torch.randn(3, 6)
    loss = perceptron_jacobian(layers, inputs).mean()
    found = torch.autograd.grad(loss, [layers.first.weight, layers.inner1.weight, layers.inner1.bias])
    wanted_loss = vmap(jacrev(layers))(inputs).square().sum(dim=(1, 2)).mean()
    wanted = torch.autograd.grad(wanted_loss, [layers.first.weight, layers.inner1.weight, layers.inner1.bias])
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_the_estimated_jacobian_of_convolutions_converges():
    encoder = Encoder(NetworkShape(1, 2, [4, 4], 1), 2, kernel_size=3)
    pictures = torch.randn(2, 1, 8, 8)
    wanted = vmap(jacrev(lambda one: encoder(one[None])[0]))(pictures).flatten(1).square().sum(dim=1)
    inputs = pictures.requires_grad_()
    found = estimated_jacobian(encoder(inputs), inputs, probes=400)
    assert torch.allclose(found, wanted, rtol=0.1)
    fixed = [estimated_jacobian(encoder(inputs), inputs, probes=2, training=False) for _ in range(2)]
    assert torch.equal(*fixed) and not fixed[0].requires_grad


def test_the_estimate_is_exact_for_orthogonal_latents():
    """v^T J of signs has |J|^2 where the rows of J are orthogonal, whatever the signs: here a scaled identity."""
    pictures = torch.randn(2, 3, 4, 4, requires_grad=True)
    assert estimated_jacobian(3 * pictures, pictures, probes=1).tolist() == pytest.approx([9 * 48] * 2)


def test_the_contractive_loss_has_a_gradient_to_the_encoder():
    layers = perceptron([192, 8, 4])
    bottleneck = ContractiveBottleneck(4, weight=0.5)
    pictures = torch.randn(2, 3, 8, 8)
    features = layers(pictures.flatten(1))[:, None, None]
    output = bottleneck(Encoded(features, pictures, layers))
    assert output.loss.item() == pytest.approx(0.5 * output.figures["jacobian"].item())
    output.loss.backward()
    assert layers.first.weight.grad.abs().sum() > 0 and output.latents is features


# ---- denoising


def test_noises_change_the_share_that_they_should():
    pictures = torch.full((4, 3, 32, 32), 0.5)
    masked = InputNoise("masking", 0.25)(pictures)
    assert set(masked.unique().tolist()) == {0.0, 0.5}
    assert (masked == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(masked[:, 0], masked[:, 2]), "a pixel is masked in all channels"
    salted = InputNoise("salt_and_pepper", 0.2)(pictures)
    shares = [(salted == value).float().mean().item() for value in (-1.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.1, 0.8, 0.1], abs=0.02)
    difference = InputNoise("gaussian", 0.3)(pictures) - pictures
    assert difference.std().item() == pytest.approx(0.3, abs=0.01) and abs(difference.mean().item()) < 0.02
    assert torch.equal(InputNoise("masking", 0.0)(pictures), pictures)


def test_hidden_values_have_a_range_of_their_own():
    hidden = 10 * torch.randn(8, 16, 4, 4)
    salted = InputNoise("salt_and_pepper", 0.5)(hidden, is_picture=False)
    changed = salted[salted != hidden]
    assert set(changed.tolist()) == {hidden.min().item(), hidden.max().item()}
    noise = InputNoise("gaussian", 0.3)(hidden, is_picture=False) - hidden
    assert noise.std().item() == pytest.approx(0.3 * hidden.std().item(), rel=0.1)


@pytest.mark.parametrize(
    ("kind", "amount", "words"),
    [
        (None, 0.2, "noise_amount=0.2 without input_noise: choose gaussian, masking, salt_and_pepper"),
        ("snow", None, "unknown input_noise 'snow': choose one of gaussian"),
        ("masking", 1.5, "noise_amount=1.5 of input_noise='masking' must be in .0, 1.: a share"),
        ("gaussian", -0.1, "noise_amount=-0.1 of input_noise='gaussian' must be at least 0"),
    ],
)
def test_noises_that_cannot_be(kind, amount, words):
    with pytest.raises(ValueError, match=words):
        InputNoise.of(kind, amount)


# ---- variational


def gaussians(*shape: int) -> Gaussian:
    return Gaussian(torch.randn(shape), torch.randn(shape))


def normal(gaussian: Gaussian) -> Normal:
    return Normal(gaussian.mean, gaussian.deviation)


def test_divergences_are_those_of_torch():
    one, other = gaussians(2, 3, 3, 4), gaussians(2, 3, 3, 4)
    standard = Normal(torch.zeros(()), torch.ones(()))
    assert torch.allclose(kl_to_standard(one), kl_divergence(normal(one), standard), atol=1e-5)
    assert torch.allclose(kl_between(one, other), kl_divergence(normal(one), normal(other)), atol=1e-4)
    values = torch.randn(2, 3, 3, 4)
    shift = 0.5 * math.log(2 * math.pi)
    assert torch.allclose(one.log_density(values) - shift, normal(one).log_prob(values), atol=1e-4)


def test_the_product_of_two_gaussians():
    one, other = gaussians(2, 1, 1, 3), gaussians(2, 1, 1, 3)
    both, places = combined(one, other), torch.linspace(-3, 3, 7).view(7, 1, 1, 1, 1)
    product = normal(one).log_prob(places) + normal(other).log_prob(places)
    ratio = product - normal(both).log_prob(places)
    assert torch.allclose(ratio, ratio[:1].expand_as(ratio), atol=1e-3), "the same but for a constant"


def test_a_gaussian_bottleneck_samples_in_training_alone():
    features = torch.randn(64, 1, 1, 10)
    bottleneck = GaussianBottleneck(5, KLSchedule(weight=3.0))
    means, log_variances = features.chunk(2, dim=-1)
    output = bottleneck(encoded(features))
    assert output.latents.shape == means.shape and not torch.equal(output.latents, means)
    scaled = (output.latents - means) / (0.5 * log_variances).exp()
    assert scaled.std().item() == pytest.approx(1, abs=0.15)
    kl = kl_to_standard(Gaussian(means, log_variances)).sum(dim=(1, 2, 3)).mean()
    assert output.figures["kl"].item() == pytest.approx(kl.item(), rel=1e-5)
    assert output.loss.item() == pytest.approx(3 * kl.item(), rel=1e-5)
    assert torch.equal(bottleneck.eval()(encoded(features)).latents, means)
    assert torch.equal(bottleneck.encode(features)[0], means)


def test_a_gradient_passes_through_the_sample():
    features = torch.randn(2, 1, 1, 6, requires_grad=True)
    output = GaussianBottleneck(3)(encoded(features))
    output.latents.sum().backward()
    assert (features.grad[..., :3] == 1).all() and (features.grad[..., 3:] != 0).all()


def test_the_warm_up_and_the_capacity_by_hand():
    kl = torch.tensor(8.0)
    warm = KLSchedule(weight=4.0, warmup=0.5)
    assert [warm.loss(kl, share).item() for share in (0.0, 0.25, 0.5, 1.0)] == [0, 16, 32, 32]
    capped = KLSchedule(weight=2.0, capacity=10.0, capacity_share=0.5)
    assert [capped.capacity_at(share) for share in (0.0, 0.25, 0.5, 1.0)] == [0, 5, 10, 10]
    assert [capped.loss(kl, share).item() for share in (0.0, 0.25, 1.0)] == [16, 6, 4], (
        "2 |8 - 0|, 2 |8 - 5|, 2 |8 - 10|"
    )
    assert KLSchedule(weight=2.0).loss(kl, 0.0).item() == 16
    features = torch.randn(2, 1, 1, 6)
    output = GaussianBottleneck(3, capped)(encoded(features, share=0.25))
    assert output.figures["capacity"] == 5
    with pytest.raises(ValueError, match=r"kl_warmup=0.1 and capacity=5: .* give one"):
        KLSchedule(warmup=0.1, capacity=5)


def test_samples_of_the_prior():
    bottleneck = GaussianBottleneck(6)
    stream = torch.Generator().manual_seed(3)
    (latents,) = bottleneck.sample(2000, (1, 1), stream, temperature=0.5)
    assert latents.shape == (2000, 1, 1, 6) and latents.std().item() == pytest.approx(0.5, abs=0.02)
    again = bottleneck.sample(2000, (1, 1), torch.Generator().manual_seed(3), temperature=0.5)[0]
    assert torch.equal(latents, again)
    with pytest.raises(ValueError, match="no prior to sample from: those of --bottleneck gaussian, conditional and"):
        PlainBottleneck(6).sample(1, (1, 1))


# ---- conditional


def test_the_condition_reaches_encoder_and_decoder():
    bottleneck = ConditionalBottleneck(3, num_classes=2)
    features = torch.randn(1, 2, 2, bottleneck.encoder_channels).expand(4, -1, -1, -1)
    classes = torch.tensor([0, 1, -1, 0])
    (means,) = bottleneck.encode(features, classes)
    assert torch.equal(means[0], means[3]), "one class, one posterior"
    assert not torch.allclose(means[0], means[1]) and not torch.allclose(means[0], means[2])
    read = bottleneck.decoder_input([means], classes)
    assert read.shape == (4, 2, 2, bottleneck.decoder_channels) and torch.equal(read[..., :3], means)
    assert torch.equal(read[1, 0, 1, 3:], bottleneck.embedding.weight[1])
    assert torch.equal(read[2, 0, 1, 3:], bottleneck.embedding.weight[2]), "not known: an embedding of its own"
    unknown = bottleneck.decoder_input([means], None)
    assert torch.equal(unknown[0, 0, 0, 3:], bottleneck.embedding.weight[2])
    output = bottleneck(encoded(features, classes=classes))
    assert output.latents.shape == read.shape


@pytest.mark.parametrize("classes", [[0, 2], [-2, 0], [0]])
def test_classes_out_of_range(classes):
    bottleneck = ConditionalBottleneck(3, num_classes=2)
    with pytest.raises(ValueError, match="expected one each, from 0 to 1, or -1"):
        bottleneck.decoder_input([torch.zeros(2, 1, 1, 3)], torch.tensor(classes))


# ---- hierarchical


def a_hierarchy(inference: str, levels: int = 2, scale: int = 2) -> HierarchicalBottleneck:
    read, count = (3 if inference == "bottom_up" else 5), levels - 1
    return HierarchicalBottleneck(
        3, 5, level_networks(read, 5, 1, count, scale, up=True), level_networks(3, 5, 1, count, scale, up=False),
        inference=inference, scale=scale,
    )  # fmt: skip


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("inference", ["top_down", "bottom_up"])
def test_the_levels_of_a_hierarchy(inference, levels, scale):
    bottleneck, features = a_hierarchy(inference, levels, scale), torch.randn(2, 4, 8, 5)
    output = bottleneck(encoded(features))
    assert output.latents.shape == (2, 4, 8, 3)
    shapes = [(4 // scale**up, 8 // scale**up) for up in reversed(range(levels))]
    found = bottleneck.encode(features)
    assert [tuple(latents.shape[1:3]) for latents in found] == shapes
    drawn = bottleneck.sample(2, (4, 8), torch.Generator().manual_seed(0))
    assert [tuple(latents.shape[1:3]) for latents in drawn] == shapes
    parts = sum(output.figures[f"kl_level{level}"] for level in range(levels))
    assert output.figures["kl"].item() == pytest.approx(parts.item(), rel=1e-5)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in bottleneck.parameters())


def test_top_down_divergences_by_torch():
    """Two levels, from the bottleneck's own networks, with the divergences and the product of `torch.distributions`."""
    bottleneck, features = a_hierarchy("top_down", scale=1).eval(), torch.randn(2, 1, 1, 5)

    def last(module, values):
        return module(values.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    top = Gaussian.of(bottleneck.heads[1](last(bottleneck.ups[0], features)))
    coarse = top.at(noise_like(top.mean, False))
    prior = Gaussian.of(bottleneck.priors[0](last(bottleneck.downs[0], coarse)))
    seen = Gaussian.of(bottleneck.heads[0](features))
    precision = 1 / seen.deviation**2 + 1 / prior.deviation**2
    mean = (seen.mean / seen.deviation**2 + prior.mean / prior.deviation**2) / precision
    posterior = Normal(mean, precision**-0.5)
    wanted = [
        kl_divergence(normal(top), Normal(0.0, 1.0)).sum(dim=(1, 2, 3)).mean(),
        kl_divergence(posterior, normal(prior)).sum(dim=(1, 2, 3)).mean(),
    ]
    figures = bottleneck(encoded(features)).figures
    assert [figures[f"kl_level{level}"].item() for level in range(2)] == pytest.approx(
        [value.item() for value in wanted], rel=1e-4
    )


def test_bottom_up_estimates_the_divergence_of_the_joint():
    """The mean of many estimates is KL(q(z1, z2 | x) || p(z1, z2)), here against numerical integration over z1 and z2
    of one number each."""
    bottleneck = HierarchicalBottleneck(
        1, 2, level_networks(1, 2, 1, 1, 1, up=True), level_networks(1, 2, 1, 1, 1, up=False), "bottom_up", scale=1
    )
    feature = torch.randn(1, 1, 1, 2)
    with torch.no_grad():
        estimate = bottleneck(encoded(feature.expand(40_000, -1, -1, -1))).figures["kl"].item()
        places = torch.linspace(-8, 8, 801)
        fine, coarse = Gaussian.of(bottleneck.heads[0](feature)), places.view(1, -1)
        q1 = normal(fine).log_prob(places.view(-1, 1, 1, 1)).view(-1, 1)
        hidden = bottleneck.ups[0](places.view(-1, 1, 1, 1)).permute(0, 2, 3, 1)
        up = normal(Gaussian.of(bottleneck.heads[1](hidden)))
        q2 = Normal(up.mean.view(-1, 1), up.stddev.view(-1, 1)).log_prob(coarse)
        prior = normal(bottleneck.prior(0, places.view(-1, 1, 1, 1)))
        p1 = Normal(prior.mean.view(1, -1), prior.stddev.view(1, -1)).log_prob(places.view(-1, 1))
        p2 = Normal(0.0, 1.0).log_prob(coarse)
        wanted = ((q1 + q2).exp() * (q1 + q2 - p1 - p2)).sum() * (places[1] - places[0]) ** 2
    assert estimate == pytest.approx(wanted.item(), rel=0.05)


def test_coarse_levels_alone_are_completed_by_the_prior():
    bottleneck, features = a_hierarchy("top_down", 3).eval(), torch.randn(2, 4, 4, 5)
    levels = bottleneck.encode(features)
    assert torch.equal(bottleneck.decoder_input(levels), levels[-1])
    middle = bottleneck.prior(0, levels[0]).mean
    assert torch.equal(bottleneck.decoder_input(levels[:1]), bottleneck.prior(1, middle).mean)


# ---- the registry


def test_unknown_names_and_options():
    with pytest.raises(ValueError, match="unknown bottleneck 'nonesuch': choose one of none, sparse"):
        build_bottleneck("nonesuch", 4)
    with pytest.raises(ValueError, match="no option 'k' of bottleneck 'sparse', which takes penalty, rate, weight"):
        build_bottleneck("sparse", 4, {"k": 3})
    with pytest.raises(ValueError, match="rate=1.0 must be above 0 and below 1"):
        build_bottleneck("sparse", 4, {"rate": 1.0})
    with pytest.raises(ValueError, match="penalty=l2 must be one of kl, l1"):
        build_bottleneck("sparse", 4, {"penalty": "l2"})
    with pytest.raises(ValueError, match="k=5 of code_dim=4 latents cannot be kept"):
        build_bottleneck("k_sparse", 4, {"k": 5})
    with pytest.raises(ValueError, match="capacity_share=0.3 without capacity"):
        build_bottleneck("gaussian", 4, {"capacity_share": 0.3})
    with pytest.raises(ValueError, match="needs class_names"):
        build_bottleneck("conditional", 4)


def test_a_bottleneck_of_ones_own(monkeypatch):
    class Halved(Bottleneck):
        def forward(self, encoded: Encoded) -> BottleneckOutput:
            return BottleneckOutput(encoded.features / 2, encoded.features.new_zeros(()))

        def encode(self, features, classes=None):
            return [features / 2]

    monkeypatch.setattr("tokenizer_image.bottlenecks.kinds.BOTTLENECKS", dict(BOTTLENECKS))
    register_bottleneck("halved", lambda code_dim, around: Halved(code_dim))
    assert isinstance(build_bottleneck("halved", 4), nn.Module)
    for taken in ("none", "quantizer"):
        with pytest.raises(ValueError, match=f"bottleneck '{taken}' is registered already"):
            register_bottleneck(taken, lambda code_dim, around: Halved(code_dim))
