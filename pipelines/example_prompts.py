"""Prompts to try a model with: those that its card lists, else captions that it was trained beside."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import yaml

from lm.data.token_cache import TokenCache
from pipelines.model_folder import CARD_FILE

CACHES = ("token_cache/validation", "token_cache/train")
LONGEST = 80  # characters of a caption that still reads well on a button
ROWS_READ = 200


def example_prompts(folder: str | Path | None, count: int = 6) -> list[str]:
    """Up to `count` different prompts for the model in a folder; [] where it says none, or there is no folder.

    They are the texts of `widget` in the card's header, as the Hub reads them, else short captions of the token cache
    that training left in the folder. A card or a cache that cannot be read counts as none.
    """
    if folder is None:
        return []
    path = Path(folder).expanduser()
    texts = _of_card(path / CARD_FILE) or _of_caches(path)
    short = [text for text in (" ".join(text.split()) for text in texts) if text and len(text) <= LONGEST]
    return list(dict.fromkeys(short))[:count]


def _of_card(file: Path) -> list[str]:
    """`widget: [{text: ...}]` of the YAML between the first two lines of three hyphens."""
    if not file.is_file():
        return []
    parts = file.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return []
    try:
        header = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return []
    entries = header.get("widget") if isinstance(header, dict) else None
    if not isinstance(entries, list):
        return []
    return [entry["text"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("text"), str)]


def _of_caches(folder: Path) -> list[str]:
    for name in CACHES:
        if (folder / name).is_dir():
            try:
                return list(islice(TokenCache(folder / name).some_texts(ROWS_READ), ROWS_READ))
            except ValueError:  # damaged, or of another format: the model draws without it
                continue
    return []
