"""Stage 1: train an image tokenizer on a data set of pictures.

    python scripts/train_tokenizer.py --dataset sprites --output_dir runs/tokenizer
    python scripts/train_tokenizer.py --signal audio --dataset sounds --output_dir runs/sound_tokenizer

leaves a loadable `VQVAE` in --output_dir, or with --bottleneck another than quantizer an `Autoencoder`, with
reconstructions in samples/ and figures in metrics.jsonl.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.options.image_tokenizer import ImageTokenizerOptions
from pipelines.options.parser import run_command

if TYPE_CHECKING:
    from accelerate import Accelerator

    from pipelines.caching.pixel_cache import DecodedPictures
    from pipelines.training.image_models import TrainedModel
    from pipelines.training.loop import Loop
    from pipelines.training.two_parts import Part
    from tokenizer_image.picture_model import PictureModel

LEARNING_RATE = 2e-3
# By --resampling. Overlapping patches are 3x3 convolutions throughout, which diverge at 0.01 within 100 steps.
MUON_LEARNING_RATES = {"patches": 0.01, "overlapping": 0.003}
BETAS = (0.9, 0.99)


def main(options: ImageTokenizerOptions) -> None:
    """Train, in one part or two, then leave the tokenizer in `options.output_dir`."""
    from pipelines.caching.sources import input_settings_of
    from pipelines.machine.allocator import keep_freed_memory
    from pipelines.machine.printing import say
    from pipelines.training.image_models import load_init_from
    from pipelines.training.image_tokenizer import detect_photographs
    from pipelines.training.own_classifier import classes_of_captions
    from pipelines.training.start import check_batch_size, load_split, start_run, warn_small_data_set
    from pipelines.training.two_parts import parts_of

    keep_freed_memory()
    accelerator, run = start_run(options, plain=True)
    if run.finished:
        return
    earlier = load_init_from(options)
    settings = options.input_settings() if earlier is None else input_settings_of(earlier)
    pictures = load_split(options, settings, "train", accelerator, run)
    validation_pictures = load_split(options, pictures.settings, "validation", accelerator, run)
    check_batch_size(accelerator, options.batch_size, pictures=len(pictures))
    photographs = detect_photographs(pictures, options, accelerator)
    warn_small_data_set(accelerator, len(pictures), flipped=options.random_flip)
    parts = parts_of(
        options, run, accelerator, photographs=photographs, earlier=earlier,
        check_captions=partial(classes_of_captions, options, pictures, settings.image_size),
    )  # fmt: skip
    for part in parts:
        trained = train(part, accelerator, pictures, validation_pictures, photographs=photographs)
        accelerator.free_memory()
    say(accelerator, f"next: {trained.next_command(options)}")


def train(
    part: Part,
    accelerator: Accelerator,
    pictures: DecodedPictures,
    validation_pictures: DecodedPictures,
    *,
    photographs: bool,
) -> TrainedModel:
    """Train a part of the run, or all of it, and leave its tokenizer in its folder."""
    import torch

    from pipelines.machine.printing import say
    from pipelines.training.averages import AveragedWeights
    from pipelines.training.image_models import build_model, load_init_from
    from pipelines.training.image_tokenizer import as_input, training_batches
    from pipelines.training.image_tokenizer_losses import build_loss, keep_weights
    from pipelines.training.loop import Loop, Validation
    from pipelines.training.metrics_log import MetricsLog
    from pipelines.training.optimizers import optimizers_of
    from pipelines.training.own_classifier import own_extractor
    from pipelines.training.prefetch import prefetch
    from pipelines.training.schedule import validation_interval
    from pipelines.training.start import count_parameters
    from pipelines.training.state import TrainingState
    from tokenizer_image.layout import example_size

    options, run, device = part.options, part.run, accelerator.device
    torch.manual_seed(options.seed)  # whether the part before was trained in this process or not
    earlier = load_init_from(options)
    trained = build_model(options, earlier, pictures, validation_pictures, accelerator, photographs=photographs)
    tokenizer = trained.model
    keep_weights(options, run.info, accelerator)
    train_own = partial(own_extractor, part.asked, pictures, pictures.settings.image_size, accelerator)
    stage_loss = build_loss(
        options, accelerator, photographs and options.is_quantized, tokenizer.config, train_own, seed=options.seed,
        reconstruction_loss=options.reconstruction_loss, spectral_weight=options.spectral_weight,
        judges_drawn=options.codes_from is not None,
    )  # fmt: skip
    trained.prepare(stage_loss)
    part.begin()
    parameters = count_parameters(tokenizer)
    config = tokenizer.config
    height, width = example_size(config)
    say(
        accelerator,
        f"image tokenizer: {parameters / 1e6:.2f}M parameters; {height}x{width} {config.signal or 'pictures'} become "
        f"{trained.describe()}; {len(pictures)} training pictures; "
        f"{accelerator.mixed_precision} precision, {torch.get_num_threads()} threads",
    )

    tokenizer.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    options.muon_learning_rate = options.muon_learning_rate or MUON_LEARNING_RATES[config.resampling]
    optimizers = optimizers_of(options, tokenizer, options.learning_rate or LEARNING_RATE, BETAS, options.weight_decay)
    prepared = accelerator.prepare(tokenizer)

    def sample(_: object, step: int) -> None:
        trained.draw(tokenizer, run.sample_file(f"step-{step:06d}.png"))

    def write(plain: PictureModel, folder: Path) -> None:
        plain.save_pretrained(folder)

    validation = Validation(
        trained.measure, sample, stage_loss.score, write if options.keep_best and stage_loss.score else None,
        around=trained.around,
        every=validation_interval(options, len(pictures), trained.rows_validated),
    )  # fmt: skip
    loop = Loop(
        accelerator, run, options,
        TrainingState(
            accelerator, tokenizer, optimizers, AveragedWeights(tokenizer, options.ema_decay), prepared,
            companion=stage_loss, companion_optimizers=stage_loss.optimizers,
        ),
        validation,
        MetricsLog(accelerator, run, options.tracker, "images", options.batch_size),
    )  # fmt: skip
    if options.resume:
        loop.resume()
    run.write_info(
        parameters=parameters, training_pictures=len(pictures), loss_weights=stage_loss.weights, finished=False
    )

    tokenizer.train()
    batches = prefetch(training_batches(pictures, options, loop.progress.step, accelerator))
    with loop.ends_resumable():
        for step in loop.steps():
            batch = next(batches)
            pixel_values = as_input(batch.pictures, device)
            output = prepared(pixel_values, **trained.arguments(batch, step=step, share=loop.share))
            loss, figures = stage_loss(pixel_values, output, share=loop.share, step=step)
            accelerator.backward(loss)
            torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), options.max_grad_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            figures |= stage_loss.learn(pixel_values, output, share=loop.share, step=step)
            loop.finish_step(output.loss, **trained.step_figures(output, pixel_values), **figures)
        finish(loop, trained, part)
    return trained


def finish(loop: Loop, trained: TrainedModel, part: Part) -> None:
    """Leave the model of the best validation: with the last averaged weights, to which a codebook is fitted once more,
    or as it was kept."""
    from pipelines.machine.printing import say
    from pipelines.training.best_kept import NOTE
    from tokenizer_image.registry import load_image_model

    tokenizer, run, device, options = trained.model, loop.run, loop.accelerator.device, loop.options
    progress, best = loop.progress, loop.kept_best()
    if best is None or progress.best.step == progress.step:
        tokenizer.eval()
        with loop.state.averages.applied():
            trained.finish()
            figures = loop.validation.measure()
            if run.is_main:
                with run.writing(run.folder):
                    tokenizer.save_pretrained(run.folder)
                trained.draw(tokenizer, run.sample_file("final.png"))
    else:
        figures = progress.best.figures or loop.figures
        if run.is_main:
            with run.writing(run.folder):
                shutil.copytree(best, run.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(NOTE))
            trained.draw(load_image_model(best).to(device), run.sample_file("final.png"))
    if best is not None:
        loop.say_best()
    run.log(progress.step, **{f"final_{name}": value for name, value in figures.items()})
    steps, seconds = part.steps + progress.step, 60 * part.minutes + progress.seconds
    end = loop.end_figures()
    if "best_step" in end:
        end["best_step"] += part.steps
    run.write_end(steps, seconds, options.batch_size, figures, **end)
    say(loop.accelerator, f"final: {', '.join(f'{name} {value:.4g}' for name, value in figures.items())}")
    say(loop.accelerator, f"tokenizer: {run.folder}\nreconstructions: {run.samples / 'final.png'}")


if __name__ == "__main__":
    run_command(main, ImageTokenizerOptions, "Train an image tokenizer (stage 1).")
