"""Text of any script on pictures: with Pillow's own font, else with a font of the system that has the characters."""

from __future__ import annotations

import functools
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from PIL import Image, ImageDraw, ImageFont, features
from PIL.ImageFont import FreeTypeFont
from tqdm import tqdm

BITMAP_SIZE = 109  # the one size, in pixels, of fonts of colour bitmaps such as Noto Color Emoji
NO_CHARACTER = "\uffff"  # drawn as any character that a font lacks
ADVICE = (
    "captions have characters that no font of this system draws, such as {}, and show their numbers: install fonts for "
    "them (Debian: fonts-noto-cjk, fonts-noto-core, fonts-noto-color-emoji) and fontconfig"
)


@dataclass(frozen=True)
class FontFile:
    """A font on disk: its file, its number in the file, and whether it has colours, as those of emoji do."""

    file: str
    index: int
    color: bool


class CaptionPen:
    """Measures and draws one caption, and parts of it.

    One font of the system draws the whole caption if there is one that has all of its characters, since text from right
    to left is put in order within one font; otherwise each character gets a font of its own.

    Args:
        caption: any text.
        size: of the font, in pixels.

    Attributes:
        text: the caption with characters that cannot be drawn replaced by their numbers, as in "\\u72d7". One line per
            process, on stderr, says which fonts to install.
    """

    def __init__(self, caption: str, size: int) -> None:
        caption = unicodedata.normalize("NFC", caption)
        self.size = size
        self._default = _default_font(size)
        self._files: dict[str, FontFile] = {}
        lacking = sorted({letter for letter in caption if not self._has(letter)})
        drawable = [letter for letter in lacking if _can_order(letter)]
        if drawable:
            visible = {letter for letter in caption if not letter.isspace() and not _is_mark(letter)}
            needed = "".join(sorted(filter(_can_order, visible)))
            whole = font_file(needed, color=False)
            files = {
                letter: whole or font_file(letter) for letter in (filter(_can_order, caption) if whole else drawable)
            }
            self._files = {letter: file for letter, file in files.items() if file is not None}
        missing = [letter for letter in lacking if letter not in self._files]
        if missing:
            advise(", ".join(map(_number, missing[:3])))
        self.text = self._readable(caption, missing)

    def length(self, text: str) -> float:
        """Width in pixels of a part of `text`."""
        return sum(self._width(part, file) for part, file in self._runs(text))

    def draw(self, sheet: Image.Image, position: tuple[int, int], text: str, color: tuple[int, int, int]) -> None:
        """Draw a part of `text` on an RGB sheet; `position`: left and top, in pixels."""
        left, top = float(position[0]), position[1]
        draw, baseline = ImageDraw.Draw(sheet), self._default.getmetrics()[0]
        for part, file in self._runs(text):
            font = self._font(file)
            if _scale(font, self.size) == 1:
                draw.text((left, top + baseline), part, fill=color, font=font, anchor="ls")
            else:
                self._paste_bitmaps(sheet, (round(left), top), part, font)
            left += self._width(part, file)

    def _readable(self, caption: str, missing: list[str]) -> str:
        """The caption with numbers for what is missing, without the marks of characters that no system font draws."""
        letters: list[str] = []
        base = ""
        for letter in caption:
            if _is_mark(letter) and base not in self._files:
                continue
            base = base if _is_mark(letter) else letter
            letters.append(_number(letter) if letter in missing else letter)
        return "".join(letters)

    def _has(self, letter: str) -> bool:
        return (
            letter.isascii()
            or _is_mark(letter)
            or _pixels(self._default, letter) != _pixels(self._default, NO_CHARACTER)
        )

    def _runs(self, text: str) -> Iterator[tuple[str, FontFile | None]]:
        """Parts of one font each; None: Pillow's own. Marks and joiners stay with the character before them."""
        files: list[FontFile | None] = []
        for letter in text:
            files.append(files[-1] if files and _is_mark(letter) else self._files.get(letter))
        for file, pairs in groupby(zip(text, files, strict=True), key=lambda pair: pair[1]):
            yield "".join(letter for letter, _ in pairs), file

    def _font(self, file: FontFile | None) -> FreeTypeFont:
        return self._default if file is None else _load(file, self.size)

    def _width(self, part: str, file: FontFile | None) -> float:
        font = self._font(file)
        return font.getlength(part) * _scale(font, self.size)

    def _paste_bitmaps(self, sheet: Image.Image, position: tuple[int, int], part: str, font: FreeTypeFont) -> None:
        """Draw with a font of colour bitmaps, at its own size, and reduce."""
        box = (max(1, round(font.getlength(part))), round(BITMAP_SIZE * 1.2))
        layer = Image.new("RGBA", box)
        ImageDraw.Draw(layer).text((0, 0), part, font=font, embedded_color=True)
        scale = _scale(font, self.size)
        layer = layer.resize((max(1, round(box[0] * scale)), round(box[1] * scale)), Image.Resampling.LANCZOS)
        sheet.paste(layer, position, layer)


@functools.cache
def font_file(letters: str, color: bool | None = None) -> FontFile | None:
    """A font of the system that has all of `letters`, by fontconfig's order of preference; None without one.

    color: False leaves fonts of emoji out.
    """
    pattern = f":charset={' '.join(f'{ord(letter):x}' for letter in letters)}"
    having = _font_query("fc-list", pattern)
    if color is False:
        having = [font for font in having if not font.color]
    preferred = _font_query("fc-match", pattern)  # the nearest, which may lack some
    return next((font for font in (*preferred, *sorted(having, key=lambda font: font.file)) if font in having), None)


def _font_query(command: str, pattern: str) -> list[FontFile]:
    """Fonts that a command of fontconfig lists; none where it is not installed."""
    try:
        done = subprocess.run(
            [command, "--format", "%{file}|%{index}|%{color}\n", pattern], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    fields = [line.split("|") for line in done.stdout.splitlines()]
    return [FontFile(file, int(index) & 0xFFFF, color == "True") for file, index, color in fields]


@functools.cache
def _load(file: FontFile, size: int) -> FreeTypeFont:
    try:
        return ImageFont.truetype(file.file, size, index=file.index)
    except OSError:  # a font of bitmaps has one size
        return ImageFont.truetype(file.file, BITMAP_SIZE, index=file.index)


@functools.cache
def _default_font(size: int) -> FreeTypeFont:
    """Pillow's own font, which has the characters of ASCII."""
    font = ImageFont.load_default(size=size)
    assert isinstance(font, FreeTypeFont)  # Pillow's packages have FreeType
    return font


def _scale(font: FreeTypeFont, size: int) -> float:
    return size / BITMAP_SIZE if font.size == BITMAP_SIZE else 1


def _pixels(font: FreeTypeFont, letter: str) -> bytes:
    return bytes(font.getmask(letter))


def _is_mark(letter: str) -> bool:
    """Whether it is drawn with the character before it, or not at all."""
    return unicodedata.category(letter) in ("Mn", "Me", "Cf")


def _can_order(letter: str) -> bool:
    """False for text from right to left where Pillow cannot put it in order."""
    return unicodedata.bidirectional(letter) not in ("R", "AL") or bool(features.check("raqm"))


def _number(letter: str) -> str:
    return letter.encode("ascii", errors="backslashreplace").decode("ascii")


_advised = False


def advise(examples: str) -> None:
    """Print, once per process, which fonts to install."""
    global _advised
    if not _advised:
        tqdm.write(f"WARNING: {ADVICE.format(examples)}", file=sys.stderr)
    _advised = True
