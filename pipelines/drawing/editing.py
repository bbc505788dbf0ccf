"""Edits by instruction: pictures and instructions, checked once and brought into the sampler's terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image
from transformers import PreTrainedModel

from lm.generation.sampling import Guidance
from lm.generation.task import DrawingTask, longest_prompt
from lm.sequences import DRAWING_ALONE, EDITING, Picture, edit_prompt, edit_text, image_prompt
from lm.vocabulary import MultimodalVocabulary, Size
from pipelines.drawing.arguments import list_of_texts, shown
from pipelines.drawing.completion import check_picture
from pipelines.drawing.prompts import Prompt, negative_texts
from pipelines.drawing.request import DrawingRequest
from pipelines.drawing.streams import picture_streams
from pipelines.multimodal import MultimodalPipeline

REMEDY = (
    "train one with train_lm.py --dataset sprites-edits, or --dataset FOLDER with a documents.jsonl of edits "
    "(docs/editing.md)"
)
Images = Image.Image | Sequence[Image.Image]


def edit_task(
    pipe: MultimodalPipeline,
    request: DrawingRequest,
    image: Images,
    image_guidance_scale: Guidance | None,
    source_prompt: Prompt,
) -> DrawingTask:
    """The results to draw, in the sampler's terms; the request's texts are the instructions.

    Raises:
        TypeError, ValueError: an argument that is wrong for this model, named with its value.
    """
    vocabulary = pipe.vocabulary
    vocabulary.check_trained("editing a picture by an instruction", *EDITING, remedy=REMEDY)
    if request.best_of is not None and request.ranker is None:
        raise ValueError(
            "best_of for edits needs a ranker: the model does not tell how well an instruction was followed"
        )
    instructions = _instructions(request)
    images = _sources(image, len(instructions))
    size = _size(images, vocabulary)
    request = _with_guidance(vocabulary, request.of_size(size), image_guidance_scale)
    if image_guidance_scale is None:
        image_guidance_scale = vocabulary.default_image_guidance
    settings = request.settings(vocabulary, size, image_guidance_scale)
    negatives = negative_texts(request.negative_prompt, len(instructions), max(one.guidance_scale for one in settings))
    shows = _source_texts(source_prompt, len(instructions))
    wanted = [edit_text([*shown_there, text]) for shown_there, text in zip(shows, instructions, strict=True)]
    codes = pipe.encode_images(images, size)
    sources = [Picture(one, size) for one in codes.cpu().numpy()]
    _check_room(pipe, wanted, instructions, size)

    def rows(texts: Sequence[str | None]) -> list[list[int]]:
        prompts = [edit_prompt(vocabulary, text, source, size) for text, source in zip(texts, sources, strict=True)]
        return [prompt for prompt in prompts for _ in range(request.num_drawn)]

    return DrawingTask(
        prompts=rows(wanted),
        source_prompts=rows(negatives),
        negative_prompts=[image_prompt(vocabulary, None, size)] * len(instructions) * request.num_drawn,
        generators=picture_streams(len(instructions), request.num_drawn, request.seed, request.generator),
        settings=settings,
        size=size,
        max_batch_rows=pipe.max_batch_rows,
        codes_per_call=request.codes_per_call,
        guess_table=pipe.guess_table,
        sources=codes.repeat_interleave(request.num_drawn, 0),
    )


def instruction_room(model: PreTrainedModel, vocabulary: MultimodalVocabulary, size: Size | None = None) -> int:
    """Most tokens of an instruction by which a picture of this size (default: the default one) can be edited."""
    frame = len(image_prompt(vocabulary, None, size)) + len(vocabulary.picture(size)) + 2
    return max(0, longest_prompt(model, vocabulary, size) - frame)


def _instructions(request: DrawingRequest) -> list[str]:
    """The instructions. Raises ValueError for one that says nothing."""
    if request.prompt is None:
        raise ValueError('an edit needs an instruction, for example "make it blue", got None')
    for index, text in enumerate(request.texts):
        if not text:
            where = "" if isinstance(request.prompt, str) else f" {index}"
            raise ValueError(f'instruction{where} is empty: say what to change, for example "make it blue"')
    return [str(text) for text in request.texts]


def _sources(image: Any, count: int) -> list[Image.Image]:
    """One picture for each of `count` instructions."""
    if image is None:
        raise TypeError('an edit needs a picture to start from, got None: edit(Image.open("dog.png"), "make it blue")')
    if isinstance(image, Image.Image):
        return [image] * count
    if not isinstance(image, (list, tuple)):
        raise TypeError(f"image must be a PIL picture or a list of them, got {shown(image)}")
    if not image:
        raise ValueError("an edit needs a picture to start from, got an empty list")
    if len(image) != count:
        raise ValueError(
            f"{len(image)} pictures for {count} instruction{'s' * (count > 1)}: an edit starts from one picture; give "
            "one picture for all instructions, or as many pictures as instructions"
        )
    return list(image)


def _size(images: Sequence[Image.Image], vocabulary: MultimodalVocabulary) -> Size:
    """(height, width) of all pictures, one of the model's sizes."""
    first, *others = [check_picture(image, vocabulary.layouts) for image in images]
    for number, size in enumerate(others, 1):
        if size != first:
            raise ValueError(
                f"picture {number} is {size[1]}x{size[0]} (width x height), picture 0 is {first[1]}x{first[0]}: the "
                "pictures of one call have one size; edit those of each size in a call of their own"
            )
    return first


def _source_texts(source_prompt: Prompt, count: int) -> list[list[str]]:
    """What is said of each source picture: one text, or none."""
    if source_prompt is None:
        return [[]] * count
    texts = [str(text) for text in list_of_texts(source_prompt, "source_prompt")]
    if isinstance(source_prompt, str):
        texts *= count
    if len(texts) != count:
        raise ValueError(f"{len(texts)} source prompts for {count} instructions: give one, or one for each")
    return [[text] if text else [] for text in texts]


def _with_guidance(
    vocabulary: MultimodalVocabulary, request: DrawingRequest, image_guidance_scale: Guidance | None
) -> DrawingRequest:
    """The request, without the model's own guidance where that is over captions alone.

    Raises:
        ValueError: guidance away from what the model has not learned: the picture alone, or neither.
    """
    if request.guidance_scale not in (None, 1) and request.negative_prompt is None:
        vocabulary.check_trained(
            f"guidance_scale={shown(request.guidance_scale)}", "image_to_image",
            remedy="give guidance_scale=1, or train with --edit_dropout above 0",
        )  # fmt: skip
    if image_guidance_scale not in (None, 1):
        vocabulary.check_trained(
            f"image_guidance_scale={shown(image_guidance_scale)}", *DRAWING_ALONE,
            remedy="give image_guidance_scale=1, or train with --edit_dropout above 0",
        )  # fmt: skip
    if request.guidance_scale is None and "image_to_image" not in vocabulary.formats:
        return replace(request, guidance_scale=1.0)
    return request


def _check_room(pipe: MultimodalPipeline, texts: Sequence[str], instructions: Sequence[str], size: Size) -> None:
    """Raise ValueError for an instruction that leaves no room for the two pictures."""
    room = instruction_room(pipe.model, pipe.vocabulary, size)
    for text, instruction in zip(texts, instructions, strict=True):
        length = len(pipe.vocabulary.encode_text(text))
        if length > room:
            raise ValueError(
                f"instruction {shown(instruction)} has {length} tokens, with what is said of the source, but this "
                f"model takes at most {room} beside the two pictures: shorten it"
            )
