"""Stage 2: train a language model on captions and image codes.

    accelerate launch scripts/train_lm.py --dataset sprites --image_tokenizer runs/tokenizer --output_dir runs/model

encodes every picture once (the token cache), then leaves a whole model folder in --output_dir:
`TextToImagePipeline.from_pretrained("runs/model")("a dog").images[0]`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pipelines.data_options import CacheOptions
from pipelines.training_options import TrainingOptions, option


@dataclass
class Options(CacheOptions, TrainingOptions):
    """Train a language model on mixed sequences."""

    script: ClassVar[str | None] = "train_lm.py"
    above_zero: ClassVar[tuple[str, ...]] = (
        *TrainingOptions.above_zero, "gradient_accumulation_steps", "max_caption_tokens", "text_vocab_size",
        "num_layers", "hidden_size", "intermediate_size", "num_heads", "text_loss_weight", "image_loss_weight",
        "max_length", "pack_length",
    )  # fmt: skip
    not_negative: ClassVar[tuple[str, ...]] = (
        *TrainingOptions.not_negative, "caption_dropout", "default_guidance", "z_loss_weight",
    )  # fmt: skip
    output_dir: str = option("runs/model", "folder of the run and of the model")
    formats: list[str] = field(
        default_factory=lambda: ["caption_to_image=1"],
        metadata={
            "help": "sequence formats and how often each is learned, e.g. caption_to_image=3 image_to_caption=1: "
            "caption_to_image, caption_and_image (the caption is learned too), image, image_to_caption, "
            "image_and_caption (both learned, in place of caption dropout), text, document (interleaved rows)"
        },
    )
    unconditional: bool = option(False, "learn pictures alone, without captions (--formats image)")
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
    max_caption_tokens: int = option(64, "longer captions lose their end")
    max_length: int | None = option(
        None, "most tokens of a sequence (default: a picture and its caption; documents 1024)"
    )
    long_sequences: str = option("crop", "what is done with longer ones: 'crop' or 'drop'")
    pack_length: int | None = option(
        None, "tokens of a row that several sequences share: --batch_size then counts such rows (default: no packing)"
    )
    batch_size: int = option(64, "sequences a step, over all processes and accumulation steps")
    gradient_accumulation_steps: int = option(1, "parts in which a process works through its share of a batch")
    caption_dropout: float = option(0.1, "share of pictures that are learned without their caption, for guidance")
    text_loss_weight: float = option(1.0, "what the mean loss of text counts, where --formats learn text and pictures")
    image_loss_weight: float = option(7.0, "what the mean loss of image codes counts beside it")
    z_loss_weight: float = option(0.0, "weight of the squared log-partition; 1e-5 keeps large models' logits in bounds")
    gradient_checkpointing: bool = option(False, "compute layers again in the backward pass: less memory, more time")
    compile: bool = option(False, "compile the layers first (torch.compile); needs a C++ compiler on a CPU")
    keep_best: bool = option(True, "keep the averaged weights of the best validation in checkpoints/best")
    default_guidance: float = option(
        2.0, "the pipeline's guidance scale when none is given; 1 if --caption_dropout is 0"
    )

    def check(self) -> None:
        super().check()
        if self.caption_dropout > 1:
            raise ValueError(f"--caption_dropout {self.caption_dropout} is out of range: give a share, 0 to 1")
        if self.unconditional and self.formats != Options().formats:
            raise ValueError(f"--unconditional and --formats {' '.join(self.formats)} exclude each other: give one")
        if self.long_sequences not in ("crop", "drop"):
            raise ValueError(f"--long_sequences {self.long_sequences!r}: choose crop or drop")
        from pipelines.language_model import loss_shares

        loss_shares(self, self.mixture())

    def mixture(self) -> dict[str, float]:
        """Weight of each sequence format."""
        from lm.sequences import FORMATS, parse_mixture

        if self.unconditional:
            return {"image": 1.0}
        try:
            found = parse_mixture(self.formats)
        except ValueError as error:
            raise ValueError(f"--formats: {error}") from error
        mixture: dict[str, float] = {}
        for name, weight in found.items():
            name = "image" if self.caption_dropout == 1 and FORMATS[name].drops_captions else name
            mixture[name] = mixture.get(name, 0.0) + weight
        return mixture

    @property
    def needs_captions(self) -> bool:
        """Whether there is something that cannot be learned without captions."""
        return set(self.mixture()) != {"image"}

    def sizes(self, tokens_per_image: int) -> dict[str, Any]:
        """What is said about the shape of the language model."""
        from lm.model import default_size

        names = ("architecture", "num_layers", "hidden_size", "intermediate_size", "num_heads")
        return {"size": self.lm_size or default_size(tokens_per_image), **{name: getattr(self, name) for name in names}}


def main(options: Options) -> None:
    """Train, then leave a model folder in `options.output_dir`."""
    import torch

    from lm.attention import use_fastest_attention
    from lm.losses import NextTokenLoss
    from lm.order import BatchOrder
    from pipelines.compilation import compile_layers
    from pipelines.distribution import is_sharded, prepare
    from pipelines.language_model import (
        build_parts,
        build_source,
        check_parts,
        count_long,
        default_learning_rate,
        draw_samples,
        formats_line,
        long_line,
        loss_shares,
        mean_loss,
        next_commands,
        shown_captions,
        shown_codes,
        validate,
    )
    from pipelines.learning import Learner, describe_model, total_peak
    from pipelines.loop import Loop
    from pipelines.text_to_image import TextToImagePipeline
    from pipelines.throughput import Throughput
    from pipelines.token_cache import open_cache
    from pipelines.training import check_batch_size, count_parameters, prefetch, say, start_run, warn_small_data_set
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
        model.gradient_checkpointing_enable({"use_reentrant": False})
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
    captions, codes = shown_captions(told), shown_codes(told)

    def draw(plain: Any, step: int) -> None:
        pipe = TextToImagePipeline(tokenizer, plain, vocabulary)
        draw_samples(pipe, captions, codes, run.samples / f"step-{step:06d}.png")

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
    finish(loop, write, next_commands(run.folder, told, captions))


def finish(loop: Any, write: Callable[[Any, Path], None], commands: list[str]) -> None:
    """Save the model folder with the averaged weights, and say where everything is."""
    from pipelines.training import say

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
    from pipelines.options import parse_options

    try:
        main(parse_options(Options, description="Train a language model on captions and pictures (stage 2)."))
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
