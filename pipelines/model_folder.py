"""Finding a model folder, here, among those that come with Tessera, or on the Hub, and its `model_index.json`: what the
folder holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1
INDEX_FILE = "model_index.json"
CARD_FILE = "README.md"
OWN_MODEL = "runs/model"  # where scripts/train_lm.py leaves one by default
SHIPPED = Path(__file__).parent / "pretrained"
DEFAULT_SHIPPED = "sprites"


def shipped_models() -> dict[str, Path]:
    """Name -> folder of the models that come with Tessera."""
    return {index.parent.name: index.parent for index in sorted(SHIPPED.glob(f"*/{INDEX_FILE}"))}


def default_model() -> str:
    """The model of commands that name none: one's own, where there is a folder `OWN_MODEL`, else the shipped one."""
    return OWN_MODEL if Path(OWN_MODEL).is_dir() else DEFAULT_SHIPPED


def shipped_folder(name: str | Path) -> Path | None:
    """The folder of the model that comes with Tessera under this name; None where there is none, or where a file or
    folder here has the name, which is then meant. A path (`Path("sprites")`, "./sprites") never names one."""
    known = shipped_models() if isinstance(name, str) and not Path(name).exists() else {}
    return known.get(str(name))


def named_folder(name: str | Path) -> Path:
    """The folder of this name, which need not exist, or that of the model which comes with Tessera under it. The Hub is
    not asked: training starts from folders of this machine."""
    return shipped_folder(name) or Path(name)


def model_origin(folder: str | Path) -> str:
    """Which model a name or folder stands for, in words."""
    shipped = shipped_folder(folder)
    if shipped is not None:
        return f"{folder}, which comes with Tessera ({shipped})"
    if str(folder) in shipped_models():
        return f"{folder} (a folder here)"
    return f"{folder} (from the Hub)" if _may_be_on_hub(folder) else str(folder)


def local_folder(folder: str | Path, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The folder itself, that of a model which comes with Tessera ("sprites"), or the local copy of a model on the Hub,
    of which `folder` is the name ("owner/name"). A folder here comes before a model that comes with Tessera.

    Raises:
        ValueError: it is none of them.
    """
    path = Path(folder).expanduser()
    if path.is_dir():
        return path
    shipped = shipped_folder(folder)
    if shipped is not None:
        return shipped
    if not _may_be_on_hub(folder):
        raise ValueError(
            f"there is no folder {folder}: give a folder that scripts/train_lm.py has written, or the name of a model "
            f"that comes with Tessera ({', '.join(shipped_models())})"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    patterns = [INDEX_FILE, CARD_FILE, "image_tokenizer/*", "lm/*"]
    try:
        return Path(snapshot_download(str(folder), revision=revision, token=token, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{folder} is neither a folder (scripts/train_lm.py writes one) nor a model on the Hub: {reason}"
        ) from error


def _may_be_on_hub(folder: str | Path) -> bool:
    """Whether it looks like "owner/name" and like nothing that is, or should be, on this machine."""
    parts = str(folder).split("/")
    looks_local = isinstance(folder, Path) or len(parts) != 2 or parts[0] in ("", ".", "..", "~")
    return not (looks_local or Path(folder).expanduser().exists() or Path(parts[0]).exists())


def write_index(folder: Path, class_name: str, fingerprint: str) -> None:
    """Write model_index.json; `fingerprint` is the image tokenizer's."""
    index = {
        "_class_name": class_name,
        "format_version": FORMAT_VERSION,
        "image_tokenizer_fingerprint": fingerprint,
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def read_index(folder: Path, *class_names: str, parts: Sequence[str] = ()) -> dict[str, Any]:
    """Read model_index.json, which should name one of these classes, and check that every sub-folder in `parts` exists.

    Raises:
        ValueError: no index or a damaged one, another class, a newer format, a part that is missing.
    """
    file = folder / INDEX_FILE
    if not file.is_file():
        hidden = shipped_models().get(str(folder))
        raise ValueError(
            f"{folder} is not a model folder: it has no {INDEX_FILE}. Give the folder that "
            "scripts/train_lm.py wrote (its --output_dir)"
            + (f", or {hidden} for the model of this name that comes with Tessera" if hidden else "")
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
    if kind not in class_names:
        raise ValueError(
            f"{folder} holds a {kind}, not a {' or a '.join(class_names)}: load it by pipelines.{kind}.from_pretrained "
            "or draw with it by scripts/generate.py"
        )
    for part in parts:
        if not (folder / part / "config.json").is_file():
            raise ValueError(f"{folder} is incomplete, it has no {part}/config.json: copy or save the model again")
    return index
