"""What the two training scripts share: everything around a step that is not the step itself."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import nn

from pipelines.caching.sources import InputSettings, open_source, read_pictures
from pipelines.machine.devices import computes_bf16
from pipelines.machine.printing import say
from pipelines.machine.processors import usable_cores
from pipelines.model_folder import model_origin
from pipelines.options.training import TrainingOptions
from pipelines.training.distribution import check_distribution, refuse_deepspeed, shard_on_cpu
from pipelines.training.run_folder import Run
from pipelines.training.termination import end_with_launcher
from tokenizer_image.pictures.dataset import print_summary

SMALL_DATA_SET = 1000


def start_accelerator(options: TrainingOptions) -> Accelerator:
    """Accelerate with the options' precision, tracker, threads and seed."""
    precision = options.mixed_precision
    if precision == "auto":
        precision = "bf16" if computes_bf16() else "no"
    refuse_deepspeed()
    log_with = None if options.tracker == "none" else options.tracker
    accelerator = Accelerator(
        mixed_precision=precision, log_with=log_with, project_dir=options.output_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=options.timeout_minutes))],
    )  # fmt: skip
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
        ValueError: Accelerate is configured for what will not work, or the
            folder does not fit (`check_distribution`, `Run`).
    """
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
        say(
            accelerator,
            f"{run.folder} is finished already: --resume with a larger --max_steps or --max_minutes goes on, "
            "--overwrite trains it again, and --init_from starts another run from its weights",
        )
    elif options.init_from:
        say(accelerator, f"starting from: {model_origin(options.init_from)}")
    return accelerator, run


def load_split(
    options: TrainingOptions, settings: InputSettings, split: str, accelerator: Accelerator, run: Run
) -> Any:
    """The pictures of one split of the data set, decoded (once a machine, by its first process); run.json gets what it
    holds."""
    source = open_source(options, split, settings)
    if accelerator.is_main_process:
        run.info.setdefault("data", {})[split] = print_summary(source)
    with accelerator.local_main_process_first():
        return read_pictures(options, source, settings, progress=accelerator.is_main_process)


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


def count_parameters(model: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def warn_small_data_set(accelerator: Accelerator, pictures: int, *, flipped: bool) -> None:
    """Say what to expect of a few hundred pictures, and what helps.

    Args:
        flipped: whether they are mirrored at random already.
    """
    if pictures < SMALL_DATA_SET:
        flips = "" if flipped else ", and use --random_flip if left and right do not matter"
        say(
            accelerator,
            f"Only {pictures} training pictures: the model will mostly memorise them. The weights of the best "
            "validation are kept; to draw more than these pictures, start from a model trained on more of them "
            f"(--init_from){flips}.",
        )
