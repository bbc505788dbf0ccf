"""`VQVAE`: pictures to codes and back, layout, saving and loading, fingerprint, configuration."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from dataclasses import fields
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenizer_image import VQVAE, CodeLayout, ImageTokenizer, VQVAEConfig
from tokenizer_image.configuration import PHOTOGRAPH_NETWORK, preset
from tokenizer_image.fingerprint import accepts_fingerprint
from tokenizer_image.layout import build_layout
from tokenizer_image.network_configuration import NetworkConfig
from tokenizer_image.networks import ResidualBlock
from tokenizer_image.preprocessing import Preprocessing
from tokenizer_image.registry import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"hidden_sizes": [8, 16], "num_res_blocks": 1, "code_dim": 4, "quantizer": "residual"}


def tiny(codebook_sizes: tuple[int, ...] = (16, 8), image_size: int = 16, seed: int = 0, **changes) -> VQVAE:
    """16x16 pictures, 2x2 positions of two codes, after one training step."""
    torch.manual_seed(seed)
    settings = {"image_size": image_size, "patch_size": 4, "codebook_sizes": list(codebook_sizes), **SIZES, **changes}
    tokenizer = VQVAE(VQVAEConfig(preprocessing=Preprocessing(image_size=image_size).to_dict(), **settings))
    channels = tokenizer.config.num_channels
    tokenizer.train()(torch.rand(32, channels, image_size, image_size) * 2 - 1)
    return tokenizer.eval()


def pictures(count: int = 5, height: int = 16, width: int | None = None, channels: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, height, width or height, generator=generator) * 2 - 1


def train(tokenizer: VQVAE, pixel_values: Tensor, steps: int) -> list[float]:
    """The reconstruction losses of `steps` steps of Adam on one batch."""
    optimizer = torch.optim.Adam(tokenizer.train().parameters(), 3e-3)
    losses = []
    for _ in range(steps):
        output = tokenizer(pixel_values)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.reconstruction_loss.item())
    assert output.loss.item() == pytest.approx(losses[-1] + output.commitment_loss.item())
    return losses


@pytest.fixture(scope="module")
def tokenizer() -> VQVAE:
    return tiny()


# Codes and pictures


@pytest.mark.parametrize("codebook_sizes, changes", [
    ((16,), {}), ((16, 8), {}), ((8, 4, 2), {}), ((16, 8), {"quantizer": "grouped"})
])  # fmt: skip
def test_decoded_codes_are_the_reconstruction(codebook_sizes, changes):
    tokenizer, pixel_values = tiny(codebook_sizes, **changes), pictures()
    codes = tokenizer.encode(pixel_values)
    assert codes.shape == (5, 4 * len(codebook_sizes)) and codes.dtype == torch.int64
    with torch.no_grad():
        output = tokenizer(pixel_values)
    assert torch.equal(output.codes, codes)
    restored = tokenizer.decode(codes)
    assert restored.shape == pixel_values.shape and restored.dtype == torch.float32
    assert torch.allclose(restored, output.reconstruction.clamp(-1, 1), atol=1e-5)
    assert restored.flatten(1).unique(dim=0).shape[0] == 5, "pictures differ, so do their reconstructions"


def test_decoded_pictures_are_clipped(tokenizer):
    loud = tiny()
    with torch.no_grad():
        loud.decoder.to_pixels.weight.mul_(100)
    restored = loud.decode(loud.encode(pictures()))
    assert restored.min() == -1 and restored.max() == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"quantizer": "ema", "codebook_sizes": (16,)},
        {"quantizer": "gradient", "codebook_sizes": (16,)},
        {"quantizer": "cosine", "codebook_sizes": (16,)},
        {"quantizer": "residual", "codebook_sizes": (16, 16), "quantizer_options": {"shared_codebook": True}},
        {"quantizer": "grouped_residual", "codebook_sizes": (16, 8, 8, 8)},
        {"quantizer": "finite_scalar", "codebook_sizes": (256,)},
        {"quantizer": "lookup_free", "codebook_sizes": (64,)},
        {"quantizer": "binary_spherical", "codebook_sizes": (64,)},
        {"network": "mlp", "hidden_sizes": [64, 32]},
    ],
    ids=lambda settings: settings.get("quantizer", "mlp"),
)
def test_every_kind_learns_eight_pictures_and_is_saved_whole(settings, tmp_path):
    tokenizer, batch = tiny(**settings), pictures(8)
    losses = train(tokenizer, batch, 60)
    assert losses[-1] < 0.9 * losses[0]
    tokenizer.eval()
    codes, layout = tokenizer.encode(batch), tokenizer.layout()
    assert ((codes >= torch.from_numpy(layout.low)) & (codes < torch.from_numpy(layout.high))).all()
    assert layout.high.max() == tokenizer.num_codes == len(tokenizer.code_vectors())
    tokenizer.save_pretrained(tmp_path)
    loaded = VQVAE.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded.encode(batch), codes) and loaded.fingerprint == tokenizer.fingerprint
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))


def test_an_mlp_has_one_size():
    tokenizer = tiny(network="mlp", hidden_sizes=[32])
    assert tokenizer.config.downsampling == 4 and tokenizer.tokens_per_image == 4 * 4 * 2
    with pytest.raises(ValueError, match="32x32: an MLP has one size, 16x16"):
        tokenizer.encode(pictures(1, 32))
    with pytest.raises(ValueError, match="unknown network 'cnn': choose one of conv, mlp"):
        VQVAEConfig(network="cnn")


LEVELS = {"num_levels": 3, "codebook_sizes": (12, 10, 8, 6, 8, 4), "quantizer": ["grouped", "residual", "grouped"]}


def test_levels_lie_coarse_to_fine():
    tokenizer = tiny(image_size=32, hidden_sizes=[8], **LEVELS)
    layout = tokenizer.layout()
    assert tokenizer.config.downsampling == 16 and tokenizer.tokens_per_image == 2 * (4 + 16 + 64) == len(layout)
    assert tokenizer.num_codes == 48 == len(tokenizer.code_vectors())
    expected = ((2, [(0, 12), (12, 22)]), (4, [(22, 30), (30, 36)]), (8, [(36, 44), (44, 48)]))
    for level, (side, bounds) in enumerate(expected):
        mask = layout.level == level
        assert mask.sum() == 2 * side**2 and layout.row[mask].max() == side - 1 and (np.diff(layout.level) >= 0).all()
        for depth, (low, high) in enumerate(bounds):
            places = mask & (layout.depth == depth)
            assert set(layout.low[places]) == {low} and set(layout.high[places]) == {high}
    codes = tokenizer.encode(pictures(3, 32))
    assert ((codes >= torch.from_numpy(layout.low)) & (codes < torch.from_numpy(layout.high))).all()
    other = tokenizer.encode(pictures(2, 16, 48))
    assert other.shape == (2, 2 * (3 + 12 + 48)) and tokenizer.decode(other, (16, 48)).shape == (2, 3, 16, 48)


def test_levels_decode_as_they_are_reconstructed_and_coarse_levels_alone():
    tokenizer = tiny(image_size=32, hidden_sizes=[8], **LEVELS)
    batch = pictures(3, 32)
    codes = tokenizer.encode(batch)
    with torch.no_grad():
        output = tokenizer(batch)
    assert torch.equal(output.codes, codes)
    whole = tokenizer.decode(codes)
    assert torch.allclose(whole, output.reconstruction.clamp(-1, 1), atol=1e-5)
    for count in (8, 40):  # the coarsest level; two levels
        part = tokenizer.decode(codes[:, :count])
        assert part.shape == whole.shape and not torch.allclose(part, whole, atol=1e-3)
    changed = codes.clone()
    changed[:, :8] = torch.where(codes[:, :8] % 12 == 0, codes[:, :8] + 1, codes[:, :8] - 1)
    assert not torch.allclose(tokenizer.decode(changed[:, :8]), tokenizer.decode(codes[:, :8]), atol=1e-4)


def test_every_level_learns():
    tokenizer = tiny(image_size=32, hidden_sizes=[8], **LEVELS).train()
    before = {name: tensor.clone() for name, tensor in tokenizer.state_dict().items()}
    losses = train(tokenizer, pictures(8, 32), 120)
    assert losses[-1] < 0.85 * losses[0]
    still = [n for n, tensor in tokenizer.state_dict().items() if torch.equal(tensor, before[n])]
    assert all(name.endswith("initialized") for name in still), still


def test_level_dropout_decodes_as_decode_does_without_finer_levels():
    """In training, a picture without its finer levels is reconstructed as `decode` does from the coarser codes."""
    tokenizer = tiny(image_size=32, hidden_sizes=[8], level_dropout=0.999999, **LEVELS).train()
    tokenizer.quantizer.freeze()
    for level in tokenizer.coarser:
        level.quantizer.freeze()
    batch = pictures(20, 32)
    codes = tokenizer.encode(batch)
    with torch.no_grad():
        output = tokenizer(batch)
    parts = [tokenizer.decode(codes[:, :count]) for count in (8, 40)]
    reconstruction = output.reconstruction.clamp(-1, 1)
    matches = torch.stack([(reconstruction - part).abs().amax((1, 2, 3)) < 1e-4 for part in parts])
    assert matches.sum(0).tolist() == [1] * 20 and matches.any(1).all(), "each from one level or from two"
    assert torch.equal(output.codes[:, :40], codes[:, :40])  # the finest codes differ: their context has the fillings


def test_level_dropout_is_for_training_and_levels_alone():
    tokenizer = tiny(image_size=32, hidden_sizes=[8], level_dropout=0.9, **LEVELS)
    batch = pictures(4, 32)
    assert torch.equal(tokenizer(batch).reconstruction, tokenizer(batch).reconstruction)
    assert tiny().train()._kept_levels(pictures()) is None
    assert tiny(image_size=32, hidden_sizes=[8], level_dropout=0.0, **LEVELS).train()._kept_levels(batch) is None


def test_refit_fits_every_level():
    """Codes move to the mean of their latents, which depend on the refitted coarser levels."""
    tokenizer = tiny(image_size=32, hidden_sizes=[8], num_levels=3, codebook_sizes=(12, 8, 6), quantizer="ema")
    batch = pictures(48, 32)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))

    def distances() -> list[float]:
        """For each level, the largest distance between a code and the mean of its latents."""
        largest = []

        def quantize(quantizer, latents):
            codes, flat = quantizer.encode(latents), latents.reshape(-1, 4)
            means = [flat[codes.flatten() == code].mean(0) for code in codes.unique()]
            largest.append(float((quantizer.codebook[codes.unique()] - torch.stack(means)).abs().max()))
            return quantizer.decode(codes)

        with torch.no_grad():
            tokenizer._quantize_levels(batch, quantize)
        return largest

    before = distances()
    for _ in range(30):  # iterated as k-means: codes that move get other latents
        tokenizer.refit_codebook(lambda: [batch[:20], batch[20:]])
    assert len(before) == 3 and all(after < 0.2 * d for after, d in zip(distances(), before, strict=True))


@pytest.mark.parametrize("settings, message", [
    ({"num_levels": 4}, "num_levels=4: choose 1, 2 or 3"),
    ({"num_levels": 2, "codebook_sizes": [8, 8, 8]}, "cannot be split evenly among num_levels=2"),
    ({"num_levels": 2, "quantizer": ["ema"]}, "quantizer=.'ema'.: give one name for all num_levels=2"),
    ({"num_levels": 2, "quantizer": ["ema", "emma"]}, "unknown quantizer 'emma'"),
    ({"num_levels": 2, "network": "mlp"}, "network='mlp' has one level"),
    ({"num_levels": 3, "image_size": 24}, "24x24 is not a multiple of the tokenizer's downsampling, 32"),
])  # fmt: skip
def test_invalid_levels(settings, message):
    with pytest.raises(ValueError, match=message):
        VQVAEConfig(**{"codebook_sizes": [8, 8] if settings.get("num_levels") != 3 else [8, 8, 8], **settings})


def test_a_code_decodes_at_its_position():
    """With a decoder whose receptive field is one position, a code changes only the pixels of its position."""
    tokenizer = tiny()
    with torch.no_grad():
        for conv in (tokenizer.decoder.stem, tokenizer.decoder.to_pixels):
            centre = conv.weight[:, :, 1, 1].clone()
            conv.weight.zero_()[:, :, 1, 1] = centre
        for name, parameter in tokenizer.decoder.named_parameters():
            if "conv2" in name:
                parameter.zero_()
    codes, layout = tokenizer.encode(pictures(1)), tokenizer.layout()
    for position in range(len(layout)):
        low, high = int(layout.low[position]), int(layout.high[position])
        others = codes.repeat(high - low, 1)
        others[:, position] = torch.arange(low, high)
        change = (tokenizer.decode(others) - tokenizer.decode(codes)).abs().sum((0, 1))
        changed = (change.reshape(2, 8, 2, 8).sum((1, 3)) > 1e-3).nonzero().tolist()
        assert changed == [[layout.row[position], layout.column[position]]]


def test_encode_changes_nothing_in_train_mode(tokenizer):
    trained = tiny().train()
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    codes = trained.encode(pictures())
    assert torch.equal(trained.encode(pictures()), codes)
    trained.decode(codes)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert trained.training


def test_forward_learns_in_train_mode_only():
    trained = tiny()
    before = trained.quantizer.depths[0].codebook.clone()
    trained(pictures())
    assert torch.equal(trained.quantizer.depths[0].codebook, before)
    trained.train()(pictures())
    assert not torch.equal(trained.quantizer.depths[0].codebook, before)


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_absent_positions_are_the_mean_of_their_codebook(tokenizer, count):
    codes = tokenizer.encode(pictures())
    quantized = torch.empty(5, 2, 2, 4)
    for place in range(4):
        total = torch.zeros(5, 4)
        for depth, quantizer in enumerate(tokenizer.quantizer.quantizers):
            if 2 * place + depth < count:
                total += quantizer.codebook[codes[:, 2 * place + depth] - (0, 16)[depth]]
            else:
                weights = quantizer.ema_counts / quantizer.ema_counts.sum()
                total += (weights[:, None] * quantizer.codebook).sum(0)
        quantized[:, place // 2, place % 2] = total
    with torch.no_grad():
        expected = tokenizer.decoder(quantized.permute(0, 3, 1, 2)).clamp(-1, 1)
    assert torch.allclose(tokenizer.decode(codes[:, :count]), expected, atol=1e-5)


@pytest.mark.parametrize("height, width", [(8, 8), (24, 16), (8, 40)])
def test_other_picture_sizes(tokenizer, height, width):
    pixel_values = pictures(3, height, width)
    codes = tokenizer.encode(pixel_values)
    layout = tokenizer.layout((height, width))
    assert codes.shape == (3, len(layout)) == (3, height * width // 64 * 2)
    assert (codes >= torch.from_numpy(layout.low)).all() and (codes < torch.from_numpy(layout.high)).all()
    restored = tokenizer.decode(codes, (height, width))
    with torch.no_grad():
        expected = tokenizer(pixel_values).reconstruction.clamp(-1, 1)
    assert restored.shape == pixel_values.shape and torch.allclose(restored, expected, atol=1e-5)


def test_grey_pictures():
    tokenizer, pixel_values = tiny((16,), num_channels=1), pictures(channels=1)
    assert tokenizer.decode(tokenizer.encode(pixel_values)).shape == pixel_values.shape


def test_bf16_autocast_is_finite(tokenizer):
    trained = tiny().train()
    with torch.autocast("cpu", torch.bfloat16):
        output = trained(pictures(16))
    output.loss.backward()
    assert torch.isfinite(output.loss) and output.loss.dtype == torch.float32
    assert all(torch.isfinite(parameter.grad).all() for parameter in trained.parameters())
    assert all(quantizer.codebook.dtype == torch.float32 for quantizer in trained.quantizer.quantizers)
    with torch.autocast("cpu", torch.bfloat16):
        codes = tokenizer.encode(pictures(64))
        assert torch.isfinite(tokenizer.decode(codes)).all()
    assert (codes == tokenizer.encode(pictures(64))).float().mean() > 0.9


# Learning


@pytest.mark.parametrize("codebook_sizes, quantizer", [((16,), "residual"), ((16, 16), "residual"),
                                                       ((16, 16), "grouped")])  # fmt: skip
def test_the_loss_falls_on_eight_pictures(codebook_sizes, quantizer):
    pixel_values = torch.nn.functional.interpolate(pictures(8, 4), scale_factor=4)  # 4x4 patches of one colour
    losses = train(tiny(codebook_sizes, quantizer=quantizer), pixel_values, 100)
    assert min(losses[-5:]) < 0.35 * losses[0]


def test_gradients_reach_every_weight():
    tokenizer = tiny().train()
    tokenizer(pictures()).loss.backward()
    for name, parameter in tokenizer.named_parameters():
        # The blocks' second convolutions start at zero, so the first ones learn from the second step on.
        assert parameter.grad is not None and (parameter.grad.abs().sum() > 0 or "conv1" in name), name


def test_a_fresh_start_keeps_the_size_of_signals():
    """transformers' default initialisation, N(0, 0.02), does not; and each residual block starts as the identity."""
    tokenizer = VQVAE(
        VQVAEConfig(image_size=32, hidden_sizes=[64, 128], num_res_blocks=2, code_dim=16, codebook_sizes=[8])
    )
    latents = tokenizer.encoder(pictures(4, 32)).permute(0, 2, 3, 1)
    assert 0.1 < latents.std() < 3
    blocks = [module for module in tokenizer.modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) == 8
    for block in blocks:
        hidden = torch.randn(2, block.conv1.in_channels, 4, 4)
        assert torch.equal(block(hidden), hidden)


