"""Autoencoders without codes in training: their figures, sample pictures, and what --init_from brings."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from pipelines.caching.pixel_cache import DecodedPictures
from pipelines.drawing.grids import labelled_grid
from pipelines.machine.batches import index_batches, pictures_at_once
from pipelines.options.bottlenecks import BOTTLENECK_OPTIONS
from pipelines.options.image_tokenizer import OWN_SETTINGS, PRESET_SETTINGS, ImageTokenizerOptions
from pipelines.training.image_tokenizer import SHOWN, Batch, ReconstructionErrors, clashing_options
from pipelines.training.image_tokenizer_losses import StageOneLoss
from pipelines.training.picture_classes import PictureClasses
from tokenizer_image.autoencoder import Autoencoder, AutoencoderOutput, squared_error
from tokenizer_image.losses.perceptual import PerceptualLoss
from tokenizer_image.preprocessing import postprocess, preprocessing_of, to_pixel_values
from tokenizer_image.registry import load_autoencoder

ACTIVE_VARIANCE = 0.01  # from which on a latent is active (Burda et al. 2016)
STACK_SHARE = 0.5  # of the budget, that layers learn alone for
SAMPLE_SEED = 0  # of the pictures that a grid shows, the same at every step
# What the weights in --init_from fix, beside the bottleneck's own arguments.
FIXED_SETTINGS = (
    "image_size", *(name for name in PRESET_SETTINGS if name != "codebook_sizes"),
    *(name for name in OWN_SETTINGS if name != "level_dropout"), "latents", "reconstruction_loss", "tied_weights",
    "condition",
)  # fmt: skip
FIXED_ARGUMENTS = ("penalty", "inference")  # of bottlenecks; the others weigh the loss, or choose how much is kept


def load_earlier_autoencoder(options: ImageTokenizerOptions) -> Autoencoder:
    """The autoencoder in --init_from, in float32, whose bottleneck learns as the options say.

    Raises:
        ValueError: an option that would make its weights mean something else.
    """
    earlier = load_autoencoder(options.earlier_folder)
    config, preprocessing = earlier.config, preprocessing_of(earlier)
    fixed = {name: getattr(config, name) for name in FIXED_SETTINGS}
    fixed |= {name: getattr(preprocessing, name) for name in ("resize", "sixteen_bit")}
    clashes = clashing_options(options, fixed)
    if options.bottleneck != config.bottleneck:
        clashes.append("bottleneck")
    given, before = options.bottleneck_options(), config.bottleneck_options
    names = {argument: name for name, argument in BOTTLENECK_OPTIONS[options.bottleneck].items()}
    clashes += [names[name] for name in FIXED_ARGUMENTS if name in given and given[name] != before.get(name)]
    if clashes:
        listed = ", ".join(f"--{name}" for name in sorted(clashes))
        raise ValueError(
            f"--init_from {options.init_from}, of --bottleneck {config.bottleneck}, fixes {listed}: leave them out"
        )
    changes: dict[str, Any] = {"bottleneck_options": {**before, **given}}
    if options.input_noise is not None or options.noise_amount is not None:
        changes |= {"input_noise": options.input_noise, "noise_amount": options.noise_amount}
    return load_autoencoder(options.earlier_folder, **changes).float()


class ContinuousModel:
    """An `Autoencoder` in training: what of its steps, validations and samples is its own.

    Args:
        classes: of the pictures, where the bottleneck is conditional.

    Attributes:
        perceptual: what pictures are compared by in validation, too.
        layer: of --stack_layers, the one that learns alone; None before the first step, and when all learn.
    """

    def __init__(
        self,
        options: ImageTokenizerOptions,
        model: Autoencoder,
        pictures: DecodedPictures,
        validation_pictures: DecodedPictures,
        accelerator: Accelerator,
        classes: PictureClasses | None = None,
    ) -> None:
        self.options, self.model, self.device = options, model, accelerator.device
        self.pictures, self.validation_pictures, self.classes = pictures, validation_pictures, classes
        self.perceptual: PerceptualLoss | None = None
        self.layer: int | None = None
        if options.stack_layers and accelerator.num_processes > 1:
            raise ValueError(
                f"--stack_layers trains in one process, not in {accelerator.num_processes}: each step leaves most "
                "weights without a gradient; launch one"
            )

    @property
    def rows_validated(self) -> int:
        """Pictures that a validation sends through the model: its own, once for the loss and once for the errors."""
        return 2 * len(self.validation_pictures)

    def prepare(self, loss: StageOneLoss) -> None:
        """What has to be ready before the first step, once the loss is known."""
        self.perceptual = loss.perceptual

    def describe(self) -> str:
        """What a picture becomes."""
        config = self.model.config
        sizes = [rows * columns * config.code_dim for rows, columns in config.grids()]
        parts = " + ".join(map(str, sizes))
        values = config.num_channels * config.image_size**2
        kind = "undercomplete" if sum(sizes) < values else "overcomplete"
        known = f", given one of {len(config.class_names)} classes" if config.class_names else ""
        return f"{parts} latents of bottleneck {config.bottleneck}, {kind} for {values} values{known}"

    def arguments(self, batch: Batch, *, step: int, share: float) -> dict[str, Any]:
        """What a training step gives the model beside the pictures of its batch."""
        classes = None if self.classes is None else self.classes.training[batch.rows]
        self.layer = self._layer_at(share)
        return {"classes": self._tensor(classes), "share": share, "layer": self.layer}

    def _layer_at(self, share: float) -> int | None:
        """Of --stack_layers, the layer that learns when this share of the budget is spent; None: all."""
        stacked = STACK_SHARE if self.options.stack_share is None else self.options.stack_share
        if not self.options.stack_layers or share >= stacked:
            return None
        count = self.model.num_layers
        return min(count - 1, int(count * share / stacked))

    def _tensor(self, classes: Any) -> torch.Tensor | None:
        return None if classes is None else torch.from_numpy(classes).to(self.device)

    def step_figures(self, output: AutoencoderOutput, pixel_values: torch.Tensor) -> dict[str, torch.Tensor | float]:
        """What a training step logs beside its loss."""
        assert output.figures is not None
        if output.reconstruction is None:
            return dict(output.figures)
        error = squared_error(output, pixel_values)
        return {"psnr": 10 * torch.log10(4 / error), **output.figures}

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """The figures of a validation, over all its pictures: the model's `loss` with its schedules at their end,
        errors of reconstructions without noise, the bottleneck's own figures and, of a variational one, `active_units`:
        how many of a picture's latents have a variance over pictures of more than 0.01 (Burda et al. 2016).

        While layers learn one by one there is also the `layer`, and what is measured is a model that is not yet one.
        """
        errors, units = ReconstructionErrors(self.perceptual), ActiveUnits()
        sums: dict[str, float] = {}
        side, count = self.model.config.image_size, len(self.validation_pictures)
        for rows in index_batches(count, pictures_at_once(side, side)):
            original = to_pixel_values(self.validation_pictures.batch(rows)).to(self.device)
            classes = None if self.classes is None else self._tensor(self.classes.validation[list(rows)])
            output = self.model(original, classes)
            assert output.figures is not None
            for name, value in {"loss": output.loss, **output.figures}.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(rows) / count
            levels = self.model.latents(original, classes)
            errors.add(original, self.model.decode(levels, classes))
            units.add(levels)
        sums.pop("capacity", None)  # of a schedule's end, which the options say
        active = {"active_units": float(units.count())} if self.model.bottleneck.has_prior else {}
        alone = {} if self.layer is None else {"layer": float(self.layer)}
        return errors.figures() | sums | active | alone

    def around(self) -> AbstractContextManager[None]:
        """Around a validation: nothing that follows the weights."""
        return nullcontext()

    def finish(self) -> None:
        """Make the model, with its last weights, what is left to the user: it is."""

    @torch.no_grad()
    def draw(self, model: Autoencoder, file: Path) -> None:
        """Validation pictures over their reconstructions by `model`, level by level, and samples of its prior."""
        shown = list(range(min(SHOWN, len(self.validation_pictures))))
        original = to_pixel_values(self.validation_pictures.batch(shown)).to(self.device)
        classes = None if self.classes is None else self._tensor(self.classes.validation[shown])
        rows = [("validation pictures", postprocess(original.cpu()))]
        noise = model.config.noise()
        if noise is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(SAMPLE_SEED)
                rows.append(("with the noise of training", postprocess(noise(original.cpu()))))
        levels = model.latents(original, classes)
        for last in range(1, len(levels) + 1):
            title = "reconstructions" if last == len(levels) else f"from the first {last} of {len(levels)} levels"
            rows.append((title, postprocess(model.decode(levels[:last], classes).cpu())))
        if model.bottleneck.has_prior:
            drawn = model.sample_latents(len(shown), torch.Generator().manual_seed(SAMPLE_SEED), classes)
            title = "samples of the prior" + (" for the same classes" if classes is not None else "")
            rows.append((title, postprocess(model.decode(drawn, classes).cpu())))
        labelled_grid(rows).save(file)

    def next_command(self, options: ImageTokenizerOptions) -> str:
        """What to do with what a finished run of these options has left."""
        folder = options.output_dir
        draw = "samples" if self.model.bottleneck.has_prior else "interpolation"
        data = "" if draw == "samples" else f" --dataset {options.dataset}"
        return f"python scripts/sample_latents.py --autoencoder {folder} --draw {draw}{data}"


class ActiveUnits:
    """Variance of each of a picture's latents over pictures."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: torch.Tensor | None = None
        self._squares: torch.Tensor | None = None

    def add(self, levels: list[torch.Tensor]) -> None:
        """Add the latents (B, h, w, D) of each level."""
        values = torch.cat([level.flatten(1) for level in levels], dim=1).double()
        self._count += len(values)
        total, squares = values.sum(dim=0), values.square().sum(dim=0)
        self._sum = total if self._sum is None else self._sum + total
        self._squares = squares if self._squares is None else self._squares + squares

    def count(self) -> int:
        """How many have a variance above `ACTIVE_VARIANCE`."""
        assert self._sum is not None and self._squares is not None
        mean = self._sum / self._count
        return int((self._squares / self._count - mean.square() > ACTIVE_VARIANCE).sum())
