"""Lone surrogates in texts, which neither UTF-8 nor tokenizers can encode."""

from __future__ import annotations


def replace_surrogates(text: str) -> str:
    """`text` with U+FFFD for each lone surrogate, as a broken JSON escape or a cut emoji leaves one."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", errors="surrogatepass").decode("utf-16-le", errors="replace")
