"""The language model of a run of stage 2, and what is made of it beside steps: figures, samples, kept weights, its
folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from lm.data.sequence_source import SequenceSource
from lm.data.token_cache import TokenCache
from lm.lora import AdaptedModel, load_trained, save_trained
from lm.model import load_model
from lm.training.dropout import without_dropout
from lm.training.guess_table import learn_guess_table
from lm.training.losses import NextTokenLoss
from lm.vocabulary import MultimodalVocabulary
from pipelines.machine.printing import say
from pipelines.options.language_model import LanguageModelOptions
from pipelines.text_to_signal import drawing_pipeline
from pipelines.training.captions_drawn import CaptionsDrawn, choose_captions, choose_edits
from pipelines.training.captions_shared import choose_shared_captions
from pipelines.training.distribution import is_sharded
from pipelines.training.few_pictures import DRAWN_CAPTIONS, DRAWN_ROWS, Recipe, drawn_figures, kept_score
from pipelines.training.fine_tuning import adapted_forward
from pipelines.training.guidance_search import settle_defaults
from pipelines.training.language_model_step import mean_loss, validate
from pipelines.training.loop import Validation
from pipelines.training.run_folder import Run
from pipelines.training.sample_pictures import choose_prompts, draw_samples
from pipelines.training.schedule import validation_interval
from pipelines.training.text_check import TextCheck, held_out_text
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.signals.settings import signal_settings_of

if TYPE_CHECKING:
    from lm.generation.guess_table import GuessTable


@dataclass
class TrainedLanguageModel:
    """Stage 2's model, with all that its validations and its folder are made of.

    Attributes:
        model: with adapters, the model that has them.
        adapted: those, with --lora_rank.
        validation_source: sequences of the validation split.
        recipe: how the run is regularised.
        shares: of text and of codes in the loss.
        signal: what the tokenizer encodes, "" for pictures.
        prompts: that samples are drawn for.
        captions: that are drawn at each validation; None where validation goes by nats alone.
        text: that is held out; None where nothing of the kind is asked for.
        text_before: its nats a token before training.
    """

    options: LanguageModelOptions
    accelerator: Accelerator
    run: Run
    tokenizer: ImageTokenizer
    vocabulary: MultimodalVocabulary
    model: Any
    adapted: AdaptedModel | None
    cache: TokenCache
    validation_cache: TokenCache
    validation_source: SequenceSource
    recipe: Recipe
    shares: tuple[float, float] = field(init=False)
    signal: str = field(init=False)
    prompts: Any = field(init=False)
    captions: CaptionsDrawn | None = field(init=False)
    text: TextCheck | None = field(init=False)
    text_before: float | None = field(init=False)

    def __post_init__(self) -> None:
        settings = signal_settings_of(self.tokenizer)
        self.signal = settings.signal if settings else ""
        self.shares = self.options.loss_shares(self.vocabulary.formats)
        self.prompts = choose_prompts(self.validation_source, only_drawing=bool(self.signal))
        judges_drawn = self.recipe.is_repetitive and not self.signal and not is_sharded(self.accelerator)
        self.captions = self._captions_of_one_picture() if judges_drawn else None
        self.text = held_out_text(self.options, self.validation_cache, self.vocabulary, self.model.config)
        self.text_before = self.run.info.get("text_check", {}).get("nats_before")

    def measure_text(self) -> None:
        """How well the model predicts held-out text before it is trained; once for a run, in the main process."""
        if self.text and self.text_before is None and self.run.is_main:
            with self.accelerator.autocast():
                self.text_before = self.text.measure(self.model)
            self.run.write_info(text_check=self.text.to_dict(self.text_before))

    def pipeline(self, plain: Any, table: GuessTable | None = None) -> Any:
        """What draws with the model `plain`."""
        return drawing_pipeline(self.tokenizer, plain, self.vocabulary, table)

    def validation(self, loss_module: NextTokenLoss) -> Validation:
        """What the loop measures, shows and keeps."""
        around: Callable[[], Any] = partial(without_dropout, self.model)
        if self.adapted:
            around = partial(adapted_forward, self.accelerator, self.model)
        rows = len(self.validation_cache) + (DRAWN_ROWS if self.captions else 0)
        return Validation(
            partial(self._measure, loss_module),
            self._sample,
            self._score,
            self._keep if self.options.keep_best else None,
            around=around,
            every=validation_interval(self.options, len(self.cache), rows),
        )

    def leave(self, plain: Any, best: Path | None, rows: int) -> None:
        """Write the model folder, of the model as it is or of the best validation kept.

        Args:
            plain: the model as it is.
            best: the folder of the weights that were kept.
            rows: that the model has learned from.
        """
        if best and self.adapted:
            load_trained(plain, best)
        elif best:
            plain = load_model(str(best / "lm"))
        with torch.autocast(self.accelerator.device.type, enabled=False):
            plain = (self.adapted.merge() if self.adapted else plain).to(self.accelerator.device)
            settle_defaults(
                self.options,
                self.pipeline(plain),
                lambda: self.captions or self._captions_of_one_picture() or self._edits(),
                lambda: None if self.signal else self._captions_of_many(),
                rows,
                partial(say, self.accelerator),
            )
        with self.run.writing(self.run.folder):
            self._write(plain, self.run.folder, learn_guess_table(self.cache, self.vocabulary))
        if self.text:
            assert self.text_before is not None
            with self.accelerator.autocast():
                after = self.text.measure(plain)
            self.run.write_info(text_check=self.text.to_dict(self.text_before, after))
            say(self.accelerator, self.text.line(self.text_before, after))

    def _captions_of_one_picture(self) -> CaptionsDrawn | None:
        return choose_captions(self.cache, self.validation_cache, self.vocabulary, DRAWN_CAPTIONS, self.signal)

    def _captions_of_many(self) -> Any:
        return choose_shared_captions(self.cache, self.validation_cache, self.vocabulary)

    def _edits(self) -> CaptionsDrawn | None:
        return choose_edits(self.cache, self.validation_cache, self.vocabulary, DRAWN_CAPTIONS)

    def _measure(self, loss_module: NextTokenLoss) -> dict[str, float]:
        figures = validate(loss_module, self.validation_source, self.accelerator)
        if self.captions:
            figures |= drawn_figures(self.captions, self.accelerator, lambda: self.pipeline(self.model))
        return figures

    def _score(self, figures: dict[str, float]) -> float:
        return kept_score(figures, mean_loss(figures, self.shares))

    def _sample(self, plain: Any, step: int) -> None:
        try:
            draw_samples(self.pipeline(plain), self.prompts, self.run.sample_file(f"step-{step:06d}.png"))
        except (ValueError, RuntimeError) as error:  # a picture to look at is not worth a run
            say(self.accelerator, f"no samples of step {step}: {error}")

    def _keep(self, plain: Any, folder: Path) -> None:
        if self.adapted:
            save_trained(plain, folder)
        else:
            self._write(plain, folder)

    def _write(self, plain: Any, folder: Path, table: GuessTable | None = None) -> None:
        self.pipeline(plain, table).save_pretrained(folder)
