"""Options of stage 1 to an image tokenizer, and the batches, figures and pictures of its training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from pipelines.drawing.grids import labelled_grid
from pipelines.machine.batches import index_batches, pictures_at_once
from tokenizer_image import VQVAE, VQVAEConfig
from tokenizer_image.configuration import preset
from tokenizer_image.metrics import CodeUsage, mse, psnr
from tokenizer_image.pictures.loading import DecodedPictures, Preprocessing, postprocess, to_pixel_values
from tokenizer_image.vqvae import load_tokenizer

REFIT_PICTURES = 16384
SHOWN = 12  # pictures in a reconstruction grid
# Settings that an earlier tokenizer brings along.
FIXED = (
    "image_size", "num_channels", "network", "patch_size", "hidden_sizes", "num_res_blocks", "encoder_kernel_size",
    "code_dim", "num_levels", "codebook_sizes",
)  # fmt: skip
FIXED_QUANTIZER_OPTIONS = ("shared_codebook", "num_groups", "codebook_dim")


def build_tokenizer(options: Any) -> VQVAE:
    """A fresh tokenizer by the options, or the one in --init_from."""
    if options.init_from:
        return load_earlier(options)
    size = 32 if options.image_size is None else options.image_size
    settings: dict[str, Any] = preset(size) if not (options.patch_size and options.hidden_sizes) else {}
    for name in ("patch_size", "hidden_sizes", "codebook_sizes"):
        if getattr(options, name) is not None:
            settings[name] = getattr(options, name)
    preprocessing = Preprocessing(image_size=size, num_channels=options.num_channels, resize=options.resize)
    return VQVAE(
        VQVAEConfig(
            image_size=size, num_channels=options.num_channels, num_res_blocks=options.num_res_blocks,
            network=options.network,
            quantizer=_names(options.quantizer), num_levels=options.num_levels,
            level_dropout=options.level_dropout,
            encoder_kernel_size=options.encoder_kernel_size,
            code_dim=options.code_dim, quantizer_options=options.quantizer_options(),
            preprocessing=preprocessing.to_dict(), **settings,
        )
    )  # fmt: skip


def load_earlier(options: Any) -> VQVAE:
    """The tokenizer in --init_from, which learns as the options say.

    Raises:
        ValueError: an option that would make its weights mean something else.
    """
    tokenizer = load_tokenizer(options.init_from)
    fixed = {name: getattr(tokenizer.config, name) for name in FIXED}
    fixed["resize"] = (tokenizer.config.preprocessing or {}).get("resize")
    before, said = tokenizer.config.quantizer_options, options.quantizer_options()
    fixed |= {name: before.get(name) for name in FIXED_QUANTIZER_OPTIONS}
    defaults = {option.name: option.default for option in fields(options)}
    clashes = [n for n, value in fixed.items() if getattr(options, n) not in (defaults[n], value)]
    if options.quantizer != defaults["quantizer"] and _names(options.quantizer) != tokenizer.config.quantizer:
        clashes.append("quantizer")
    if clashes:
        raise ValueError(
            f"--init_from {options.init_from} fixes {', '.join('--' + n for n in sorted(clashes))}: leave them out"
        )
    return load_tokenizer(options.init_from, quantizer_options={**before, **said}) if said else tokenizer


def _names(quantizer: str) -> str | list[str]:
    """One name for all levels, or what commas separate: one for each."""
    names = [name.strip() for name in quantizer.split(",")]
    return names[0] if len(names) == 1 else names


def training_batches(
    pictures: DecodedPictures, options: Any, start: int, accelerator: Accelerator
) -> Iterator[torch.Tensor]:
    """This process's share of batch `start`, `start` + 1, ...: (b, C, H, W) uint8, keyed by (seed, epoch, batch)."""
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


def validate(tokenizer: VQVAE, pictures: DecodedPictures, device: torch.device) -> dict[str, float]:
    """Figures over the validation pictures: mse on [0, 1], psnr (mean over pictures), codebook usage, perplexity."""
    usage = CodeUsage(tokenizer.num_codes)
    errors, ratios = [], []
    side = tokenizer.config.image_size
    with torch.inference_mode():
        for batch in index_batches(len(pictures), pictures_at_once(side, side)):
            original = to_pixel_values(pictures.batch(batch)).to(device)
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
    """A grid of validation pictures over their reconstructions: from the coarsest level alone, from two, from all."""
    original = to_pixel_values(pictures.batch(range(min(SHOWN, len(pictures))))).to(device)
    size = (int(original.shape[2]), int(original.shape[3]))
    rows = [("validation pictures", postprocess(original.cpu()))]
    with torch.inference_mode():
        codes, levels = tokenizer.encode(original), tokenizer.layout(size).level
        for last in range(tokenizer.config.num_levels):
            count = int((levels <= last).sum())
            title = "reconstructions" if count == len(levels) else f"from the first {count} of {len(levels)} codes"
            rows.append((title, postprocess(tokenizer.decode(codes[:, :count], size).cpu())))
    labelled_grid(rows).save(file)


def refit(tokenizer: VQVAE, pictures: DecodedPictures, device: torch.device) -> None:
    """Fit the codebook to the weights of this moment, over a share of the training pictures."""
    side = tokenizer.config.image_size
    rows = np.linspace(0, len(pictures) - 1, min(REFIT_PICTURES, len(pictures))).astype(np.int64)
    parts = np.array_split(rows, -(-len(rows) // pictures_at_once(side, side)))
    tokenizer.refit_codebook(lambda: (to_pixel_values(pictures.batch(part)).to(device) for part in parts))
