"""What `scripts/evaluate.py` lets its users set: no torch, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.machine.destinations import check_file, check_folder
from pipelines.options.data import DataOptions
from pipelines.options.inference import GuidedSamplingOptions, ModelOptions
from pipelines.options.option import option


@dataclass
class EvaluationOptions(GuidedSamplingOptions, ModelOptions, DataOptions):
    """Measure a model, or an image tokenizer alone."""

    image_tokenizer: str | None = option(None, "measure this image tokenizer alone, instead of a model")
    split: str = option("validation", "split of the data set")
    max_examples: int | None = option(
        None, "measure on this many pictures (default: all of the split)", above_zero=True
    )
    output: str = option("report.json", "file for the figures")
    report: str | None = option(None, "folder for a page with pictures and plots (default: none)")
    num_captions: int = option(
        500, "captions of seen and of held-out pairs each; half as many of two objects", above_zero=True
    )
    best_of: int = option(
        1, "on sprites, also draw so many pictures a caption and choose one; 1: do not", above_zero=True
    )
    best_of_captions: int = option(2000, "captions of held-out pairs for --best_of", above_zero=True)
    completion_captions: int = option(
        0, "on sprites, also complete the upper half of so many held-out pictures", not_negative=True
    )
    describe_best_of: int | None = option(
        None,
        "on sprites, also write so many captions a picture and choose one; 1: do not (default: 16 where the model "
        "draws from captions, too)",
        above_zero=True,
    )
    batch_size: int = option(100, "pictures worked on at once", above_zero=True)
    seed: int = option(0, "of scenes, captions and samples", not_negative=True)
    cpu_threads: int | None = option(None, "PyTorch's threads (default: cores)", above_zero=True)
    num_workers: int = option(
        2, "processes that read pictures; -1: one per core that the process may use", within="[-1, inf)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_sampling()
        check_file(self.output, "--output", "report.json")
        if self.report is not None:
            check_folder(self.report, "--report")
