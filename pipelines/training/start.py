"""What the two training scripts share: everything around a step that is not the step itself."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import transformers
from accelerate import Accelerator
from torch import nn
from tqdm.auto import tqdm

from pipelines.machine.devices import computes_bf16
from pipelines.machine.processors import usable_cores
from pipelines.options.data import DataOptions
from pipelines.options.training import TrainingOptions
from pipelines.training.distribution import check_distribution, shard_on_cpu
from pipelines.training.run_folder import Run
from pipelines.training.termination import end_with_launcher
from tokenizer_image.pictures.loading import (
    DecodedPictures,
    PictureDataset,
    Preprocessing,
    decode_pictures,
    load_pictures,
)

SMALL_DATA_SET = 1000
VALIDATION_PICTURES = 2000
Item = TypeVar("Item")


def start_accelerator(options: TrainingOptions) -> Accelerator:
    """Accelerate with the options' precision, tracker, threads and seed."""
    precision = options.mixed_precision
    if precision == "auto":
        precision = "bf16" if computes_bf16() else "no"
    log_with = None if options.tracker == "none" else options.tracker
    accelerator = Accelerator(mixed_precision=precision, log_with=log_with, project_dir=options.output_dir)
    # Plain `accelerate launch` sets OMP_NUM_THREADS=1 on a machine without a GPU.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    torch.set_num_threads(options.cpu_threads or max(1, usable_cores() // local))
    torch.manual_seed(options.seed)
    return accelerator


def start_run(options: TrainingOptions, *, plain: bool = False) -> tuple[Accelerator, Run]:
    """Accelerate, and the run's folder, once the options are known to make sense.

    Args:
        plain: the model has to be whole in every process.

    Raises:
        ValueError: an option has a value that no run can have, Accelerate is configured for what will not work, or the
            folder does not fit (`TrainingOptions.check`, `check_distribution`, `Run`).
    """
    options.check()
    end_with_launcher()
    transformers.logging.disable_progress_bar()  # loading and saving take no time to speak of
    accelerator = start_accelerator(options)
    shard_on_cpu(accelerator)
    check_distribution(accelerator, plain=plain)
    run = Run(
        options.output_dir, options, resume=options.resume, overwrite=options.overwrite,
        is_main=accelerator.is_main_process,
    )  # fmt: skip
    if run.finished:
        say(accelerator, f"{run.folder} is finished already; --overwrite trains it again, --init_from goes on from it")
    return accelerator, run


def load_split(
    options: TrainingOptions, settings: Preprocessing, split: str, accelerator: Accelerator
) -> tuple[PictureDataset, DecodedPictures]:
    """One split of the data set, and its pictures, decoded (once, by the main process)."""
    source = load_source(options, split)
    with accelerator.main_process_first():
        return source, read_pictures(options, source, settings, progress=accelerator.is_main_process)


def load_source(options: DataOptions, split: str, *, need_captions: bool = False) -> PictureDataset:
    """One split of the data set, as the options say."""
    return load_pictures(
        options.dataset,
        split,
        image_column=options.image_column,
        caption_column=options.caption_column,
        need_captions=need_captions,
        max_examples=options.max_examples if split == "train" else VALIDATION_PICTURES,
        seed=options.seed,
    )


def read_pictures(
    options: DataOptions,
    source: PictureDataset,
    settings: Preprocessing,
    sizes: Sequence[tuple[int, int]] = (),
    *,
    progress: bool = True,
) -> DecodedPictures:
    """Every picture of a source, decoded as the options say."""
    return decode_pictures(
        source,
        settings,
        sizes=sizes,
        num_workers=options.workers(),
        max_unreadable_share=options.max_unreadable_share,
        progress=progress,
    )


def check_batch_size(accelerator: Accelerator, batch_size: int, *, pictures: int | None = None, parts: int = 1) -> None:
    """Raise ValueError unless every process gets an equal share of a batch, in `parts`, and `pictures` make one."""
    shares = accelerator.num_processes * parts
    if batch_size % shares:
        raise ValueError(
            f"--batch_size {batch_size} is not a multiple of {shares} ({accelerator.num_processes} processes x {parts} "
            "accumulation steps): change one of them"
        )
    if pictures is not None and pictures < batch_size:
        raise ValueError(f"--batch_size {batch_size} must be at most the number of training pictures, {pictures}")


def say(accelerator: Accelerator, text: str) -> None:
    """Print from the main process, above any progress bar."""
    if accelerator.is_main_process:
        tqdm.write(text)


def count_parameters(model: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def prefetch(items: Iterable[Item], depth: int = 4) -> Iterator[Item]:
    """The same items, made `depth` ahead in a thread, so that training does not wait for data."""
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    end = object()
    stopped = threading.Event()

    def put(entry: tuple[Any, BaseException | None]) -> bool:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((end, None))
        except BaseException as error:  # handed to the consumer, which raises it
            put((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stopped.set()
        thread.join()  # a thread at work inside a library when Python ends can bring it down


def warn_small_data_set(accelerator: Accelerator, pictures: int) -> None:
    """Say what to expect of a few hundred pictures."""
    if pictures < SMALL_DATA_SET:
        say(
            accelerator,
            f"Only {pictures} training pictures: the model will mostly learn them by heart. Watch the validation "
            "figures and stop when they rise (fewer --max_minutes), start from a model trained on more pictures "
            "(--init_from), and for stage 1 use --random_flip if left and right do not matter.",
        )
