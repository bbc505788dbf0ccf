"""From the options of stage 1 to an image tokenizer; its training batches, figures and sample pictures."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator

from pipelines.caching.pixel_cache import DecodedPictures
from pipelines.drawing.grids import labelled_grid
from pipelines.drawing.signal_panels import signal_panels
from pipelines.machine.batches import evenly_spaced, index_batches, pictures_at_once
from pipelines.machine.printing import say
from pipelines.model_folder import shipped_folder
from pipelines.options.image_tokenizer import OWN_SETTINGS, PRESET_SETTINGS, ImageTokenizerOptions
from pipelines.options.option import option_defaults
from pipelines.training.image_tokenizer_losses import StageOneLoss
from tokenizer_image import VQVAE
from tokenizer_image.extension import with_more_codes
from tokenizer_image.layout import example_size
from tokenizer_image.losses.perceptual import PerceptualLoss
from tokenizer_image.losses.spectral import SpectralLoss
from tokenizer_image.metrics import CodeUsage, SignalErrors, mse, psnr
from tokenizer_image.picture_model import size_of
from tokenizer_image.pictures.photographs import are_photographs
from tokenizer_image.preprocessing import postprocess, preprocessing_of, to_pixel_values
from tokenizer_image.principal_components import start_from_components
from tokenizer_image.registry import load_tokenizer
from tokenizer_image.signals.settings import signal_settings_of
from tokenizer_image.vqvae import VQVAEOutput

if TYPE_CHECKING:
    from pipelines.training.drawn_codes import DrawnCodes

REFIT_PICTURES = 16384
VALIDATION_REFIT_PICTURES = 4096  # fewer, since training waits
SIGNALS_SHARE = 4  # a signal counts as so many of these pictures, since it takes longer
EXAMINED = 1000  # pictures that decide whether a data set is of photographs
SHOWN = 12  # pictures in a reconstruction grid
# Settings that --init_from brings along: another value would make its weights mean something else.
FIXED_SETTINGS = (
    "image_size",
    "frame_patch",
    *PRESET_SETTINGS,
    *(name for name in OWN_SETTINGS if name != "level_dropout"),
)
FIXED_QUANTIZER_OPTIONS = ("shared_codebook", "num_groups", "codebook_dim")


class Batch(NamedTuple):
    """This process's share of a batch.

    Attributes:
        pictures: (b, C, H, W) uint8.
        rows: (b,) int64, where in the training pictures they come from.
    """

    pictures: torch.Tensor
    rows: np.ndarray


class ReconstructionErrors:
    """Errors over a whole set of pictures, batch by batch.

    Args:
        perceptual: measures the perceptual distance, too, where it is learned from.
    """

    def __init__(self, perceptual: PerceptualLoss | None = None) -> None:
        self.perceptual = perceptual
        self._errors: list[torch.Tensor] = []
        self._ratios: list[torch.Tensor] = []
        self._distances: list[float] = []

    def add(self, original: torch.Tensor, decoded: torch.Tensor) -> None:
        """Add pictures and their reconstructions, (B, C, H, W) in [-1, 1] both."""
        if self.perceptual is not None:
            self._distances.append(float(self.perceptual(original, decoded)) * len(original))
        restored, target = (decoded + 1) / 2, (original + 1) / 2
        self._errors.append(mse(restored, target).cpu())
        self._ratios.append(psnr(restored, target).cpu())

    def figures(self) -> dict[str, float]:
        """`mse` on [0, 1], `psnr` (mean over pictures) and, where it is measured, `perceptual`."""
        errors = torch.cat(self._errors)
        distance = {"perceptual": sum(self._distances) / len(errors)} if self.perceptual is not None else {}
        return distance | {"mse": errors.mean().item(), "psnr": torch.cat(self._ratios).mean().item()}


def detect_photographs(pictures: DecodedPictures, options: ImageTokenizerOptions, accelerator: Accelerator) -> bool:
    """Whether networks and losses are those for photographs: as the options say, else as the pictures look."""
    if options.photographs is not None or options.signal:
        return bool(options.photographs)
    photographs, share = are_photographs(pictures.batch(evenly_spaced(len(pictures), EXAMINED)))
    kind = "photographs" if photographs else "drawings"
    say(
        accelerator,
        f"{share:.0%} of the neighbouring pixels have one colour: taken for {kind} (--photographs or --no_photographs "
        "decides)",
    )
    return photographs


def as_input(pictures: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A batch of pictures, uint8, or of signals, float16, as the model reads it: float32 on the device, pictures
    channels last."""
    values = to_pixel_values(pictures).to(device)
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values


