"""What few pictures ask for: regularisation by how often each will be shown, and how the kept weights are judged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from lm.data.sequence_source import SequenceSource
from lm.sequences import collate
from lm.training.dropout import has_dropout_places
from lm.training.flops import forward_flops
from pipelines.options.language_model import BATCH_SIZE, LanguageModelOptions
from pipelines.text_to_image import TextToImagePipeline
from pipelines.training.captions_drawn import CaptionsDrawn
from pipelines.training.schedule import Budget

SEVERAL_EPOCHS = 8  # from which on a model may learn pictures by heart, and is judged by what captions draw
MANY_EPOCHS = 20  # from which on it is regularised: without that, validation is best after about 13
DROPOUT, CODE_NOISE = 0.1, 0.1  # from there on
USUAL_DECAY, MORE_DECAY = 0.05, 0.3  # of weights; the latter from `SEVERAL_EPOCHS` on, for models that begin anew
CHOSEN = ("dropout", "code_noise", "weight_decay")  # options that the recipe settles where they are not given
ROWS_MEASURED = 256
DRAWN_CAPTIONS = 64  # of each split, at each validation
DRAWN_ROWS = 3 * 2 * DRAWN_CAPTIONS  # that this is worth in time: token by token, a row takes about three times as long
# What the loss counts beside the share of captions that draw their picture: a tenth more of it, as much as two captions
# in a hundred. That share has a standard error of about one in a hundred: the highest of many validations is chance.
LOSS_SHARE = 0.2
LEAST_LOSS = 1e-3  # whose logarithm is taken


@dataclass(frozen=True)
class Recipe:
    """How a run is regularised.

    Attributes:
        epochs: how often each picture will be shown, about.
        dropout, code_noise: shares, as --dropout and --code_noise.
        weight_decay: as --weight_decay.
    """

    epochs: float
    dropout: float
    code_noise: float
    weight_decay: float = USUAL_DECAY

    @property
    def is_repetitive(self) -> bool:
        """Whether pictures are shown so often that they may be learned by heart."""
        return self.epochs >= SEVERAL_EPOCHS

    def to_dict(self) -> dict[str, float]:
        """For run.json."""
        return asdict(self)

    def line(self, pictures: int, options: LanguageModelOptions) -> str:
        """What was chosen, and why."""
        given = _given(options)
        chosen = " ".join(f"--{name} {getattr(self, name):g}" for name in CHOSEN)
        by = "by pictures and budget" if not given else f"{' and '.join('--' + name for name in given)} as given"
        return f"about {self.epochs:.3g} epochs of {pictures} pictures are expected: {chosen} ({by})"


def choose_recipe(
    options: LanguageModelOptions, source: SequenceSource, model: Any, peak: float, earlier: dict[str, float] | None
) -> Recipe:
    """The options' regularisation; where they do not say, more weight decay for pictures that are shown several times,
    and `DROPOUT` and `CODE_NOISE` for those shown many times. Weights of an earlier model keep the usual decay.

    Args:
        peak: FLOPs a second of all processes together, by which the steps of --max_minutes are foreseen.
        earlier: the recipe of the run that this one resumes, which is kept.
    """
    if earlier:
        recipe = Recipe(**earlier)
    else:
        epochs = expected_epochs(options, source, model, peak)
        many = epochs >= MANY_EPOCHS
        decays = epochs >= SEVERAL_EPOCHS and not (options.init_from or options.lm_name_or_path)
        recipe = Recipe(
            epochs,
            DROPOUT if many and has_dropout_places(model) else 0.0,
            CODE_NOISE if many else 0.0,
            MORE_DECAY if decays else USUAL_DECAY,
        )
    return Recipe(**{**recipe.to_dict(), **{name: getattr(options, name) for name in _given(options)}})


def _given(options: LanguageModelOptions) -> list[str]:
    """Which parts of the recipe the options say."""
    return [name for name in CHOSEN if getattr(options, name) is not None]


def expected_epochs(options: LanguageModelOptions, source: SequenceSource, model: Any, peak: float) -> float:
    """How often the run will read each row of the cache, about."""
    rows = len(source.cache)
    budget = Budget.of(options)
    few = np.arange(min(ROWS_MEASURED, rows))
    items = source.items(few, source.choose(options.seed, 0, few))
    if budget.max_steps:
        tokens = sum(item.length for item in items) / max(1, len(items))
        per_row = options.pack_length / tokens if options.pack_length else 1.0  # sequences that a packed row holds
        return budget.max_steps * (options.batch_size or BATCH_SIZE) * per_row / rows
    batch = collate([source.sequence(item) for item in items], source.vocabulary.pad_id)
    flops = 3 * forward_flops(model.config, source.vocabulary.id_ranges, batch) / max(1, len(items))
    return budget.flops(peak) / flops / rows


def drawn_figures(
    captions: CaptionsDrawn, accelerator: Accelerator, pipe: Callable[[], TextToImagePipeline]
) -> dict[str, float]:
    """`CaptionsDrawn.shares`, measured in the main process, the same in all."""
    shared = [captions.shares(pipe()) if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(shared)
    return shared[0] or {}


def kept_score(figures: dict[str, float], loss: float) -> float:
    """What the kept weights have least of: captions that do not draw their picture, of those that were held out and
    those that were learned from alike, and the logarithm of the validation loss, `LOSS_SHARE` of it; the loss alone
    where nothing was drawn."""
    shares = [value for name, value in figures.items() if name.startswith("drawn_right_")]
    return 1 - sum(shares) / len(shares) + LOSS_SHARE * math.log(max(loss, LEAST_LOSS)) if shares else loss
