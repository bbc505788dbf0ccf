"""Stage 1: train an image tokenizer on a data set of pictures.

    python scripts/train_tokenizer.py --dataset sprites --output_dir runs/tokenizer

leaves a loadable `VQVAE` in --output_dir, with reconstructions in samples/ and figures in metrics.jsonl.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pipelines.training import TrainingOptions, option

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from tokenizer_image import VQVAE
    from tokenizer_image.data import DecodedPictures

VALIDATION_PICTURES = 2000
REFIT_PICTURES = 16384
LEARNING_RATE = 2e-3
SHOWN = 12  # pictures in a reconstruction grid
# Settings that an earlier tokenizer brings along.
FIXED = ("image_size", "num_channels", "patch_size", "hidden_sizes", "num_res_blocks", "code_dim", "quantizer",
         "codebook_sizes")  # fmt: skip


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
    hidden_sizes: list[int] | None = field(
        default=None, metadata={"help": "channels at each resolution, fine to coarse (default: by image size)"}
    )
    codebook_sizes: list[int] | None = field(
        default=None, metadata={"help": "codes of each depth (default: by image size)"}
    )
    quantizer: str = option("grouped", "how several codes share a place: 'grouped' or 'residual'")
    encoder_kernel_size: int = option(1, "1: a code sees the pixels of its own place alone; 3: a patch further a block")
    num_res_blocks: int = option(2, "residual blocks at each resolution")
    code_dim: int = option(32, "size of a latent and of a code")
    commitment_weight: float = option(0.25, "weight of the commitment loss")
    codebook_decay: float = option(0.99, "decay of the codebook's moving averages")
    revival_threshold: float = option(0.1, "share of the mean use under which a code is dead and revived; 0: never")


def build_tokenizer(options: Options) -> VQVAE:
    """A fresh tokenizer by the options, or the one in --init_from."""
    from tokenizer_image import VQVAE, VQVAEConfig
    from tokenizer_image.configuration import preset
    from tokenizer_image.data import Preprocessing

    if options.init_from:
        from tokenizer_image.vqvae import load_tokenizer

        tokenizer = load_tokenizer(
            options.init_from, commitment_weight=options.commitment_weight, ema_decay=options.codebook_decay,
            revival_threshold=options.revival_threshold, 
        )  # fmt: skip
        fixed = {name: getattr(tokenizer.config, name) for name in FIXED}
        fixed["resize"] = tokenizer.config.preprocessing["resize"]
        clashes = [n for n, value in fixed.items() if getattr(options, n) not in (getattr(Options(), n), value)]
        if clashes:
            raise ValueError(
                f"--init_from {options.init_from} fixes {', '.join('--' + n for n in sorted(clashes))}: leave them out"
            )
        return tokenizer
    size = 32 if options.image_size is None else options.image_size
    settings: dict[str, Any] = preset(size) if not (options.patch_size and options.hidden_sizes) else {}
    for name in ("patch_size", "hidden_sizes", "codebook_sizes"):
        if getattr(options, name) is not None:
            settings[name] = getattr(options, name)
    preprocessing = Preprocessing(image_size=size, num_channels=options.num_channels, resize=options.resize)
    return VQVAE(
        VQVAEConfig(
            image_size=size, num_channels=options.num_channels, num_res_blocks=options.num_res_blocks,
            quantizer=options.quantizer, encoder_kernel_size=options.encoder_kernel_size, 
            code_dim=options.code_dim, commitment_weight=options.commitment_weight, ema_decay=options.codebook_decay,
            revival_threshold=options.revival_threshold, preprocessing=preprocessing.to_dict(), **settings,
        )
    )  # fmt: skip


def load_split(options: Options, tokenizer: VQVAE, split: str, accelerator: Accelerator) -> DecodedPictures:
    """One split's pictures, decoded (once, by the main process)."""
    from tokenizer_image.data import Preprocessing, decode_pictures, load_pictures

    source = load_pictures(
        options.dataset,
        split,
        image_column=options.image_column,
        caption_column=options.caption_column,
        max_examples=options.max_examples if split == "train" else VALIDATION_PICTURES,
        seed=options.seed,
    )
    settings = Preprocessing.from_dict(tokenizer.config.preprocessing)
    with accelerator.main_process_first():
        return decode_pictures(
            source,
            settings,
            num_workers=options.workers(),
            max_unreadable_share=options.max_unreadable_share,
            progress=accelerator.is_main_process,
        )


