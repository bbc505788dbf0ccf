"""Write a trained model into another folder, smaller and with a model card: as it is shared.

    python scripts/export_model.py --model runs/model --output_dir runs/shared
    python scripts/evaluate.py --model runs/shared --output report.json
    python scripts/export_model.py --model runs/model --output_dir runs/shared --report report.json --overwrite

The folder has what drawing and describing need, and nothing of the run. The last command writes the same weights, and
the figures that were measured with them into the card.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.machine.destinations import check_folder
from pipelines.model_folder import CARD_FILE, INDEX_FILE
from pipelines.options.inference import ModelOptions
from pipelines.options.option import check_values, option
from pipelines.options.parser import run_command

RUN_FILE = "run.json"


@dataclass
class ExportOptions(ModelOptions):
    """Options of `scripts/export_model.py`."""

    output_dir: str = option("runs/exported", "folder of the new model")
    dtype: Literal["float32", "bfloat16", "float16"] = option("bfloat16", "of the weights in the files")
    license: str = option("unknown", "of the weights, as the Hub spells it: apache-2.0, cc-by-4.0, ...")
    report: str | None = option(None, "what scripts/evaluate.py measured of the new model, for its card")
    overwrite: bool = option(False, "write over the model in --output_dir")

    def __post_init__(self) -> None:
        check_values(self)
        check_folder(self.output_dir, "--output_dir")
        folder = Path(self.output_dir)
        if folder.is_dir() and any(folder.iterdir()):
            if not (folder / INDEX_FILE).is_file():
                raise ValueError(f"--output_dir {folder} has files, and none of a model: name another folder")
            if not self.overwrite:
                raise ValueError(
                    f"--output_dir {folder} holds a model: name another folder, or write over it by --overwrite"
                )
        if folder.resolve() == Path(self.chosen_model).resolve():
            raise ValueError(f"--output_dir {folder} is the folder of --model: name another one")


def main(options: ExportOptions) -> Path:
    """Convert, write the folder and its card, and return where it is."""
    from pipelines.example_prompts import example_prompts
    from pipelines.model_card import model_card
    from pipelines.text_to_signal import drawing_class
    from tokenizer_image.signals.settings import signal_settings_of

    pipe = options.load(drawing_class(options.chosen_model)).rounded(options.dtype)
    figures = None if options.report is None else read_figures(Path(options.report), pipe.image_tokenizer.fingerprint)
    folder = Path(options.output_dir)
    pipe.save_pretrained(folder)
    card = model_card(
        pipe.model,
        pipe.vocabulary,
        folder.name,
        license=options.license,
        figures=figures,
        training=training_of(Path(options.chosen_model)),
        prompts=example_prompts(pipe.folder),
        signals=signal_settings_of(pipe.image_tokenizer),
    )
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder} ({options.dtype}, {size / 1e6:.1f} MB)")
    return folder


def read_figures(file: Path, fingerprint: str) -> str:
    """The table of a report.

    Raises:
        ValueError: it is no report, or one of a model with another image tokenizer than that of this `fingerprint`.
    """
    from pipelines.evaluation.report.signal_page import signals_table
    from pipelines.evaluation.report.tables import figures_table

    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        table = (signals_table if "signal" in report else figures_table)(report)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--report {file} is no report of scripts/evaluate.py ({error!r}): give its --output"
        ) from error
    if report["image_tokenizer_fingerprint"] != fingerprint:
        raise ValueError(
            f"--report {file} was measured with the image tokenizer {report['image_tokenizer_fingerprint']}, and the "
            f"new model's is {fingerprint}: measure the exported folder (scripts/evaluate.py --model)"
        )
    return (
        f"{table}\n\nscripts/evaluate.py, data set {report['dataset']}, split {report['split']}, seed {report['seed']}"
    )


def training_of(model: Path) -> list[str]:
    """The commands that trained the image tokenizer and the model, and how long they took, where their runs are there
    to say so."""
    run = _read_run(model)
    tokenizer = run.get("options", {}).get("image_tokenizer")
    runs = [_read_run(Path(tokenizer)) if tokenizer else {}, run]
    return [f"python {one['command']}  # {one['minutes']:.1f} minutes, {one['steps']:,} steps" for one in runs if one]


def _read_run(folder: Path) -> dict[str, Any]:
    """run.json of a finished run; {} where there is none."""
    file = folder / RUN_FILE
    run = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return run if run.get("finished") else {}


if __name__ == "__main__":
    run_command(main, ExportOptions, __doc__)
