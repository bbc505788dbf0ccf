"""Speed of stage 2, beside a plain baseline, and memory of its loss.

    python scripts/benchmarks/language_model.py --output rows.json

Useful tokens (those that are not padding) a second of whole training steps, on captions of sprites and as many codes as
their pictures have. Ours is the step of scripts/train_lm.py --compile; the time that compiling takes is not counted.
The baseline has the same stock model, batch size and optimizer, but pads rows in random order to the longest, computes
in float32, and uses the model's own loss over all tokens. They take turns; the rows are medians.

MFU is the floating-point operations a second of the matrix products that a step executes (no embedding lookups, no
skipped rows of the output layer), over those of the fastest square product of 1,024 to 4,096 in the same precision.

The memory of the loss is measured by `scripts/benchmarks/loss_memory.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.machine.devices import choose_device, computes_bf16
from pipelines.options.option import option
from pipelines.options.parser import run_command
from scripts.benchmarks.figures import BenchmarkOptions, Row, interleaved, row, show, write_rows
from scripts.benchmarks.loss_memory import loss_memory

ROWS, BATCH = 8192, 64
ROWS_5M = 48  # sequences of 43 tokens on average: a batch of about 2,048 tokens for the MFU row
SIDES = (1024, 2048, 4096)
FIVE_MILLION = {"num_layers": 6, "hidden_size": 256, "intermediate_size": 704, "num_heads": 4}


@dataclass(kw_only=True)
class Options(BenchmarkOptions):
    """Stage 2's speed and memory."""

    steps: int = option(4, "steps in a turn", above_zero=True)
    repeats: int = option(9, "turns of each; the rows are medians", above_zero=True)
    compile: bool = option(True, "compile our layers (train_lm.py --compile)")


@dataclass
class Data:
    """Captions of sprites and random codes, 32 a picture in two codebooks of 512, as in `make demo`."""

    cache: Any
    vocabulary: Any


def make_data(folder: Path) -> Data:
    """A token cache of `ROWS` rows, and its vocabulary."""
    import numpy as np

    from lm.data.token_cache import Document, TokenCache, code_dtype, write_manifest, write_shard
    from lm.vocabulary import MultimodalVocabulary, train_text_tokenizer
    from tokenizer_image.layout import build_layout
    from tokenizer_image.sprites.data_set import SpriteDataset

    sprites, layout = SpriteDataset(num_examples=ROWS), build_layout([(4, 4)], [[512, 512]])
    codes = np.random.default_rng(0).integers(layout.low, layout.high, (ROWS, len(layout)))
    documents = [Document(codes[index], [(32, 32)], sprites.texts(index)) for index in range(ROWS)]
    write_shard(folder / "shard-00000", documents, code_dtype(1024))
    shards = [{"name": "shard-00000", "rows": ROWS}]
    write_manifest(folder, {"image_tokenizer_fingerprint": "none", "num_codes": 1024, "shards": shards})
    cache = TokenCache(folder)
    vocabulary = MultimodalVocabulary.build(
        train_text_tokenizer(cache.all_texts()), num_codes=1024, layout=layout.to_dict(), image_size=[32, 32],
        image_tokenizer_fingerprint="none",
    )  # fmt: skip
    return Data(cache, vocabulary)


def plain_trainer(data: Data, sizes: dict[str, Any]) -> tuple[Callable[[], float], int]:
    """The baseline: a step that returns its useful tokens, and how many parameters the model has."""
    import numpy as np
    import torch

    from lm.data.sequence_source import SequenceSource
    from lm.model import build_configuration, build_model, default_learning_rate

    torch.manual_seed(0)
    model = build_model(build_configuration(data.vocabulary, **sizes)).train()
    optimizer = torch.optim.AdamW(model.parameters(), default_learning_rate(model.config.hidden_size))
    source, pad = SequenceSource(data.cache, data.vocabulary), data.vocabulary.pad_id

    def batches() -> Iterator[Any]:
        for epoch in range(1_000_000):
            order = np.random.default_rng(epoch).permutation(len(data.cache))
            for start in range(0, len(order) - BATCH + 1, BATCH):
                rows = order[start : start + BATCH]
                items = source.items(rows, source.choose(0, epoch, rows))
                ids = [torch.from_numpy(source.sequence(item).input_ids) for item in items]
                yield torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad)

    stream = batches()

    def step() -> float:
        input_ids = next(stream)
        kept = input_ids != pad
        labels = torch.where(kept, input_ids, -100)
        model(input_ids=input_ids, attention_mask=kept.long(), labels=labels, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(kept.sum())

    return step, sum(parameter.numel() for parameter in model.parameters())


@dataclass
class Ours:
    """The training step of scripts/train_lm.py."""

    step: Callable[[], tuple[float, float]]  # tokens and FLOPs
    inner_parameters: int  # without embeddings and output layer


def our_trainer(
    data: Data, sizes: dict[str, Any], options: Options, batch_size: int = BATCH, pack_length: int | None = None
) -> Ours:
    """A model, its order of data and its optimizers."""
    import torch
    from accelerate import Accelerator

    from lm.data.batch_order import BatchOrder
    from lm.data.sequence_source import SequenceSource
    from lm.model import build_configuration, build_model, default_learning_rate
    from lm.training.attention import use_fastest_attention
    from lm.training.losses import NextTokenLoss
    from pipelines.training.averages import AveragedWeights
    from pipelines.training.compilation import compile_layers
    from pipelines.training.language_model_step import train_step
    from pipelines.training.optimizers import build_optimizers
    from pipelines.training.prefetch import prefetch

    torch.manual_seed(0)
    accelerator = Accelerator(mixed_precision="bf16" if computes_bf16() else "no")
    model = build_model(build_configuration(data.vocabulary, **sizes)).to(accelerator.device).train()
    source = SequenceSource(data.cache, data.vocabulary, max_length=pack_length or 1 << 30)
    order = BatchOrder(source, batch_size, pack_length=pack_length)
    use_fastest_attention(model, pack_length or 128)
    module = NextTokenLoss(model, data.vocabulary.id_ranges)
    if options.compile:
        compile_layers(accelerator, module, order)
    rate = default_learning_rate(model.config.hidden_size)
    optimizers = build_optimizers(model, learning_rate=rate, weight_decay=0.05)
    prepared, pad_id = accelerator.prepare(module), data.vocabulary.pad_id
    averages, batches, count = AveragedWeights(model, 0.998), prefetch(order.batches()), 0

    def step() -> tuple[float, float]:
        nonlocal count
        figures = train_step(
            accelerator, module, prepared, optimizers, next(batches)[1], loss_shares=(0.0, 1.0), pad_id=pad_id,
            max_grad_norm=1.0,
        )  # fmt: skip
        count += 1
        averages.update(count)
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return figures.tokens, figures.flops

    inner = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name and "lm_head" not in name)
    return Ours(step, inner)


