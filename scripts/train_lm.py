"""Stage 2: train a language model on captions and image codes.

    accelerate launch scripts/train_lm.py --dataset sprites --image_tokenizer runs/tokenizer --output_dir runs/model

encodes every picture once (the token cache), then leaves a whole model folder in --output_dir:
`TextToImagePipeline.from_pretrained("runs/model")("a dog").images[0]`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.training import TrainingOptions, option

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from transformers import PreTrainedModel

    from lm.cache import TokenCache
    from lm.vocabulary import MultimodalVocabulary
    from tokenizer_image import VQVAE

VALIDATION_PICTURES = 2000
VALIDATION_ROWS = 64  # per batch
SHOWN_CAPTIONS, SHOWN_PICTURES = 6, 4  # in a sample grid


@dataclass
class Options(TrainingOptions):
    """Train a language model on mixed sequences."""

    output_dir: str = option("runs/model", "folder of the run and of the model")
    image_tokenizer: str = option("runs/tokenizer", "folder of the image tokenizer")
    token_cache: str | None = option(None, "folder of the token cache (default: OUTPUT_DIR/token_cache)")
    unconditional: bool = option(False, "learn pictures alone, without captions")
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
    batch_size: int = option(64, "sequences a step, over all processes and accumulation steps")
    gradient_accumulation_steps: int = option(1, "parts in which a process works through its share of a batch")
    caption_dropout: float = option(0.1, "share of pictures that are learned without their caption, for guidance")
    text_loss_weight: float = option(0.0, "weight of a caption token's loss beside an image token's 1")
    default_guidance: float = option(3.0, "guidance scale that the pipeline uses when none is given")

    def check(self) -> None:
        super().check()
        for name in ("caption_dropout", "text_loss_weight", "default_guidance"):
            if getattr(self, name) < 0 or (name == "caption_dropout" and self.caption_dropout > 1):
                raise ValueError(f"--{name} {getattr(self, name)} is out of range")


def open_cache(options: Options, tokenizer: VQVAE, split: str, accelerator: Accelerator) -> TokenCache:
    """The token cache of one split, built if it is not there yet. A whole cache needs no data set."""
    from lm.cache import MANIFEST, TokenCache

    folder = Path(options.token_cache or Path(options.output_dir) / "token_cache") / split
    if not (folder / MANIFEST).is_file():
        writer = build_writer(options, tokenizer, split, folder, accelerator)
        if not writer.finished:
            if accelerator.is_main_process:
                writer.prepare()
            accelerator.wait_for_everyone()
            writer.write(
                process_index=accelerator.process_index, num_processes=accelerator.num_processes,
                device=accelerator.device,
            )  # fmt: skip
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                writer.finish()
            accelerator.wait_for_everyone()
    cache = TokenCache(folder)
    cache.check_fingerprint(tokenizer.fingerprint)
    return cache


def build_writer(options: Options, tokenizer: VQVAE, split: str, folder: Path, accelerator: Accelerator) -> Any:
    """What encodes one split of the data set."""
    from pipelines.token_cache import TokenCacheWriter
    from tokenizer_image.data import Preprocessing, decode_pictures, load_pictures

    source = load_pictures(
        options.dataset,
        split,
        image_column=options.image_column,
        caption_column=options.caption_column,
        need_captions=not options.unconditional,
        max_examples=options.max_examples if split == "train" else VALIDATION_PICTURES,
        seed=options.seed,
    )
    with accelerator.main_process_first():
        decoded = decode_pictures(
            source,
            Preprocessing.from_dict(tokenizer.config.preprocessing),
            num_workers=options.workers(),
            max_unreadable_share=options.max_unreadable_share,
            progress=accelerator.is_main_process,
        )
    return TokenCacheWriter(folder, tokenizer, source, decoded)


def build_vocabulary(options: Options, tokenizer: VQVAE, cache: TokenCache) -> MultimodalVocabulary:
    """The joint vocabulary: a BPE trained on the captions (or a given tokenizer) and the image codes."""
    from lm.vocabulary import MultimodalVocabulary, train_text_tokenizer

    if options.text_tokenizer:
        from transformers import AutoTokenizer

        text = AutoTokenizer.from_pretrained(options.text_tokenizer)
    else:
        text = train_text_tokenizer(cache.all_texts(), options.text_vocab_size)
    side = tokenizer.config.image_size
    return MultimodalVocabulary.build(
        text, num_codes=tokenizer.num_codes, layout=tokenizer.layout().to_dict(), image_size=[side, side],
        image_tokenizer_fingerprint=tokenizer.fingerprint, default_guidance=options.default_guidance,
    )  # fmt: skip


def build_parts(options: Options, tokenizer: VQVAE, cache: TokenCache) -> tuple[PreTrainedModel, MultimodalVocabulary]:
    """Language model and vocabulary: fresh, or those of --init_from."""
    from lm.model import build_configuration, build_model, default_size, load_model
    from lm.vocabulary import MultimodalVocabulary

    if options.init_from:
        folder = Path(options.init_from) / "lm"
        vocabulary = MultimodalVocabulary.from_pretrained(folder)
        if vocabulary.image_tokenizer_fingerprint != tokenizer.fingerprint:
            raise ValueError(
                f"--init_from {options.init_from} was trained with another image tokenizer: give its own as "
                f"--image_tokenizer {Path(options.init_from) / 'image_tokenizer'}"
            )
        return load_model(str(folder)), vocabulary
    vocabulary = build_vocabulary(options, tokenizer, cache)
    config = build_configuration(
        vocabulary,
        architecture=options.architecture,
        size=options.lm_size or default_size(vocabulary.tokens_per_image),
        num_layers=options.num_layers,
        hidden_size=options.hidden_size,
        intermediate_size=options.intermediate_size,
        num_heads=options.num_heads,
        max_positions=vocabulary.tokens_per_image + options.max_caption_tokens + 4,
    )
    return build_model(config), vocabulary


def validate(module: Any, order: Any, device: torch.device) -> dict[str, float]:
    """Mean nats per image code (and per text token, where captions are learned) over the validation rows."""
    import torch

    totals: dict[str, float] = {}
    rows = range(len(order.source.cache))
    with torch.inference_mode():
        for start in range(0, len(rows), VALIDATION_ROWS):
            part = rows[start : start + VALIDATION_ROWS]
            captions = [(order.source.cache.texts(row) or [None])[0] for row in part]
            batch = order.collate(list(zip(part, order.source.caption_ids(captions), strict=True)))
            sums = module(**{name: tensor.to(device) for name, tensor in batch.items()})
            for name in ("image_nats", "image_tokens", "text_nats", "text_tokens"):
                totals[name] = totals.get(name, 0.0) + float(sums[name])
    figures = {"nats_per_code": totals["image_nats"] / max(1, totals["image_tokens"])}
    if totals["text_tokens"]:
        figures["nats_per_text_token"] = totals["text_nats"] / totals["text_tokens"]
    return figures


def draw_samples(pipe: Any, captions: list[str | None], file: Path) -> None:
    """A grid of pictures for the same few captions each time, with random streams of its own."""
    from pipelines.grids import labelled_grid

    rows = []
    for caption in captions:
        output = pipe(caption, num_images_per_prompt=SHOWN_PICTURES, seed=0)
        rows.append((caption or "(no caption)", output.images))
    labelled_grid(rows).save(file)


def main(options: Options) -> None:
    """Train, then leave a model folder in `options.output_dir`."""
    options.check()
    import torch

    from lm.attention import use_fastest_attention
    from lm.data import BatchOrder, CaptionedPictures
    from lm.losses import NextTokenLoss
    from lm.model import default_learning_rate
    from pipelines.run import Run
    from pipelines.text_to_image import TextToImagePipeline
    from pipelines.training import Loop, count_parameters, prefetch, say, start_accelerator, warn_small_data_set
    from tokenizer_image.vqvae import load_tokenizer

    accelerator = start_accelerator(options)
    run = Run(
        options.output_dir, options, resume=options.resume, overwrite=options.overwrite,
        is_main=accelerator.is_main_process,
    )  # fmt: skip
    if run.finished:
        say(accelerator, f"{run.folder} is finished already; --overwrite trains it again")
        return
    device = accelerator.device
    tokenizer = load_tokenizer(options.image_tokenizer).to(device)
    cache = open_cache(options, tokenizer, "train", accelerator)
    validation_cache = open_cache(options, tokenizer, "validation", accelerator)
    model, vocabulary = build_parts(options, tokenizer, cache)
    model.to(device)
    limit = model.config.max_position_embeddings
    settings = {"text_loss_weight": options.text_loss_weight, "max_length": limit}
    dropout = 1.0 if options.unconditional else options.caption_dropout
    source = CaptionedPictures(cache, vocabulary, caption_dropout=dropout, **settings)
    order = BatchOrder(source, options.batch_size, options.seed)
    validation = BatchOrder(CaptionedPictures(validation_cache, vocabulary, caption_dropout=0.0, **settings), 1)
    run.begin()
    parameters = count_parameters(model)
    embeddings = model.get_input_embeddings().weight.numel() + model.get_output_embeddings().weight.numel()
    say(
        accelerator,
        f"{options.architecture}: {parameters / 1e6:.2f}M parameters ({(parameters - embeddings) / 1e6:.2f}M without "
        f"embeddings), {vocabulary.size} token ids ({vocabulary.num_codes} image codes); {len(cache)} pictures of "
        f"{vocabulary.tokens_per_image} tokens; {accelerator.mixed_precision} precision, "
        f"{torch.get_num_threads()} threads",
    )
    warn_small_data_set(accelerator, len(cache))
    learning_rate = options.learning_rate or default_learning_rate(model.config.hidden_size)
    optimizers = options.optimizers(model, learning_rate, betas=(0.9, 0.95))
    use_fastest_attention(model, vocabulary.tokens_per_image + options.max_caption_tokens)
    module = NextTokenLoss(model, vocabulary.id_ranges)
    prepared = accelerator.prepare(module)
    pipe = TextToImagePipeline(tokenizer, model, vocabulary)
    captions = [None] * 2 if options.unconditional else [validation_cache.texts(r)[0] for r in range(SHOWN_CAPTIONS)]
    loop = Loop(
        accelerator, run, options, model, optimizers,
        validate=lambda: validate(module, validation, device),
        sample=lambda step: draw_samples(pipe, captions, run.samples / f"step-{step:06d}.png"),
        rate=("images", options.batch_size),
    )  # fmt: skip
    if options.resume:
        loop.resume()
    run.write_info(parameters=parameters, training_pictures=len(cache), finished=False)
    model.train()
    accumulation = options.gradient_accumulation_steps
    batches = prefetch(
        order.batches(
            loop.step, rank=accelerator.process_index, world_size=accelerator.num_processes, micro_batches=accumulation
        )
    )
    tokens = 0
    for _ in loop.steps():
        micro_batches = next(batches)
        # Divided by the global weight: a mean of per-rank means is wrong where captions differ in length.
        weight = torch.stack([batch["loss_weights"].sum() for batch in micro_batches]).sum().to(device)
        weight = accelerator.reduce(weight, "sum")
        nats = torch.zeros((), device=device)
        codes = torch.zeros((), device=device)
        for index, batch in enumerate(micro_batches):
            last = index == accumulation - 1
            with accelerator.no_sync(prepared) if not last else _nothing():
                sums = prepared(**{name: tensor.to(device) for name, tensor in batch.items()})
                accelerator.backward(sums["loss"] * (accelerator.num_processes / weight))
            nats += sums["image_nats"]
            codes += sums["image_tokens"]
            tokens += batch["input_ids"].numel()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        totals = accelerator.reduce(torch.stack([nats, codes]), "sum")
        loop.finish_step(totals[0] / totals[1], grad_norm=norm)
    finish(loop, pipe, module, validation, tokens)


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def finish(loop: Any, pipe: Any, module: Any, validation: Any, tokens: int) -> None:
    """Save the model folder with the averaged weights, and say where everything is."""
    from pipelines.training import say

    run, model = loop.run, loop.model
    model.eval()
    with loop.averages.applied():
        figures = validate(module, validation, loop.accelerator.device)
        if run.is_main:
            pipe.save_pretrained(run.folder)
    cropped = validation.source.cropped
    run.write_info(finished=True, steps=loop.step, minutes=loop.seconds / 60, validation=figures, tokens_seen=tokens,
                   pictures_seen=loop.step * loop.options.batch_size, captions_cut=cropped)  # fmt: skip
    say(loop.accelerator, f"final: {', '.join(f'{name} {value:.4g}' for name, value in figures.items())}")
    say(
        loop.accelerator,
        f"model: {run.folder}\nsamples: {run.samples}\n"
        f'next: python scripts/generate.py --model {run.folder} "a dog" --num_images_per_prompt 4',
    )


if __name__ == "__main__":
    from pipelines.options import parse_options

    try:
        main(parse_options(Options, description="Train a language model on captions and pictures (stage 2)."))
    except (ValueError, TypeError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
