"""Stage 2: train a language model on captions and image codes.

    accelerate launch scripts/train_lm.py --dataset sprites --image_tokenizer runs/tokenizer --output_dir runs/model

encodes every picture once (the token cache), then leaves a whole model folder in --output_dir:
`TextToImagePipeline.from_pretrained("runs/model")("a dog").images[0]`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipelines.options.data import CacheOptions
from pipelines.options.option import option
from pipelines.options.sequences import SequenceOptions
from pipelines.options.training import TrainingOptions


@dataclass
class Options(SequenceOptions, CacheOptions, TrainingOptions):
    """Train a language model on mixed sequences."""

    script: ClassVar[str | None] = "train_lm.py"
    above_zero: ClassVar[tuple[str, ...]] = (
        *TrainingOptions.above_zero, *SequenceOptions.above_zero, "gradient_accumulation_steps", "text_vocab_size",
        "num_layers", "hidden_size", "intermediate_size", "num_heads",
    )  # fmt: skip
    not_negative: ClassVar[tuple[str, ...]] = (
        *TrainingOptions.not_negative, *SequenceOptions.not_negative, "z_loss_weight",
    )  # fmt: skip
    output_dir: str = option("runs/model", "folder of the run and of the model")
    lm_name_or_path: str | None = option(None, "start from this causal LM of transformers, on disk or Hub")
    text_tokenizer: str | None = option(None, "a tokenizer of transformers, on disk or Hub (default: train a BPE)")
    text_vocab_size: int = option(4096, "most tokens of the BPE that is trained on the captions")
    architecture: str = option("llama", "'llama', 'qwen3' (normalised queries and keys, steadier at size) or 'gpt2'")
    lm_size: str | None = option(None, "2M, 3M, 10M, 25M, 85M, 300M or 1B (default: by codes per picture)")
    num_layers: int | None = option(None, "overrides that of --lm_size")
    hidden_size: int | None = option(None, "overrides that of --lm_size")
    intermediate_size: int | None = option(None, "overrides that of --lm_size")
    num_heads: int | None = option(None, "overrides that of --lm_size")
    optimizer: str = option("adamw", "'adamw', or 'muon' for the inner matrices")
    muon_learning_rate: float = option(0.02, "peak learning rate of Muon, on AdamW's scale")
    batch_size: int = option(64, "sequences a step, over all processes and accumulation steps")
    gradient_accumulation_steps: int = option(1, "parts in which a process works through its share of a batch")
    z_loss_weight: float = option(0.0, "weight of the squared log-partition; 1e-5 keeps large models' logits in bounds")
    gradient_checkpointing: bool = option(False, "compute layers again in the backward pass: less memory, more time")
    compile: bool = option(False, "compile the layers first (torch.compile); needs a C++ compiler on a CPU")
    keep_best: bool = option(True, "keep the averaged weights of the best validation in checkpoints/best")

    def sizes(self, tokens_per_image: int) -> dict[str, Any]:
        """What is said about the shape of the language model."""
        from lm.model import default_size

        names = ("architecture", "num_layers", "hidden_size", "intermediate_size", "num_heads")
        return {"size": self.lm_size or default_size(tokens_per_image), **{name: getattr(self, name) for name in names}}


def main(options: Options) -> None:
    """Train, then leave a model folder in `options.output_dir`."""
    import torch

    from lm.data.batch_order import BatchOrder
    from lm.model import recompute_layers
    from lm.training.attention import use_fastest_attention
    from lm.training.losses import NextTokenLoss
    from pipelines.caching.writer import open_cache
    from pipelines.text_to_image import TextToImagePipeline
    from pipelines.training.compilation import compile_layers
    from pipelines.training.distribution import is_sharded, prepare
    from pipelines.training.language_model import (
        build_parts,
        build_source,
        check_parts,
        count_long,
        default_learning_rate,
        formats_line,
        long_line,
        loss_shares,
        mean_loss,
        validate,
    )
    from pipelines.training.language_model_step import Learner, describe_model, total_peak
    from pipelines.training.loop import Loop
    from pipelines.training.sample_pictures import choose_shown, draw_samples, next_commands
    from pipelines.training.start import (
        check_batch_size,
        count_parameters,
        prefetch,
        say,
        start_run,
        warn_small_data_set,
    )
    from pipelines.training.throughput import Throughput
    from tokenizer_image.vqvae import load_tokenizer

    accelerator, run = start_run(options)
    if run.finished:
        return
    device, parts = accelerator.device, options.gradient_accumulation_steps
    tokenizer = load_tokenizer(options.image_tokenizer).to(device)
    check_parts(options, tokenizer)
    check_batch_size(accelerator, options.batch_size, parts=parts)
    cache = open_cache(options, tokenizer, "train", accelerator)
    validation_cache = open_cache(options, tokenizer, "validation", accelerator)
    model, vocabulary = build_parts(options, tokenizer, cache)
    source = build_source(options, cache, vocabulary, model)
    vocabulary.formats = source.trained_formats()
    order = BatchOrder(source, options.batch_size, options.seed, pack_length=options.pack_length)
    told = build_source(options, validation_cache, vocabulary, model, validation=True)
    long = count_long(told)
    run.begin()
    parameters = count_parameters(model)
    say(
        accelerator,
        f"{describe_model(model, vocabulary)}; {len(cache)} pictures of {vocabulary.tokens_per_image} tokens; "
        f"{accelerator.mixed_precision} precision, {torch.get_num_threads()} threads",
    )
    say(accelerator, formats_line(source))
    warn_small_data_set(accelerator, len(cache))
    if long:
        say(accelerator, long_line(long, source, len(validation_cache)))
    if not is_sharded(accelerator):  # FSDP2 moves shards alone
        model.to(device)
    use_fastest_attention(model, options.pack_length or source.max_length)
    if options.gradient_checkpointing:
        recompute_layers(model)
    module = NextTokenLoss(model.train(), vocabulary.id_ranges, options.z_loss_weight)
    if options.compile:
        compile_layers(accelerator, module, order)
    optimizers = options.optimizers(model, default_learning_rate(options, model), betas=(0.9, 0.95))
    prepared = prepare(
        accelerator, module, optimizers, micro_batches=parts, max_grad_norm=options.max_grad_norm,
        micro_batch_size=options.batch_size // (parts * accelerator.num_processes),
    )  # fmt: skip
    shares = loss_shares(options, vocabulary.formats)
    learner = Learner(accelerator, module, prepared, optimizers, vocabulary, shares, options.max_grad_norm)
    shown = choose_shown(told)

    def draw(plain: Any, step: int) -> None:
        pipe = TextToImagePipeline(tokenizer, plain, vocabulary)
        try:
            draw_samples(pipe, shown, run.samples / f"step-{step:06d}.png")
        except (ValueError, RuntimeError) as error:  # a picture to look at is not worth a run
            say(accelerator, f"no samples of step {step}: {error}")

    def write(plain: Any, folder: Path) -> None:
        TextToImagePipeline(tokenizer, plain, vocabulary).save_pretrained(folder)

    loop = Loop(
        accelerator, run, options, model, optimizers, sample=draw, rate=("images", options.batch_size),
        validate=lambda: validate(module, told, accelerator), prepared=prepared,
        throughput=Throughput(total_peak(accelerator)), judge=lambda figures: mean_loss(figures, shares),
        keep_best=write if options.keep_best else None,
    )  # fmt: skip
    if options.resume:
        loop.resume()
    run.write_info(
        parameters=parameters, training_pictures=len(cache), long_rows=long / len(validation_cache), finished=False
    )
    model.train()
    batches = prefetch(
        order.batches(
            loop.place, rank=accelerator.process_index, world_size=accelerator.num_processes, micro_batches=parts
        )
    )
    for _ in loop.steps():
        loop.place, micro_batches = next(batches)
        learned = learner.step(micro_batches)
        loop.count(learned.tokens, learned.flops)
        loop.finish_step(learned.loss, **learned.figures)
    run.write_info(cropped=source.cropped, left_out=source.dropped)  # read ahead by a few batches
    finish(loop, write, next_commands(run.folder, shown))


def finish(loop: Any, write: Callable[[Any, Path], None], commands: list[str]) -> None:
    """Save the model folder with the averaged weights, and say where everything is."""
    from pipelines.training.start import say

    run, figures = loop.run, loop.figures  # of these very weights
    with loop.averaged():
        plain = loop.plain_model()
        if run.is_main:
            write(plain, run.folder)
    run.write_info(finished=True, steps=loop.step, minutes=loop.seconds / 60, validation=figures,
                   tokens_seen=loop.tokens, pictures_seen=loop.step * loop.options.batch_size)  # fmt: skip
    say(loop.accelerator, f"final: {', '.join(f'{name} {value:.4g}' for name, value in figures.items())}")
    say(loop.accelerator, f"model: {run.folder}\nsamples: {run.samples}")
    for command in commands:
        say(loop.accelerator, f"next: {command}")


if __name__ == "__main__":
    from pipelines.options.parser import parse_options

    try:
        main(parse_options(Options, description="Train a language model on captions and pictures (stage 2)."))
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
