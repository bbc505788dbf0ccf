"""Finding a model folder, here or on the Hub, and its `model_index.json`: what the folder holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1
INDEX_FILE = "model_index.json"


def local_folder(folder: str | Path, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The folder itself, or the local copy of a model on the Hub, of which `folder` is the name ("owner/name").

    Raises:
        ValueError: it is neither.
    """
    path = Path(folder).expanduser()
    if path.is_dir():
        return path
    parts = str(folder).split("/")
    looks_local = isinstance(folder, Path) or len(parts) != 2 or parts[0] in ("", ".", "..", "~")
    if path.exists() or looks_local or Path(parts[0]).exists():
        raise ValueError(f"there is no folder {folder}: give a folder that scripts/train_lm.py has written")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    patterns = [INDEX_FILE, "image_tokenizer/*", "lm/*"]
    try:
        return Path(snapshot_download(str(folder), revision=revision, token=token, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{folder} is neither a folder (scripts/train_lm.py writes one) nor a model on the Hub: {reason}"
        ) from error


def write_index(folder: Path, class_name: str, fingerprint: str) -> None:
    """Write model_index.json; `fingerprint` is the image tokenizer's."""
    index = {
        "_class_name": class_name,
        "format_version": FORMAT_VERSION,
        "image_tokenizer_fingerprint": fingerprint,
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def read_index(folder: Path, class_name: str, *, parts: Sequence[str]) -> dict[str, Any]:
    """Read model_index.json and check that every sub-folder in `parts` exists.

    Raises:
        ValueError: no index or a damaged one, another class, a newer format, a part that is missing.
    """
    file = folder / INDEX_FILE
    if not file.is_file():
        raise ValueError(
            f"{folder} is not a model folder: it has no {INDEX_FILE}. Give the folder that "
            "scripts/train_lm.py wrote (its --output_dir)"
        )
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        version, kind = int(index["format_version"]), index["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}): save the model again") from error
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{file} has format_version {version}, this version reads up to {FORMAT_VERSION}: upgrade tessera"
        )
    if kind != class_name:
        raise ValueError(f"{folder} holds a {kind}, not a {class_name}: load it by pipelines.{kind}.from_pretrained")
    for part in parts:
        if not (folder / part / "config.json").is_file():
            raise ValueError(f"{folder} is incomplete, it has no {part}/config.json: copy or save the model again")
    return index
