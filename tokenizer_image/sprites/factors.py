"""Pictures of the built-in world with its factors as integers, drawn independently of each other."""

from __future__ import annotations

import numpy as np

from tokenizer_image.sprites.drawing import BACKGROUNDS, COLOURS
from tokenizer_image.sprites.scenes import IMAGE_SIZE, POSITIONS, SIZES, draw_scene, sample_scene
from tokenizer_image.sprites.things import THINGS

SEED = 71_003  # far from the data sets' small seeds: they share no scene with these pictures
# The values of each factor, in the order of their integers.
FACTORS: dict[str, tuple[str, ...]] = {
    "thing": tuple(THINGS),
    "colour": tuple(COLOURS),
    "size": SIZES,
    "position": POSITIONS,
    "background": tuple(BACKGROUNDS),
}


def draw_factors(count: int, seed: int = 0, image_size: int = IMAGE_SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Scenes of one object, of all things and colours, held-out pairs included.

    Returns:
        Pictures uint8 (count, 3, image_size, image_size), and their factors int64 (count, 5): places in `FACTORS`.

    Raises:
        ValueError: `count` is below 1, or pictures that are too small to draw in.
    """
    if count < 1:
        raise ValueError(f"count={count}: draw at least one picture")
    pictures = np.empty((count, 3, image_size, image_size), np.uint8)
    factors = np.empty((count, len(FACTORS)), np.int64)
    for row in range(count):
        scene = sample_scene(row, seed=SEED + seed, pairs="all", num_objects=1)
        pictures[row] = np.asarray(draw_scene(scene, image_size)).transpose(2, 0, 1)
        attributes = scene.attributes
        factors[row] = [values.index(attributes[name]) for name, values in FACTORS.items()]
    return pictures, factors
