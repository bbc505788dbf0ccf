"""Captions of any script on grids: the system's fonts where it has them, else numbers and one line of advice."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont, features

from pipelines.drawing import fonts
from pipelines.drawing.fonts import CaptionPen
from pipelines.drawing.grids import labelled_grid

DEJAVU = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"  # Arabic, Greek, Cyrillic; no Chinese
ARABIC, CHINESE = "كلب أحمر", "红色的狗"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(fonts, "_advised", False)
    fonts.font_file.cache_clear()
    yield
    fonts.font_file.cache_clear()


@pytest.fixture
def no_fonts(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def dejavu(tmp_path, monkeypatch):
    """A fontconfig that has one font, and knows only whether a pattern asks for Chinese."""
    for name in ("fc-list", "fc-match"):
        chinese = "" if name == "fc-match" else "case $3 in *7ea2*) exit;; esac\n"
        (tmp_path / name).write_text(f'#!/bin/sh\n{chinese}echo "{DEJAVU}|0|False"\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


def drawn(caption: str) -> np.ndarray:
    sheet = Image.new("RGB", (300, 40), "white")
    pen = CaptionPen(caption, 16)
    pen.draw(sheet, (5, 5), pen.text, (0, 0, 0))
    return np.asarray(sheet)


def test_without_fonts_numbers_stand_and_one_line_says_so(no_fonts, capsys):
    picture = Image.new("RGB", (300, 40), "red")
    labelled_grid([(CHINESE, [picture]), (f"{ARABIC} 🐶", [picture]), ("a dog", [picture])])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "\\u7684" in lines[0] and "fonts-noto-cjk" in lines[0]
    assert CaptionPen("a 狗", 16).text == "a \\u72d7"
    assert CaptionPen("👩\u200d🚀 e\u0301", 16).text == "\\U0001f469\\U0001f680 \\xe9"


def test_plain_captions_ask_for_no_font(no_fonts, capsys, monkeypatch):
    monkeypatch.setattr(fonts, "_font_query", None)
    assert CaptionPen("a dog", 16).text == "a dog" and not capsys.readouterr().err


@pytest.mark.parametrize("caption", ["Привет", "café", ARABIC if features.check("raqm") else "ελληνικά"])
def test_a_font_of_the_system_draws_the_whole_caption(dejavu, capsys, caption):
    """As Pillow draws it with that font: Arabic is joined, from right to left."""
    sheet = Image.new("RGB", (300, 40), "white")
    baseline = 5 + ImageFont.load_default(size=16).getmetrics()[0]
    ImageDraw.Draw(sheet).text((5, baseline), caption, "black", ImageFont.truetype(str(DEJAVU), 16), anchor="ls")
    assert np.array_equal(drawn(caption), np.asarray(sheet))
    assert not capsys.readouterr().err


def test_right_to_left_needs_raqm(dejavu, monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: False)
    assert CaptionPen("كلب a", 16).text == "\\u0643\\u0644\\u0628 a"


def test_what_one_font_lacks_is_left_to_others(dejavu, capsys):
    pen = CaptionPen("Привет 红 dog", 16)
    assert pen.text == "Привет \\u7ea2 dog"
    assert "\\u7ea2" in capsys.readouterr().err
    assert pen.length("Привет dog") == pytest.approx(pen.length("Привет") + pen.length(" dog"))


def test_a_font_that_this_system_has():
    """Draws pictures of text, not boxes: two words differ."""
    if fonts.font_file("狗") is None:
        pytest.skip("no font with Chinese characters")
    assert CaptionPen(CHINESE, 16).text == CHINESE
    assert not np.array_equal(drawn("红"), drawn("狗"))
