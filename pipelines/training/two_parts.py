"""Stage 1 in two parts: the whole network by the error of the pixels, then its decoder alone by all terms of the loss.

Terms that compare features make an encoder put into its codes what a language model cannot foresee; a decoder learns as
much from them without it (docs/photographs.md has the figures).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pipelines.machine.printing import say
from pipelines.machine.processes import all_see, from_main
from pipelines.options.image_tokenizer import QUANTIZER_OPTIONS, ImageTokenizerOptions
from pipelines.options.image_tokenizer_losses import CAPTIONS
from pipelines.options.training import DEFAULT_MINUTES
from pipelines.training.own_classifier import FOLDER as CLASSIFIER
from pipelines.training.run_folder import FIRST_PART, Run
from tokenizer_image import VQVAE, Autoencoder
from tokenizer_image.losses.extractors import load_extractor, missing_package

DECODER_SHARE = 0.3  # of the budget, by default
LEAST_SHARE = 0.01  # of the budget, that the decoder gets at least


@dataclass(frozen=True)
class Part:
    """What trains at once: a whole run, or one of two parts of it.

    Attributes:
        options: of this part.
        asked: those of the whole run.
        run: its folder.
        whole: the run that begins with this part, where that is another.
        steps, minutes: what the part before has taken of the budget.
    """

    options: ImageTokenizerOptions
    asked: ImageTokenizerOptions
    run: Run
    whole: Run | None = None
    steps: int = 0
    minutes: float = 0.0

    def begin(self) -> None:
        """Make the folders of the part, and of the run that begins with it (`Run.begin`)."""
        if self.whole is not None:
            if self.whole.overwrite and self.whole.is_main:  # which the second part would take for its own
                shutil.rmtree(self.whole.folder / CLASSIFIER, ignore_errors=True)
            self.whole.begin()
            self.whole.write_info(**{FIRST_PART: {}}, finished=False)
        self.run.begin()


def parts_of(
    options: ImageTokenizerOptions,
    run: Run,
    accelerator: Accelerator,
    *,
    photographs: bool,
    earlier: VQVAE | Autoencoder | None,
    check_captions: Callable[[], object],
) -> Iterator[Part]:
    """The parts of a run, one after the other; the second comes once the first has ended.

    A resumed run leaves out what has ended. Where its budget has grown since the decoder began, the decoder alone goes
    on, so that codes stay valid.

    Args:
        run: of the whole; its folder is that of the last part, with the first part's inside it.
        photographs: whether there are terms beside the pixels by default.
        earlier: the model of --init_from.
        check_captions: raises ValueError where --extractor captions cannot learn them, before any training.

    Raises:
        ValueError: --decoder_share in a continued run that has one part, or where codes stay as they are; an extractor
            that cannot be loaded; a folder that not all nodes see; the first part's model is gone.
    """
    codes_stay = options.network == "components" or isinstance(earlier, VQVAE) and earlier.has_frozen_codes
    share = _share(options, run, photographs, codes_stay=codes_stay)
    if not share or options.max_steps == 1:
        yield Part(options, options, run)
        return
    _check_extractor(options, photographs, check_captions)
    first_options = _first_options(options, share)
    first = Run(
        first_options.output_dir, first_options, resume=options.resume, overwrite=options.overwrite,
        is_main=accelerator.is_main_process,
    )  # fmt: skip
    first.part = FIRST_PART
    taken: dict[str, Any] = run.info.get(FIRST_PART, {})
    _check_disk(run, accelerator)
    if not taken:
        if not first.finished:
            say(
                accelerator,
                f"part 1 of 2: the whole network by the error of the pixels, for {1 - share:.0%} of the budget, in "
                f"{first.folder}",
            )
            yield Part(first_options, options, first, whole=run)
        taken = from_main({name: first.info.get(name) for name in ("steps", "minutes")})  # once its model is written
        run.write_info(**{FIRST_PART: taken})
    if not first.folder.is_dir():
        raise ValueError(
            f"{first.folder} is gone, from whose model the second part starts: put it back, or start again with "
            "--overwrite"
        )
    steps, minutes = int(taken["steps"]), taken["minutes"]
    decoder_options = _decoder_options(options, first.folder, steps, minutes)
    say(
        accelerator,
        "part 2 of 2: the decoder alone by all terms of the loss (--decoder_share); the codes are those of part 1",
    )
    yield Part(decoder_options, options, run, steps=steps, minutes=minutes)


def _share(options: ImageTokenizerOptions, run: Run, photographs: bool, *, codes_stay: bool) -> float:
    """The share of the budget that the decoder learns alone in; 0: one part."""
    if FIRST_PART in run.info:
        if options.decoder_share == 0:
            raise ValueError(
                f"--decoder_share 0: the run in {run.folder} began in two parts; leave the option out, or start again "
                "with --overwrite"
            )
        return options.decoder_share or DECODER_SHARE
    if "started" in run.info:  # it began as one part
        if options.decoder_share:
            raise ValueError(
                f"--decoder_share {options.decoder_share:g}: the run in {run.folder} began in one part; leave the "
                "option out, give 0, or start again with --overwrite"
            )
        return 0.0
    if codes_stay:
        if options.decoder_share:
            raise ValueError(
                f"--decoder_share {options.decoder_share:g}: its codes stay as they are, so that there is nothing to "
                "learn before the decoder; leave the option out"
            )
        return 0.0
    if options.decoder_share is not None:
        return options.decoder_share
    if not options.is_quantized or options.signal or options.train == "decoder":
        return 0.0
    return DECODER_SHARE if options.compares_features(photographs) else 0.0


def _check_extractor(options: ImageTokenizerOptions, photographs: bool, check_captions: Callable[[], object]) -> None:
    """Raise ValueError for an extractor that could not be loaded, or trained, when the second part begins."""
    if not options.wanted_perceptual_weight(photographs):
        return
    if options.extractor == CAPTIONS:
        check_captions()
    elif missing_package(options.extractor) is None:
        load_extractor(options.extractor)


def _check_disk(run: Run, accelerator: Accelerator) -> None:
    """Raise ValueError where a process does not see the folder, from which all of them load the first part's model."""
    accelerator.wait_for_everyone()
    if not all_see(run.folder, accelerator):
        raise ValueError(
            f"--output_dir {run.folder} is not on a disk that all nodes see, from which they load the model of part 1: "
            "give such a folder, or --decoder_share 0 for a run of one part"
        )


