"""An MLP VQ-VAE on MNIST, an exercise of many courses, with our quantizer and with the reference library's.

    python scripts/benchmarks/mnist_mlp.py --dataset path/to/mnist --picture mnist.png

Trains the same network twice with scripts/train_tokenizer.py, once with each vector quantizer, and draws test pictures,
their reconstructions, and the pictures that random codes decode to. The library's layer is plugged in by
`register_quantizer`, as a quantizer of your own would be.
"""

from __future__ import annotations

import tempfile
from dataclasses import MISSING, dataclass
from pathlib import Path

import torch

from pipelines.machine.destinations import check_file
from pipelines.options.option import option
from pipelines.options.parser import run_command
from scripts.benchmarks.figures import BenchmarkOptions, Row, row, show, write_rows
from tokenizer_image import VQVAE, Quantizer, QuantizerOutput, register_quantizer

SIDE, CODES, DIM = 28, 512, 16
KINDS = {"ours": "ema", "library": "vector_quantize_pytorch"}
SHOWN = 12  # pictures in a row of the figure


@dataclass(kw_only=True)
class Options(BenchmarkOptions):
    """An MLP VQ-VAE on MNIST, with two quantizers."""

    dataset: str = option(MISSING, "MNIST, or pictures like it, as a folder or a name on the Hub")
    picture: str = option("mnist_mlp.png", "file for the pictures")
    max_minutes: float = option(2.0, "minutes of training, each", above_zero=True)
    seed: int = option(0, "seed of training and of the random codes")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_file(self.picture, "--picture", "mnist_mlp.png")


class LibraryQuantizer(Quantizer):
    """vector-quantize-pytorch's `VectorQuantize` with its own defaults, behind our interface."""

    def __init__(self, codebook_size: int, code_dim: int) -> None:
        from vector_quantize_pytorch import VectorQuantize

        super().__init__()
        self.code_dim = code_dim
        self.size = codebook_size
        self.layer = VectorQuantize(code_dim, codebook_size)

    @property
    def codebook_sizes(self) -> list[int]:
        return [self.size]

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        quantized, codes, loss = self.layer(latents.float().flatten(0, -2)[None])
        return QuantizerOutput(quantized.reshape(latents.shape), codes.reshape(*latents.shape[:-1], 1), loss.sum())

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        learns = self.layer.training
        _, codes, _ = self.layer.eval()(latents.float().flatten(0, -2)[None])
        self.layer.train(learns)
        return codes.reshape(*latents.shape[:-1], 1)

    def decode(self, codes: torch.Tensor, absent: torch.Tensor | None = None) -> torch.Tensor:
        table = self.layer.codebook
        vectors = table[codes[..., 0]]
        return vectors if absent is None else torch.where(absent, table.mean(0), vectors)


def train(kind: str, folder: Path, options: Options) -> VQVAE:
    """The MLP with a quantizer of this kind, trained."""
    from pipelines.options.image_tokenizer import ImageTokenizerOptions
    from scripts import train_tokenizer
    from tokenizer_image.registry import load_tokenizer

    train_tokenizer.main(
        ImageTokenizerOptions(
            dataset=options.dataset, output_dir=str(folder), image_size=SIDE, num_channels=1, network="mlp",
            patch_size=4, hidden_sizes=[512, 512], code_dim=DIM, codebook_sizes=[CODES], quantizer=kind,
            batch_size=256, max_minutes=options.max_minutes, validate_every=0, sample_every=0, checkpoint_every=0,
            seed=options.seed, cpu_threads=options.cpu_threads, ema_decay=0.0,
        )
    )  # fmt: skip
    return load_tokenizer(folder)


def random_pictures(tokenizer: VQVAE, seed: int) -> torch.Tensor:
    """The pictures that uniformly random codes decode to: (SHOWN, 1, 28, 28) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return tokenizer.decode(torch.randint(CODES, (SHOWN, tokenizer.tokens_per_image), generator=generator))


def main(options: Options) -> None:
    """Train both; a table on the screen, rows and pictures in files."""
    import json

    from pipelines.caching.pixel_cache import decode_pictures
    from pipelines.drawing.grids import labelled_grid
    from pipelines.evaluation.metrics.reconstruction import measure_tokenizer
    from pipelines.evaluation.report.sheets import to_images
    from tokenizer_image.pictures.loading import Preprocessing, load_pictures, postprocess

    register_quantizer(KINDS["library"], lambda sizes, code_dim: LibraryQuantizer(sizes[0], code_dim))
    settings = Preprocessing(image_size=SIDE, num_channels=1)
    test = decode_pictures(load_pictures(options.dataset, "test"), settings)
    rows: list[Row] = []
    restored, drawn = [], []
    for name, kind in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = train(kind, Path(folder), options)
            run = json.loads((Path(folder) / "run.json").read_text())
        measured = measure_tokenizer(tokenizer, test)
        label = "our layer" if name == "ours" else "the library's layer"
        restored.append((f"reconstructions, {label}", to_images(measured.reconstructions[:SHOWN])))
        drawn.append((f"random codes, {label}", postprocess(random_pictures(tokenizer, options.seed))))
        rows += [
            row(f"mnist_mlp/{name}/test_mse", measured.figures["reconstruction"]["mse"], ""),
            row(f"mnist_mlp/{name}/usage", measured.figures["codebook"]["usage"], "", None, True),
            row(f"mnist_mlp/{name}/perplexity", measured.figures["codebook"]["perplexity"], f"of {CODES}", None, True),
            row(f"mnist_mlp/{name}/steps", run["steps"], "", None, True),
            row(f"mnist_mlp/{name}/seconds_per_step", 60 * run["minutes"] / run["steps"], "s"),
        ]
    show(rows)
    write_rows(options.output, rows)
    inputs = [("test pictures", to_images(measured.pictures[:SHOWN]))]
    Path(options.picture).parent.mkdir(parents=True, exist_ok=True)
    labelled_grid([*inputs, *restored, *drawn], min_side=56, smooth=False, margin=4).save(options.picture)
    print(f"pictures: {options.picture}")


if __name__ == "__main__":
    run_command(main, Options, __doc__)
