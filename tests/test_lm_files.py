"""Files and folders that appear under their names only when they are whole."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lm.files import cache_root, published


def fill(folder: Path, **files: str) -> None:
    with published(folder) as aside:
        aside.mkdir()
        for name, text in files.items():
            (aside / name).write_text(text)


def test_files_and_folders_replace_what_was_there(tmp_path):
    with published(tmp_path / "deep" / "a.txt") as aside:
        aside.write_text("first")
        assert not (tmp_path / "deep" / "a.txt").exists()
    with published(tmp_path / "deep" / "a.txt") as aside:
        aside.write_text("second")
    fill(tmp_path / "b", x="1")
    fill(tmp_path / "b", y="2")
    assert (tmp_path / "deep" / "a.txt").read_text() == "second"
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["y"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "deep"], "nothing is left beside them"


def test_an_error_leaves_what_was_there(tmp_path):
    fill(tmp_path / "b", x="1")
    with pytest.raises(RuntimeError), published(tmp_path / "b") as aside:
        aside.mkdir()
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["b"] and (tmp_path / "b" / "x").read_text() == "1"


def test_a_folder_with_the_same_content_stays(tmp_path):
    fill(tmp_path / "b", x="1")
    before = (tmp_path / "b").stat().st_ino
    fill(tmp_path / "b", x="1")
    assert (tmp_path / "b").stat().st_ino == before


def test_a_rename_that_cannot_be_done_is_raised_at_once(tmp_path, monkeypatch):
    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EACCES, "permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="permission denied"):
        fill(tmp_path / "b", x="1")


@pytest.mark.parametrize("number", [2, 3])
def test_a_folder_that_could_not_be_replaced_keeps_its_content(tmp_path, monkeypatch, number):
    """The renames are: the new one (refused, since the name is taken), the earlier one aside, the new one again."""
    fill(tmp_path / "b", x="1")
    original, calls = os.rename, []

    def rename(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == number:
            raise OSError(errno.EIO, "input/output error")
        original(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="input/output error"):
        fill(tmp_path / "b", y="2")
    assert [path.name for path in tmp_path.iterdir()] == ["b"] and (tmp_path / "b" / "x").read_text() == "1"


def test_a_kill_between_the_renames_loses_nothing(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from lm import files\n"
        "original, calls = os.rename, []\n"
        "def rename(source, target):\n"
        "    calls.append(target)\n"
        "    os._exit(9) if len(calls) == 3 else original(source, target)\n"
        "os.rename = rename\n"
        "with files.published(Path(sys.argv[1], 'b')) as aside:\n"
        "    aside.mkdir(); (aside / 'y').write_text('2')\n"
    )
    fill(tmp_path / "b", x="1")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[1])
    assert done.returncode == 9 and not (tmp_path / "b").exists()
    fill(tmp_path / "c", z="3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"] and (tmp_path / "b" / "x").exists()


def test_what_a_killed_process_left_is_removed(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from lm.files import published\n"
        "with published(Path(sys.argv[1], 'b')) as aside:\n"
        "    aside.mkdir(); (aside / 'x').write_text('half'); os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[1])
    assert done.returncode == 9 and len(list(tmp_path.glob("b.part-*"))) == 1
    fill(tmp_path / "c", x="1")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_where_caches_lie(monkeypatch, tmp_path):
    monkeypatch.delenv("TESSERA_CACHE", raising=False)
    assert cache_root() == Path.home() / ".cache" / "tessera"
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path))
    assert cache_root() == tmp_path and cache_root("other") == Path("other")