def clashing_options(options: ImageTokenizerOptions, fixed: Mapping[str, Any]) -> list[str]:
    """Names of the options that ask for another value than the weights in --init_from fix, by name."""
    defaults = option_defaults(options)
    return [name for name, value in fixed.items() if getattr(options, name) not in (defaults[name], value)]


def load_earlier(options: ImageTokenizerOptions) -> VQVAE:
    """The tokenizer in --init_from, in float32, which learns as the options say; with larger --codebook_sizes, it gets
    further codes.

    Raises:
        ValueError: an option that would make its weights mean something else.
    """
    tokenizer = _load_vqvae(options)
    fixed = {name: getattr(tokenizer.config, name) for name in FIXED_SETTINGS}
    fixed |= _fixed_inputs(options, tokenizer)
    before, given = tokenizer.config.quantizer_options, options.quantizer_options()
    fixed |= {name: before.get(name) for name in FIXED_QUANTIZER_OPTIONS}
    defaults = option_defaults(options)
    more_codes = None if tokenizer.has_frozen_codes else _more_codes(options, tokenizer.config.codebook_sizes)
    if more_codes:
        fixed.pop("codebook_sizes")
    clashes = clashing_options(options, fixed)
    wanted, kinds = options.quantizer_names(), tokenizer.config.level_quantizers
    if options.quantizer != defaults["quantizer"] and wanted not in (kinds, [tokenizer.config.quantizer]):
        clashes.append("quantizer")
    if clashes:
        names = ", ".join(f"--{name}" for name in sorted(clashes))
        raise ValueError(f"--init_from {options.init_from} fixes {names}: leave them out")
    options.check_quantizer(kinds)
    changes: dict[str, Any] = {"quantizer_options": {**before, **given}} if given else {}
    if options.level_dropout != defaults["level_dropout"]:
        changes["level_dropout"] = options.level_dropout
    if options.input_noise is not None:
        changes |= {"input_noise": options.input_noise, "noise_amount": options.noise_amount}
    if changes:
        tokenizer = _load_vqvae(options, **changes)
    try:
        return with_more_codes(tokenizer, more_codes) if more_codes else tokenizer
    except ValueError as error:
        raise ValueError(
            f"--init_from {options.init_from}: {error}".replace("codebook_sizes=", "--codebook_sizes ")
        ) from error


def _fixed_inputs(options: ImageTokenizerOptions, tokenizer: VQVAE) -> dict[str, Any]:
    """What the tokenizer in --init_from takes, by the options that would change it.

    Raises:
        ValueError: it takes signals and --signal names no such, or the other way round.
    """
    signals = signal_settings_of(tokenizer)
    if signals is None and options.signal is None:
        return {name: getattr(preprocessing_of(tokenizer), name) for name in ("resize", "sixteen_bit")}
    if signals is None or signals.signal != options.signal:
        kind = "pictures" if signals is None else signals.signal
        remedy = "leave --signal out" if signals is None else f"give --signal {kind}"
        raise ValueError(f"--init_from {options.init_from} has codes of {kind}: {remedy}")
    names = {"audio": ("length", "rate"), "series": ("length", "horizon"), "video": ("length",)}[signals.signal]
    return {{"rate": "sample_rate"}.get(name, name): getattr(signals, name) for name in names}


