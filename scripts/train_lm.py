"""Stage 2: train a language model on captions and image codes.

    accelerate launch scripts/train_lm.py --dataset sprites --image_tokenizer runs/tokenizer --output_dir runs/model

encodes every picture once (the token cache), then leaves a whole model folder in --output_dir:
`TextToImagePipeline.from_pretrained("runs/model")("a dog").images[0]`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.options.language_model import LanguageModelOptions
from pipelines.options.parser import run_command

if TYPE_CHECKING:
    from pipelines.training.loop import Loop
    from pipelines.training.trained_language_model import TrainedLanguageModel

BETAS = (0.9, 0.95)
CAPTION = 16  # tokens of a caption with its special ones, about


def main(options: LanguageModelOptions) -> None:
    """Train, then leave a model folder in `options.output_dir`."""
    if options.dry_run:
        from pipelines.training.memory import estimate_memory

        print(estimate_memory(options).table())
        return
    import torch

    from lm.data.batch_order import BatchOrder
    from lm.model import default_size, recompute_layers
    from lm.training.attention import use_fastest_attention
    from lm.training.dropout import add_dropout, seed_step
    from lm.training.losses import NextTokenLoss
    from pipelines.caching.opening import open_caches
    from pipelines.machine.printing import say
    from pipelines.training.averages import AveragedWeights
    from pipelines.training.compilation import compile_layers
    from pipelines.training.distribution import is_sharded, prepare
    from pipelines.training.few_pictures import choose_recipe
    from pipelines.training.fine_tuning import adapt, adapters_line, check_adapters, frozen_dtype
    from pipelines.training.language_model import (
        build_parts,
        check_parts,
        choose_batch_size,
        choose_size,
        default_learning_rate,
        describe_model,
    )
    from pipelines.training.language_model_step import train_step
    from pipelines.training.loop import Loop
    from pipelines.training.metrics_log import MetricsLog
    from pipelines.training.optimizers import optimizers_of
    from pipelines.training.prefetch import prefetch
    from pipelines.training.sequences import build_source, code_noise, count_long, formats_line, long_line
    from pipelines.training.start import check_batch_size, count_parameters, start_run, warn_small_data_set
    from pipelines.training.state import TrainingState
    from pipelines.training.throughput import Throughput, total_peak
    from pipelines.training.trained_language_model import TrainedLanguageModel
    from tokenizer_image.registry import load_tokenizer

    accelerator, run = start_run(options)
    if run.finished:
        return
    device, accumulation_steps = accelerator.device, options.gradient_accumulation_steps
    tokenizer = load_tokenizer(options.tokenizer_folder).to(device)
    check_parts(options, tokenizer)
    check_adapters(options, accelerator)
    if options.batch_size:
        check_batch_size(accelerator, options.batch_size, parts=accumulation_steps)
    root = options.token_cache or Path(options.output_dir) / "token_cache"
    cache, validation_cache, views = open_caches(
        options, tokenizer, accelerator, root=root, need_captions=options.needs_captions
    )
    peak = total_peak(accelerator)
    size = choose_size(options, tokenizer, peak, run.info)
    if size and size != (usual := default_size(tokenizer.tokens_per_image)):
        say(accelerator, f"--lm_size {size}, not {usual}, which would have hardly begun to learn in this budget")
    dtype = frozen_dtype(options, accelerator.mixed_precision)
    model, vocabulary = build_parts(options, tokenizer, cache, size, partial(say, accelerator), dtype)
    source = build_source(options, cache, vocabulary, model, views)
    options.batch_size = choose_batch_size(
        options, accelerator, model, min(source.max_length, vocabulary.longest_picture + CAPTION), peak, run.info
    )
    check_batch_size(accelerator, options.batch_size, parts=accumulation_steps)
    recipe = choose_recipe(options, source, model, peak, run.info.get("recipe"))
    source.noise = code_noise(recipe.code_noise, tokenizer, vocabulary)
    vocabulary.formats = source.trained_formats()
    order = BatchOrder(source, options.batch_size, options.seed, pack_length=options.pack_length)
    validation_source = build_source(options, validation_cache, vocabulary, model, validation=True)
    long = count_long(validation_source)
    run.begin()
    parameters = count_parameters(model)
    say(
        accelerator,
        f"{describe_model(model, vocabulary)}; {len(cache)} pictures of {vocabulary.tokens_per_image} tokens; "
        f"{accelerator.mixed_precision} precision, {torch.get_num_threads()} threads",
    )
    adapted = adapt(options, model, vocabulary) if options.lora_rank else None
    add_dropout(model, recipe.dropout)  # of the adapted layers
    if adapted:
        say(accelerator, adapters_line(adapted, options, vocabulary))
    say(accelerator, formats_line(source))
    warn_small_data_set(accelerator, len(cache), flipped=options.random_flip)
    say(accelerator, recipe.line(len(cache), options))
    if long:
        say(accelerator, long_line(long, source, len(validation_cache)))

    if not is_sharded(accelerator):  # FSDP2 moves shards alone
        model.to(device)
    use_fastest_attention(model, options.pack_length or source.max_length)
    trained = TrainedLanguageModel(
        options, accelerator, run, tokenizer, vocabulary, model, adapted, cache, validation_cache, validation_source,
        recipe,
    )  # fmt: skip
    trained.measure_text()
    if options.gradient_checkpointing:
        recompute_layers(model)
    loss_module = NextTokenLoss(model.train(), vocabulary.id_ranges, options.z_loss_weight)
    if options.compile:
        compile_layers(accelerator, loss_module, order)
    learning_rate = default_learning_rate(options, model, run.info)
    optimizers = optimizers_of(options, model, learning_rate, BETAS, recipe.weight_decay)
    prepared = prepare(accelerator, loss_module, optimizers)
    throughput = Throughput(peak, lambda: total_peak(accelerator, again=True))
    loop = Loop(
        accelerator, run, options,
        TrainingState(
            accelerator, model, optimizers, AveragedWeights(model, options.ema_decay, trained_only=bool(adapted)),
            prepared, trained_only=bool(adapted),
        ),
        trained.validation(loss_module),
        MetricsLog(accelerator, run, options.tracker, "images", options.batch_size, throughput),
    )  # fmt: skip
    if options.resume:
        loop.resume()
    data = {"train": cache.manifest.get("data"), "validation": validation_cache.manifest.get("data")}
    run.write_info(
        data=data,
        parameters=parameters,
        training_pictures=len(cache),
        long_rows=long / len(validation_cache),
        recipe=recipe.to_dict(),
        lm_size=size,
        batch_size=options.batch_size,
        learning_rate=learning_rate,
        finished=False,
    )

    model.train()
    rank, world_size = accelerator.process_index, accelerator.num_processes
    batches = prefetch(
        order.batches(loop.progress.place, rank=rank, world_size=world_size, micro_batches=accumulation_steps)
    )
    with loop.ends_resumable():
        for _ in loop.steps():
            loop.progress.place, micro_batches = next(batches)
            if recipe.dropout:
                seed_step((options.seed, loop.progress.step, rank))
            figures = train_step(
                accelerator, loss_module, prepared, optimizers, micro_batches, loss_shares=trained.shares,
                pad_id=vocabulary.pad_id, max_grad_norm=options.max_grad_norm,
            )  # fmt: skip
            loop.count(figures.tokens, figures.flops)
            loop.finish_step(figures.loss, **figures.metrics)
        run.write_info(cropped=source.cropped, left_out=source.dropped)  # read ahead by a few batches
        finish(loop, trained)


def finish(loop: Loop, trained: TrainedLanguageModel) -> None:
    """Save the model folder with the averaged weights of the best validation, and say where everything is."""
    from pipelines.machine.printing import say
    from pipelines.training.sample_pictures import next_commands
    from pipelines.training.state import eager

    run, progress, figures = loop.run, loop.progress, loop.figures
    best, rows = loop.kept_best(), loop.progress.step * loop.options.batch_size
    if best is None:  # the last weights
        with loop.state.averaged(), loop.validation.around():
            plain = loop.state.plain_model()
            if run.is_main:
                trained.leave(plain, None, rows)
    else:
        figures = progress.best.figures or figures
        if run.is_main:
            with eager(loop.state.model), loop.validation.around():
                trained.leave(loop.state.model, best, rows)
        loop.say_best()
    run.write_end(
        progress.step, progress.seconds, loop.options.batch_size, figures,
        tokens_seen=progress.tokens, **loop.end_figures(),
    )  # fmt: skip
    say(loop.accelerator, f"final: {', '.join(f'{name} {value:.4g}' for name, value in figures.items())}")
    say(loop.accelerator, f"model: {run.folder}\nsamples: {run.samples}")
    for command in next_commands(run.folder, trained.prompts):
        say(loop.accelerator, f"next: {command}")


if __name__ == "__main__":
    run_command(main, LanguageModelOptions, "Train a language model on captions and pictures (stage 2).")
