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
    extractor: str | None = option(
        None,
        "measure Frechet distances over the features of this network: 'efficientnet_lite1', ... (default: none)",
    )
    classifier: str | None = option(
        None, "count how often this network names the class of a caption: 'efficientnet_lite2', ... (default: none)"
    )
    extractor_size: int | None = option(
        None, "side of the pictures that --extractor and --classifier read (default: what they were trained on)",
        above_zero=True,
    )  # fmt: skip
    drawn_per_caption: int = option(
        0, "pictures to draw for each caption of the split, for --extractor and --classifier", not_negative=True
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
        self._check_extractors()
        check_file(self.output, "--output", "report.json")
        if self.report is not None:
            check_folder(self.report, "--report")

    def _check_extractors(self) -> None:
        """Raise ValueError for an extractor that is unknown or not here, and for options that need one."""
        names = {"extractor": self.extractor, "classifier": self.classifier}
        for name, value in names.items():
            if value is not None:
                # Imports torch, which --help need not wait for.
                from tokenizer_image.losses.extractors import check_extractor

                check_extractor(value, f"--{name}")
        if any(names.values()):
            return
        for name in ("extractor_size", "drawn_per_caption"):
            if getattr(self, name):
                raise ValueError(f"--{name} {getattr(self, name)} needs --extractor or --classifier")