def _more_codes(options: ImageTokenizerOptions, before: list[int]) -> list[int] | None:
    """--codebook_sizes, where they are larger than those `before` and codes may change."""
    wanted = options.codebook_sizes
    if not wanted or wanted == before or options.train == "decoder" or len(wanted) != len(before):
        return None
    return wanted if all(new >= old for old, new in zip(before, wanted, strict=True)) else None


def _load_vqvae(options: ImageTokenizerOptions, **settings: Any) -> VQVAE:
    tokenizer = load_tokenizer(options.earlier_folder, **settings)
    if not isinstance(tokenizer, VQVAE):
        kind = type(tokenizer).__name__
        raise ValueError(f"--init_from {options.init_from} is a {kind}: give a VQVAE, which this trains")
    return tokenizer.float()


def training_batches(
    pictures: DecodedPictures, options: ImageTokenizerOptions, start: int, accelerator: Accelerator
) -> Iterator[Batch]:
    """This process's share of batch `start`, `start` + 1, ..., keyed by (seed, epoch, batch)."""
    world, rank = accelerator.num_processes, accelerator.process_index
    per_epoch = len(pictures) // options.batch_size
    epoch, batch = divmod(start, per_epoch)
    while True:
        order = np.random.default_rng([options.seed, epoch]).permutation(len(pictures))
        flips = np.random.default_rng([options.seed, epoch, 1]).random(len(pictures)) < 0.5  # keyed by row
        for index in range(batch, per_epoch):
            rows = order[index * options.batch_size : (index + 1) * options.batch_size]
            share = np.sort(rows[rank::world])
            batch_pictures = pictures.batch(share)
            if options.random_flip:
                batch_pictures[flips[share]] = batch_pictures[flips[share]][..., ::-1]
            yield Batch(torch.from_numpy(batch_pictures), share)
        epoch, batch = epoch + 1, 0


def next_command(options: ImageTokenizerOptions) -> str:
    """What to do with the tokenizer of a finished run."""
    folder = Path(options.output_dir)
    if options.train == "all":
        flip = " --random_flip" if options.random_flip else ""
        return f"accelerate launch scripts/train_lm.py --image_tokenizer {folder} --dataset {options.dataset}{flip}"
    copy = f"cp {folder / 'config.json'} {folder / 'model.safetensors'}"
    name = options.codes_from or str(options.init_from)
    shipped = shipped_folder(name)
    if shipped is not None:  # which stays as it is
        return f"cp -r {shipped} COPY; {copy} COPY/image_tokenizer  # same codes, new decoder"
    part = Path(name) / "image_tokenizer"
    return f"{copy} {part if options.codes_from or part.is_dir() else name}  # same codes, new decoder"


def validate(
    tokenizer: VQVAE,
    pictures: DecodedPictures,
    device: torch.device,
    perceptual: PerceptualLoss | None = None,
    spectral: SpectralLoss | None = None,
) -> dict[str, float]:
    """Figures over the validation pictures: mse on [0, 1], psnr (mean over pictures), codebook usage, perplexity, and
    the perceptual or the spectral distance where it is learned from; of sounds and series, those of `SignalErrors` in
    place of mse and psnr."""
    usage = CodeUsage(tokenizer.num_codes)
    errors: ReconstructionErrors | SignalErrors = ReconstructionErrors(perceptual)
    if tokenizer.config.axes.dimensions == 1:
        errors = SignalErrors(spectral.distances if spectral is not None else None)
    with torch.inference_mode():
        for batch in index_batches(len(pictures), pictures_at_once(*example_size(tokenizer.config))):
            original = to_pixel_values(pictures.batch(batch)).to(device)
            codes = tokenizer.encode(original)
            usage.update(codes.cpu())
            errors.add(original, tokenizer.decode(codes, size_of(original)))
    return errors.figures() | {"usage": usage.usage, "perplexity": usage.perplexity}


