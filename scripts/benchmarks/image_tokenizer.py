"""Pictures a second that stage 1 trains on, beside a plain baseline: the same network in float32, channels first, its
batches read in the training loop.

    python scripts/benchmarks/image_tokenizer.py --output rows.json

Both do whole steps with the same optimizer: read a batch, forward, backward, clip, update. Ours is the step of
scripts/train_tokenizer.py, with Muon or AdamW; the other rows each leave out one of its optimizations. All take turns;
the rows are medians. Last comes a profile of our step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pipelines.options.option import option
from pipelines.options.parser import run_command
from scripts.benchmarks.figures import BenchmarkOptions, Row, interleaved, row, show, write_rows

TARGET = 1.5


@dataclass(kw_only=True)
class Options(BenchmarkOptions):
    """Stage 1's speed."""

    dataset: str = option("sprites", "'sprites', a folder of pictures, or a name on the Hub")
    image_size: int = option(32, "side of the pictures in pixels", above_zero=True)
    batch_size: int = option(64, "pictures a step", above_zero=True)
    steps: int = option(10, "steps in a turn", above_zero=True)
    repeats: int = option(9, "turns of each; the rows are medians", above_zero=True)


@dataclass(frozen=True)
class Setup:
    """How a step is done."""

    optimizer: str
    bf16: bool = True
    channels_last: bool = True
    prefetch: bool = True
    fused: bool = True
    averages: bool = True


PLAIN = {"bf16": False, "channels_last": False, "prefetch": False, "fused": False, "averages": False}
OURS = Setup("muon")
SETUPS = {
    "ours": OURS,
    "baseline": Setup("muon", **PLAIN),
    "ours_adamw": Setup("adamw"),
    "baseline_adamw": Setup("adamw", **PLAIN),
    "ours_in_float32": replace(OURS, bf16=False),
    "ours_channels_first": replace(OURS, channels_last=False),
    "ours_without_prefetch": replace(OURS, prefetch=False),
}
Mark = Callable[[str], None]  # called after each part of a step, with its name


def stepper(setup: Setup, options: Options, pictures: Any) -> Callable[[Mark], None]:
    """A function that does one training step of a model of its own."""
    from types import SimpleNamespace

    import torch

    from pipelines.options.image_tokenizer import ImageTokenizerOptions
    from pipelines.training.averages import AveragedWeights
    from pipelines.training.image_tokenizer import training_batches
    from pipelines.training.optimizers import optimizers_of
    from pipelines.training.prefetch import prefetch
    from scripts.train_tokenizer import BETAS, LEARNING_RATE
    from tokenizer_image import VQVAE
    from tokenizer_image.preprocessing import to_pixel_values

    torch.manual_seed(0)
    training = ImageTokenizerOptions(
        batch_size=options.batch_size, image_size=options.image_size, optimizer=setup.optimizer
    )
    tokenizer = VQVAE(training.configuration(photographs=False)).train()
    layout = torch.channels_last if setup.channels_last else torch.contiguous_format
    tokenizer.to(memory_format=layout)  # type: ignore[call-overload]
    optimizers = optimizers_of(training, tokenizer, LEARNING_RATE, BETAS, training.weight_decay)
    if not setup.fused:
        groups = [{name: group[name] for name in ("params", "weight_decay")} for group in optimizers[0].param_groups]
        optimizers[0] = torch.optim.AdamW(groups, LEARNING_RATE, betas=BETAS, fused=False)
    averages = AveragedWeights(tokenizer, training.ema_decay) if setup.averages else None
    alone: Any = SimpleNamespace(num_processes=1, process_index=0)
    batches: Iterator[Any] = training_batches(pictures, training, 0, alone)
    if setup.prefetch:
        batches = prefetch(batches)
    count = 0

    def step(mark: Mark) -> None:
        nonlocal count
        pixel_values = to_pixel_values(next(batches).pictures).contiguous(memory_format=layout)
        mark("data")
        with torch.autocast("cpu", torch.bfloat16, enabled=setup.bf16):
            loss = tokenizer(pixel_values).loss
        mark("forward")
        loss.backward()
        mark("backward")
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), training.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        mark("optimizer")
        count += 1
        if averages is not None:
            averages.update(count)
        mark("averages")

    return step


def silent(part: str) -> None:
    """A mark that does nothing."""


def shares(step: Callable[[Mark], None], steps: int) -> dict[str, float]:
    """Share of a step's time that each part takes."""
    took: dict[str, float] = {}
    for _ in range(steps):
        last = time.perf_counter()

        def mark(part: str) -> None:
            nonlocal last
            now = time.perf_counter()
            took[part], last = took.get(part, 0.0) + now - last, now

        step(mark)
    total = sum(took.values())
    return {part: value / total for part, value in took.items()}


def operations(step: Callable[[Mark], None], steps: int, most: int = 12) -> dict[str, float]:
    """Share of the time that each of PyTorch's operations takes itself, without those that it calls: the `most`
    longest, longest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as record:
        for _ in range(steps):
            step(silent)
    events = sorted(record.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return {event.key: event.self_cpu_time_total / total for event in events[:most]}


def main(options: Options) -> None:
    """Measure; a table on the screen, rows in the file."""
    from pipelines.caching.pixel_cache import decode_pictures
    from tokenizer_image.pictures.loading import Preprocessing, load_pictures

    options.set_threads()
    source = load_pictures(options.dataset, "train", max_examples=4096, image_size=options.image_size)
    pictures = decode_pictures(source, Preprocessing(image_size=options.image_size))
    steps = {name: stepper(setup, options, pictures) for name, setup in SETUPS.items()}
    for step in steps.values():  # the first step starts the codebooks
        step(silent)

    def turn(step: Callable[[Mark], None]) -> Callable[[], None]:
        return lambda: [step(silent) for _ in range(options.steps)] and None

    durations = interleaved({name: turn(step) for name, step in steps.items()}, options.repeats)
    images = {name: options.steps * options.batch_size / duration for name, duration in durations.items()}
    rows: list[Row] = [
        row(f"stage1/speedup{name}", images[f"ours{name}"] / images[f"baseline{name}"], "x", TARGET, True)
        for name in ("", "_adamw")
    ]
    rows += [row(f"stage1/{name}/images_per_second", value, "images/s", None, True) for name, value in images.items()]
    rows += [row(f"profile/{part}", share, "of a step") for part, share in shares(steps["ours"], 20).items()]
    rows += [row(f"profile/{name}", share, "of operations") for name, share in operations(steps["ours"], 10).items()]
    show(rows)
    write_rows(options.output, rows)


if __name__ == "__main__":
    run_command(main, Options, __doc__)
