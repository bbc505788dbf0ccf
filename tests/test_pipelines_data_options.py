"""What is said about pictures on the command line."""

from __future__ import annotations

import pytest

from pipelines.options.data import CacheOptions, parse_image_sizes


def test_sizes_are_heights_and_widths():
    assert parse_image_sizes(["32x32", "24x40", "40X24"]) == [(32, 32), (24, 40), (40, 24)]
    assert CacheOptions().picture_sizes() == [] and CacheOptions().image_sizes == []


@pytest.mark.parametrize("text", ["32", "32x", "x32", "0x32", "32x0", "32x32x3", "-8x8", "8.5x8", ""])
def test_sizes_that_are_none(text):
    with pytest.raises(ValueError, match=r"--image_sizes '.*': give HEIGHTxWIDTH in pixels, e.g. 24x40"):
        CacheOptions(image_sizes=["8x8", text]).check()


def test_of_two_sizes_of_one_shape_the_second_would_never_be_chosen():
    with pytest.raises(ValueError, match="24x40 and 48x80 have the same shape.*leave one out"):
        parse_image_sizes(["32x32", "24x40", "48x80"])
