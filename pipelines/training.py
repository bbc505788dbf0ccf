"""What the two training scripts share: their options, and everything around a step that is not the step itself."""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from tqdm.auto import tqdm

from pipelines.optimization import (
    AveragedWeights,
    Budget,
    build_optimizers,
    learning_rate_share,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from pipelines.run import Run, peak_memory

ESTIMATE_AT = 20  # steps after which time and memory are worth telling
SMALL_DATA_SET = 1000
Item = TypeVar("Item")


def option(default: Any, text: str) -> Any:
    """A dataclass field with help text."""
    return field(default=default, metadata={"help": text})


@dataclass
class TrainingOptions:
    """Options of both training scripts."""

    dataset: str = option("sprites", "'sprites', a local folder of pictures, or the name of a data set on the Hub")
    image_column: str | None = option(None, "column of the pictures (found by itself if it has a usual name)")
    caption_column: str | None = option(None, "column of the captions, one text or a list of texts a picture")
    max_examples: int | None = option(None, "use at most this many training pictures (sprites: 100000)")
    max_unreadable_share: float = option(0.01, "stop when more than this share of the pictures cannot be read")
    num_workers: int = option(-1, "processes that read pictures; -1: one per core")
    resume: bool = option(False, "go on from the last checkpoint in --output_dir, or start if there is none")
    overwrite: bool = option(False, "delete an earlier run in --output_dir first")
    init_from: str | None = option(None, "start from the weights of this earlier result, with its sizes")
    max_steps: int | None = option(None, "end after this many steps")
    max_minutes: float | None = option(None, "end after this much training time (default: 10, without --max_steps)")
    learning_rate: float = option(1e-3, "peak learning rate")
    optimizer: str = option("muon", "'muon' (inner matrices and convolutions; AdamW for the rest) or 'adamw'")
    muon_learning_rate: float = option(0.01, "peak learning rate of Muon, on AdamW's scale")
    weight_decay: float = option(0.05, "weight decay of matrices and convolutions")
    warmup_steps: int = option(100, "steps of linear warm-up; a cosine follows")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    ema_decay: float = option(0.998, "decay of the averaged weights; 0 turns averaging off")
    mixed_precision: str = option("auto", "'no', 'bf16', or 'auto': bf16 where the machine computes in it")
    cpu_threads: int | None = option(None, "PyTorch's threads (default: cores over local processes)")
    seed: int = option(0, "seed of everything random")
    log_every: int = option(20, "steps between lines in metrics.jsonl")
    validate_every: int = option(500, "steps between validations; 0: only at the end")
    sample_every: int = option(1000, "steps between sample pictures; 0: only at the end")
    checkpoint_every: int = option(1000, "steps between checkpoints; 0: only at the end")
    tracker: str = option("none", "'tensorboard' or 'wandb', beside metrics.jsonl")

    def budget(self) -> Budget:
        """How long to train."""
        if self.max_steps is None and self.max_minutes is None:
            return Budget(max_minutes=10.0)
        return Budget(self.max_steps, self.max_minutes)

    def optimizers(self, model: nn.Module, betas: tuple[float, float]) -> list[torch.optim.Optimizer]:
        """What updates the model's weights."""
        return build_optimizers(
            model,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            betas=betas,
            muon_learning_rate=self.muon_learning_rate if self.optimizer == "muon" else None,
        )

    def workers(self) -> int:
        """How many processes read pictures."""
        return self.num_workers if self.num_workers >= 0 else (os.cpu_count() or 1)

    def check(self) -> None:
        """Raise ValueError for values that no run can have."""
        self.budget()
        for name in ("learning_rate", "muon_learning_rate", "max_grad_norm", "log_every"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name} {getattr(self, name)} must be above zero")
        if self.optimizer not in ("muon", "adamw"):
            raise ValueError(f"--optimizer {self.optimizer!r}: choose muon or adamw")
        if self.tracker not in ("none", "tensorboard", "wandb"):
            raise ValueError(f"--tracker {self.tracker!r}: choose none, tensorboard or wandb")
        if self.mixed_precision not in ("auto", "no", "bf16"):
            raise ValueError(f"--mixed_precision {self.mixed_precision!r}: choose auto, no or bf16")
        if self.init_from and not os.path.isdir(self.init_from):
            raise ValueError(f"--init_from {self.init_from}: no such folder")


def computes_bf16() -> bool:
    """Whether bf16 is faster than float32 here."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def start_accelerator(options: TrainingOptions) -> Accelerator:
    """Accelerate with the options' precision, tracker, threads and seed."""
    precision = options.mixed_precision
    if precision == "auto":
        precision = "bf16" if computes_bf16() else "no"
    log_with = None if options.tracker == "none" else options.tracker
    accelerator = Accelerator(
        mixed_precision=precision, log_with=log_with, project_dir=getattr(options, "output_dir", None)
    )
    # Plain `accelerate launch` sets OMP_NUM_THREADS=1 on a machine without a GPU.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    torch.set_num_threads(options.cpu_threads or max(1, (os.cpu_count() or 1) // local))
    torch.manual_seed(options.seed)
    return accelerator


def say(accelerator: Accelerator, text: str) -> None:
    """Print from the main process, above any progress bar."""
    if accelerator.is_main_process:
        tqdm.write(text)


def count_parameters(model: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def prefetch(items: Iterable[Item], depth: int = 4) -> Iterator[Item]:
    """The same items, made `depth` ahead in a thread, so that training does not wait for data."""
    ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(entry: tuple[Item | None, BaseException | None]) -> bool:
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
        except BaseException as error:  # handed to the consumer, which raises it
            put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()


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
        self.model.load_state_dict(parts["model"])
        self.averages.load(parts["averaged"])
        load_optimizer_tensors(self.optimizers, parts["optimizer"])
        torch.set_rng_state(parts["random"]["torch"].cpu())
        self.step, self.seconds, self._last_saved = state["step"], state["seconds"], state["step"]
        say(self.accelerator, f"resumed from step {self.step} ({self.seconds / 60:.1f} minutes of training)")
        return True

    def save(self) -> None:
        """Write a checkpoint of this step."""
        if self._last_saved == self.step:
            return
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"averaged/{name}": tensor for name, tensor in self.averages.state().items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in optimizer_tensors(self.optimizers).items()}
        tensors["random/torch"] = torch.get_rng_state()
        self.run.save_checkpoint(self.step, tensors, {"seconds": self.seconds})
        self._last_saved = self.step

    def steps(self) -> Iterator[int]:
        """Steps until the budget is spent; then a last checkpoint, validation and sample."""
        share = self.budget.progress(self.step, self.seconds)
        self._clock = time.monotonic() - self.seconds
        self._logged = (self.step, self.seconds)
        self._estimate_at = (self.step + 3, self.step + 3 + ESTIMATE_AT)
        shown = self.accelerator.is_main_process
        with tqdm(
            total=100, unit="%", disable=not shown, bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        ) as bar:
            self.bar = bar
            while share < 1.0:
                set_learning_rate(self.optimizers, learning_rate_share(share, self.step, self.options.warmup_steps))
                yield self.step
                share = self.budget.progress(self.step, self.seconds)
                bar.n = round(100 * share, 1)
                bar.refresh() if share >= 1.0 else bar.update(0)
            self.save()
            self._evaluate(validate=self._validated_at != self.step, sample=self._sampled_at != self.step)

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
            raise ValueError(
                f"the loss is {means['loss']} at step {self.step}: stopped. The last good checkpoint is in "
                f"{self.run.checkpoints}; lower --learning_rate (now {self.options.learning_rate}) and --resume from "
                "it, or look for broken pictures"
            )
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
                figures = self.validate()
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
