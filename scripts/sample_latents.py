"""Draw from the latents of an autoencoder that train_tokenizer.py --bottleneck has left.

    python scripts/sample_latents.py --autoencoder runs/vae --output samples.png
    python scripts/sample_latents.py --autoencoder runs/vae --draw interpolation --dataset sprites --rows 0 1
    python scripts/sample_latents.py --autoencoder runs/vae --draw traversal --dataset sprites --latents 3 5

writes one labelled sheet.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.options.latents import LatentOptions
from pipelines.options.parser import run_command

if TYPE_CHECKING:
    import torch

    from pipelines.drawing.latents import Rows
    from tokenizer_image import Autoencoder

PAIRS = 2  # of an interpolation
WIDEST = 8  # latents of a traversal
COMPARED = 256  # pictures that say which latents vary most


def main(options: LatentOptions) -> Path:
    """Draw, write, and return where the sheet is."""
    import transformers

    from pipelines.drawing.grids import labelled_grid
    from pipelines.drawing.latents import sample_rows
    from pipelines.machine.devices import choose_device
    from tokenizer_image.registry import load_autoencoder

    transformers.logging.disable_progress_bar()
    model = load_autoencoder(options.autoencoder).to(choose_device(options.device))
    if options.draw == "samples":
        rows = sample_rows(
            model, options.count, seed=options.seed, temperature=options.temperature, class_names=options.classes
        )
    else:
        rows = rows_of_pictures(options, model)
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    labelled_grid(rows).save(output)
    print(f"{output} ({sum(len(pictures) for _, pictures in rows)} pictures)")
    return output


def rows_of_pictures(options: LatentOptions, model: Autoencoder) -> Rows:
    """Walks between, or a traversal from, pictures of the data set."""
    from pipelines.drawing.latents import interpolation_rows, traversal_rows, widest_latents

    count = 2 * PAIRS if options.draw == "interpolation" else 1
    pixels, classes = chosen_pictures(options, model, options.rows or list(range(count)))
    if options.draw == "interpolation":
        return interpolation_rows(model, pixels, options.steps, classes)
    latents = options.latents
    if not latents:
        level = min(options.level, model.config.num_levels - 1)
        latents = widest_latents(model, chosen_pictures(options, model, [])[0], level, WIDEST)
    return traversal_rows(
        model, pixels, latents, level=options.level, span=options.span, steps=options.steps, classes=classes
    )


def chosen_pictures(
    options: LatentOptions, model: Autoencoder, rows: list[int]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pictures of the split (n, C, H, W) in [-1, 1], and of a conditional model their classes, -1 where not known.

    Args:
        rows: which; [] for the first of them, at most `COMPARED`.

    Raises:
        ValueError: the split has fewer pictures, or one of them cannot be read.
    """
    import numpy as np
    import torch

    from pipelines.caching.sources import classes_of_rows, load_split
    from tokenizer_image.preprocessing import preprocess, preprocessing_of, to_pixel_values

    side, config = model.config.image_size, model.config
    source = load_split(options, options.split, options.max_examples, options.seed, image_size=side)
    rows = rows or list(range(min(COMPARED, len(source))))
    if max(rows) >= len(source):
        raise ValueError(
            f"--rows {max(rows)}: the split {options.split} has {len(source)} pictures, 0 to {len(source) - 1}"
        )
    settings = preprocessing_of(model)
    pixels = to_pixel_values(np.stack([preprocess(source.image(row), settings) for row in rows])).to(model.device)
    if not config.class_names:
        return pixels, None
    classes = classes_of_rows(source, rows, config.condition, config.class_names)
    return pixels, torch.from_numpy(classes).to(model.device)


if __name__ == "__main__":
    run_command(main, LatentOptions, __doc__)
