"""A look at a data set of signals before training: what `inspect_data.py --signal` says of it, and its sheet."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from pipelines.caching.signal_cache import DecodedSignals
from pipelines.drawing.signal_panels import signal_panels
from pipelines.evaluation.data_inspection import PictureInspection, find_duplicates, sheet_of_cells, shown_rows
from tokenizer_image.pictures.dataset import PictureDataset, picture_name
from tokenizer_image.pictures.reading_notes import shown
from tokenizer_image.preprocessing import to_pixel_values


def inspect_signals(source: PictureDataset, signals: DecodedSignals) -> PictureInspection:
    """Compare all examples with each other. Memory: 8 bytes per row."""
    unreadable = [(row, why.removeprefix(f"{picture_name(source, row)}: ")) for row, why in signals.unreadable]
    found = PictureInspection(source, unreadable)
    hashes = np.zeros(len(source), np.uint64)
    for place, row in enumerate(signals.rows.tolist()):
        digest = hashlib.blake2b(signals.batch([place]).tobytes(), digest_size=8).digest()
        hashes[row] = int.from_bytes(digest, "little")
    find_duplicates(found, hashes)
    return found


def example_line(signals: DecodedSignals) -> str:
    """What a model is trained on, for the screen."""
    settings = signals.settings
    if settings.signal == "audio":
        return (
            f"  an example: {settings.length:,} samples, {settings.length / settings.rate:g} s at {settings.rate:,} Hz"
        )
    if settings.signal == "video":
        return f"  an example: {settings.length:,} frames of {settings.frame_size}x{settings.frame_size} pixels"
    known = signals.known(np.arange(len(signals)))
    gaps = 0.0 if known is None else 1 - float(known.mean())
    return (
        f"  an example: {settings.length:,} steps, the last {settings.horizon} of them to forecast; channels: "
        f"{settings.num_channels}; {gaps:.1%} of the steps are gaps"
    )


def signal_sheet(inspection: PictureInspection, signals: DecodedSignals) -> Image.Image:
    """Up to 24 examples from all over the data set, as a model is given them, under their names and captions."""
    source, rows = inspection.source, shown_rows(inspection)
    values = to_pixel_values(signals.batch(np.searchsorted(signals.rows, rows)))
    labels = [": ".join([shown(picture_name(source, row)), *source.texts(row)[:1]]) for row in rows]
    panels = signal_panels(values, signals.settings)
    return sheet_of_cells([(label, [panel]) for label, panel in zip(labels, panels, strict=True)])