@pytest.mark.parametrize("quantizer", ["residual", "grouped"])
def test_refit_lowers_the_quantization_error(quantizer):
    tokenizer = tiny(quantizer=quantizer)
    with torch.no_grad():  # as after averaging: another encoder than the codebooks followed
        for parameter in tokenizer.encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batches = [pictures(64, seed=seed) for seed in range(3)]
    total = float(tokenizer.quantizer.quantizers[0].ema_counts.sum())

    def error() -> float:
        latents = torch.cat([tokenizer.encoder(batch).permute(0, 2, 3, 1) for batch in batches])
        return float((tokenizer.quantizer(latents).quantized - latents).square().mean())

    with torch.no_grad():
        before = error()
        tokenizer.refit_codebook(lambda: iter(batches))
        after = error()
        tokenizer.refit_codebook(lambda: batches)
        assert after < 0.98 * before
        assert error() <= after * (1 + 1e-5)
    quantizer = tokenizer.quantizer.quantizers[0]
    # A training that goes on from here moves the codebook as before: the counts' total is still about a batch's.
    assert float(quantizer.ema_counts.sum()) == pytest.approx(total)
    used = quantizer.ema_counts > 0
    assert torch.allclose(quantizer.ema_sums[used] / quantizer.ema_counts[used, None], quantizer.codebook[used])


