"""`--dataset` -> one split of a data set of signals."""

from __future__ import annotations

from pathlib import Path

from tokenizer_image.pictures.columns import Columns
from tokenizer_image.pictures.dataset import SelectedPictures
from tokenizer_image.pictures.loading import choose_rows
from tokenizer_image.pictures.reading_notes import ReadingNotes
from tokenizer_image.signals.drawn_series import DrawnSeries
from tokenizer_image.signals.drawn_sounds import DrawnSounds
from tokenizer_image.signals.examples import SignalExample, SignalSource
from tokenizer_image.signals.folder_signals import SeriesFiles, SignalFiles, SoundFiles, VideoFiles, signal_splits
from tokenizer_image.signals.moving_sprites import MovingSprites
from tokenizer_image.signals.settings import BUILT_IN, SignalSettings

FILES: dict[str, type[SignalFiles]] = {"audio": SoundFiles, "series": SeriesFiles, "video": VideoFiles}
DRAWN_TRAINING, DRAWN_OTHERS = 20_000, 1_000  # drawn examples of a split


def load_signals(
    settings: SignalSettings,
    dataset: str,
    split: str = "train",
    *,
    caption_column: str | None = None,
    max_examples: int | None = None,
    seed: int = 0,
) -> SignalSource:
    """One split of the built-in world, by its name in `BUILT_IN`, or of a folder of signals.

    A folder is read as one of pictures is (`load_pictures`): captions from metadata files, files beside the signals or
    class folders; splits by the names of folders, else held-out rows.

    Raises:
        ValueError: a data set or split that does not exist, or that holds no signals of the settings' kind.
    """
    if dataset == BUILT_IN[settings.signal]:
        count = max_examples or (DRAWN_TRAINING if split == "train" else DRAWN_OTHERS)
        drawn_seed = seed if split == "train" else 0
        return drawn_signals(settings, split, count, drawn_seed)
    path = Path(dataset).expanduser()
    if not path.exists():
        raise ValueError(
            f"there is no folder {dataset}: --dataset takes {BUILT_IN[settings.signal]!r} or a folder of signals "
            f"({settings.signal})"
        )
    notes = ReadingNotes()
    splits = signal_splits(path, dataset, settings.signal, Columns(None, caption_column), notes)
    return FILES[settings.signal](choose_rows(splits, dataset, split, max_examples, seed, notes), path, settings)


def drawn_signals(
    settings: SignalSettings, split: str, count: int, seed: int
) -> DrawnSounds | DrawnSeries | MovingSprites:
    """`count` examples of a split of the built-in world of the settings' kind."""
    if settings.signal == "series":
        return DrawnSeries(split, count, seed, settings.length)
    if settings.signal == "video":
        return MovingSprites(split, count, seed, settings.length, settings.frame_size)
    return DrawnSounds(split, count, seed, settings.length, settings.rate)


def example_of(source: SignalSource | SelectedPictures, row: int) -> SignalExample:
    """An example of a source, or of a choice of its rows."""
    while isinstance(source, SelectedPictures) and not isinstance(source, SignalFiles):
        source, row = source.source, int(source.rows[row])  # type: ignore[assignment]
    return source[row]