def _first_options(options: ImageTokenizerOptions, share: float) -> ImageTokenizerOptions:
    """The options of the whole network's part: no term that compares features, and its share of the budget."""
    steps, minutes = options.max_steps, options.max_minutes or DEFAULT_MINUTES
    return replace(
        options,
        output_dir=str(Path(options.output_dir) / FIRST_PART),
        max_steps=steps and max(1, min(steps - 1, round(steps * (1 - share)))),
        max_minutes=None if steps else minutes * (1 - share),
        decoder_share=0.0,
        extractor=type(options).extractor,
        perceptual_weight=0.0,
        adversarial_weight=0.0,
        feature_matching_weight=0.0,
    )


def _decoder_options(options: ImageTokenizerOptions, folder: Path, steps: int, minutes: float) -> ImageTokenizerOptions:
    """The options of the decoder's part: what the first one, whose model is in `folder`, has left of the budget."""
    total = options.max_minutes or DEFAULT_MINUTES
    # The model brings them along; of codebooks of fixed points, sizes are the nearest that there are.
    changes: dict[str, Any] = dict.fromkeys((*QUANTIZER_OPTIONS.values(), "codebook_sizes"))
    return replace(
        options,
        init_from=str(folder),
        train="decoder",
        max_steps=options.max_steps and max(1, options.max_steps - steps),
        max_minutes=None if options.max_steps else max(LEAST_SHARE * total, total - minutes),
        decoder_share=0.0,
        **changes,
    )