# Layout


def table(layout: CodeLayout) -> list[tuple[int, ...]]:
    columns = [getattr(layout, field.name) for field in fields(CodeLayout)]
    assert all(column.dtype == np.int64 and column.shape == (len(layout),) for column in columns)
    assert [field.name for field in fields(CodeLayout)] == ["level", "depth", "row", "column", "low", "high"]
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_layout_of_one_depth():
    tokenizer = tiny((16,))
    assert table(tokenizer.layout()) == [
        (0, 0, 0, 0, 0, 16),
        (0, 0, 0, 1, 0, 16),
        (0, 0, 1, 0, 0, 16),
        (0, 0, 1, 1, 0, 16),
    ]
    assert tokenizer.num_codes == 16 and tokenizer.tokens_per_image == 4


def test_layout_of_two_depths(tokenizer):
    assert table(tokenizer.layout((8, 24))) == [
        (0, 0, 0, 0, 0, 16),
        (0, 1, 0, 0, 16, 24),
        (0, 0, 0, 1, 0, 16),
        (0, 1, 0, 1, 16, 24),
        (0, 0, 0, 2, 0, 16),
        (0, 1, 0, 2, 16, 24),
    ]
    assert tokenizer.num_codes == 24 and tokenizer.tokens_per_image == 8


