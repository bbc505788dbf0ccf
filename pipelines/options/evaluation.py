"""What `scripts/evaluate.py` lets its users set: no torch, so that --help is quick."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from pipelines.machine.destinations import check_file, check_folder
from pipelines.options.data import DataOptions
from pipelines.options.image_tokenizer_losses import CAPTIONS
from pipelines.options.inference import GuidedSamplingOptions, ModelOptions
from pipelines.options.option import option

# Options that are about pictures alone.
PICTURE_OPTIONS = (
    "image_column", "max_image_pixels", "train_split", "train_examples", "latent_maps", "num_edits",
    "image_guidance_scale", "best_of", "best_of_captions", "completion_captions", "describe_best_of", "extractor",
    "classifier", "perceptual", "labels_per_class", "extractor_size", "drawn_per_caption", "classification_accuracy",
    "classifier_steps",
)  # fmt: skip
MAP_PACKAGES = {"pca": ("torch", "torch"), "tsne": ("sklearn", "scikit-learn")}


@dataclass
class EvaluationOptions(GuidedSamplingOptions, ModelOptions, DataOptions):
    """Measure a model, or an image tokenizer alone."""

    image_tokenizer: str | None = option(None, "measure this image tokenizer alone, instead of a model")
    autoencoder: str | None = option(
        None, "measure this autoencoder without codes (train_tokenizer.py --bottleneck), instead of a model"
    )
    split: str = option("validation", "split of the data set")
    max_examples: int | None = option(
        None, "measure on this many pictures (default: all of the split)", above_zero=True
    )
    train_split: str | None = option(
        None, "split of the pictures that the model has learned (default: 'train', where the data set has it)"
    )
    train_examples: int | None = option(
        None, "training pictures to compare with and to train classifiers on (default: 10000)", above_zero=True
    )
    output: str = option("report.json", "file for the figures")
    report: str | None = option(
        None, "folder for report.html, report.md and report.json, with pictures and plots (default: none)"
    )
    latent_maps: list[str] | None = option(
        None,
        "planes that the report shows latents in: 'pca', 'tsne' (needs scikit-learn) (default: pca)",
        choices=[*MAP_PACKAGES],
    )
    overwrite: bool = option(False, "write into a --report folder that is not empty, over files of the same names")
    num_captions: int = option(
        500, "captions of seen and of held-out pairs each; half as many of two objects", above_zero=True
    )
    num_edits: int = option(
        1000, "on sprites, edits of seen and of held-out pairs each, where the model has learned edits", above_zero=True
    )
    image_guidance_scale: float | None = option(
        None, "how strongly edits stay with the source picture: 1 is off (default: the model's own)", not_negative=True
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
        "measure Frechet distances over the features of this network: 'efficientnet_lite1', ...; 'captions': a "
        "classifier of the data set's captions, which is trained first (default: none)",
    )
    classifier: str | None = option(
        None,
        "count how often this network names the class of a caption: 'efficientnet_lite2', ..., or 'captions' (default: "
        "none)",
    )
    perceptual: str | None = option(
        None,
        "also measure how far from the pictures this network sees their reconstructions: 'lpips', 'lpips=vgg16.pth', "
        "'efficientnet_lite0', ... (default: none)",
    )
    labels_per_class: list[int] | None = option(
        None,
        "labels of each class that probes of latents, codes and pixels learn from; 0: no probes (default: 10 100 1000 "
        "where captions are classes)",
        not_negative=True,
    )
    extractor_size: int | None = option(
        None, "side of the pictures that --extractor and --classifier read (default: what they were trained on)",
        above_zero=True,
    )  # fmt: skip
    drawn_per_caption: int = option(
        0,
        "pictures to draw for each caption of the split (of an --autoencoder: for each class, or in all), to compare "
        "with real ones: how near to training pictures, and by --extractor and --classifier",
        not_negative=True,
    )
    classification_accuracy: bool = option(
        False,
        "train a classifier on the pictures that --drawn_per_caption draws, others on real training pictures and on "
        "their reconstructions, and test them on the split",
    )
    classifier_steps: int = option(
        2000, "steps of 64 pictures that each classifier of captions learns for", above_zero=True
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
        self._check_maps()
        check_file(self.output, "--output", "report.json")
        if self.report is not None:
            check_folder(self.report, "--report")
            self._check_report_is_new(Path(self.report))
        elif self.latent_maps:
            raise ValueError("--latent_maps are shown in the folder of --report: give that, too")
        elif self.overwrite:
            raise ValueError("--overwrite says what may happen to the folder of --report: give that, too")
        self._check_alone()
        if self.classification_accuracy and self.image_tokenizer is None and not self.drawn_per_caption:
            raise ValueError(
                "--classification_accuracy trains a classifier on drawn pictures: say how many of each class by "
                "--drawn_per_caption, for example 500"
            )
        if self.drawn_per_caption and self.image_tokenizer is not None:
            raise ValueError(
                f"--drawn_per_caption {self.drawn_per_caption} needs a model that draws, and --image_tokenizer is "
                "measured alone: give --model instead"
            )

    def _check_alone(self) -> None:
        """Raise ValueError for two things to measure, and for options that an autoencoder has no use for."""
        if self.autoencoder is None:
            return
        if self.image_tokenizer is not None:
            raise ValueError(
                f"--autoencoder {self.autoencoder} and --image_tokenizer {self.image_tokenizer}: measure one at a time"
            )
        if self.classification_accuracy:
            raise ValueError("--classification_accuracy is for --model and --image_tokenizer, not for --autoencoder")

    def _check_report_is_new(self, folder: Path) -> None:
        """Raise ValueError for a report's folder that has files, unless --overwrite."""
        if not self.overwrite and folder.is_dir() and any(folder.iterdir()):
            raise ValueError(
                f"--report {folder} is not empty: name another folder, or write over its report by --overwrite"
            )

    def _check_maps(self) -> None:
        """Raise ValueError for a map of latents whose package is not here."""
        for name in self.latent_maps or ():
            module, package = MAP_PACKAGES[name]
            if importlib.util.find_spec(module) is None:
                raise ValueError(f"--latent_maps {name} needs {package}: pip install {package}, or leave {name} out")

    def _check_extractors(self) -> None:
        """Raise ValueError for an extractor that is unknown or not here, and for options that need one."""
        names = {"extractor": self.extractor, "classifier": self.classifier, "perceptual": self.perceptual}
        for name, value in names.items():
            if value is not None and (value != CAPTIONS or name == "perceptual"):
                # Imports torch, which --help need not wait for.
                from tokenizer_image.losses.extractors import check_extractor

                check_extractor(value, f"--{name}")
        if self.extractor_size and not (self.extractor or self.classifier):
            raise ValueError(f"--extractor_size {self.extractor_size} needs --extractor or --classifier")
