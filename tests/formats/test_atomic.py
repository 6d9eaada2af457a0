"""Files and folders appear whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wattwise_runtimes.formats.atomic import atomic_file, atomic_folder, write_file_atomically


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_not_there_before_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model.gguf"
    with atomic_file(target) as partial:
        partial.write_bytes(b"half")
        assert not target.exists()
        assert partial.parent == target.parent
    assert target.read_bytes() == b"half"
    assert _names(target.parent) == ["model.gguf"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), atomic_file(tmp_path / "model.gguf") as partial:
        partial.write_bytes(b"half")
        raise error
    with pytest.raises(error), atomic_folder(tmp_path / "model") as partial:
        (partial / "part").write_bytes(b"half")
        raise error
    assert _names(tmp_path) == []


def test_a_failure_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"old")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    with pytest.raises(ValueError, match="x"), atomic_file(tmp_path / "model.gguf", overwrite=True) as partial:
        partial.write_bytes(b"new")
        raise ValueError("x")
    with pytest.raises(ValueError, match="x"), atomic_folder(tmp_path / "model", overwrite=True):
        raise ValueError("x")
    assert _names(tmp_path) == ["model", "model.gguf"]
    assert (tmp_path / "model.gguf").read_bytes() == b"old"
    assert _names(tmp_path / "model") == ["old"]


def test_an_existing_target_is_replaced_only_when_asked(tmp_path: Path) -> None:
    file, folder = tmp_path / "f", tmp_path / "d"
    write_file_atomically(file, b"1")
    write_file_atomically(file, b"2")
    assert file.read_bytes() == b"2"
    with pytest.raises(FileExistsError, match="exists"), atomic_file(file):
        pytest.fail("the block must not start")
    with atomic_folder(folder) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "a").write_bytes(b"a")
    with pytest.raises(FileExistsError, match="exists"), atomic_folder(folder):
        pytest.fail("the block must not start")
    with atomic_folder(folder, overwrite=True) as partial:
        (partial / "b").touch()
    assert _names(folder) == ["b"]
    assert _names(tmp_path) == ["d", "f"]


def test_two_writers_in_one_process_do_not_meet(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "f", overwrite=True) as one, atomic_file(tmp_path / "f", overwrite=True) as two:
        assert one != two
        one.write_bytes(b"one")
        two.write_bytes(b"two")
    assert (tmp_path / "f").read_bytes() == b"one"  # the outer block ended last
    assert _names(tmp_path) == ["f"]


def test_leftovers_of_dead_writers_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    code = (
        "import os, sys; from wattwise_runtimes.formats.atomic import atomic_file, atomic_folder\n"
        "with atomic_file(sys.argv[1]) as f, atomic_folder(sys.argv[2]) as d:\n"
        "    f.write_bytes(b'half'); (d / 'part').write_bytes(b'half'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "f", tmp_path / "d"], check=False)
    assert len(_names(tmp_path)) == 2  # a killed process cannot clean up
    living = tmp_path / f".f.{os.getppid()}.0.part"
    strange = tmp_path / ".f.x.0.part"
    living.touch()
    strange.touch()
    write_file_atomically(tmp_path / "f", b"1")
    with atomic_folder(tmp_path / "d"):
        pass
    assert _names(tmp_path) == sorted([living.name, strange.name, "d", "f"])


def test_a_folder_moved_aside_by_a_dead_writer_comes_back(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    aside = tmp_path / f".model.{dead.stdout.strip()}.0.old"
    aside.mkdir()
    (aside / "weights").write_bytes(b"old")
    with pytest.raises(FileExistsError), atomic_folder(tmp_path / "model"):
        pass
    assert (tmp_path / "model" / "weights").read_bytes() == b"old"
    with atomic_folder(tmp_path / "model", overwrite=True) as partial:
        (partial / "weights").write_bytes(b"new")
    assert (tmp_path / "model" / "weights").read_bytes() == b"new"
    assert _names(tmp_path) == ["model"]
