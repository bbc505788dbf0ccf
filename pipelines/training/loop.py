"""Around each step of training: budget, learning rate, averaged weights, log, progress bar, checkpoints, resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from pipelines.machine.printing import say
from pipelines.machine.processes import from_main
from pipelines.options.training import TrainingOptions
from pipelines.training import best_kept
from pipelines.training.best_kept import Best
from pipelines.training.distribution import all_finite
from pipelines.training.metrics_log import MetricsLog
from pipelines.training.run_folder import FIRST_PART, NotWrittenError, Run, peak_memory
from pipelines.training.schedule import Budget, learning_rate_share, set_learning_rate
from pipelines.training.state import Progress, TrainingState
from pipelines.training.termination import Termination, termination
from tokenizer_image.quantizers.distributed import NotFiniteError

ESTIMATE_STEPS = 20  # that the first estimate of time and memory is taken over
REMOVED = 1  # in place of a signal's exit code: the folder of the run is gone
BAR_FORMAT = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"


@dataclass
class Validation:
    """What is measured, shown and kept beside training, with the averaged weights.

    Attributes:
        measure: called in all processes; returns figures to log, the same in all.
        sample: called in the main process with the model and the step; writes pictures.
        score: of a validation's figures, one number that is best where it is lowest.
        keep_best: writes the model of the best validation so far into a folder.
        around: a context that `measure`, `sample` and `keep_best` run in; entered in all processes, once for all three.
        every: steps between validations, 0 for only at the end; default: as the options say.
    """

    measure: Callable[[], dict[str, float]]
    sample: Callable[[Any, int], None]
    score: Callable[[dict[str, float]], float] | None = None
    keep_best: Callable[[Any, Path], None] | None = None
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    every: int | None = None


@dataclass
class Loop:
    """What a script iterates over, calling `finish_step` with what it measured:

        for step in loop.steps():
            ...forward, loss, backward, clip, optimizers...
            loop.finish_step(loss=..., psnr=...)

    Attributes:
        state: the model and all that a checkpoint holds.
        validation: what is measured and shown every so many steps.
        log: where figures go.
        figures: of the last validation.
        share: of the budget that is spent, in [0, 1].
    """

    accelerator: Accelerator
    run: Run
    options: TrainingOptions
    state: TrainingState
    validation: Validation
    log: MetricsLog
    figures: dict[str, float] = field(default_factory=dict)
    share: float = 0.0

    def __post_init__(self) -> None:
        self.budget = Budget.of(self.options)
        self._last_saved = self._validated_at = self._sampled_at = -1

    @property
    def progress(self) -> Progress:
        """How far the run is."""
        return self.state.progress

    # ---- checkpoints

    def resume(self) -> bool:
        """Load the newest whole checkpoint, if there is one."""
        loaded = self.run.load_checkpoint()
        if loaded is None:
            return False
        tensors, values = loaded
        try:
            same_optimizers = self.state.load(tensors, other_optimizers=self.options.allow_changes)
        except (RuntimeError, KeyError, ValueError) as error:
            raise ValueError(
                f"the checkpoint in {self.run.checkpoints} does not fit this model: {' '.join(str(error).split())} "
                "Give the sizes and the optimizer that the run started with, or name another --output_dir"
            ) from None
        progress = self.state.progress = Progress.from_dict(values)
        if self.validation.keep_best is not None:
            progress.best = from_main(best_kept.after_resume(self.run, progress.best))
        self._last_saved = progress.step
        self.log.load(values.get("log", {}))
        minutes = f"{progress.seconds / 60:.1f} minutes of training"
        say(self.accelerator, f"resumed from step {progress.step} ({minutes})")
        if not same_optimizers:
            say(self.accelerator, "the checkpoint has the state of another optimizer: this one starts anew")
        return True

    def save(self) -> None:
        """Write a checkpoint of this step. To be called in all processes."""
        if self._last_saved == self.progress.step:
            return
        # The step after a finite loss can break the weights: never let those take a good checkpoint's place.
        if not all_finite(self.accelerator, self.state.model.parameters()):
            self.stop("weights with NaN or infinity")
        with self.log.paused():
            values = {**self.progress.to_dict(), "log": self.log.state()}
            self.run.save_checkpoint(self.progress.step, self.state.tensors(), values)
        self._last_saved = self.progress.step

    def stop(self, reason: str) -> NoReturn:
        """End a run that has diverged: raise ValueError with `reason` and the way out."""
        rates = [optimizer.param_groups[0]["peak_lr"] for optimizer in self.state.optimizers]
        remedy = f"lower --learning_rate (now {rates[0]:g})"
        if len(rates) > 1:
            remedy += f" or --muon_learning_rate (now {rates[1]:g})"
        if self.run.has_checkpoint:
            remedy = f"The last good checkpoint is in {self.run.checkpoints}; {remedy} and --resume from it"
        else:
            again = (
                "--resume: the decoder begins anew" if FIRST_PART in self.run.info else "start again with --overwrite"
            )
            remedy = f"There is no checkpoint yet; {remedy} and {again}"
        raise ValueError(f"{reason} at step {self.progress.step}: stopped. {remedy}, or look for broken pictures")

    @contextmanager
    def ends_resumable(self) -> Iterator[None]:
        """Inside, what ends the run early names the way on: latents that are not finite (`stop`), and files that cannot
        be read or written, after a checkpoint where there is one process and room for it. (Several would wait for each
        other there.)

        Raises:
            OSError: in place of the same, with what to do.
            ValueError: in place of NotFiniteError.
        """
        try:
            yield
        except NotFiniteError:  # of a step, of a validation, or of the last fit of the codebook
            self.stop("there are latents with NaN or infinity")
        except OSError as error:
            if self.accelerator.num_processes > 1:
                raise
            with suppress(OSError):  # a full disk may take no checkpoint either
                if self.run.is_removed:
                    self._begin_again()
                self.save()
            step, what = self.progress.step, error.what if isinstance(error, NotWrittenError) else error
            kept = "checkpoint written" if self._last_saved == step else self.run.last_good()
            raise OSError(
                f"{what}: stopped after step {step}, {kept}; once that is mended, go on with --resume"
            ) from error

    # ---- steps

    def steps(self) -> Iterator[int]:
        """Steps until the budget is spent; then a last checkpoint, validation and sample."""
        progress, options = self.progress, self.options
        share = self.budget.progress(progress.step, progress.seconds)
        share = self.share = 1.0 if self.run.stays_stopped else share  # killed after it had stopped
        stopped = self.run.info.pop("stopped_early", None) if share < 1.0 else None
        self._clock = time.monotonic() - progress.seconds
        self._estimate_at = (progress.step + 3, progress.step + 3 + ESTIMATE_STEPS)
        self.log.start(progress.step, progress.seconds)
        rate = partial(
            learning_rate_share, warmup_steps=options.warmup_steps, schedule=options.schedule,
            decay_share=options.decay_share,
        )  # fmt: skip
        hidden = not self.accelerator.is_main_process
        with termination() as signals, tqdm(total=100, unit="%", disable=hidden, bar_format=BAR_FORMAT) as bar:
            self.bar = bar
            # Before the step, since a run may have been killed between the validation that ends it and its end.
            while share < 1.0 and (stopped or not self._is_out_of_patience(share)):
                stopped = None  # which it goes on from
                set_learning_rate(
                    [*self.state.optimizers, *self.state.companion_optimizers], rate(share, progress.step)
                )
                yield progress.step
                self._end_if_terminated(signals)
                self.share = share = self.budget.progress(progress.step, progress.seconds)
                bar.n = round(100 * share, 1)
                bar.refresh() if share >= 1.0 else bar.update(0)
            if self.log.values:
                self._write_log()
            self.save()
            if "stopped_early" in self.run.info:
                self.run.write_info()
            step = progress.step
            self._validate_and_sample(validate=self._validated_at != step, sample=self._sampled_at != step)
        self.log.finish()

    def finish_step(self, loss: torch.Tensor, **measured: torch.Tensor | float) -> None:
        """Count the step, fold the weights into the averages, and log, validate, sample and save where due."""
        progress, options = self.progress, self.options
        progress.step += 1
        self.state.averages.update(progress.step)
        loss = loss.detach()
        self.log.add(loss=loss, **measured)
        if progress.step % options.log_every == 0 or not math.isfinite(float(loss)):
            self._write_log()
        self._keep_time()
        self._estimate()
        self._validate_and_sample(validate=self._validates_now(), sample=self._is_due(options.sample_every))
        if self._is_due(options.checkpoint_every):
            self.save()
        self._keep_time()

    def count(self, tokens: float, flops: float) -> None:
        """Tell what a step read and computed, over all processes."""
        self.progress.tokens += int(tokens)
        self.log.throughput.add(tokens, flops)

    def _end_if_terminated(self, signals: Termination) -> None:
        """After a signal to any process: a checkpoint, and out with the signal's exit code. The same, with an error, if
        the run's folder was removed."""
        code = signals.exit_code or (REMOVED if self.run.is_removed else 0)
        received = torch.tensor(float(code), device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            received = self.accelerator.gather(received[None]).max()
        if received <= 0:
            return
        if received == REMOVED:
            self._begin_again()
        self.save()
        step = self.progress.step
        if received == REMOVED:
            raise ValueError(
                f"{self.run.folder} was removed while the run wrote into it: stopped after step {step}; it is there "
                "again with a checkpoint, and --resume goes on from it"
            )
        name = Termination.name_of(int(received))
        say(self.accelerator, f"{name}: stopped after step {step}, checkpoint written; go on with --resume")
        raise SystemExit(int(received))

    def _begin_again(self) -> None:
        """Make the run's folder anew, after it was removed."""
        self._last_saved = -1
        self.run.write_info()

    def _keep_time(self) -> None:
        self.progress.seconds = time.monotonic() - self._clock
        if self.accelerator.num_processes > 1:  # all ranks must end at the same step
            shared = [self.progress.seconds]
            broadcast_object_list(shared)
            self.progress.seconds = shared[0]

    def _write_log(self) -> None:
        means = self.log.means()
        if not math.isfinite(means["loss"]):
            self.stop(f"the loss is {means['loss']}")
        self._keep_time()
        line = self.log.write(means, self.progress.step, self.progress.seconds)
        self.bar.set_postfix_str(line, refresh=False)

    def _estimate(self) -> None:
        """After a few steps: how long it will take, and how much memory it holds."""
        progress = self.progress
        first, last = self._estimate_at
        if progress.step == first:
            self._estimate_from = progress.seconds
        if progress.step != last:
            return
        per_step = (progress.seconds - self._estimate_from) / (last - first)
        say(
            self.accelerator,
            f"{self.log.units_per_step / per_step:.0f} {self.log.unit} a second; "
            f"{self.budget.plan(progress.step, progress.seconds, per_step)}; memory so far {peak_memory():.1f} GB",
        )

    # ---- validation

    def _validates_now(self) -> bool:
        """Whether steps of this number end with a validation."""
        return self._is_due(self.options.validate_every if self.validation.every is None else self.validation.every)

    def _is_due(self, every: int | None) -> bool:
        return every is not None and every > 0 and self.progress.step % every == 0

    def _validate_and_sample(self, *, validate: bool, sample: bool) -> None:
        if not (validate or sample):
            return
        step = self.progress.step
        self._validated_at = step if validate else self._validated_at
        self._sampled_at = step if sample else self._sampled_at
        with self.log.paused(), self.state.averaged(), self.validation.around():
            better = self._validate() if validate else False
            if not (sample or better):
                return
            plain = self.state.plain_model()
            if better and self.validation.keep_best is not None:
                best_kept.keep(self.run, self.progress.best, partial(self.validation.keep_best, plain))
            if sample and plain is not None and self.accelerator.is_main_process:
                self.validation.sample(plain.to(self.accelerator.device), step)

    def _validate(self) -> bool:
        """Measure, log and print the figures; whether they are the best so far."""
        self.figures = figures = self.validation.measure()
        self.log.write_validation(figures, self.progress.step)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        say(self.accelerator, f"step {self.progress.step}: validation {shown}")
        score = self.validation.score
        if score is None or not score(figures) < self.progress.best.score:
            return False
        self.progress.best = Best(score(figures), self.progress.step, self.progress.seconds, figures)
        return True

    def _is_out_of_patience(self, share: float) -> bool:
        """Whether the validation of this very step ends the run, since none has been better for --patience of the
        budget. run.json then says so."""
        patience, best = self.options.patience, self.progress.best
        if not patience or not self._validates_now() or not math.isfinite(best.score):
            return False
        if share - self.budget.progress(best.step, best.seconds) < patience:
            return False
        self.run.stop_early(patience)
        say(
            self.accelerator,
            f"stopped after step {self.progress.step}: no validation since step {best.step} was better, for "
            f"{patience:.0%} of the budget (--patience)",
        )
        return True

    def kept_best(self) -> Path | None:
        """The folder with the model of the best validation, where there is one that is to be left to the user. To be
        called in all processes."""
        return from_main(best_kept.kept_folder(self.run)) if self.validation.keep_best is not None else None

    def end_figures(self) -> dict[str, Any]:
        """What run.json says of the best validation, beside its figures, and of the last."""
        if self.kept_best() is None:
            return {}
        return {"best_step": self.progress.best.step, "last_validation": self.figures}

    def say_best(self) -> None:
        """Tell which weights the run leaves, with the figures of the best validation and of the last."""
        best, last = self.progress.best, self.progress.step
        if best.step == last:
            say(self.accelerator, f"the best validation is the last, of step {last}: its weights are saved")
        else:
            figures = [", ".join(f"{name} {value:.4g}" for name, value in each.items()) or "unknown"
                       for each in (best.figures, self.figures)]  # fmt: skip
            say(
                self.accelerator,
                f"the best validation, of step {best.step}, is saved ({figures[0]}); the last weights, of step {last} "
                f"({figures[1]}), are in {self.run.checkpoints}",
            )
