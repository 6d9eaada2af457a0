"""Files and folders that appear whole or not at all: written under a temporary name beside the target, synced, renamed.

Whatever ends the process, the target is either absent, the old one, or the complete new one. Temporary names carry
the process id; leftovers of processes that have died are removed by the next write to the same target.
Not here: locking. Two processes that write the same target both succeed, and the last one stays.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SUFFIX = ".part"  # a file or folder that is being written
_ASIDE = ".old"  # the folder that a new one is about to replace
_numbers = itertools.count()


def write_file_atomically(path: str | Path, data: bytes) -> None:
    """Replace the file at `path` by `data`."""
    with atomic_file(path, overwrite=True) as partial:
        partial.write_bytes(data)


@contextmanager
def atomic_file(target: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A path to write a new file to, which becomes `target` when the block ends without an exception.

    Raises FileExistsError if the target is there and `overwrite` is not set.
    """
    target = Path(target)
    partial = _begin(target, overwrite)
    try:
        yield partial
        sync_file(partial)
        _refuse_existing(target, overwrite)
        os.replace(partial, target)
        _sync_folder(target.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(target: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A new empty folder to write into, which becomes `target` when the block ends without an exception.

    Raises FileExistsError if the target is there and `overwrite` is not set.
    """
    target = Path(target)
    partial = _begin(target, overwrite)
    partial.mkdir()
    try:
        yield partial
        for path in sorted(partial.rglob("*")):
            if path.is_file():
                sync_file(path)
        _sync_folder(partial)
        _refuse_existing(target, overwrite)
        _put_in_place(partial, target)
        _sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def scratch_file(target: str | Path) -> Iterator[Path]:
    """A path beside `target` for an intermediate file, which is gone when the block ends, whatever happens."""
    scratch = _begin(Path(target), overwrite=True)
    try:
        yield scratch
    finally:
        scratch.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Wait until the file's bytes are on the storage."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def remove_leftovers(target: Path) -> None:
    """Delete temporary files and folders for this target whose writers no longer run.

    A folder that was moved aside by a writer that died before it put the new one in place is moved back.
    """
    suffixes = f"({re.escape(_SUFFIX)}|{re.escape(_ASIDE)})"
    pattern = re.compile(re.escape(f".{target.name}.") + r"(\d+)\.\d+" + suffixes)
    if not target.parent.is_dir():
        return
    for path in target.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not _runs(int(match[1])):
            if match[2] == _ASIDE and not target.exists():
                os.rename(path, target)
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _begin(target: Path, overwrite: bool) -> Path:
    if target.parent.is_dir():
        remove_leftovers(target)
    _refuse_existing(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.parent / f".{target.name}.{os.getpid()}.{next(_numbers)}{_SUFFIX}"


def _refuse_existing(target: Path, overwrite: bool) -> None:
    if not overwrite and (target.exists() or target.is_symlink()):
        raise FileExistsError(f"{target} exists. Choose another place, or ask to overwrite it.")


def _put_in_place(partial: Path, target: Path) -> None:
    """Rename a folder; an old target is moved aside first, because a full folder cannot be replaced in one step."""
    if not target.exists():
        os.rename(partial, target)
        return
    old = target.parent / f".{target.name}.{os.getpid()}.{next(_numbers)}{_ASIDE}"
    os.rename(target, old)
    try:
        os.rename(partial, target)
    except OSError:
        os.rename(old, target)
        raise
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; where folders cannot be opened (Windows) there is nothing to do."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:  # some network file systems refuse it
        return
    finally:
        os.close(handle)


def _runs(pid: int) -> bool:
    """Whether a process with this id exists (signal 0 only asks)."""
    if os.name == "nt":  # there os.kill would end the process; leave the leftovers
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