def test_layout_of_two_levels():
    assert table(build_layout([(1, 1), (1, 2)], [[5], [7, 3]])) == [
        (0, 0, 0, 0, 0, 5),
        (1, 0, 0, 0, 5, 12),
        (1, 1, 0, 0, 12, 15),
        (1, 0, 0, 1, 5, 12),
        (1, 1, 0, 1, 12, 15),
    ]


def test_layout_as_plain_lists(tokenizer):
    layout = tokenizer.layout()
    values = json.loads(json.dumps(layout.to_dict()))
    assert values["low"] == [0, 16] * 4
    assert list(zip(*values.values(), strict=True)) == table(layout)


def test_a_vqvae_is_an_image_tokenizer(tokenizer):
    assert isinstance(tokenizer, ImageTokenizer)
    assert not isinstance(tokenizer.decoder, ImageTokenizer)


# On disk


def test_save_and_load_are_exact(tmp_path):
    tokenizer = tiny()
    tokenizer.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_tokenizer(tmp_path)
    assert not loaded.training
    ours, theirs = tokenizer.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype, name
    assert loaded.fingerprint == tokenizer.fingerprint
    assert torch.equal(loaded.encode(pictures()), tokenizer.encode(pictures()))
    assert torch.equal(loaded.decode(loaded.encode(pictures())), tokenizer.decode(tokenizer.encode(pictures())))
    assert loaded.config.preprocessing == Preprocessing(image_size=16).to_dict()
    # Training resumes without another k-means start.
    torch.manual_seed(0)
    tokenizer.train()(pictures(32))
    torch.manual_seed(0)
    loaded.train()(pictures(32))
    assert torch.equal(loaded.quantizer.depths[1].codebook, tokenizer.quantizer.depths[1].codebook)


