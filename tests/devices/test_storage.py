"""What kind of storage a path lies on, by recorded mounts; its real read rate against dd."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.machine_trees import intel_hybrid_laptop, orange_pi_5, small_virtual_machine, write_tree
from wattwise_devices import read_rate
from wattwise_devices.read_rate import measure_read_rate
from wattwise_devices.storage import read_storage
from wattwise_devices.system import System


def test_sd_card_and_tmpfs(tmp_path: Path) -> None:
    system = orange_pi_5(tmp_path)
    card = read_storage("/home/me/model.gguf", system)
    assert (card.kind, card.device, card.filesystem) == ("sd-card", "mmcblk1", "ext4")
    assert card.read_ahead_bytes == 128 << 10
    assert read_storage("/tmp/x", system).kind == "tmpfs"
    assert read_storage("/tmpx", system).kind == "sd-card", "a prefix of a name is not a mount point"


def test_emmc_says_mmc(tmp_path: Path) -> None:
    system = orange_pi_5(tmp_path)
    next(tmp_path.rglob("device/type")).write_text("MMC\n")
    assert read_storage("/", system).kind == "emmc"


def test_stacked_and_named_devices(tmp_path: Path) -> None:
    system = intel_hybrid_laptop(tmp_path)
    assert (read_storage("/opt", system).kind, read_storage("/opt", system).device) == ("nvme", "nvme0n1")
    btrfs = read_storage("/home/me/m.gguf", system)
    assert (btrfs.kind, btrfs.device, btrfs.filesystem) == ("nvme", "nvme0n1", "btrfs")
    assert read_storage("/home/me/my share/m.gguf", system).kind == "network"
    box = read_storage("/var/lib/box/m.gguf", system)
    assert (box.kind, box.filesystem) == ("nvme", "overlay"), "an overlay is as fast as what lies below it"


def test_virtual_disk(tmp_path: Path) -> None:
    info = read_storage("/models", small_virtual_machine(tmp_path))
    assert (info.kind, info.device, info.read_ahead_bytes) == ("virtio", "vda", 8 << 20)


@pytest.mark.parametrize(
    ("place", "rotational", "kind"),
    [
        ("pci0000:00/0000:00:17.0/ata1/host0/block/sda", "0", "ssd"),
        ("pci0000:00/0000:00:17.0/ata1/host0/block/sda", "1", "hdd"),
        ("pci0000:00/0000:00:14.0/usb2/2-1/host1/block/sda", "1", "usb"),
        ("platform/soc/1d84000.ufshc/host0/block/sda", "0", "ufs"),
        ("pci0000:00/0000:00:17.0/ata1/host0/block/sda", "?", "unknown"),
    ],
)
def test_scsi_disks(tmp_path: Path, place: str, rotational: str, kind: str) -> None:
    files = {
        "proc/self/mountinfo": "1 0 8:0 / / rw - ext4 /dev/sda rw\n",
        "sys/dev/block/8:0": f"-> ../../devices/{place}",
        f"sys/devices/{place}/queue/rotational": f"{rotational}\n",
    }
    assert read_storage("/x", write_tree(tmp_path, files)).kind == kind


@pytest.mark.parametrize(
    "text",
    [
        "", "garbage", "1 2 3 - \n", " - - - ", "1 0 8:0 / / rw - ext4\n", "\0\xff",
        "1 0 0:1 / / rw - overlay overlay rw,upperdir=/up\n", "1 0 8:9 / / rw - ext4 /dev/../../etc rw\n",
    ],
)  # fmt: skip
def test_odd_mounts_are_unknown(tmp_path: Path, text: str) -> None:
    info = read_storage("/x", write_tree(tmp_path, {"proc/self/mountinfo": text}))
    assert info.kind in ("unknown", "overlay") and info.read_bytes_per_s is None


def test_this_machine_agrees_with_df(tmp_path: Path) -> None:
    if shutil.which("df") is None:
        pytest.skip("needs df")
    done = subprocess.run(["df", "--output=source,fstype", tmp_path], capture_output=True, text=True, check=True)
    source, kind = done.stdout.splitlines()[1].split()
    info = read_storage(tmp_path, System())
    assert info.filesystem == kind
    assert info.device is not None and Path(source).name.startswith(info.device)


def test_read_rate_is_what_dd_reads(tmp_path: Path) -> None:
    """Both read past the cache, one right after the other; the machine is shared, so the best of three counts."""
    file = tmp_path / "big"
    file.write_bytes(os.urandom(128 << 20))
    os.sync()
    ours, theirs = 0.0, 0.0
    for _ in range(3):
        rate = measure_read_rate(file, limit_s=0.4)
        assert rate is not None
        if rate.method != "direct":
            pytest.skip(f"no direct I/O here: {rate.method}")
        command = ["dd", f"if={file}", "of=/dev/null", "bs=4M", "iflag=direct"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"})
        match = re.search(r"(\d+) bytes.* ([\d.e-]+) s,", done.stderr)
        assert match is not None
        ours, theirs = max(ours, rate.bytes_per_s), max(theirs, int(match[1]) / float(match[2]))
    assert 0.5 * theirs < ours < 4 * theirs, "two readers may be faster than dd's one, hardly slower"


def test_temporary_file_is_made_and_removed(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x")
    for place in (tmp_path, tmp_path / "small"):
        rate = measure_read_rate(place, limit_s=0.1)
        assert rate is not None and rate.read_bytes >= 4 << 20
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_no_rate_where_nothing_can_be_read(tmp_path: Path) -> None:
    assert measure_read_rate(tmp_path / "absent" / "file") is None


def test_refused_direct_io_falls_back_with_a_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "big"
    file.write_bytes(bytes(80 << 20))
    real_open = os.open

    def refuse(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real_open(path, flags, *rest)

    monkeypatch.setattr(read_rate.os, "open", refuse)
    rate = measure_read_rate(file, limit_s=0.2)
    assert rate is not None and rate.method == "dropped-cache"
    assert rate.read_bytes <= 80 << 20, "a second pass would read the cache"