def step_figures(output: VQVAEOutput, num_codes: int) -> dict[str, torch.Tensor | float]:
    """What a training step logs beside its loss. Usage and perplexity are of this process's batch."""
    assert output.reconstruction_loss is not None and output.codes is not None and output.latent_norm is not None
    usage = CodeUsage(num_codes)
    usage.update(output.codes)
    # A batch cannot use more codes than it has places: the share is of those that it could use.
    possible = max(1, num_codes / output.codes.numel())
    return {
        "psnr": 10 * torch.log10(4 / output.reconstruction_loss.detach()),
        "batch_usage": usage.usage * possible,
        "batch_perplexity": usage.perplexity,
        "dead": float(output.dead or 0),
        "revived": float(output.revived or 0),
        "latent_norm": output.latent_norm,
    }


def draw_reconstructions(tokenizer: VQVAE, pictures: DecodedPictures, device: torch.device, file: Path) -> None:
    """A grid of validation pictures over their reconstructions: from the coarsest level alone, from two, from all."""
    original = to_pixel_values(pictures.batch(range(min(SHOWN, len(pictures))))).to(device)
    size = size_of(original)

    def shown(values: torch.Tensor) -> list[Any]:
        return signal_panels(values.cpu(), settings) if settings else postprocess(values.cpu())

    settings = signal_settings_of(tokenizer)
    rows = [(f"validation {tokenizer.config.signal or 'pictures'}", shown(original))]
    with torch.inference_mode():
        codes, levels = tokenizer.encode(original), tokenizer.layout(size).level
        for last in range(tokenizer.config.num_levels):
            count = int((levels <= last).sum())
            title = "reconstructions" if count == len(levels) else f"from the first {count} of {len(levels)} codes"
            rows.append((title, shown(tokenizer.decode(codes[:, :count], size))))
    labelled_grid(rows).save(file)


