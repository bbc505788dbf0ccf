"""`Autoencoder`: shapes, losses, saving and loading, and what it refuses, for each bottleneck."""

from __future__ import annotations

import json
from inspect import signature
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_tokenizer
from torch.nn import functional as F

from tokenizer_image import Autoencoder, AutoencoderConfig, load_autoencoder, load_tokenizer
from tokenizer_image.bottlenecks.divergence import Gaussian, kl_to_standard
from tokenizer_image.bottlenecks.kinds import BOTTLENECKS
from tokenizer_image.losses.reconstruction import pixel_error
from tokenizer_image.network_configuration import NetworkConfig
from tokenizer_image.preprocessing import Preprocessing
from tokenizer_image.registry import load_image_model
from tokenizer_image.stack import decoder_layers, encoder_layers

CLASSES = ["disc", "square"]
# One of each kind, and what a kind can be varied by.
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"bottleneck": name} for name in BOTTLENECKS},
    "conditional": {"bottleneck": "conditional", "class_names": CLASSES, "condition": "label"},
    "hierarchical": {"bottleneck": "hierarchical", "num_levels": 2},
    "hierarchical, three levels, bottom up": {
        "bottleneck": "hierarchical", "num_levels": 3, "bottleneck_options": {"inference": "bottom_up"},
        "latents": "picture",
    },
    "sparse, l1": {"bottleneck": "sparse", "bottleneck_options": {"penalty": "l1", "weight": 0.01}},
    "gaussian of positions": {
        "bottleneck": "gaussian", "latents": "positions", "bottleneck_options": {"kl_weight": 0.5},
    },
    "plain of a picture, cross-entropy": {"latents": "picture", "reconstruction_loss": "cross_entropy"},
    "mlp": {"network": "mlp", "hidden_sizes": [32, 24]},
    "mlp, tied": {"network": "mlp", "hidden_sizes": [32, 24], "tied_weights": True, "latents": "picture"},
    "mlp, contractive": {"network": "mlp", "hidden_sizes": [32], "bottleneck": "contractive"},
    "mlp, hierarchical": {"network": "mlp", "hidden_sizes": [32], "bottleneck": "hierarchical", "num_levels": 2},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def tiny(**settings: Any) -> Autoencoder:
    """Of pictures of 16x16, with 4x4 positions of 6 numbers; in evaluation mode."""
    torch.manual_seed(0)
    defaults = {"hidden_sizes": [8], "num_res_blocks": 1, "code_dim": 6, "patch_size": 4}
    preprocessing = Preprocessing(image_size=16).to_dict()
    return Autoencoder(AutoencoderConfig(image_size=16, preprocessing=preprocessing, **{**defaults, **settings})).eval()


def pictures(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16) * 2 - 1


def classes_of(model: Autoencoder, count: int = 4) -> torch.Tensor | None:
    return torch.arange(count) % 2 if model.config.class_names else None