def test_fingerprint_follows_what_changes_codes_and_nothing_else(tmp_path):
    tokenizer = tiny()
    fingerprint = tokenizer.fingerprint
    assert re.fullmatch(r"[0-9a-f]{32}", fingerprint) and tiny().fingerprint == fingerprint
    for name in ("a", "b"):
        tokenizer.save_pretrained(tmp_path / name)
        assert load_tokenizer(tmp_path / name).fingerprint == fingerprint
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config |= {"transformers_version": "99.0", "quantizer_options": {"commitment_weight": 0.5}}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path / "a").fingerprint == fingerprint
    assert tokenizer.train().fingerprint == fingerprint
    assert tokenizer.to(memory_format=torch.channels_last).fingerprint == fingerprint
    with torch.no_grad():
        weight = tokenizer.encoder.head.weight.view(-1)
        weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))
    changed = tokenizer.fingerprint
    assert changed != fingerprint
    tokenizer.quantizer.depths[0].codebook[3, 1] += 1e-3
    assert tokenizer.fingerprint not in (changed, fingerprint)


@pytest.mark.parametrize("settings, ignored", [
    ({}, ()),
    ({"quantizer": "gradient", "codebook_sizes": (16,)}, ()),
    ({"quantizer": "cosine", "codebook_sizes": (16,)}, ("quantizer.out_of.",)),
    ({"network": "mlp", "hidden_sizes": [32]}, ()),
    ({"image_size": 32, "num_levels": 2, "codebook_sizes": (8, 8), "quantizer": "cosine"}, ("quantizer.out_of.",)),
])  # fmt: skip
def test_fingerprint_ignores_the_finest_decoder_and_moving_averages(settings, ignored):
    """Each weight and buffer changes it or not, as codes depend on it or not."""
    tokenizer = tiny(**settings)
    fingerprint, unread = tokenizer.fingerprint, set()
    for name, tensor in tokenizer.state_dict().items():
        before = tensor.clone()
        tensor.copy_(~tensor if tensor.dtype == torch.bool else tensor + 1e-3)
        if tokenizer.fingerprint == fingerprint:
            unread.add(name)
        tensor.copy_(before)
    averages = ("ema_counts", "ema_sums", "initialized")
    assert unread == {n for n in tokenizer.state_dict() if n.startswith(("decoder.", *ignored)) or n.endswith(averages)}
    assert any("decoder" in name for name in unread) and tokenizer.fingerprint == fingerprint


