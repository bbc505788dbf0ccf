"""Around each step of training: budget, learning rate, averaged weights, log, progress bar, checkpoints, resume."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from tqdm.auto import tqdm

from pipelines.options.training import TrainingOptions
from pipelines.training.checkpoints import gather_state, load_state
from pipelines.training.compilation import eager
from pipelines.training.distribution import all_finite, gathered, is_sharded, reshard, whole_copy
from pipelines.training.optimizers import AveragedWeights, learning_rate_share, set_learning_rate
from pipelines.training.run_folder import Run, peak_memory
from pipelines.training.start import say
from pipelines.training.termination import EXIT_CODE, termination
from pipelines.training.throughput import Throughput

ESTIMATE_AT = 20  # steps after which time and memory are worth telling


@dataclass
class Loop:
    """What a script iterates over, calling `finish_step` with what it measured:

        for step in loop.steps():
            ...forward, backward, optimizer...
            loop.finish_step(loss=..., psnr=...)

    Attributes:
        model: the model whose weights are averaged and saved; what Accelerate has wrapped stands in `prepared`.
        validate: called in all processes with the averaged weights in place; returns figures to log, the same in all.
        sample: called in the main process with a model that has the averaged weights, and the step; writes pictures.
        rate: (unit, units a step), for the progress bar.
        prepared: what is called in training, where that is not `model`.
        throughput: counts what `finish_step` is not told.
        judge: of a validation's figures, one number that is best where it is lowest.
        keep_best: writes a model, with the averaged weights of the best validation yet, into a folder.
    """

    accelerator: Accelerator
    run: Run
    options: TrainingOptions
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    validate: Callable[[], dict[str, float]]
    sample: Callable[[Any, int], None]
    rate: tuple[str, float]
    prepared: nn.Module | None = None
    throughput: Throughput = field(default_factory=Throughput)
    judge: Callable[[dict[str, float]], float] | None = None
    keep_best: Callable[[Any, Path], None] | None = None
    step: int = 0
    seconds: float = 0.0
    place: Sequence[int] = (0, 0, 0)  # in the order of data (`lm.data.batch_order.Place`): where the next batch is
    tokens: int = 0  # that the language model has read, over all processes
    best: float = math.inf  # what `judge` said of the best validation
    figures: dict[str, float] = field(default_factory=dict)  # of the last validation

    def __post_init__(self) -> None:
        self.budget = self.options.budget()
        self.averages = AveragedWeights(self.model, self.options.ema_decay)
        self._log: dict[str, list[torch.Tensor | float]] = {}
        self._last_saved = self._validated_at = self._sampled_at = -1
        self._beside = 0.0  # seconds of validation, pictures and checkpoints since the last line of the log

    def resume(self) -> bool:
        """Load the newest checkpoint, if there is one."""
        loaded = self.run.load_checkpoint()
        if loaded is None:
            return False
        tensors, state = loaded
        try:
            load_state(self, tensors)
        except (RuntimeError, KeyError) as error:
            raise ValueError(
                f"the checkpoint in {self.run.checkpoints} does not fit this model: {' '.join(str(error).split())} "
                "Give the sizes and the optimizer that the run started with, or name another --output_dir"
            ) from None
        self.step, self.seconds, self._last_saved = state["step"], state["seconds"], state["step"]
        self.place = state.get("place", self.place)
        self._log = state.get("log", {})  # of the line that is next
        self.tokens, self.best = state.get("tokens", 0), state.get("best") or math.inf
        say(self.accelerator, f"resumed from step {self.step} ({self.seconds / 60:.1f} minutes of training)")
        return True

    def save(self) -> None:
        """Write a checkpoint of this step. To be called in all processes."""
        if self._last_saved == self.step:
            return
        # The step after a finite loss can break the weights: never let those take a good checkpoint's place.
        if not all_finite(self.accelerator, self.model.parameters()):
            self.stop("weights with NaN or infinity")
        with self._timed_beside():
            best = self.best if math.isfinite(self.best) else None
            log = {name: [float(value) for value in values] for name, values in self._log.items()}
            state = {
                "seconds": self.seconds,
                "place": list(self.place),
                "tokens": self.tokens,
                "best": best,
                "log": log,
            }
            self.run.save_checkpoint(self.step, gather_state(self), state)
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
        options = self.options
        rate = partial(
            learning_rate_share, warmup_steps=options.warmup_steps, schedule=options.schedule,
            decay_share=options.decay_share,
        )  # fmt: skip
        hidden = not self.accelerator.is_main_process
        self._start_tracker()
        look = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        with termination() as told, tqdm(total=100, unit="%", disable=hidden, bar_format=look) as bar:
            self.bar = bar
            while share < 1.0:
                set_learning_rate(self.optimizers, rate(share, self.step))
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

    def count(self, tokens: float, flops: float) -> None:
        """Tell what a step read and computed, over all processes."""
        self.tokens += int(tokens)
        self.throughput.add(tokens, flops)

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

    @contextmanager
    def _timed_beside(self) -> Iterator[None]:
        """Inside, time counts as training time, but not in the rates that are logged."""
        before = time.monotonic()
        yield
        self._beside += time.monotonic() - before

    def _write_log(self) -> None:
        means = {name: float(sum(float(v) for v in values) / len(values)) for name, values in self._log.items()}
        self._log.clear()
        if not math.isfinite(means["loss"]):
            self.stop(f"the loss is {means['loss']}")
        self._keep_time()
        steps, seconds = self.step - self._logged[0], max(self.seconds - self._logged[1] - self._beside, 1e-9)
        unit, per_step = self.rate
        means[f"{unit}_per_second"] = steps * per_step / seconds
        means |= self.throughput.figures(seconds)
        self._logged, self._beside = (self.step, self.seconds), 0.0
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
        with self._timed_beside(), self.averaged(), eager(self.model):
            better = self._validate() if validate else False
            if not (sample or better):
                return
            plain = self.plain_model()
            if better and self.keep_best is not None:
                self.run.save_folder("best", partial(self.keep_best, plain))
            if sample and plain is not None and self.accelerator.is_main_process:
                self.sample(plain.to(self.accelerator.device), self.step)

    def _validate(self) -> bool:
        """Measure, log and tell the figures; whether they are the best yet."""
        self.figures = figures = self.validate()
        self.run.log(self.step, **{f"validation_{name}": value for name, value in figures.items()})
        if self.options.tracker != "none":
            self.accelerator.log({f"validation_{n}": v for n, v in figures.items()}, step=self.step)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        say(self.accelerator, f"step {self.step}: validation {shown}")
        if self.judge is None or not self.judge(figures) < self.best:
            return False
        self.best = self.judge(figures)
        return True

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the averaged weights and is in evaluation mode. To be entered in all processes."""
        self.model.eval()
        with self.averages.applied():
            try:
                yield
            finally:
                reshard(self.prepared or self.model)
        self.model.train()

    def plain_model(self) -> Any:
        """A model that any tool can use, with the weights as they are now: `model` itself or, where it is sharded, a
        whole copy in the main process and None in the others. To be called in all processes."""
        if not is_sharded(self.accelerator):
            return self.model
        reshard(self.prepared or self.model)
        weights = gathered(self.model.state_dict(), keep=self.accelerator.is_main_process)
        return whole_copy(self.model, weights) if self.accelerator.is_main_process else None
