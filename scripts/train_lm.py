"""Stage 2: train a language model on captions and image codes.

    accelerate launch scripts/train_lm.py --dataset sprites --image_tokenizer runs/tokenizer --output_dir runs/model

encodes every picture once (the token cache), then leaves a whole model folder in --output_dir:
`TextToImagePipeline.from_pretrained("runs/model")("a dog").images[0]`.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
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
        *TrainingOptions.not_negative, "caption_dropout", "default_guidance",
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
    from lm.losses import NextTokenLoss, balance, label_weights
    from lm.model import default_learning_rate
    from lm.order import BatchOrder
    from pipelines.language_model import (
        build_parts,
        build_source,
        check_parts,
        count_long,
        draw_samples,
        formats_line,
        loss_shares,
        next_commands,
        shown_captions,
        shown_codes,
        validate,
    )
    from pipelines.text_to_image import TextToImagePipeline
    from pipelines.token_cache import open_cache
    from pipelines.training import (
        Loop,
        check_batch_size,
        count_parameters,
        prefetch,
        say,
        start_run,
        warn_small_data_set,
    )
    from tokenizer_image.vqvae import load_tokenizer

    accelerator, run = start_run(options)
    if run.finished:
        return
    device = accelerator.device
    tokenizer = load_tokenizer(options.image_tokenizer).to(device)
    check_parts(options, tokenizer)
    check_batch_size(accelerator, options.batch_size, parts=options.gradient_accumulation_steps)
    cache = open_cache(options, tokenizer, "train", accelerator)
    validation_cache = open_cache(options, tokenizer, "validation", accelerator)
    model, vocabulary = build_parts(options, tokenizer, cache)
    model.to(device)
    source = build_source(options, cache, vocabulary, model, options.caption_dropout)
    vocabulary.formats = source.trained_formats()
    order = BatchOrder(source, options.batch_size, options.seed, pack_length=options.pack_length)
    told = build_source(options, validation_cache, vocabulary, model, caption_dropout=0.0)
    long = count_long(told)
    run.begin()
    parameters = count_parameters(model)
    embeddings = model.get_input_embeddings().weight.numel() + model.get_output_embeddings().weight.numel()
    say(
        accelerator,
        f"{model.config.model_type}: {parameters / 1e6:.2f}M parameters ({(parameters - embeddings) / 1e6:.2f}M "
        f"without embeddings), {vocabulary.size} token ids ({vocabulary.num_codes} image codes); {len(cache)} pictures "
        f"of {vocabulary.tokens_per_image} tokens; {accelerator.mixed_precision} precision, "
        f"{torch.get_num_threads()} threads",
    )
    say(accelerator, formats_line(source))
    warn_small_data_set(accelerator, len(cache))
    if long:
        say(
            accelerator,
            f"{long} of {len(validation_cache)} validation rows, and about that share of all, are longer than "
            f"{source.max_length} tokens and are {'left out' if options.long_sequences == 'drop' else 'cropped'} "
            "(--max_caption_tokens, --max_length, --long_sequences)",
        )
    learning_rate = options.learning_rate or default_learning_rate(model.config.hidden_size)
    optimizers = options.optimizers(model, learning_rate, betas=(0.9, 0.95))
    use_fastest_attention(model, options.pack_length or source.max_length)
    module = NextTokenLoss(model, vocabulary.id_ranges)
    prepared = accelerator.prepare(module)
    pipe = TextToImagePipeline(tokenizer, model, vocabulary)
    captions, codes = shown_captions(told), shown_codes(told)
    shares = loss_shares(options, vocabulary.formats)
    loop = Loop(
        accelerator, run, options, model, optimizers,
        validate=lambda: validate(module, told, device),
        sample=lambda step: draw_samples(pipe, captions, codes, run.samples / f"step-{step:06d}.png"),
        rate=("images", options.batch_size),
    )  # fmt: skip
    if options.resume:
        loop.resume()
    run.write_info(
        parameters=parameters, training_pictures=len(cache), long_rows=long / len(validation_cache), finished=False
    )
    model.train()
    accumulation = options.gradient_accumulation_steps
    batches = prefetch(
        order.batches(
            loop.place, rank=accelerator.process_index, world_size=accelerator.num_processes, micro_batches=accumulation
        )
    )
    for _ in loop.steps():
        loop.place, micro_batches = next(batches)
        # Means over all ranks and micro-batches: a mean of their means is wrong where captions differ in length.
        labels = accelerator.reduce(label_weights(micro_batches, vocabulary.image_offset).to(device), "sum").tolist()
        divisor = balance(micro_batches, vocabulary.image_offset, labels, shares)
        found = torch.zeros(3, device=device)  # loss, nats of text, nats of codes
        tokens = 0
        for index, batch in enumerate(micro_batches):
            last = index == accumulation - 1
            with accelerator.no_sync(prepared) if not last else nullcontext():
                sums = prepared(**{name: tensor.to(device) for name, tensor in batch.items()})
                accelerator.backward(sums["loss"] * (accelerator.num_processes / divisor))
            found += torch.stack([sums["loss"].detach() / divisor, sums["text_nats"], sums["image_nats"]])
            tokens += batch["input_ids"].numel()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        totals = accelerator.reduce(torch.cat([found, found.new_tensor([tokens])]), "sum")
        loop.tokens += int(totals[3])
        both = (
            {"nats_per_text_token": totals[1] / labels[0], "nats_per_code": totals[2] / labels[1]}
            if all(labels)
            else {}
        )
        loop.finish_step(totals[0], grad_norm=norm, **both)
    finish(loop, pipe, next_commands(run.folder, told, captions))


def finish(loop: Any, pipe: Any, commands: list[str]) -> None:
    """Save the model folder with the averaged weights, and say where everything is."""
    from pipelines.training import say

    run, model = loop.run, loop.model
    model.eval()
    figures = loop.figures  # of these very weights
    with loop.averages.applied():
        if run.is_main:
            pipe.save_pretrained(run.folder)
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
