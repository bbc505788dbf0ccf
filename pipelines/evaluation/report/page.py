"""A report as a folder to look at: report.html, which contains its pictures and sounds; the same as report.md, with
these as PNG and WAV files beside it; and all figures in report.json."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.evaluation.report.figure_rows import COLUMNS, FigureRow

_ABOUT = (
    "command",
    "settings",
    "guidance_scale",
    "image_tokenizer_fingerprint",
    "autoencoder_fingerprint",
    "dataset",
    "dataset_fingerprint",
    "versions",
    "commit",
    "created",
)
_SUBJECTS = ("model", "image_tokenizer", "autoencoder")
_STYLE = """
body { font-family: sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
img { max-width: 100% } pre { overflow-x: auto; background: #f5f5f5; padding: 1rem }
table { border-collapse: collapse; font-size: 0.9rem } td, th { padding: 0.2rem 0.7rem; text-align: left }
figure { display: inline-block; margin: 0.5rem 1rem 0.5rem 0 } figcaption { max-width: 20rem; font-size: 0.9rem }
tr { border-bottom: 1px solid #ddd } td:nth-child(2), td:nth-child(3), td:nth-child(4) { text-align: right }
"""


@dataclass(frozen=True)
class Clip:
    """A sound of a report.

    Attributes:
        file: its name in the folder, ending in .wav.
        label: what is heard.
        content: of the file.
    """

    file: str
    label: str
    content: bytes


@dataclass(frozen=True)
class Sheet:
    """A picture of a report.

    Attributes:
        file: its name in the folder, ending in .png.
        title: of its section.
        text: what it shows, in a sentence or two.
        clips: to play below it.
    """

    file: str
    title: str
    text: str
    image: Image.Image
    clips: Sequence[Clip] = ()


def write_report(
    folder: str | Path, report: Mapping[str, Any], sheets: Sequence[Sheet], summary: str, rows: Sequence[FigureRow]
) -> Path:
    """Write report.html, the same as report.md with PNG and WAV files, and report.json into `folder`; the path of the
    page.

    Args:
        report: what evaluate.py writes as JSON.
        sheets: pictures, in the page's order.
        summary: the main figures as text.
        rows: all figures.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for sheet in sheets:
        sheet.image.save(folder / sheet.file)
        for clip in sheet.clips:
            (folder / clip.file).write_bytes(clip.content)
    title = f"Evaluation of {next(report[name] for name in _SUBJECTS if name in report)}"
    about = json.dumps({name: report[name] for name in _ABOUT if name in report}, indent=2)
    notes = [*report.get("notes", []), *report.get("compared", {}).get("warnings", [])]
    page = folder / "report.html"
    page.write_text(_html(title, sheets, summary, rows, notes, about), encoding="utf-8")
    (folder / "report.md").write_text(_markdown(title, sheets, summary, rows, notes, about), encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return page


def _html(
    title: str, sheets: Sequence[Sheet], summary: str, rows: Sequence[FigureRow], notes: Sequence[str], about: str
) -> str:
    """The page, which refers to no other file."""
    known = html.escape
    parts = [f"<h1>{known(title)}</h1><h2>Summary</h2><pre>{known(summary)}</pre>"]
    parts += [f"<p>{known(note)}</p>" for note in notes]
    for sheet in sheets:
        picture = f'<img alt="{known(sheet.title)}" src="{_data_url(sheet)}">'
        clips = "".join(
            f"<figure><figcaption>{known(clip.label)}</figcaption>"
            f'<audio controls src="{_data_url(clip)}"></audio></figure>'
            for clip in sheet.clips
        )
        parts.append(f"<h2>{known(sheet.title)}</h2><p>{known(sheet.text)}</p>{picture}{clips}")
    head = "".join(f"<th>{known(column)}</th>" for column in COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{known(cell)}</td>" for cell in row.cells) + "</tr>\n" for row in rows)
    parts.append(f"<h2>All figures</h2><table><tr>{head}</tr>\n{body}</table>")
    parts.append(f"<h2>Settings</h2><pre>{known(about)}</pre>")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{known(title)}</title><style>{_STYLE}</style>'
        f"{''.join(parts)}</html>\n"
    )


def _markdown(
    title: str, sheets: Sequence[Sheet], summary: str, rows: Sequence[FigureRow], notes: Sequence[str], about: str
) -> str:
    """The page as Markdown, whose pictures are the files beside it."""
    lines = [f"# {title}", "## Summary", f"```\n{summary}\n```", *notes]
    for sheet in sheets:
        lines += [f"## {sheet.title}", sheet.text, f"![{sheet.title}]({sheet.file})"]
        lines += ["\n".join(f"- [{clip.label}]({clip.file})" for clip in sheet.clips)] if sheet.clips else []
    table = [COLUMNS, ["---"] * len(COLUMNS), *(row.cells for row in rows)]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in table)
    lines += ["## All figures", body, "## Settings", f"```json\n{about}\n```"]
    return "\n\n".join(lines) + "\n"


def _data_url(part: Sheet | Clip) -> str:
    if isinstance(part, Clip):
        return f"data:audio/wav;base64,{base64.b64encode(part.content).decode('ascii')}"
    buffer = io.BytesIO()
    part.image.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