@pytest.mark.parametrize("name", VARIANTS)
def test_latents_decode_to_the_reconstruction(name):
    model, batch = tiny(**VARIANTS[name]), pictures()
    classes = classes_of(model)
    levels = model.latents(batch, classes)
    assert [tuple(latents.shape[1:3]) for latents in levels] == model.config.grids()
    assert all(latents.shape[3] == 6 and latents.dtype == torch.float32 for latents in levels)
    decoded = model.decode(levels, classes)
    assert decoded.shape == batch.shape and decoded.abs().max() <= 1
    assert torch.equal(decoded, model.reconstruct(batch, classes))
    if "hierarchical" not in name and "k_sparse" not in name:  # whose figures need samples; which keeps alpha k
        output = model(batch, classes)
        assert torch.allclose(decoded, output.reconstruction.clamp(-1, 1), atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_saving_and_loading_is_exact(name, tmp_path):
    model, batch = tiny(**VARIANTS[name]), pictures()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "tessera_autoencoder"
    for loaded in (load_autoencoder(tmp_path), load_image_model(tmp_path)):
        assert isinstance(loaded, Autoencoder) and not loaded.training
        classes = classes_of(model)
        for one, other in zip(model.latents(batch, classes), loaded.latents(batch, classes), strict=True):
            assert torch.equal(one, other)
        assert torch.equal(model.reconstruct(batch, classes), loaded.reconstruct(batch, classes))
        settings = [one.config.to_dict() | {"_name_or_path": ""} for one in (loaded, model)]
        assert settings[0] == settings[1]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_loss_falls_on_eight_pictures(name):
    model = tiny(**VARIANTS[name]).train()
    batch = F.interpolate(torch.rand(8, 3, 2, 2), 16, mode="bilinear") * 2 - 1
    classes = classes_of(model, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = model(batch, classes).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    first, last = sum(losses[:5]), sum(losses[-5:])
    floor = 5 * F.binary_cross_entropy((batch + 1) / 2, (batch + 1) / 2).item() if "cross" in name else 0.0
    assert last - floor < 0.5 * (first - floor), (first / 5, last / 5)


@pytest.mark.parametrize("name", [name for name in VARIANTS if "mlp" not in name and "picture" not in name])
def test_other_sizes(name):
    """A convolutional model with latents of positions takes any size that its downsampling divides; others say why."""
    model, batch = tiny(**VARIANTS[name]), torch.rand(2, 3, 16, 32) * 2 - 1
    if model.config.latents == "positions":
        assert model.reconstruct(batch, classes_of(model, 2)).shape == batch.shape
        with pytest.raises(ValueError, match="not a multiple of the tokenizer's downsampling"):
            model(torch.zeros(1, 3, 15, 15))
    else:
        with pytest.raises(ValueError, match="a model with latents of the whole picture has one size, 16x16"):
            model(batch)
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        model(torch.zeros(1, 1, 16, 16))


def test_figures_are_the_same_each_time_in_evaluation():
    for name in VARIANTS:
        model, batch = tiny(**VARIANTS[name]), pictures()
        before = torch.get_rng_state()
        assert model.measure(batch, classes_of(model)) == model.measure(batch, classes_of(model)), name
        assert torch.equal(before, torch.get_rng_state()), "no random number of training is used"


def test_the_loss_is_the_bound_over_the_number_of_values():
    """Of a VAE with cross-entropy: nats of the picture's values plus the divergence, over 768 values."""
    model, batch = tiny(bottleneck="gaussian", reconstruction_loss="cross_entropy"), pictures()
    output = model(batch)
    probabilities = (output.reconstruction + 1) / 2
    nats = F.binary_cross_entropy(probabilities, (batch + 1) / 2, reduction="sum") / len(batch)
    features = model.encoder(batch).permute(0, 2, 3, 1)
    kl = kl_to_standard(Gaussian.of(features)).sum() / len(batch)
    assert output.loss.item() * 768 == pytest.approx((nats + kl).item(), rel=1e-4)
    assert output.figures["kl"].item() == pytest.approx(kl.item(), rel=1e-5)


def test_reconstruction_losses_by_hand():
    batch, outputs = torch.tensor([[[[1.0, -1.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
    assert pixel_error("squared", batch, outputs).item() == (1 + 4) / 2
    assert pixel_error("absolute", batch, outputs).item() == (1 + 2) / 2
    chance, sure = torch.sigmoid(torch.tensor(0.0)), torch.sigmoid(torch.tensor(1.0))
    wanted = -(chance.log() + (1 - sure).log()) / 2
    assert pixel_error("cross_entropy", batch, outputs).item() == pytest.approx(wanted.item())
    with pytest.raises(ValueError, match="unknown reconstruction loss 'cubed'"):
        pixel_error("cubed", batch, outputs)


def test_noise_is_put_on_the_input_and_not_on_the_target():
    model = tiny(bottleneck="denoising", noise_amount=0.5)
    assert (model.config.input_noise, model.config.noise().amount) == ("gaussian", 0.5)
    batch = pictures()
    assert torch.equal(model.corrupted(batch), batch), "in evaluation, nothing is corrupted"
    model.train()
    torch.manual_seed(1)
    output = model(batch)
    torch.manual_seed(1)
    noisy = model.corrupted(batch)
    assert 0.4 < (noisy - batch).std() < 0.6
    assert torch.allclose(output.reconstruction, model.eval().forward(noisy).reconstruction, atol=1e-6)
    assert output.reconstruction_loss.item() == pytest.approx(F.mse_loss(output.reconstruction, batch).item())


def test_noise_goes_with_every_bottleneck_and_with_the_quantizer():
    for name in VARIANTS:
        model = tiny(**{**VARIANTS[name], "input_noise": "masking", "noise_amount": 0.3}).train()
        assert torch.isfinite(model(pictures(), classes_of(model)).loss), name
    quantized = tiny_tokenizer(input_noise="masking", noise_amount=0.5)
    batch = pictures()
    codes = quantized.encode(batch)
    assert torch.equal(quantized.encode(batch), codes), "encode never corrupts"
    assert not torch.equal(quantized.train()(batch).codes, codes)
    assert tiny_tokenizer().config.input_noise is None


def test_tied_layers_are_the_transposed_ones():
    model = tiny(network="mlp", hidden_sizes=[32, 24], tied_weights=True)
    encoder = [layer for layer in model.encoder.layers if isinstance(layer, torch.nn.Linear)]
    hidden = torch.randn(2, 96)
    wanted = hidden
    biases = [layer.bias for name, layer in model.decoder.layers.named_children() if not name.endswith("_silu")]
    for index, (layer, bias) in enumerate(zip(reversed(encoder), biases, strict=True)):
        wanted = (F.silu(wanted) if index else wanted) @ layer.weight + bias
    assert torch.allclose(model.decoder.layers(hidden), wanted, atol=1e-5)
    decoder_state = [name for name in model.state_dict() if name.startswith("decoder.")]
    assert decoder_state and all(name.endswith("bias") for name in decoder_state), "weights are there once"
    untied = tiny(network="mlp", hidden_sizes=[32, 24])
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in model.parameters()) == sum(
        layer.weight.numel() for layer in encoder
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_sizes": [8, 12, 10], "patch_size": 2},
        {"hidden_sizes": [8, 12], "patch_size": 2, "resampling": "overlapping"},
        {"hidden_sizes": [8, 12], "patch_size": 2, "latents": "picture"},
        {"network": "mlp", "hidden_sizes": [32, 24]},
        {"network": "mlp", "hidden_sizes": [32], "tied_weights": True},
    ],
)
def test_layers_in_a_row_are_the_networks(settings):
    model, batch = tiny(**settings), pictures()
    encoders, decoders = encoder_layers(model.encoder), decoder_layers(model.decoder)
    assert len(encoders) == len(decoders) == model.num_layers
    hidden, inputs = batch, []
    for layer in encoders:
        inputs.append(hidden)
        hidden = layer(hidden)
    assert torch.equal(hidden, model.encoder(batch))
    for layer, read in zip(reversed(decoders), reversed(inputs), strict=True):
        hidden = layer(hidden)
        assert hidden.shape == read.shape, "each reconstructs what its encoder's layer has read"
    assert torch.equal(hidden, model.decoder(model.encoder(batch)))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_layer_learns_alone(number):
    model, batch = tiny(bottleneck="sparse", hidden_sizes=[8, 12], patch_size=2).train(), pictures()
    encoders, decoders = encoder_layers(model.encoder), decoder_layers(model.decoder)
    output = model(batch, layer=number)
    output.loss.backward()
    pair = [*encoders[number].parameters(), *decoders[number].parameters()]
    assert {id(p) for p in model.parameters() if p.grad is not None} == {id(p) for p in pair}
    assert (output.bottleneck_loss > 0) == (number == 2), "the penalty is of the latents"
    with torch.no_grad():
        read = batch
        for before in encoders[:number]:
            read = before(read)
        made = encoders[number](read)
        wanted = F.mse_loss(decoders[number](torch.sigmoid(made) if number == 2 else made), read)
    assert output.reconstruction_loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert output.reconstruction is None


def test_code_dim_decides_whether_it_is_overcomplete():
    """More latents than values are no error: what keeps such a model from the identity is the user's to choose."""
    assert tiny(code_dim=64).latents(pictures())[0][0].numel() > pictures()[0].numel()


def test_samples_decode():
    for name in ("gaussian", "conditional", "hierarchical", "hierarchical, three levels, bottom up"):
        model = tiny(**VARIANTS[name])
        levels = model.sample_latents(4, torch.Generator().manual_seed(0), classes_of(model))
        assert model.decode(levels, classes_of(model)).shape == (4, 3, 16, 16), name
        assert model.decode(levels[:1], classes_of(model)).shape == (4, 3, 16, 16), "from the coarsest level alone"
    with pytest.raises(ValueError, match="no prior to sample from"):
        tiny().sample_latents(1)
    with pytest.raises(ValueError, match="expected at most 1 levels, coarse to fine, of .B, h, w, 6."):
        tiny().decode(torch.zeros(1, 4, 4, 5))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bottleneck": "vae"}, "unknown bottleneck 'vae': choose one of none"),
        ({"latents": "pixels"}, "unknown latents 'pixels': choose one of positions, picture"),
        ({"reconstruction_loss": "cubed"}, "unknown reconstruction_loss 'cubed'"),
        ({"num_levels": 2}, "num_levels=2: bottleneck='none' has one level; choose 'hierarchical'"),
        ({"bottleneck": "hierarchical"}, "num_levels=1: bottleneck='hierarchical' has 2 or 3"),
        ({"tied_weights": True}, "tied_weights=True with network='conv' .*: the layers of the MLP pair alone"),
        (
            {"tied_weights": True, "network": "mlp", "bottleneck": "gaussian"},
            "bottleneck='gaussian': the layers of the MLP pair alone can be tied, around none, sparse",
        ),
        ({"bottleneck": "conditional"}, "class_names=.*needs the classes"),
        ({"class_names": ["a"]}, "class_names=.'a'.: bottleneck='none' has no condition"),
        ({"bottleneck": "conditional", "class_names": ["a"], "condition": "sound"}, "unknown condition 'sound'"),
        ({"noise_amount": 0.2}, "noise_amount=0.2 without input_noise"),
        ({"bottleneck": "hierarchical", "num_levels": 3, "patch_size": 8}, "not a multiple of .* downsampling, 32"),
        ({"bottleneck_options": {"kl_weight": 1.0}}, "no option 'kl_weight' of bottleneck 'none', which takes none"),
    ],
)
def test_settings_that_do_not_fit(settings, words):
    with pytest.raises(ValueError, match=words):
        tiny(**settings)


def test_every_setting_survives_the_config(tmp_path):
    settings = dict(
        bottleneck="conditional", bottleneck_options={"kl_weight": 2.0}, latents="positions", input_noise="masking",
        reconstruction_loss="absolute", class_names=CLASSES, condition="caption", num_levels=1, tied_weights=False,
    )  # fmt: skip
    own = signature(AutoencoderConfig.__init__).parameters.keys() - {"self", "kwargs"}
    assert settings.keys() == own | (own & signature(NetworkConfig.__init__).parameters.keys())
    AutoencoderConfig(**settings).save_pretrained(tmp_path)
    loaded = AutoencoderConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in settings} == settings


def test_folders_of_the_other_kind_are_told(tmp_path):
    tiny(bottleneck="gaussian").save_pretrained(tmp_path / "vae")
    tiny_tokenizer().save_pretrained(tmp_path / "vqvae")
    with pytest.raises(
        ValueError, match="'gaussian', has no codes, .* --bottleneck quantizer, of any --quantizer .ema,"
    ):
        load_tokenizer(tmp_path / "vae")
    with pytest.raises(ValueError, match="vqvae has a VQVAE, not an autoencoder"):
        load_autoencoder(tmp_path / "vqvae")
    with pytest.raises(ValueError, match="there is no image tokenizer folder"):
        load_autoencoder(tmp_path / "nowhere")
    weights = load_file(tmp_path / "vae" / "model.safetensors")
    weights.pop("decoder.from_latents.bias")
    save_file(weights, tmp_path / "vae" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="weights that are not those of its configuration"):
        load_autoencoder(tmp_path / "vae")
