"""How disentangled the latents of trained models are, by six metrics, and how far the metrics agree.

    python scripts/benchmarks/disentanglement.py --models runs/beta_1 runs/beta_4 runs/vq --plot agreement.png

The factors are those of sprites (thing, colour, size, position, background), drawn independently of each other; or
columns of a data set: --dataset FOLDER --factor_columns shape scale. docs/disentanglement.md says what each metric is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING, Any

from pipelines.machine.destinations import check_file
from pipelines.options.option import option
from pipelines.options.parser import run_command
from scripts.benchmarks.figures import BenchmarkOptions, Row, check_plots, row, write_rows

if TYPE_CHECKING:
    from pipelines.evaluation.disentanglement.factors import FactorPictures
    from tokenizer_image.preprocessing import Preprocessing


@dataclass(kw_only=True)
class Options(BenchmarkOptions):
    """Disentanglement of trained models."""

    models: list[str] = option(MISSING, "folders of trained models, each the --output_dir of train_tokenizer.py")
    dataset: str = option("sprites", "'sprites', or a data set whose columns hold factors")
    split: str = option("train", "split of the data set")
    factor_columns: list[str] = option(
        [], "columns of whole numbers or names that are factors; 'label' is the class of any data set"
    )
    max_examples: int = option(5000, "pictures that latents are read of, at most", within="[100, inf)")
    latents: str = option(
        "mean", "'mean' over positions, or 'flat': the numbers of all positions", choices=("mean", "flat")
    )
    seed: int = option(0, "of the scenes of sprites and of what the metrics draw", not_negative=True)
    plot: str = option("disentanglement.png", "file for the heat map of rank correlations, of three models or more")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_file(self.plot, "--plot", "disentanglement.png")
        check_plots("--plot")
        if (self.dataset == "sprites") == bool(self.factor_columns):
            given = " ".join(self.factor_columns) or "(none)"
            raise ValueError(
                f"--dataset {self.dataset} with --factor_columns {given}: sprites have factors of their own, and any "
                "other data set needs columns"
            )
        if len(self.factor_columns) == 1:
            raise ValueError(f"--factor_columns {self.factor_columns[0]}: name at least two, to be told apart")
        twice = next((name for name in self.models if self.models.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"--models names {twice} twice")


def load_model(folder: str) -> Any:
    """The model in a folder; it has `latents(pixel_values)`."""
    from tokenizer_image.registry import load_image_model

    return load_image_model(folder)


def read_factors(options: Options, settings: Preprocessing) -> FactorPictures:
    """Pictures as a model reads them, with their factors."""
    from pipelines.evaluation.disentanglement.factors import column_factors, sprite_factors
    from tokenizer_image.pictures.dataset import PictureSource
    from tokenizer_image.pictures.loading import load_pictures

    if options.dataset == "sprites":
        return sprite_factors(options.max_examples, options.seed, settings)
    source = load_pictures(options.dataset, options.split)
    assert isinstance(source, PictureSource)  # as all are but sprites
    return column_factors(source, options.factor_columns, options.max_examples, settings)


def table(names: Sequence[str], scores: Sequence[dict[str, float]]) -> list[str]:
    """A row for each model in Markdown."""
    lines = [f"| model | {' | '.join(scores[0])} |", "|" + "---|" * (len(scores[0]) + 1)]
    return lines + [
        f"| {name} | {' | '.join(f'{value:.3f}' for value in one.values())} |"
        for name, one in zip(names, scores, strict=True)
    ]


def agreement(options: Options, scores: Sequence[dict[str, float]]) -> list[Row]:
    """Rank correlations of each two metrics over the models, on the screen and in the plot; none of too few models."""
    import numpy as np

    from pipelines.evaluation.disentanglement.scores import LEAST_MODELS, METRICS, correlation_plot, rank_correlation

    if len(scores) < LEAST_MODELS:
        print(f"no rank correlation: it needs {LEAST_MODELS} models, and there are {len(scores)}")
        return []
    found = rank_correlation(np.array([[one[name] for name in METRICS] for one in scores]))
    print(f"\n| Spearman, {len(scores)} models | {' | '.join(METRICS)} |\n|" + "---|" * (len(METRICS) + 1))
    for name, line in zip(METRICS, found, strict=True):
        print(f"| {name} | {' | '.join('' if np.isnan(value) else f'{value:.2f}' for value in line)} |")
    correlation_plot(found, METRICS).save(options.plot)
    print(f"plot: {options.plot}")
    pairs = [(one, other) for one in range(len(METRICS)) for other in range(one)]
    return [
        row(
            f"disentanglement/rank_correlation/{METRICS[other]}/{METRICS[one]}",
            None if np.isnan(found[one, other]) else float(found[one, other]),
            "",
            None,
            True,
        )
        for one, other in pairs
    ]


def main(options: Options) -> None:
    """Measure the models; tables on the screen, a heat map, rows in the file."""
    import transformers

    from pipelines.evaluation.disentanglement.factors import latents_of
    from pipelines.evaluation.disentanglement.scores import disentanglement_scores
    from tokenizer_image.preprocessing import preprocessing_of

    transformers.logging.disable_progress_bar()  # models load in seconds
    options.set_threads()
    scores, rows = [], []
    known: dict[Preprocessing, FactorPictures] = {}
    for folder in options.models:
        model = load_model(folder)
        settings = preprocessing_of(model)
        if settings not in known:
            known[settings] = read_factors(options, settings)
        data = known[settings]
        latents = latents_of(model, data.pictures, options.latents)
        scores.append(disentanglement_scores(latents, data.factors, options.seed))
        rows += [row(f"disentanglement/{folder}/{name}", value, "", None, True) for name, value in scores[-1].items()]
    print(f"{len(data.pictures)} pictures of {options.dataset}, factors: {', '.join(data.names)}")
    print("\n".join(table(options.models, scores)))
    write_rows(options.output, rows + agreement(options, scores))


if __name__ == "__main__":
    run_command(main, Options, __doc__)
