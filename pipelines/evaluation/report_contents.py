"""What the page of a report shows of an evaluation: samples, sheets of pictures, plots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from lm.sequences import DRAWING_ALONE
from pipelines.caching.sources import first_captions
from pipelines.drawing.captions import caption_room, cut_caption
from pipelines.evaluation.codebook_plot import codebook_views
from pipelines.evaluation.evaluation import Evaluation
from pipelines.evaluation.report_page import nearest_sheet, write_report
from pipelines.evaluation.subject import EvaluatedModel
from pipelines.evaluation.tables import figures_table
from pipelines.options.evaluation import EvaluationOptions
from pipelines.text_to_image import TextToImagePipeline
from tokenizer_image.pictures.dataset import PictureDataset

SAMPLE_CAPTIONS, SAMPLES_EACH = 8, 4  # shown on the page
SAMPLE_ROWS = 64  # of the data set, in which captions to show are looked for


def write_page(options: EvaluationOptions, evaluation: Evaluation, folder: str | Path) -> Path:
    """Draw samples, plot the codebooks, and write the report's folder; the path of its page."""
    drawing, split = evaluation.model.drawing, evaluation.split
    samples: list[tuple[str, list[Image.Image]]] = []
    if drawing is not None and not evaluation.sets:
        samples = draw_samples(drawing, split.source, options.seed, options.sampling())
    tokenizer_figures = evaluation.tokenizer_figures
    codebooks = codebook_views(evaluation.model.image_tokenizer, tokenizer_figures.codes, split.pictures)
    page, *_ = write_report(
        folder,
        evaluation.report,
        tokenizer_figures,
        table=figures_table(evaluation.report),
        sets=evaluation.sets,
        samples=samples,
        codebooks=codebooks,
        sheets=_sheets(evaluation),
    )
    return page


def _sheets(evaluation: Evaluation) -> dict[str, tuple[str, Image.Image]]:
    """Title -> file name and picture, of what this evaluation has to show beside what every report shows."""
    sheets: dict[str, tuple[str, Image.Image]] = {}
    if evaluation.nearest is not None and evaluation.drawn is not None and evaluation.training is not None:
        title = "Drawn pictures (upper rows) and the nearest training picture of each, most like a copy first"
        sheet = nearest_sheet(evaluation.drawn.pictures, evaluation.nearest, evaluation.training.pictures)
        sheets[title] = ("nearest_training.png", sheet)
    return sheets


def draw_samples(
    pipeline: TextToImagePipeline, source: PictureDataset, seed: int, sampling: Mapping[str, Any]
) -> list[tuple[str, list[Image.Image]]]:
    """A few pictures for each of the first captions of a data set, to look at; where it has none, or the model has
    learned none, a few without a caption; [] where the model has learned neither.

    A caption that leaves no room for the picture loses its last words.
    """
    model, vocabulary = EvaluatedModel(pipeline.image_tokenizer, pipeline), pipeline.vocabulary
    captions: list[str] = []
    if model.drawing_from_captions is not None:
        room = caption_room(pipeline.model, vocabulary)
        texts = [text for text in first_captions(source, range(min(SAMPLE_ROWS, len(source)))) if text]
        cut = [cut_caption(vocabulary, text, room) for text in dict.fromkeys(texts)]
        captions = list(dict.fromkeys(text for text in cut if text))[:SAMPLE_CAPTIONS]
    if not captions and not model.formats & set(DRAWING_ALONE):
        return []
    images = pipeline(captions or None, num_images_per_prompt=SAMPLES_EACH, seed=seed, **sampling).images
    assert isinstance(images, list)
    labels = captions or ["without a caption"]
    return [(label, images[SAMPLES_EACH * row : SAMPLES_EACH * (row + 1)]) for row, label in enumerate(labels)]
