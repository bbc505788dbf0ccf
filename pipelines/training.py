"""What the two training scripts share: everything around a step that is not the step itself."""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from tqdm.auto import tqdm

from pipelines.data_options import DataOptions
from pipelines.optimization import (
    AveragedWeights,
    learning_rate_share,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from pipelines.run import Run, peak_memory
from pipelines.termination import EXIT_CODE, termination
from pipelines.training_options import TrainingOptions
from tokenizer_image.data import DecodedPictures, PictureDataset, Preprocessing, decode_pictures, load_pictures
from tokenizer_image.screening import has_bfloat16

ESTIMATE_AT = 20  # steps after which time and memory are worth telling
SMALL_DATA_SET = 1000
VALIDATION_PICTURES = 2000
Item = TypeVar("Item")


def computes_bf16() -> bool:
    """Whether bf16 is faster than float32 here."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return has_bfloat16()


def start_accelerator(options: TrainingOptions) -> Accelerator:
    """Accelerate with the options' precision, tracker, threads and seed."""
    precision = options.mixed_precision
    if precision == "auto":
        precision = "bf16" if computes_bf16() else "no"
    log_with = None if options.tracker == "none" else options.tracker
    accelerator = Accelerator(mixed_precision=precision, log_with=log_with, project_dir=options.output_dir)
    # Plain `accelerate launch` sets OMP_NUM_THREADS=1 on a machine without a GPU.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    torch.set_num_threads(options.cpu_threads or max(1, (os.cpu_count() or 1) // local))
    torch.manual_seed(options.seed)
    return accelerator


def start_run(options: TrainingOptions) -> tuple[Accelerator, Run]:
    """Accelerate, and the run's folder, once the options are known to make sense.

    Raises:
        ValueError: an option has a value that no run can have, or the folder does not fit (`TrainingOptions.check`,
            `Run`).
    """
    options.check()
    transformers.logging.disable_progress_bar()  # loading and saving take no time to speak of
    accelerator = start_accelerator(options)
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


@dataclass
class Loop:
    """Around each step: budget, learning rate, averaged weights, log, progress bar, checkpoints, resume.

    A script iterates over `steps()` and calls `finish_step` with what it measured:

        for step in loop.steps():
            ...forward, backward, optimizer...
            loop.finish_step(loss=..., psnr=...)

    Attributes:
        model: the unwrapped model whose weights are averaged and saved.
        validate: called with the averaged weights in place; returns figures to log.
        sample: called with the averaged weights in place and the step; writes pictures.
        rate: (unit, units a step), for the progress bar.
    """

    accelerator: Accelerator
    run: Run
    options: TrainingOptions
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    validate: Callable[[], dict[str, float]]
    sample: Callable[[int], None]
    rate: tuple[str, float]
    step: int = 0
    seconds: float = 0.0
    tokens: int = 0  # that the language model has read, over all processes
    figures: dict[str, float] = field(default_factory=dict)  # of the last validation

    def __post_init__(self) -> None:
        self.budget = self.options.budget()
        self.averages = AveragedWeights(self.model, self.options.ema_decay)
        self._log: dict[str, list[torch.Tensor | float]] = {}
        self._last_saved = self._validated_at = self._sampled_at = -1

    def resume(self) -> bool:
        """Load the newest checkpoint, if there is one."""
        loaded = self.run.load_checkpoint()
        if loaded is None:
            return False
        tensors, state = loaded
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "averaged": {}, "optimizer": {}, "random": {}}
        for name, tensor in tensors.items():
            part, rest = name.split("/", 1)
            parts[part][rest] = tensor
        try:
            self.model.load_state_dict(parts["model"])
            self.averages.load(parts["averaged"])
            load_optimizer_tensors(self.optimizers, parts["optimizer"])
        except (RuntimeError, KeyError) as error:
            raise ValueError(
                f"the checkpoint in {self.run.checkpoints} does not fit this model: {' '.join(str(error).split())} "
                "Give the sizes and the optimizer that the run started with, or name another --output_dir"
            ) from None
        torch.set_rng_state(parts["random"]["torch"].cpu())
        if "cuda" in parts["random"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(parts["random"]["cuda"].cpu())
        self.step, self.seconds, self._last_saved = state["step"], state["seconds"], state["step"]
        self.tokens = state.get("tokens", 0)
        say(self.accelerator, f"resumed from step {self.step} ({self.seconds / 60:.1f} minutes of training)")
        return True

    def save(self) -> None:
        """Write a checkpoint of this step."""
        if self._last_saved == self.step:
            return
        # The step after a finite loss can break the weights: never let those take a good checkpoint's place.
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()):
            self.stop("weights with NaN or infinity")
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"averaged/{name}": tensor for name, tensor in self.averages.state().items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in optimizer_tensors(self.optimizers).items()}
        tensors["random/torch"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random/cuda"] = torch.cuda.get_rng_state()
        self.run.save_checkpoint(self.step, tensors, {"seconds": self.seconds, "tokens": self.tokens})
        self._last_saved = self.step

    def stop(self, reason: str) -> NoReturn:
        """End a run that has diverged: raise ValueError with `reason` and the way out."""
        rate = self.optimizers[0].param_groups[0]["peak_lr"]
        remedy = f"lower --learning_rate (now {rate:g})"
        if len(self.optimizers) > 1:
            remedy += f" or --muon_learning_rate (now {self.optimizers[1].param_groups[0]['peak_lr']:g})"
        if self.run.has_checkpoint:
            remedy = f"The last good checkpoint is in {self.run.checkpoints}; {remedy} and --resume from it"
        else:
            remedy = f"There is no checkpoint yet; {remedy} and start again with --overwrite"
        raise ValueError(f"{reason} at step {self.step}: stopped. {remedy}, or look for broken pictures")

    def steps(self) -> Iterator[int]:
        """Steps until the budget is spent; then a last checkpoint, validation and sample."""
        share = self.budget.progress(self.step, self.seconds)
        self._clock = time.monotonic() - self.seconds
        self._logged = (self.step, self.seconds)
        self._estimate_at = (self.step + 3, self.step + 3 + ESTIMATE_AT)
        hidden = not self.accelerator.is_main_process
        self._start_tracker()
        look = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        with termination() as told, tqdm(total=100, unit="%", disable=hidden, bar_format=look) as bar:
            self.bar = bar
            while share < 1.0:
                set_learning_rate(self.optimizers, learning_rate_share(share, self.step, self.options.warmup_steps))
                yield self.step
                self._end_if_told(told)
                share = self.budget.progress(self.step, self.seconds)
                bar.n = round(100 * share, 1)
                bar.refresh() if share >= 1.0 else bar.update(0)
            if self._log:
                self._write_log()
            self.save()
            self._evaluate(validate=self._validated_at != self.step, sample=self._sampled_at != self.step)
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _end_if_told(self, told: threading.Event) -> None:
        """After SIGTERM to any process: a checkpoint, and out with `termination.EXIT_CODE`."""
        any_told = torch.tensor(float(told.is_set()), device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            any_told = self.accelerator.reduce(any_told, "sum")
        if any_told > 0:
            self.save()
            say(self.accelerator, f"SIGTERM: stopped after step {self.step}, checkpoint written; go on with --resume")
            raise SystemExit(EXIT_CODE)

    def _start_tracker(self) -> None:
        if self.options.tracker == "none":
            return
        kept = (bool, int, float, str)  # what TensorBoard takes
        settings = {name: v if isinstance(v, kept) else str(v) for name, v in self.run.options.items()}
        project = "tessera" if self.options.tracker == "wandb" else "tensorboard"  # a name, a folder in the run's
        self.accelerator.init_trackers(project, config=settings)

    def finish_step(self, loss: torch.Tensor, **measured: torch.Tensor | float) -> None:
        """Count the step, fold the weights into the averages, and log, validate, sample and save where due."""
        self.step += 1
        self.averages.update(self.step)
        loss = loss.detach()
        for name, value in {"loss": loss, **measured}.items():
            self._log.setdefault(name, []).append(value)
        if self.step % self.options.log_every == 0 or not math.isfinite(float(loss)):
            self._write_log()
        self._keep_time()
        self._estimate()
        due = [every and self.step % every == 0 for every in (self.options.validate_every, self.options.sample_every)]
        self._evaluate(validate=bool(due[0]), sample=bool(due[1]))
        if self.options.checkpoint_every and self.step % self.options.checkpoint_every == 0:
            self.save()
        self._keep_time()

    def _keep_time(self) -> None:
        self.seconds = time.monotonic() - self._clock
        if self.accelerator.num_processes > 1:  # all ranks must end at the same step
            shared = [self.seconds]
            broadcast_object_list(shared)
            self.seconds = shared[0]

    def _write_log(self) -> None:
        means = {name: float(sum(float(v) for v in values) / len(values)) for name, values in self._log.items()}
        self._log.clear()
        if not math.isfinite(means["loss"]):
            self.stop(f"the loss is {means['loss']}")
        self._keep_time()
        steps, seconds = self.step - self._logged[0], self.seconds - self._logged[1]
        unit, per_step = self.rate
        means[f"{unit}_per_second"] = steps * per_step / max(seconds, 1e-9)
        self._logged = (self.step, self.seconds)
        self.run.log(self.step, **means, seconds=round(self.seconds, 2))
        if self.options.tracker != "none":
            self.accelerator.log(means, step=self.step)
        self.bar.set_postfix_str(" ".join(f"{name}={value:.4g}" for name, value in means.items()), refresh=False)

    def _estimate(self) -> None:
        """After a few steps: how long it will take, and how much memory it holds."""
        first, last = self._estimate_at
        if self.step == first:
            self._estimate_from = self.seconds
        if self.step != last:
            return
        per_step = (self.seconds - self._estimate_from) / (last - first)
        if self.budget.max_steps:
            left = (self.budget.max_steps - self.step) * per_step
            plan = f"about {left / 60:.1f} minutes left for {self.budget.max_steps - self.step} steps"
        else:
            left = 60 * (self.budget.max_minutes or 0) - self.seconds
            plan = f"{left / 60:.1f} minutes left, about {left / per_step:.0f} steps"
        unit, units = self.rate
        say(
            self.accelerator,
            f"{units / per_step:.0f} {unit} a second; {plan}; memory so far {peak_memory():.1f} GB",
        )

    def _evaluate(self, *, validate: bool, sample: bool) -> None:
        if not (validate or sample):
            return
        self._validated_at = self.step if validate else self._validated_at
        self._sampled_at = self.step if sample else self._sampled_at
        self.model.eval()
        with self.averages.applied():
            if validate:
                self.figures = figures = self.validate()
                self.run.log(self.step, **{f"validation_{name}": value for name, value in figures.items()})
                if self.options.tracker != "none":
                    self.accelerator.log({f"validation_{n}": v for n, v in figures.items()}, step=self.step)
                shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
                say(self.accelerator, f"step {self.step}: validation {shown}")
            if sample and self.accelerator.is_main_process:
                self.sample(self.step)
        self.model.train()


def warn_small_data_set(accelerator: Accelerator, pictures: int) -> None:
    """Say what to expect of a few hundred pictures."""
    if pictures < SMALL_DATA_SET:
        say(
            accelerator,
            f"Only {pictures} training pictures: the model will mostly learn them by heart. Watch the validation "
            "figures and stop when they rise (fewer --max_minutes), start from a model trained on more pictures "
            "(--init_from), and for stage 1 use --random_flip if left and right do not matter.",
        )
