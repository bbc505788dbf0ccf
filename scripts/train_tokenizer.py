"""Stage 1: train an image tokenizer on a data set of pictures.

    python scripts/train_tokenizer.py --dataset sprites --output_dir runs/tokenizer

leaves a loadable `VQVAE` in --output_dir, with reconstructions in samples/ and figures in metrics.jsonl.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pipelines.options.option import option
from pipelines.options.training import TrainingOptions

if TYPE_CHECKING:
    import torch

    from tokenizer_image.pictures.loading import DecodedPictures

LEARNING_RATE = 2e-3


@dataclass
class Options(TrainingOptions):
    """Train an image tokenizer."""

    script: ClassVar[str | None] = "train_tokenizer.py"
    output_dir: str = option("runs/tokenizer", "folder of the run and of the tokenizer")
    image_size: int | None = option(None, "side of the pictures in pixels (default 32)")
    num_channels: int = option(3, "3: colour, 1: grey")
    resize: str = option("crop", "'crop': resize the short side and cut the middle out; 'squash': change the shape")
    random_flip: bool = option(False, "mirror pictures at random (makes 'left' in a caption untrue)")
    batch_size: int = option(64, "pictures a step, over all processes")
    weight_decay: float = option(0.01, "weight decay of the convolutions")
    patch_size: int | None = option(None, "pixels that the first convolution reads at once (default: by image size)")
    network: str = option("conv", "'conv', or 'mlp' (--hidden_sizes are its layers, --patch_size the grid of codes)")
    hidden_sizes: list[int] | None = field(
        default=None, metadata={"help": "channels at each resolution, fine to coarse (default: by image size)"}
    )
    num_levels: int = option(1, "1; 2 or 3: a hierarchy, each coarser level at half the height and width")
    level_dropout: float = option(
        0.1, "share of pictures whose finer levels are left out, so that coarse ones stand alone"
    )
    codebook_sizes: list[int] | None = field(
        default=None,
        metadata={"help": "codes of each codebook, of several levels coarse to fine (default: by image size)"},
    )
    quantizer: str = option(
        "grouped",
        "'grouped', 'residual' or 'grouped_residual' for several codes a place; 'ema', 'gradient', 'cosine', "
        "'finite_scalar', 'lookup_free' or 'binary_spherical' for one; or one a level, with commas between",
    )
    encoder_kernel_size: int = option(1, "1: a code sees the pixels of its own place alone; 3: a patch further a block")
    num_res_blocks: int = option(2, "residual blocks at each resolution")
    code_dim: int = option(32, "size of a latent and of a code")
    commitment_weight: float | None = option(None, "weight of the commitment loss (default 0.25)")
    codebook_decay: float | None = option(None, "decay of the codebook's moving averages (default 0.99)")
    revival_threshold: float | None = option(
        None, "share of the mean use under which a code is dead and revived; 0: never (default 0.1)"
    )
    kmeans_start: bool | None = option(None, "start codebooks by k-means over the first batch (default: yes)")
    rotation_trick: bool | None = option(None, "pass gradients by rotation in place of straight-through (default: no)")
    code_temperature: float | None = option(None, "in training, draw codes by distance at this temperature")
    shared_codebook: bool | None = option(None, "residual: one codebook for all depths (default: no)")
    num_groups: int | None = option(None, "grouped_residual: groups, each of several depths (default 2)")
    codebook_dim: int | None = option(None, "cosine: size of a code (default 8)")
    entropy_weight: float | None = option(None, "lookup_free, binary_spherical: weight of the entropy loss")

    def quantizer_options(self) -> dict[str, Any]:
        """What was said about the quantizer, in its own words."""
        said = {
            "commitment_weight": self.commitment_weight, "ema_decay": self.codebook_decay,
            "revival_threshold": self.revival_threshold, "kmeans_start": self.kmeans_start,
            "rotation_trick": self.rotation_trick, "temperature": self.code_temperature,
            "shared_codebook": self.shared_codebook, "num_groups": self.num_groups,
            "codebook_dim": self.codebook_dim, "entropy_weight": self.entropy_weight,
        }  # fmt: skip
        return {name: value for name, value in said.items() if value is not None}


def main(options: Options) -> None:
    """Train, then leave the tokenizer in `options.output_dir`."""
    import torch

    from pipelines.training.image_tokenizer import build_tokenizer, draw_reconstructions, training_batches, validate
    from pipelines.training.loop import Loop
    from pipelines.training.start import (
        check_batch_size,
        count_parameters,
        load_split,
        prefetch,
        say,
        start_run,
        warn_small_data_set,
    )
    from tokenizer_image.metrics import CodeUsage
    from tokenizer_image.pictures.loading import Preprocessing, to_pixel_values
    from tokenizer_image.quantizers.distributed import NotFiniteError

    accelerator, run = start_run(options, plain=True)
    if run.finished:
        return
    tokenizer = build_tokenizer(options)
    settings = Preprocessing.from_dict(tokenizer.config.preprocessing)
    _, pictures = load_split(options, settings, "train", accelerator)
    _, validation = load_split(options, settings, "validation", accelerator)
    check_batch_size(accelerator, options.batch_size, pictures=len(pictures))
    run.begin()
    parameters = count_parameters(tokenizer)
    config = tokenizer.config
    say(
        accelerator,
        f"image tokenizer: {parameters / 1e6:.2f}M parameters; {config.image_size}x{config.image_size} pictures become "
        f"{tokenizer.tokens_per_image} codes of {config.codebook_sizes}; {len(pictures)} training pictures; "
        f"{accelerator.mixed_precision} precision, {torch.get_num_threads()} threads",
    )
    warn_small_data_set(accelerator, len(pictures))
    device = accelerator.device
    tokenizer.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizers = options.optimizers(tokenizer, options.learning_rate or LEARNING_RATE, betas=(0.9, 0.99))
    prepared = accelerator.prepare(tokenizer)
    loop = Loop(
        accelerator, run, options, tokenizer, optimizers,
        validate=lambda: validate(tokenizer, validation, device),
        sample=lambda _, step: draw_reconstructions(
            tokenizer, validation, device, run.samples / f"step-{step:06d}.png"
        ),
        rate=("images", options.batch_size),
    )  # fmt: skip
    if options.resume:
        loop.resume()
    run.write_info(parameters=parameters, training_pictures=len(pictures), finished=False)
    tokenizer.train()
    batches = prefetch(training_batches(pictures, options, loop.step, accelerator))
    for _ in loop.steps():
        pixel_values = to_pixel_values(next(batches)).to(device).contiguous(memory_format=torch.channels_last)
        try:
            output = prepared(pixel_values)
        except NotFiniteError:
            loop.stop("there are latents with NaN or infinity")
        accelerator.backward(output.loss)
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), options.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        psnr = 10 * torch.log10(4 / output.reconstruction_loss.detach())
        usage = CodeUsage(tokenizer.num_codes)  # of this rank's batch, which cannot use more codes than it has places
        usage.update(output.codes)
        loop.finish_step(
            output.loss, psnr=psnr, batch_usage=usage.usage * max(1, tokenizer.num_codes / output.codes.numel()),
            batch_perplexity=usage.perplexity, dead=float(output.dead), revived=float(output.revived),
            latent_norm=output.latent_norm,
        )  # fmt: skip
    finish(loop, pictures, validation, device)


def finish(loop: Any, pictures: DecodedPictures, validation: DecodedPictures, device: torch.device) -> None:
    """Fit the codebook to the averaged weights, measure, and save the tokenizer."""
    from pipelines.training.image_tokenizer import draw_reconstructions, refit, validate
    from pipelines.training.start import say

    tokenizer, run = loop.model, loop.run
    tokenizer.eval()
    with loop.averages.applied():
        refit(tokenizer, pictures, device)
        figures = validate(tokenizer, validation, device)
        if run.is_main:
            tokenizer.save_pretrained(run.folder)
            draw_reconstructions(tokenizer, validation, device, run.samples / "final.png")
    run.log(loop.step, **{f"final_{name}": value for name, value in figures.items()})
    run.write_info(finished=True, steps=loop.step, minutes=loop.seconds / 60, validation=figures,
                   pictures_seen=loop.step * loop.options.batch_size)  # fmt: skip
    say(loop.accelerator, f"final: {', '.join(f'{name} {value:.4g}' for name, value in figures.items())}")
    say(
        loop.accelerator,
        f"tokenizer: {run.folder}\nreconstructions: {run.samples / 'final.png'}\n"
        f"next: accelerate launch scripts/train_lm.py --image_tokenizer {run.folder} --dataset {loop.options.dataset}",
    )


if __name__ == "__main__":
    from pipelines.options.parser import parse_options

    try:
        main(parse_options(Options, description="Train an image tokenizer (stage 1)."))
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