def start_from_pictures(tokenizer: VQVAE, pictures: DecodedPictures, accelerator: Accelerator) -> None:
    """Make a tokenizer of the principal components of all training pictures; processes share out those that codebooks
    are fitted to."""
    most = pictures_at_once(*example_size(tokenizer.config))
    largest = max(tokenizer.config.codebook_sizes)
    if len(pictures) < largest:
        say(
            accelerator,
            f"WARNING: {len(pictures):,} training pictures for codebooks of {largest:,}: some codes are copies of "
            "others and stay unused; give smaller --codebook_sizes",
        )

    def batches(rows: np.ndarray) -> Iterator[torch.Tensor]:
        return (to_pixel_values(pictures.batch(part)) for part in np.array_split(rows, -(-len(rows) // most)))

    fitted = evenly_spaced(len(pictures), REFIT_PICTURES)[accelerator.process_index :: accelerator.num_processes]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="k-means start from")  # which speaks of batches
        start_from_components(
            tokenizer,
            lambda: batches(np.arange(len(pictures))),
            (batch.to(accelerator.device) for batch in batches(fitted)),
        )


def refit(
    tokenizer: VQVAE, pictures: DecodedPictures, device: torch.device, most_pictures: int = REFIT_PICTURES
) -> None:
    """Fit the codebooks to the weights of this moment, over a share of the training pictures; not where codes are to
    stay as they are."""
    if tokenizer.has_frozen_codes:
        return
    rows = evenly_spaced(len(pictures), most_pictures // (SIGNALS_SHARE if tokenizer.config.signal else 1))
    parts = np.array_split(rows, -(-len(rows) // pictures_at_once(*example_size(tokenizer.config))))
    tokenizer.refit_codebook(lambda: (to_pixel_values(pictures.batch(part)).to(device) for part in parts))


@contextmanager
def refitted(tokenizer: VQVAE, pictures: DecodedPictures, device: torch.device) -> Iterator[None]:
    """Inside, the codebooks fit the weights of this moment, as in the tokenizer that would be saved now.

    The codebooks follow the raw encoder; with averaged weights they would show a model that is never saved.
    """
    kept = [{name: value.clone() for name, value in one.state_dict().items()} for one in tokenizer.quantizers]
    refit(tokenizer, pictures, device, VALIDATION_REFIT_PICTURES)
    try:
        yield
    finally:
        for quantizer, state in zip(tokenizer.quantizers, kept, strict=True):
            quantizer.load_state_dict(state)


class QuantizedModel:
    """A `VQVAE` in training: what of its steps, validations and samples is its own.

    Attributes:
        drawn: codes that batches are completed with.
        perceptual, spectral: what pictures or sounds are compared by in validation, too.
    """

    def __init__(
        self,
        options: ImageTokenizerOptions,
        model: VQVAE,
        pictures: DecodedPictures,
        validation_pictures: DecodedPictures,
        accelerator: Accelerator,
    ) -> None:
        self.options, self.model, self.device = options, model, accelerator.device
        self.pictures, self.validation_pictures = pictures, validation_pictures
        self.accelerator = accelerator
        self.drawn: DrawnCodes | None = None
        self.perceptual: PerceptualLoss | None = None
        self.spectral: SpectralLoss | None = None
        if options.train == "decoder" or model.has_frozen_codes:  # which loading has let learn again
            model.freeze_codes()

    @property
    def rows_validated(self) -> int:
        """Pictures that a validation sends through the model: those that codebooks are refitted to, and its own."""
        most = VALIDATION_REFIT_PICTURES // (SIGNALS_SHARE if self.model.config.signal else 1)
        return min(most, len(self.pictures)) + len(self.validation_pictures)

    def prepare(self, loss: StageOneLoss) -> None:
        """What has to be ready before the first step, once the loss is known."""
        self.perceptual, self.spectral = loss.perceptual, loss.spectral
        if self.model.config.network == "components" and not self.options.init_from:
            say(self.accelerator, f"computing the principal components of {len(self.pictures):,} pictures")
            self.model.to(self.device)
            start_from_pictures(self.model, self.pictures, self.accelerator)
        if self.options.codes_from is None:
            return
        from pipelines.training.drawn_codes import draw_codes  # needs the language model's half, as nothing else here

        has_discriminator = loss.adversary is not None
        self.drawn = draw_codes(self.options, self.model, self.accelerator, has_discriminator=has_discriminator)

    def describe(self) -> str:
        """What a picture becomes."""
        return f"{self.model.tokens_per_image} codes of {self.model.config.codebook_sizes}"

    def arguments(self, batch: Batch, *, step: int, share: float) -> dict[str, Any]:
        """What a training step gives the model beside the pictures of its batch."""
        codes = None if self.drawn is None else self.drawn.part(step, len(batch.pictures))
        if not self.options.signal or (known := self.pictures.known(batch.rows)) is None:  # type: ignore[attr-defined]
            return {"codes": codes}
        return {"codes": codes, "known": torch.from_numpy(known).to(self.device)}

    def step_figures(self, output: VQVAEOutput, pixel_values: torch.Tensor) -> dict[str, torch.Tensor | float]:
        """What a training step logs beside its loss."""
        figures = step_figures(output, self.model.num_codes)
        if self.model.config.axes.dimensions == 1:
            assert output.reconstruction_loss is not None
            power = pixel_values.square().mean().clamp(min=1e-12)
            figures["snr"] = 10 * torch.log10(power / output.reconstruction_loss.detach())
            del figures["psnr"]
        return figures

    def measure(self) -> dict[str, float]:
        """The figures of a validation."""
        return validate(self.model, self.validation_pictures, self.device, self.perceptual, self.spectral)

    def around(self) -> AbstractContextManager[None]:
        """Around a validation: codebooks that fit the weights of this moment."""
        return refitted(self.model, self.pictures, self.device)

    def finish(self) -> None:
        """Make the model, with its last weights, what is left to the user."""
        refit(self.model, self.pictures, self.device)

    def draw(self, model: VQVAE, file: Path) -> None:
        """Validation pictures over their reconstructions by `model`."""
        draw_reconstructions(model, self.validation_pictures, self.device, file)

    def next_command(self, options: ImageTokenizerOptions) -> str:
        """What to do with what a finished run of these options has left."""
        return next_command(options)