def useful_tokens(data: Data, options: Options) -> list[Row]:
    """Tokens a second, ours over the baseline's."""
    from lm.model import default_size

    sizes = {"size": default_size(32), "max_positions": 128}
    plain, parameters = plain_trainer(data, sizes)
    ways = {"padded": our_trainer(data, sizes, options).step,
            "packed": our_trainer(data, sizes, options, batch_size=12, pack_length=256).step}  # fmt: skip
    tokens: dict[str, list[float]] = {name: [] for name in ("baseline", *ways)}

    def turn(name: str, step: Callable[[], float]) -> Callable[[], None]:
        return lambda: tokens[name].extend(step() for _ in range(options.steps))

    ours = {name: turn(name, lambda step=step: step()[0]) for name, step in ways.items()}
    taken = interleaved({"baseline": turn("baseline", plain), **ours}, options.repeats)
    rates = {name: options.steps * sum(counts) / len(counts) / taken[name] for name, counts in tokens.items()}
    print(f"{parameters / 1e6:.2f}M parameters, {BATCH} sequences a step (packed: 12 rows of 256 tokens)")
    return [
        row("useful_tokens/speedup", rates["padded"] / rates["baseline"], "x", 2.5, True),
        row("useful_tokens/packed_speedup", rates["packed"] / rates["baseline"], "x", None, True),
        *(row(f"useful_tokens/{name}", rate, "tokens/s", None, True) for name, rate in rates.items()),
    ]


def square_products(device: Any) -> dict[str, Callable[[], Any]]:
    """Calls of square products in the precision of training, by side; each computes about as much as the largest."""
    import torch

    dtype = torch.bfloat16 if computes_bf16() else torch.float32
    matrices = {side: torch.randn(side, side, device=device, dtype=dtype) for side in SIDES}

    def product(side: int) -> Callable[[], None]:
        def call() -> None:
            for _ in range((SIDES[-1] // side) ** 2):
                matrices[side] @ matrices[side]
            if matrices[side].is_cuda:
                torch.cuda.synchronize()

        return call

    return {str(side): product(side) for side in SIDES}


def utilization(data: Data, options: Options, sizes: dict[str, Any], name: str, target: float) -> list[Row]:
    """MFU of our step on batches of `ROWS_5M` sequences (32 times as many on a GPU)."""
    device = choose_device()
    rows = ROWS_5M if device.type == "cpu" else 32 * ROWS_5M
    ours = our_trainer(data, {**sizes, "max_positions": 128}, options, batch_size=rows)
    flops: list[float] = []

    def turn() -> None:
        flops.extend(ours.step()[1] for _ in range(options.steps))

    products = square_products(device)
    taken = interleaved({"ours": turn, **products}, options.repeats)
    peaks = {side: (SIDES[-1] // int(side)) ** 2 * 2 * int(side) ** 3 / taken[side] for side in products}
    side = max(peaks, key=peaks.__getitem__)
    reached = sum(flops) / len(flops) * options.steps / taken["ours"]
    print(f"{name}: {ours.inner_parameters / 1e6:.2f}M parameters without embeddings, {reached / 1e9:.0f} of "
          f"{peaks[side] / 1e9:.0f} GFLOPS (the product of {side})")  # fmt: skip
    return [row(name, reached / peaks[side], "of peak", target, True)]


def main(options: Options) -> None:
    """Measure; a table on the screen, rows in the file."""
    import torch

    options.set_threads()
    rows = loss_memory()
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder) / "cache")
        rows += useful_tokens(data, options)
        rows += utilization(data, options, FIVE_MILLION, "mfu/5M", 0.6)
        if torch.cuda.is_available():
            rows += utilization(data, options, {"size": "1B"}, "mfu/1B", 0.45)
        else:
            rows.append(row("mfu/1B", None, "of peak"))
    show(rows, missing="needs a GPU")
    write_rows(options.output, rows)


if __name__ == "__main__":
    run_command(main, Options, __doc__)