def legacy_fingerprint(tokenizer: VQVAE) -> str:
    """As earlier versions computed it: of all weights and buffers."""
    fields = ("image_size", "num_channels", "network", "patch_size", "hidden_sizes", "num_levels", "quantizer",
              "codebook_sizes", "preprocessing")  # fmt: skip
    digest = hashlib.sha256(json.dumps({n: getattr(tokenizer.config, n) for n in fields}, sort_keys=True).encode())
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode() + tensor.float().numpy().tobytes())
    return digest.hexdigest()[:32]


def test_a_legacy_fingerprint_is_accepted(tokenizer):
    legacy = legacy_fingerprint(tokenizer)
    assert legacy != tokenizer.fingerprint
    assert accepts_fingerprint(tokenizer, legacy) and accepts_fingerprint(tokenizer, tokenizer.fingerprint)
    assert not accepts_fingerprint(tiny(seed=1), legacy) and not accepts_fingerprint(tokenizer, "")


def test_fingerprint_follows_the_kind_of_quantizer():
    """The same weights give other codes with another kind."""
    assert tiny((8, 8), quantizer="grouped").config.quantizer == "grouped"
    one, other = tiny((8, 8)), tiny((8, 8))
    other.config.quantizer = "grouped"
    assert one.fingerprint != other.fingerprint


def test_fingerprint_follows_the_number_of_groups():
    """The same weights give other codes with another number of groups."""
    one, other = tiny((8, 8, 8, 8), quantizer="grouped_residual"), tiny((8, 8, 8, 8), quantizer="grouped_residual")
    other.config.quantizer_options = {"num_groups": 4}
    assert one.fingerprint != other.fingerprint


def test_more_codes_than_a_token_cache_can_store():
    with pytest.raises(ValueError, match="68,719,476,736 codes in all are more"):
        VQVAE(VQVAEConfig(quantizer="finite_scalar", quantizer_options={"levels": [64] * 6}, codebook_sizes=[4096]))


@pytest.mark.parametrize("changes", [{"resize": "squash"}, {"background": (0, 0, 0)}])
def test_fingerprint_follows_preprocessing(tokenizer, changes):
    other = tiny()
    other.config.preprocessing = Preprocessing(image_size=16, **changes).to_dict()
    assert other.fingerprint != tokenizer.fingerprint