def training_batches(
    pictures: DecodedPictures, options: Options, start: int, accelerator: Accelerator
) -> Iterator[torch.Tensor]:
    """This process's share of batch `start`, `start` + 1, ...: (b, C, H, W) uint8, keyed by (seed, epoch, batch)."""
    import numpy as np
    import torch

    world, rank = accelerator.num_processes, accelerator.process_index
    per_epoch = len(pictures) // options.batch_size
    epoch, batch = divmod(start, per_epoch)
    while True:
        order = np.random.default_rng([options.seed, epoch]).permutation(len(pictures))
        flips = np.random.default_rng([options.seed, epoch, 1]).random(len(pictures)) < 0.5  # keyed by row
        for index in range(batch, per_epoch):
            rows = order[index * options.batch_size : (index + 1) * options.batch_size]
            mine = np.sort(rows[rank::world])
            chosen = pictures.batch(mine)
            if options.random_flip:
                chosen[flips[mine]] = chosen[flips[mine]][..., ::-1]
            yield torch.from_numpy(chosen)
        epoch, batch = epoch + 1, 0


def at_once(tokenizer: VQVAE) -> int:
    """How many pictures to encode together: 512 of 32x32, fewer of larger ones, so that memory stays the same."""
    return max(1, 512 * 32**2 // tokenizer.config.image_size**2)


def validate(tokenizer: VQVAE, pictures: DecodedPictures, device: torch.device) -> dict[str, float]:
    """Figures over the validation pictures: mse on [0, 1], psnr (mean over pictures), codebook usage, perplexity."""
    import torch

    from tokenizer_image.data import to_pixel_values
    from tokenizer_image.metrics import CodeUsage, mse, psnr

    usage = CodeUsage(tokenizer.num_codes)
    errors, ratios = [], []
    with torch.inference_mode():
        size = at_once(tokenizer)
        for start in range(0, len(pictures), size):
            original = to_pixel_values(pictures.batch(range(start, min(start + size, len(pictures))))).to(device)
            codes = tokenizer.encode(original)
            restored = (tokenizer.decode(codes, tuple(original.shape[2:])) + 1) / 2
            usage.update(codes.cpu())
            errors.append(mse(restored, (original + 1) / 2).cpu())
            ratios.append(psnr(restored, (original + 1) / 2).cpu())
    return {
        "mse": torch.cat(errors).mean().item(),
        "psnr": torch.cat(ratios).mean().item(),
        "usage": usage.usage,
        "perplexity": usage.perplexity,
    }


def draw_reconstructions(tokenizer: VQVAE, pictures: DecodedPictures, device: torch.device, file: Path) -> None:
    """A grid of validation pictures over their reconstructions."""
    import torch

    from pipelines.grids import labelled_grid
    from tokenizer_image.data import postprocess, to_pixel_values

    original = to_pixel_values(pictures.batch(range(min(SHOWN, len(pictures))))).to(device)
    with torch.inference_mode():
        restored = tokenizer.decode(tokenizer.encode(original), tuple(original.shape[2:]))
    labelled_grid(
        [("validation pictures", postprocess(original.cpu())), ("reconstructions", postprocess(restored.cpu()))]
    ).save(file)


def main(options: Options) -> None:
    """Train, then leave the tokenizer in `options.output_dir`."""
    options.check()
    import torch

    from pipelines.run import Run
    from pipelines.training import (
        Loop,
        check_batch_size,
        count_parameters,
        prefetch,
        say,
        start_accelerator,
        warn_small_data_set,
    )
    from tokenizer_image.data import to_pixel_values
    from tokenizer_image.quantizers.vector import NotFiniteError

    accelerator = start_accelerator(options)
    run = Run(
        options.output_dir, options, resume=options.resume, overwrite=options.overwrite,
        is_main=accelerator.is_main_process,
    )  # fmt: skip
    if run.finished:
        say(accelerator, f"{run.folder} is finished already; --overwrite trains it again, --init_from goes on from it")
        return
    tokenizer = build_tokenizer(options)
    pictures = load_split(options, tokenizer, "train", accelerator)
    validation = load_split(options, tokenizer, "validation", accelerator)
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
        sample=lambda step: draw_reconstructions(tokenizer, validation, device, run.samples / f"step-{step:06d}.png"),
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
        usage = len(torch.unique(output.codes)) / min(tokenizer.num_codes, output.codes.numel())
        loop.finish_step(output.loss, psnr=psnr, batch_usage=usage, revived=float(output.revived))
    finish(loop, pictures, validation, device)


def finish(loop: Any, pictures: DecodedPictures, validation: DecodedPictures, device: torch.device) -> None:
    """Fit the codebook to the averaged weights, measure, and save the tokenizer."""
    import numpy as np

    from pipelines.training import say
    from tokenizer_image.data import to_pixel_values

    tokenizer, run = loop.model, loop.run
    tokenizer.eval()
    with loop.averages.applied():
        rows = np.linspace(0, len(pictures) - 1, min(REFIT_PICTURES, len(pictures))).astype(np.int64)
        parts = np.array_split(rows, -(-len(rows) // at_once(tokenizer)))
        tokenizer.refit_codebook(to_pixel_values(pictures.batch(part)).to(device) for part in parts)
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
    from pipelines.options import parse_options

    try:
        main(parse_options(Options, description="Train an image tokenizer (stage 1)."))
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
