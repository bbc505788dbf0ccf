"""The files below a data set's folder, and how a name in a text is matched with one of them."""

from __future__ import annotations

import os
import posixpath
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tokenizer_image.pictures.picture_files import is_picture
from tokenizer_image.pictures.reading_notes import ReadingNotes, ending, shown

SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
SYSTEM_FILES = {"Thumbs.db", "ehthumbs.db", "desktop.ini", "Desktop.ini", ".DS_Store", "Icon\r"}

TEXT_ENDINGS = (".txt", ".caption", ".csv", ".tsv", ".json", ".jsonl")  # what may be captions


def is_of_system(path: str) -> bool:
    """Whether an operating system put a file, or one of its folders, there, such as "__MACOSX/a.png" or "Thumbs.db";
    "._a.png" has what macOS keeps beside "a.png"."""
    parts = path.split("/")
    return parts[-1] in SYSTEM_FILES or parts[-1].startswith("._") or not SYSTEM_FOLDERS.isdisjoint(parts)


def is_hidden(path: str) -> bool:
    """Whether the name of a file, or of one of its folders, begins with a dot."""
    if not path.startswith(".") and "/." not in path:
        return False
    return any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))


class FolderFiles:
    """The files of a data set, by their paths relative to `root` with "/"."""

    def __init__(self, root: Path, files: Iterable[str]) -> None:
        self.root = root
        self.files = sorted(files)
        self._exact = set(self.files)
        self._folded: dict[str, list[str]] | None = None
        self._stems: dict[str, list[str]] | None = None

    def __contains__(self, file: str) -> bool:
        return file in self._exact

    def find(self, *names: str) -> str | None:
        """The file with one of these paths, or None. Exact matches come first, then those that differ in their Unicode
        form (NFC, NFD) alone, then those that differ in case, too. Ambiguous matches do not count."""
        for name in names:
            if name in self._exact:
                return name
        if self._folded is None:
            self._folded = {}
            for file in self.files:
                self._folded.setdefault(folded(file), []).append(file)
        for name in names:
            candidates = self._folded.get(folded(name), [])
            normal = unicodedata.normalize("NFC", name)
            same_case = [file for file in candidates if unicodedata.normalize("NFC", file) == normal]
            for matches in (same_case, candidates):
                if len(matches) == 1:
                    return matches[0]
        return None

    def resolve(self, folder: str, name: str, place: str) -> str:
        """The path, relative to the root, of the picture `name` in a text file of `folder` (relative to the root, too).

        The name may be relative to that folder or to the root, absolute inside the root, have Windows separators, be
        percent-encoded, or lack its ending. A file that is not there is its path relative to `folder`.

        Raises:
            ValueError: the path leads out of the root. The message begins with `place`.
        """
        spellings = list(dict.fromkeys([name, name.replace("\\", "/"), urllib.parse.unquote(name.replace("\\", "/"))]))
        paths = [path for spelling in spellings for path in self._paths(folder, spelling)]
        inside = [path for path in paths if not outside(path)]
        if not inside:
            raise ValueError(
                f"{place}: the picture {shown(name)!r} is outside of the data set's folder. "
                f"Nothing outside of the folder {self.root} is read: put the picture inside"
            )
        return self.find(*inside) or self._without_ending(inside) or inside[0]

    def has(self, folder: str, name: str) -> bool:
        """Whether the picture `name` in a text file of `folder` is a file here, as `resolve` finds it."""
        try:
            return self.resolve(folder, name, "") in self._exact
        except ValueError:
            return False

    def _without_ending(self, paths: Sequence[str]) -> str | None:
        """The only picture that has one of these paths once its ending is taken off."""
        if self._stems is None:
            self._stems = {}
            for file in filter(is_picture, self.files):
                self._stems.setdefault(os.path.splitext(file)[0], []).append(file)
        matches = [self._stems[path] for path in paths if path in self._stems]
        return matches[0][0] if matches and len(matches[0]) == 1 else None

    def _paths(self, folder: str, name: str) -> list[str]:
        """Candidate paths for a name, relative to the root; those outside of it begin with "/" or "../"."""
        if posixpath.isabs(name):
            for root in (os.path.abspath(self.root), os.path.realpath(self.root)):
                relative = os.path.relpath(posixpath.normpath(name), root)
                if not outside(relative):
                    return [relative]
            return [name]
        if len(name) > 2 and name[1] == ":" and name[2] in "/\\":  # C:\pictures\a.png
            return [f"/{name}"]
        return [posixpath.normpath(posixpath.join(folder, name)), posixpath.normpath(name)]


def outside(path: str) -> bool:
    """Whether a normal path relative to a folder leaves it."""
    return posixpath.isabs(path) or path == ".." or path.startswith("../")


def folded(name: str) -> str:
    """A name without its case and its Unicode form: names that differ in these alone are equal."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def files_below(root: Path, notes: ReadingNotes) -> Iterator[str]:
    """Paths of the files below `root`, relative, with "/".

    Files and folders of the operating system are skipped, and hidden ones; hidden folders, pictures and texts are left
    out. Links are followed inside of `root`. A link out of it
    is left out, since nothing outside of the folder is read,
    except the store that a snapshot in the Hub's cache links to.
    """
    seen: set[str] = set()
    allowed = _roots(root)
    folders = [""]
    while folders:
        relative = folders.pop()
        real = os.path.realpath(root / relative)
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(root / relative), key=lambda entry: entry.name)
        except OSError as error:
            notes.warn(f"the folder {root / relative} cannot be listed ({error.strerror}), so its files are not read")
            continue
        for entry in entries:
            path = f"{relative}/{entry.name}" if relative else entry.name
            if is_of_system(entry.name):
                continue
            if is_hidden(entry.name):
                if _is_kind(entry, os.DirEntry.is_dir) or is_picture(path) or ending(path) in TEXT_ENDINGS:
                    is_folder = _is_kind(entry, os.DirEntry.is_dir)
                    notes.leave_out(path, "hidden: its name begins with a dot", is_folder=is_folder)
                continue
            if entry.is_symlink() and not _within(os.path.realpath(entry.path), allowed):
                notes.leave_out(path, "a link out of the folder; copy in what it points to")
            elif _is_kind(entry, os.DirEntry.is_dir):
                folders.insert(0 if entry.is_symlink() else len(folders), path)  # a folder has its own name first
            elif _is_kind(entry, os.DirEntry.is_file):
                yield path
            else:
                notes.leave_out(path, "a broken link" if entry.is_symlink() else "not a file")


def _is_kind(entry: os.DirEntry[str], check: Callable[[os.DirEntry[str]], bool]) -> bool:
    """What `check` says; False for a link that leads to itself."""
    try:
        return check(entry)
    except OSError:
        return False


def _roots(root: Path) -> list[str]:
    """The folders that files of a data set may lie in."""
    real = Path(os.path.realpath(root))
    return [str(real), *([str(real.parent.parent / "blobs")] if real.parent.name == "snapshots" else [])]


def _within(path: str, folders: list[str]) -> bool:
    return any(path == folder or path.startswith(folder + os.sep) for folder in folders)


def real_path_inside(root: Path, path: str) -> Path:
    """`root / path`. Raises ValueError where that is outside of `root`, through ".." or a link."""
    real = os.path.realpath(root / path)
    if not _within(real, _roots(root)):
        raise ValueError(f"{shown(path)!r} is outside of the data set's folder, {root}")
    return root / path