def config_fields() -> set[str]:
    """Arguments of `VQVAEConfig`, with those that it hands on."""
    classes = (VQVAEConfig, NetworkConfig)
    return {name for each in classes for name in signature(each.__init__).parameters} - {"self", "kwargs"}


def test_config_round_trip(tmp_path):
    settings = dict(
        image_size=24, num_channels=1, patch_size=3, network="conv", hidden_sizes=[4, 5, 6], num_res_blocks=3,
        code_dim=8, num_levels=1, level_dropout=0.2, codebook_sizes=[9, 8], quantizer="grouped", encoder_kernel_size=3,
        resampling="overlapping", input_noise="masking", noise_amount=0.3,
        quantizer_options={"commitment_weight": 0.3},
        preprocessing=Preprocessing(image_size=24, num_channels=1).to_dict(), signal=None, causal=False,
        num_frames=1, frame_patch=1,
    )  # fmt: skip
    assert settings.keys() == config_fields()
    config = VQVAEConfig(**settings)
    config.save_pretrained(tmp_path)
    loaded = VQVAEConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in settings} == settings
    assert loaded.downsampling == 12 and loaded.grids() == [(2, 2)] and loaded.grids((12, 36)) == [(1, 3)]
    defaults = VQVAEConfig()
    defaults.hidden_sizes.append(0)
    assert VQVAEConfig().hidden_sizes != defaults.hidden_sizes


def test_every_config_field_is_read():
    sources = [*ROOT.glob("tokenizer_image/**/*.py"), *ROOT.glob("pipelines/*.py"), *ROOT.glob("scripts/*.py")]
    code = "\n".join(path.read_text() for path in sources)
    for name in config_fields():
        reads = re.findall(rf"config\.{name}\b|self\.{name}\b(?! =)", code)
        assert reads, f"VQVAEConfig.{name} is written and never read"


@pytest.mark.parametrize("size", [28, 32, 64, 128, 256])
def test_presets_fit_their_picture_size(size):
    config = VQVAEConfig(image_size=size, **preset(size))
    positions = config.grids()[0][0] * config.grids()[0][1]
    assert 16 <= positions * len(config.codebook_sizes) <= 1024


@pytest.mark.parametrize("size, codes", [(16, 64), (96, 36), (100, 200), (200, 100), (252, 441), (512, 256)])
def test_presets_keep_codes_per_picture_in_range_at_every_size(size, codes):
    assert VQVAE(VQVAEConfig(image_size=size, **preset(size))).tokens_per_image == codes


@pytest.mark.parametrize("size, codes", [(32, 64), (64, 128), (128, 64), (256, 256), (96, 36), (100, 200), (252, 441)])
def test_photographs_have_presets_of_their_own(size, codes):
    settings = preset(size, photographs=True)
    assert PHOTOGRAPH_NETWORK.items() <= settings.items()
    assert VQVAE(VQVAEConfig(image_size=size, **settings)).tokens_per_image == codes


