"""Sample pictures of a training run: the same captions, pictures and documents are drawn, described and continued each
time."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lm.data.sequence_source import SequenceSource
from lm.data.shards import EDIT_ORDERS
from lm.sequences import DESCRIBING, DRAWING_ALONE, DRAWING_CAPTIONS, EDITING, FORMATS, Picture, edit_text
from lm.vocabulary import Size
from pipelines.drawing.captions import cut_caption
from pipelines.drawing.grids import labelled_grid
from pipelines.image_to_text import ImageToTextPipeline
from pipelines.interleaved import InterleavedPipeline
from pipelines.text_to_image import TextToImagePipeline
from pipelines.text_to_signal import TextToSignalPipeline
from tokenizer_image.preprocessing import postprocess

CAPTIONS, PICTURES, DOCUMENTS = 6, 4, 4  # captions, pictures of each, documents to continue
EDITS, RESULTS = 12, 3  # edits, results of each
ROWS_PER_CAPTION = 64  # rows that are searched for each caption


@dataclass
class EditSample:
    """A source picture, what to change, and the result in the data."""

    source: Picture
    instruction: str
    result: Picture


@dataclass
class SamplePrompts:
    """What samples are made from. A list is empty where the model does not learn that use.

    Attributes:
        captions: to draw from; None draws without a caption.
        pictures: to describe.
        openings: first texts of documents, to continue.
        edits: to follow.
        longest: most tokens of a description or of a continuation.
    """

    captions: list[str | None]
    pictures: list[Picture]
    openings: list[str]
    longest: int
    edits: list[EditSample] = field(default_factory=list)


def choose_prompts(source: SequenceSource, *, only_drawing: bool = False) -> SamplePrompts:
    """Choose from the first rows of a cache, for the formats that `source.vocabulary` lists as learned.

    Args:
        only_drawing: nothing to describe or to continue, of signals.
    """
    formats, cache = set(source.vocabulary.formats), source.cache
    rows = range(min(ROWS_PER_CAPTION * CAPTIONS, len(cache)))
    single = [row for row in rows if len(cache.order(row)) <= 1]
    captions: list[str | None] = []
    if formats & set(DRAWING_CAPTIONS):
        texts = dict.fromkeys(text for row in single for text in cache.texts(row)[:1])
        frame = max(FORMATS[name].frame for name in formats)
        room = source.max_length - source.vocabulary.longest_picture - frame
        cut = [cut_caption(source.vocabulary, text, room) for text in list(texts)[:CAPTIONS]]
        captions = [text for text in cut if text]
    edits = _edits(source, rows) if formats & set(EDITING) else []
    if not captions and not edits and formats & set(DRAWING_ALONE):
        captions = [None, None]
    pictures: list[Picture] = []
    if formats & set(DESCRIBING) and not only_drawing:
        with_codes = [row for row in single if len(cache.codes(row))][:CAPTIONS]
        pictures = [Picture(cache.codes(row), _size(source, row)) for row in with_codes]
    openings = []
    if "document" in formats and not only_drawing:
        texts = dict.fromkeys(cache.texts(row)[0] for row in rows if cache.order(row)[1:] and cache.texts(row))
        cut = [cut_caption(source.vocabulary, text, source.max_length // 2 - 2) for text in list(texts)[:DOCUMENTS]]
        openings = [text for text in cut if text]
    frame = 4 + (source.vocabulary.longest_picture if pictures else 0)
    return SamplePrompts(captions, pictures, openings, max(1, (source.max_length - frame) // 2), edits)


def _edits(source: SequenceSource, rows: range) -> list[EditSample]:
    """The first edits between pictures of one size, with instructions that leave room for them."""
    cache = source.cache
    found: list[EditSample] = []
    for row in rows:
        if cache.order(row) in EDIT_ORDERS and len(found) < EDITS:
            before, after = source.pictures(row)
            room = source.max_length - 2 * source.vocabulary.longest_picture - FORMATS["edit"].frame
            text = cut_caption(source.vocabulary, edit_text(cache.texts(row)), room)
            if text and before.size == after.size:
                found.append(EditSample(before, text, after))
    return found


def _size(source: SequenceSource, row: int) -> Size | None:
    return source.cache.image_sizes(row)[0] if source.vocabulary.other_layouts else None


@torch.no_grad()
def draw_samples(pipe: TextToImagePipeline | TextToSignalPipeline, prompts: SamplePrompts, file: Path) -> None:
    """Write a grid: pictures drawn from the captions, each from its own random stream; reconstructions of the pictures
    under their descriptions; and the continuations of the openings."""
    rows: list[tuple[str, Any]] = []
    for caption in prompts.captions:
        output = pipe(caption, None, PICTURES, seed=0)
        rows.append((caption or "(no caption)", output.images))
    if isinstance(pipe, TextToImagePipeline):
        rows += _samples_of_pictures(pipe, prompts)
    rows = [row for row in rows if row[1]]
    if rows:
        labelled_grid(rows).save(file)


def _samples_of_pictures(pipe: TextToImagePipeline, prompts: SamplePrompts) -> list[tuple[str, list[Image.Image]]]:
    """What is written of pictures, after texts, and what becomes of pictures that are edited."""
    parts = pipe.image_tokenizer, pipe.model, pipe.vocabulary
    rows = []
    for picture in prompts.pictures:
        codes = torch.from_numpy(picture.codes.astype(np.int64))[None].to(pipe.device)
        (text,) = ImageToTextPipeline(*parts).describe_codes(codes, prompts.longest, size=picture.size)
        rows.append((f"described: {text}", [_decoded(pipe, picture)]))
    for opening in prompts.openings:
        written = InterleavedPipeline(*parts)([opening], prompts.longest, seed=0).parts
        texts = " ... ".join([opening, *(part for part in written if isinstance(part, str))])
        rows.append((f"continued: {texts}", [part for part in written if isinstance(part, Image.Image)]))
    for edit in prompts.edits:
        known = [_decoded(pipe, picture) for picture in (edit.source, edit.result)]
        output = pipe.edit(known[0], edit.instruction, num_images_per_prompt=RESULTS, seed=0)
        drawn: Any = output.images
        rows.append((f"{edit.instruction}   (source | drawn | the data's)", [known[0], *drawn, known[1]]))
    return rows


def _decoded(pipe: TextToImagePipeline, picture: Picture) -> Image.Image:
    codes = torch.from_numpy(picture.codes.astype(np.int64))[None].to(pipe.device)
    return postprocess(pipe.decode_codes(codes, picture.size), "pil")[0]


def next_commands(folder: Path, prompts: SamplePrompts) -> list[str]:
    """Commands to try with the finished model."""
    commands = []
    if prompts.captions:
        first = next((caption for caption in prompts.captions if caption), "")
        prompt = shlex.quote(first) if first else "--unconditional"
        commands.append(f"python scripts/generate.py --model {folder} {prompt} --num_images_per_prompt 4")
    if prompts.pictures:
        commands.append(f"python scripts/describe.py --model {folder} PICTURE.png")
    if prompts.edits:
        instruction = shlex.quote(prompts.edits[0].instruction)
        commands.append(f"python scripts/edit.py PICTURE.png {instruction} --model {folder}")
    if prompts.openings:
        commands.append('docs/generation.md, "Texts and pictures in turn", continues documents')
    return commands
