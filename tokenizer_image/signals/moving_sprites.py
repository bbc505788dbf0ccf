"""The built-in world of videos: a thing of the sprites moves before a background, with captions, drawn on the fly."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from PIL import ImageDraw

from tokenizer_image.signals.drawn_signals import DrawnSignals
from tokenizer_image.signals.examples import SignalExample
from tokenizer_image.sprites.captions import BACKGROUND_PHRASES
from tokenizer_image.sprites.drawing import BACKGROUNDS, COLOURS, SUPERSAMPLING, backdrop, draw_thing
from tokenizer_image.sprites.scenes import HELD_OUT_PAIRS, IMAGE_SIZE, LEAST_IMAGE_SIZE, world_hash
from tokenizer_image.sprites.things import THINGS

VERSION = 1  # of the drawing and the wording
FRAME_RATE = 8  # frames a second
DIAMETERS = (16.0, 18.0)  # pixels of a 32 x 32 picture, as all lengths here
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS = {"slowly": (5.0, 7.0), "quickly": (10.0, 13.0)}  # way from the first frame to the last
ACROSS, ALONG = 5.0, 0.5  # how far the way's middle may lie from the picture's: across the way and along it
DIRECTION_WORDS = {
    "right": ("to the right", "right"), "left": ("to the left", "left"), "up": ("up", "upwards"),
    "down": ("down", "downwards"),
}  # fmt: skip


@dataclass(frozen=True)
class Move:
    """What a video shows: one of the sprites' things, colours and backgrounds, a direction and a speed."""

    thing: str
    colour: str
    direction: str
    speed: str
    background: str

    @property
    def is_held_out(self) -> bool:
        """Whether training never shows it: pairs of thing and colour that the sprites hold out, and an eighth of the
        pairs of thing and direction."""
        return (self.thing, self.colour) in HELD_OUT_PAIRS or (self.thing, self.direction) in HELD_OUT_MOVES


HELD_OUT_MOVES = frozenset(  # (thing, direction)
    (thing, direction)
    for number, thing in enumerate(THINGS)
    for other, direction in enumerate(DIRECTIONS)
    if (number + 2 * other) % 8 == 3
)


class MovingSprites(DrawnSignals):
    """Videos, uint8 (length, image_size, image_size, 3), 8 frames a second (see `DrawnSignals`).

    Args:
        length: frames, at least 2.

    Raises:
        ValueError: as `DrawnSignals`; frames too small to draw in.
    """

    name = "moving-sprites"
    version = VERSION
    captions_per_video = 3

    def __init__(
        self,
        split: str = "train",
        num_examples: int = 20_000,
        seed: int = 0,
        length: int = 8,
        image_size: int = IMAGE_SIZE,
    ) -> None:
        super().__init__(split, num_examples, seed, (length, image_size, world_hash()))
        if image_size < LEAST_IMAGE_SIZE:
            raise ValueError(f"image_size={image_size} is too small to draw in; use at least {LEAST_IMAGE_SIZE}")
        self.length, self.image_size = length, image_size

    def move(self, row: int) -> Move:
        """What an example shows."""
        rng, held_out = self.random(row, 0), self.split == "held_out"
        choices = (THINGS, tuple(COLOURS), tuple(DIRECTIONS), tuple(SPEEDS), BACKGROUNDS)
        while True:
            move = Move(*(values[rng.integers(len(values))] for values in choices))
            if move.is_held_out == held_out:
                return move

    def __getitem__(self, row: int) -> SignalExample:
        values = _draw(self.move(row), self.length, self.image_size, self.random(row, 1))
        return SignalExample("video", values, None, FRAME_RATE, tuple(self.texts(row)), f"video {row}")

    def texts(self, row: int) -> list[str]:
        move, rng = self.move(row), self.random(row, 2)
        return [_describe(move, rng, full=number == 0) for number in range(self.captions_per_video)]

    def attributes(self, row: int) -> dict[str, str]:
        return asdict(self.move(row))


def _draw(move: Move, length: int, image_size: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (length, image_size, image_size, 3)."""
    scale = image_size * SUPERSAMPLING / IMAGE_SIZE
    direction = np.asarray(DIRECTIONS[move.direction], float)
    middle = IMAGE_SIZE / 2 + rng.uniform(-ALONG, ALONG) * direction + rng.uniform(-ACROSS, ACROSS) * direction[::-1]
    way = np.linspace(-0.5, 0.5, length)[:, None] * rng.uniform(*SPEEDS[move.speed]) * direction
    diameter = rng.uniform(*DIAMETERS) * scale
    frames = np.empty((length, image_size, image_size, 3), np.uint8)
    for frame, (x, y) in zip(frames, ((middle + way) * scale).tolist(), strict=True):
        canvas = backdrop(move.background, image_size * SUPERSAMPLING)
        pen, night = ImageDraw.Draw(canvas), move.background == "night"
        draw_thing(pen, move.thing, move.colour, centre=(x, y), diameter=diameter, night=night)
        frame[:] = np.asarray(canvas.reduce(SUPERSAMPLING))
    return frames


def _describe(move: Move, rng: np.random.Generator, *, full: bool) -> str:
    """A true caption in lower case; one that is `full` states all but the speed and the background, which any may."""
    colour, speed, place = (rng.random() < share for share in (1.0 if full else 0.8, 0.4, 0.4))
    noun = f"{move.colour} {move.thing}" if colour else move.thing
    words = [f"an {noun}" if noun[0] in "aeiou" else f"a {noun}", "moves"]
    words += [move.speed] if speed else []
    if full or rng.random() < 0.85:
        words.append(DIRECTION_WORDS[move.direction][0 if full else int(rng.integers(2))])
    if place:
        words.append(BACKGROUND_PHRASES[move.background][int(rng.integers(2))])
    return " ".join(words)
