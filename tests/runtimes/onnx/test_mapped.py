"""Page handling: what `release` and `collapse` touch, and that contents survive."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from wattwise_devices.process_memory import resident_memory
from wattwise_runtimes.engines.onnx import mapped

pytestmark = pytest.mark.skipif(not mapped.can_release(), reason="needs Linux's /proc/self/smaps")
SIZE = 24 << 20


def test_release_gives_clean_pages_back_and_keeps_changed_ones(tmp_path: Path) -> None:
    clean, dirty = tmp_path / "clean", tmp_path / "dirty"
    data = np.random.default_rng(0).integers(0, 255, SIZE, np.uint8)
    clean.write_bytes(data)
    dirty.write_bytes(data)
    with clean.open("rb") as a, dirty.open("rb") as b:
        one = mmap.mmap(a.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        two = mmap.mmap(b.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    two[5000] = data[5000] ^ 0xFF
    view = np.frombuffer(one, np.uint8)
    assert view.max() == data.max()  # all pages are in now
    before = resident_memory().file_bytes
    assert mapped.release((clean, dirty)) >= SIZE
    after = resident_memory().file_bytes
    assert before is not None
    assert after is not None
    assert before - after > 0.9 * SIZE
    assert np.array_equal(view, data)
    assert two[5000] == data[5000] ^ 0xFF, "a private change would be lost"


def test_collapse_changes_no_contents_and_fills_no_empty_region() -> None:
    data = np.random.default_rng(0).integers(0, 255, SIZE, np.uint8)
    copy = data.copy()
    empty = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    before = resident_memory().anonymous_bytes
    moved = mapped.collapse()
    after = resident_memory().anonymous_bytes
    assert moved >= 0  # 0 where the kernel cannot, or has none left
    assert np.array_equal(data, copy)
    assert before is not None
    assert after is not None
    assert after - before < 8 << 20, "the empty region must stay empty"
    empty.close()
