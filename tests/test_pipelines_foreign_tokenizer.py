"""An image tokenizer of another class plugs in, from training a language model to drawing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lm.data.token_cache import TokenCache
from pipelines import TextToImagePipeline
from pipelines.caching import sources
from pipelines.options.language_model import LanguageModelOptions
from scripts import train_lm
from tokenizer_image import CodeLayout, ImageTokenizer, load_tokenizer, register_tokenizer
from tokenizer_image.layout import build_layout
from tokenizer_image.registry import TOKENIZERS

PATCH = 8


class GreyPatches:
    """The mean of each 8x8 patch, as the nearest of some grey values: no network, no transformers class."""

    num_codes = 5

    def __init__(self, values: torch.Tensor) -> None:
        self.config = SimpleNamespace(image_size=16, num_channels=3, downsampling=PATCH, preprocessing=None)
        self.values = values

    @property
    def tokens_per_image(self) -> int:
        return len(self.layout())

    @property
    def fingerprint(self) -> str:
        return f"grey {self.values.tolist()}"

    def layout(self, image_size: int | tuple[int, int] | None = None) -> CodeLayout:
        height, width = (16, 16) if image_size is None else np.broadcast_to(image_size, 2)
        if height % PATCH or width % PATCH:
            raise ValueError(f"{height}x{width} is not a multiple of {PATCH}")
        return build_layout([(int(height) // PATCH, int(width) // PATCH)], [[self.num_codes]])

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        means = torch.nn.functional.avg_pool2d(pixel_values.mean(1, keepdim=True), PATCH).flatten(1)
        return (means[..., None] - self.values).abs().argmin(-1)

    def decode(self, codes: torch.Tensor, image_size: int | tuple[int, int] | None = None) -> torch.Tensor:
        layout = self.layout(image_size)
        grey = torch.zeros(len(codes), len(layout)).index_copy_(1, torch.arange(codes.shape[1]), self.values[codes])
        grid = grey.view(len(codes), 1, int(layout.row.max()) + 1, -1)
        return grid.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3).expand(-1, 3, -1, -1)

    def to(self, device: torch.device | str) -> GreyPatches:
        self.values = self.values.to(device)
        return self

    def save_pretrained(self, save_directory: str) -> None:
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        (Path(save_directory) / "config.json").write_text(json.dumps({"model_type": "grey_patches"}))
        save_file({"values": self.values}, Path(save_directory) / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str, /) -> GreyPatches:
        return cls(load_file(Path(folder) / "model.safetensors")["values"])


@pytest.fixture
def tokenizer_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "VALIDATION_PICTURES", 8)
    GreyPatches(torch.linspace(-1, 1, GreyPatches.num_codes)).save_pretrained(str(tmp_path / "tokenizer"))
    yield tmp_path / "tokenizer"
    TOKENIZERS.pop("grey_patches", None)


def test_from_a_token_cache_to_a_picture(tokenizer_folder, tmp_path):
    with pytest.raises(ValueError, match="is not an image tokenizer .*tessera_vqvae.*register the class first"):
        load_tokenizer(tokenizer_folder)
    register_tokenizer("grey_patches", GreyPatches)
    tokenizer = load_tokenizer(tokenizer_folder)
    assert isinstance(tokenizer, GreyPatches) and isinstance(tokenizer, ImageTokenizer)
    train_lm.main(LanguageModelOptions(
        image_tokenizer=str(tokenizer_folder), output_dir=str(tmp_path / "model"), max_examples=32, max_steps=2,
        batch_size=8, architecture="llama", num_layers=1, hidden_size=16, intermediate_size=32, num_heads=2,
        text_vocab_size=300, max_caption_tokens=48, num_workers=0, cpu_threads=1, mixed_precision="no",
    ))  # fmt: skip
    cache = TokenCache(tmp_path / "model" / "token_cache" / "train")
    assert len(cache) == 32 and len(cache.codes(0)) == 4 and cache.fingerprint == tokenizer.fingerprint
    pipe = TextToImagePipeline.from_pretrained(tmp_path / "model").to("cpu")
    output = pipe("a dog", seed=0)
    assert output.images[0].size == (16, 16) and output.codes.shape == (1, 4)
    shown = np.asarray(output.images[0])[::PATCH, ::PATCH, 0].flatten() / 127.5 - 1
    assert np.allclose(shown, tokenizer.values[output.codes[0].cpu()], atol=0.01)


def test_registering_refuses_a_taken_name_and_a_class_that_lacks_members():
    with pytest.raises(ValueError, match="'tessera_vqvae' is registered already: choose another model_type"):
        register_tokenizer("tessera_vqvae", GreyPatches)
    with pytest.raises(TypeError, match="Linear is no image tokenizer: it lacks .*decode, encode, fingerprint"):
        register_tokenizer("linear", torch.nn.Linear)