@pytest.mark.parametrize("patch_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_overlapping_networks_keep_the_grid(patch_size, kernel_size):
    side = 4 * patch_size
    model = VQVAE(VQVAEConfig(
        image_size=side, patch_size=patch_size, hidden_sizes=[8, 16], codebook_sizes=[16], resampling="overlapping",
        encoder_kernel_size=kernel_size,
    )).eval()  # fmt: skip
    batch = pictures(2, side)
    assert model.encode(batch).shape == (2, 4)
    assert model.decode(model.encode(batch)).shape == batch.shape
    if patch_size > 1 and kernel_size == 1:
        # Overlap alone: a position reads pixels beyond its own, and none of those two positions away.
        wide = pictures(1, 2 * side)
        changed = wide.clone()
        changed[..., -patch_size:] = 0
        before, after = model.latents(wide)[0], model.latents(changed)[0]
        assert torch.equal(before[:, :, :2], after[:, :, :2]) and not torch.equal(before[:, :, 3], after[:, :, 3])


def test_frozen_codes_leave_only_the_decoder_to_learn(tokenizer):
    model = copy.deepcopy(tokenizer)
    model.freeze_codes()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    for _ in range(2):
        model.train()
        output = model(pictures(4), codes=model.encode(pictures(2)))
        assert output.reconstruction.shape[0] == 6
        output.loss.backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
    assert changed and all(name.startswith("decoder.") for name in changed)
    assert model.fingerprint == tokenizer.fingerprint


def test_codes_that_are_given_are_decoded_behind_the_reconstructions(tokenizer):
    tokenizer.eval()
    batch, other = pictures(2), pictures(3)
    output = tokenizer(batch, codes=tokenizer.encode(other))
    assert torch.allclose(output.reconstruction[2:].clamp(-1, 1), tokenizer.decode(tokenizer.encode(other)), atol=1e-5)
    assert torch.allclose(output.loss, tokenizer(batch).loss)
    first = next(tokenizer.encoder.parameters())
    assert torch.autograd.grad(output.reconstruction_loss, first)[0].abs().sum() > 0


def test_a_size_without_a_preset_is_refused_with_sizes_that_have_one():
    with pytest.raises(ValueError, match="image_size=116: no preset .* are 112 and 120, or give --patch_size"):
        preset(116)
    for size in (112, 120):
        assert 32 <= VQVAE(VQVAEConfig(image_size=size, **preset(size))).tokens_per_image <= 512


# Bad input


@pytest.mark.parametrize("size", [12, (16, 20), 0, (8, -8)])
def test_sizes_that_the_downsampling_does_not_divide(tokenizer, size):
    with pytest.raises(ValueError, match="not a multiple of the tokenizer's downsampling, 8; choose a multiple of 8"):
        tokenizer.layout(size)
    with pytest.raises(ValueError, match="downsampling, 8"):
        tokenizer.decode(torch.zeros(1, 1, dtype=torch.int64), size)


def test_pictures_of_a_wrong_shape(tokenizer):
    with pytest.raises(ValueError, match="12x16 is not a multiple"):
        tokenizer.encode(pictures(1, 12, 16))
    with pytest.raises(ValueError, match=r"shape \(1, 1, 16, 16\): expected \(B, 3, H, W\)"):
        tokenizer.encode(pictures(1, channels=1))
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        tokenizer.encode(pictures(1)[0])


def test_invalid_config():
    with pytest.raises(ValueError, match="30x30 is not a multiple.*--patch_size"):
        VQVAEConfig(image_size=30, patch_size=4, hidden_sizes=[8, 8])
    with pytest.raises(ValueError, match="each needs at least one entry"):
        VQVAEConfig(codebook_sizes=[])
    with pytest.raises(ValueError, match="unknown quantizer 'product': choose one of .*residual"):
        VQVAEConfig(quantizer="product")
    with pytest.raises(ValueError, match="image_size=30: no preset"):
        preset(30)


def test_invalid_codes(tokenizer):
    codes = tokenizer.encode(pictures(1))
    # Codes of the row: the first depth has 0 to 15, the second 16 to 23.
    for position, wrong, bounds in ((0, 16, "0 to 15"), (0, -1, "0 to 15"), (1, 15, "16 to 23"), (1, 24, "16 to 23"),
                                    (6, 16, "0 to 15")):  # fmt: skip
        bad = codes.clone()
        bad[0, position] = wrong
        with pytest.raises(ValueError, match=f"code {wrong} at place {position} of row 0: .* are {bounds}"):
            tokenizer.decode(bad)
    with pytest.raises(ValueError, match=r"shape \(1, 9\): expected \(B, at most 8\)"):
        tokenizer.decode(torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(ValueError, match="at most 8"):
        tokenizer.decode(codes[0])


@pytest.mark.parametrize("change, words", [("pop", "missing keys: quantizer"), ("add", "unexpected keys: more")])
def test_missing_and_unexpected_weights(tmp_path, tokenizer, change, words):
    tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if change == "pop":
        weights.pop("quantizer.depths.0.codebook")
    else:
        weights["more"] = torch.zeros(1)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"not those of its configuration .{words}"):
        load_tokenizer(tmp_path)


def test_folders_that_are_no_tokenizer(tmp_path, tokenizer):
    remedy = "give the --output_dir of scripts/train_tokenizer.py"
    with pytest.raises(ValueError, match=f"no image tokenizer folder .*nowhere: {remedy}"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=f"is not an image tokenizer.*{remedy}"):
        load_tokenizer(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="other is not an image tokenizer"):
        load_tokenizer(tmp_path / "other")
    tokenizer.config.save_pretrained(tmp_path / "unfinished")
    with pytest.raises(ValueError, match="unfinished is not an image tokenizer.*no weights"):
        load_tokenizer(tmp_path / "unfinished")


def test_load_the_tokenizer_of_a_model_folder(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "model" / "image_tokenizer")
    assert load_tokenizer(tmp_path / "model").fingerprint == tokenizer.fingerprint
