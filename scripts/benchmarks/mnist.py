"""Our image tokenizer beside the reference library's own example, at the same bits a picture and training time.

    python scripts/benchmarks/mnist.py --dataset path/to/mnist --output rows.json

The example of vector-quantize-pytorch is a small convolutional autoencoder with 7x7 codes of 8 bits for 28x28 grey
pictures, trained for 1,000 steps of 256. It trains first; then `scripts/train_tokenizer.py` trains for as many seconds,
with as many bits a picture. Both are measured on the whole test split.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import MISSING, dataclass
from typing import Any

from pipelines.options.option import option
from pipelines.options.parser import run_command
from scripts.benchmarks.figures import BenchmarkOptions, row, show, write_rows

SIDE, CODES = 28, 256
TARGET = 0.0025  # test MSE on [0, 1]


@dataclass(kw_only=True)
class Options(BenchmarkOptions):
    """Our tokenizer beside the reference library's example."""

    dataset: str = option(MISSING, "MNIST, or pictures like it, as a folder or a name on the Hub")
    steps: int = option(1000, "steps of the example, with batches of 256", above_zero=True)


def example() -> Any:
    """The library's example: 3x3 convolutions, max-pooling twice, 256 codes of 32 numbers, and a mirrored decoder."""
    from torch import nn
    from vector_quantize_pytorch import VectorQuantize

    def convolution(before: int, after: int) -> Any:
        return nn.Conv2d(before, after, 3, padding=1)

    class Example(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(
                convolution(1, 16), nn.MaxPool2d(2), nn.GELU(), convolution(16, 32), nn.MaxPool2d(2)
            )
            self.quantizer = VectorQuantize(32, CODES, accept_image_fmap=True)
            self.decoder = nn.Sequential(
                nn.Upsample(scale_factor=2), convolution(32, 16), nn.GELU(), nn.Upsample(scale_factor=2),
                convolution(16, 1),
            )  # fmt: skip

        def forward(self, pixel_values: Any) -> tuple[Any, Any]:
            quantized, _, loss = self.quantizer(self.encoder(pixel_values))
            return self.decoder(quantized).clamp(-1, 1), loss

    return Example()


def train_example(pictures: Any, steps: int) -> tuple[Any, float]:
    """The trained example and its seconds, by the example's recipe: L1 plus ten times its commitment, AdamW 3e-4."""
    import numpy as np
    import torch

    from tokenizer_image.pictures.loading import to_pixel_values

    torch.manual_seed(0)
    model, rng = example().train(), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4)
    start = time.perf_counter()
    for _ in range(steps):
        pixel_values = to_pixel_values(pictures.batch(np.sort(rng.choice(len(pictures), 256, replace=False))))
        restored, commitment = model(pixel_values)
        loss = (restored - pixel_values).abs().mean() + 10 * commitment.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), time.perf_counter() - start


def test_error(restore: Any, pictures: Any) -> float:
    """Mean squared error on [0, 1] over all pictures."""
    import torch

    from tokenizer_image.pictures.loading import to_pixel_values

    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(pictures), 500):
            pixel_values = to_pixel_values(pictures.batch(range(start, min(start + 500, len(pictures)))))
            total += float(((restore(pixel_values) - pixel_values) / 2).square().mean((1, 2, 3)).sum())
    return total / len(pictures)


def main(options: Options) -> None:
    """Measure both; a table on the screen, rows in the file."""
    from pipelines.caching.pixel_cache import decode_pictures
    from pipelines.options.image_tokenizer import ImageTokenizerOptions
    from scripts import train_tokenizer
    from tokenizer_image.pictures.loading import Preprocessing, load_pictures
    from tokenizer_image.registry import load_tokenizer

    threads = options.set_threads()
    settings = Preprocessing(image_size=SIDE, num_channels=1)
    train, test = (decode_pictures(load_pictures(options.dataset, split), settings) for split in ("train", "test"))
    model, seconds = train_example(train, options.steps)
    theirs = test_error(lambda pixel_values: model(pixel_values)[0], test)
    print(f"the library's example: {seconds:.0f} s, test MSE {theirs:.5f}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer.main(
            ImageTokenizerOptions(
                dataset=options.dataset, output_dir=folder, image_size=SIDE, num_channels=1, codebook_sizes=[CODES],
                encoder_kernel_size=3, max_minutes=seconds / 60, validate_every=0, sample_every=0, checkpoint_every=0,
                cpu_threads=threads,
            )
        )  # fmt: skip
        tokenizer = load_tokenizer(folder)
        ours = test_error(lambda pixel_values: tokenizer.decode(tokenizer.encode(pixel_values)), test)
    bits = [tokenizer.tokens_per_image * 8, 7 * 7 * 8]
    rows = [
        row("mnist/test_mse", ours, "", TARGET),
        row("mnist/test_mse_library", theirs, ""),
        row("mnist/seconds", seconds, "s"),
        row("mnist/bits_over_library", bits[0] / bits[1], "x", 1.0),
    ]
    show(rows)
    write_rows(options.output, rows)


if __name__ == "__main__":
    run_command(main, Options, __doc__)
