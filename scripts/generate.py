"""Draw pictures from captions with a trained model.

    python scripts/generate.py "a red dog" "a small blue house" --output pictures.png

A file name writes one sheet, a row of pictures under each caption; else it is a folder of single pictures.
"""

from __future__ import annotations

import gc
import random
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipelines.options.parser import parse_options

if TYPE_CHECKING:
    from PIL import Image

    from lm.generation.progress import DrawingInterrupted

PROMPTS = {"prompts": {"nargs": "*", "metavar": "PROMPT", "help": "what to draw, each prompt in quotes"}}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass
class GenerateOptions:
    """What `scripts/generate.py` can be told."""

    prompts: list[str] = field(default_factory=list)
    model: str = field(default="runs/model", metadata={"help": "model folder, or the name of a model on the Hub"})
    output: str = field(
        default="generated.png",
        metadata={"help": "a picture file (one sheet), or a folder (single pictures)"},
    )
    unconditional: bool = field(default=False, metadata={"help": "draw without a prompt"})
    num_images_per_prompt: int = field(default=4, metadata={"help": "pictures for each prompt"})
    best_of: int | None = field(
        default=None,
        metadata={
            "help": "draw so many for each prompt and keep those after which the model finds it likeliest (models that "
            "have learned to describe)"
        },
    )
    negative_prompt: str | None = field(default=None, metadata={"help": "what to lead away from"})
    guidance_scale: float | None = field(
        default=None,
        metadata={"help": "how strongly to follow the prompt: 1 is off (default: the model's own)"},
    )
    temperature: float = field(default=1.0, metadata={"help": "0 takes the likeliest code each time"})
    top_k: int = field(default=0, metadata={"help": "choose among the k likeliest codes; 0: among all"})
    top_p: float = field(
        default=1.0, metadata={"help": "choose among the likeliest codes that have this probability together"}
    )
    min_p: float = field(
        default=0.0, metadata={"help": "leave out codes with less than this share of the likeliest one's probability"}
    )
    height: int | None = field(
        default=None, metadata={"help": "in pixels, one of the sizes that the model draws (default: its first)"}
    )
    width: int | None = field(default=None, metadata={"help": "in pixels; one of height and width may say which"})
    seed: int | None = field(default=None, metadata={"help": "the same seed draws the same pictures"})
    device: str = field(default="auto", metadata={"help": "cpu, cuda, ...; auto: a GPU where there is one"})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "of the language model"}
    )

    def __post_init__(self) -> None:
        if not self.prompts and not self.unconditional:
            raise ValueError('no prompt: say in quotes what to draw, for example "a dog", or give --unconditional')
        if self.prompts and self.unconditional:
            raise ValueError(f"--unconditional draws without a prompt: leave {self.prompts[0]!r} out, or the option")
        if self.num_images_per_prompt < 1:
            raise ValueError(f"--num_images_per_prompt must be at least 1, got {self.num_images_per_prompt}")
        if self.best_of is not None and self.best_of < self.num_images_per_prompt:
            raise ValueError(
                f"--best_of {self.best_of} is less than --num_images_per_prompt {self.num_images_per_prompt}: "
                "draw more, or keep fewer"
            )


def main(options: GenerateOptions) -> Path:
    """Draw, write, and return where the pictures are."""
    import transformers

    from lm.generation.progress import DrawingInterrupted
    from pipelines.machine.devices import choose_device
    from pipelines.text_to_image import TextToImagePipeline

    transformers.logging.disable_progress_bar()  # loading takes no time to speak of
    output = _prepare(options.output)
    seed = random.randrange(2**32) if options.seed is None else options.seed
    pipe = TextToImagePipeline.from_pretrained(options.model, dtype=options.dtype, device=choose_device(options.device))
    gc.enable()
    try:
        images = pipe(
            options.prompts or None,
            negative_prompt=options.negative_prompt,
            num_images_per_prompt=options.num_images_per_prompt,
            guidance_scale=options.guidance_scale,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            height=options.height,
            width=options.width,
            seed=seed,
            best_of=options.best_of,
        ).images
    except DrawingInterrupted as interrupt:
        _keep_finished(options, interrupt, output, seed)
        raise
    _write(output, _labelled(options, list(enumerate(images)), options.num_images_per_prompt))
    print(f"{output} ({len(images)} pictures, seed {seed})")
    return output


def _keep_finished(options: GenerateOptions, interrupt: DrawingInterrupted, output: Path, seed: int) -> None:
    """Write those pictures that were whole when Ctrl-C came."""
    whole = (interrupt.codes >= 0).all(1).tolist()
    finished = [(number, image) for number, image in enumerate(interrupt.output.images) if whole[number]]
    if finished:
        _write(output, _labelled(options, finished, options.best_of or options.num_images_per_prompt))
    where = f", in {output}" if finished else ""
    print(f"interrupted: {len(finished)} of {len(whole)} pictures finished{where} (seed {seed})", file=sys.stderr)


def _labelled(
    options: GenerateOptions, images: list[tuple[int, Image.Image]], count: int
) -> list[tuple[str, list[Image.Image]]]:
    """Numbered pictures, `count` a prompt, each prompt's beside it."""
    rows: list[tuple[str, list[Image.Image]]] = [(text, []) for text in options.prompts or ["(no prompt)"]]
    for number, image in images:
        rows[number // count][1].append(image)
    return [row for row in rows if row[1]]


def _prepare(output: str) -> Path:
    """Make the folder that the pictures go to, before any time is spent on them."""
    path = Path(output)
    is_sheet = path.suffix.lower() in SUFFIXES and not path.is_dir()
    if not is_sheet and path.suffix and not path.is_dir():
        raise ValueError(f"--output {output}: unknown kind of picture {path.suffix!r}; use one of {' '.join(SUFFIXES)}")
    (path.parent if is_sheet else path).mkdir(parents=True, exist_ok=True)
    return path


def _write(output: Path, rows: list[tuple[str, list[Image.Image]]]) -> None:
    if not output.is_dir():
        from pipelines.drawing.grids import labelled_grid

        labelled_grid(rows).save(output)
        return
    for number, (text, images) in enumerate(rows):
        # The number keeps prompts apart whose letters are the same, or not Latin.
        words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60]
        for picture, image in enumerate(images):
            image.save(output / f"{number:03d}-{words}-{picture}.png".replace("--", "-"))


if __name__ == "__main__":
    gc.disable()  # until the model is loaded: looking for garbage among libraries being imported takes half a second
    try:
        main(parse_options(GenerateOptions, description=__doc__, positional=PROMPTS))
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
