"""Random streams: the numbers that a seed gives are written down here, and stay."""

from __future__ import annotations

import torch
from tiny import streams

from pipelines.drawing.streams import keyed_stream, picture_streams, scene_streams, text_streams

FIVE = [6120350313719835435, 1568863707585310172, 8750623105435456515]  # streams 0, 1, 2 of seed 5
AFTER_MANUAL_SEED_3 = [937055941807507096, 3839649608876091011, 754559337054036936, 199733986212078357]


def states(generators: list[torch.Generator]) -> list[int]:
    return [generator.initial_seed() for generator in generators]


def test_keys():
    keys = [(0, 0), (7, 3), (7, "places"), (2**40, 1)]
    assert states([keyed_stream(*key) for key in keys]) == [
        3056769172604291498, 6871276889697263410, 6645907532926546639, 4989953667463413666,
    ]  # fmt: skip
    numbers = [int(torch.randint(2**31, (1,), generator=stream)) for stream in text_streams(5, 1, 2)]
    assert numbers == [2037125665, 2048769420]


def test_texts():
    assert states(text_streams(5, 2, 3)) == FIVE * 2
    assert states(text_streams([5, 6], 2, 2)) == [*FIVE[:2], 6757940178591162566, 6037745715243933262]
    torch.manual_seed(3)
    assert states(text_streams(None, 2, 2)) == AFTER_MANUAL_SEED_3


def test_pictures():
    assert states(picture_streams(2, 3, 5, None)) == FIVE * 2
    assert states(picture_streams(2, 1, [5, 9], None)) == [FIVE[0], 9161606468630006291]
    torch.manual_seed(3)
    assert states(picture_streams(2, 2, None, None)) == AFTER_MANUAL_SEED_3
    assert states(picture_streams(2, 1, None, streams(4)[0])) == [4003493888400498862, 871281288361132741]


def test_scenes():
    assert states(scene_streams([(0, 1), (0, 1, 2), (7, 2000)])) == [
        2918264622725855778, 1535930435702422785, 2936204966377953223,
    ]  # fmt: skip
