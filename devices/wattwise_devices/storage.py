"""On what kind of storage a path lies: the mount, the file system, and the device at the bottom of the stack.

Partitions, LVM, encryption and software RAID are followed down to a real device, an overlay to its upper folder where
that can be seen. Not here: how fast it reads (read_rate.py).
Formats: /proc/self/mountinfo (proc_pid_mountinfo(5)), Documentation/ABI/stable/sysfs-block of Linux.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wattwise_devices.kernel_text import natural
from wattwise_devices.system import System

StorageKind = Literal[
    "nvme", "ssd", "hdd", "emmc", "sd-card", "ufs", "usb", "virtio", "xen", "network", "host-share", "tmpfs", "ram",
    "overlay", "unknown",
]  # fmt: skip
_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}
_NETWORK = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "ceph",
    "fuse.sshfs",
    "fuse.s3fs",
    "fuse.rclone",
    "glusterfs",
    "afs",
}
_HOST_SHARES = {"9p", "virtiofs", "fuse.virtiofs", "vboxsf", "fuse.vmhgfs-fuse", "drvfs"}
_MOST_LAYERS = 8  # of device-mapper tables, or of overlays on overlays


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageInfo:
    """device: the block device at the bottom ("nvme0n1"), or the mount's source. read_bytes_per_s: measured, if it was.

    read_ahead_bytes: what the kernel reads beyond a fault of mapped memory. method: how the rate was measured.
    """

    path: str
    kind: StorageKind
    device: str | None
    filesystem: str | None
    mount_point: str | None
    read_ahead_bytes: int | None
    read_bytes_per_s: float | None = None
    method: str | None = None

    @property
    def key(self) -> str:
        """The same for all paths on one device."""
        return f"{self.device or self.mount_point or self.path}:{self.filesystem or ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mount:
    point: str
    number: str  # "major:minor"
    filesystem: str
    source: str
    options: str


def read_storage(path: str | Path, system: System) -> StorageInfo:
    """What a path, which need not exist yet, lies on. `path` is seen from the system's own root."""
    absolute = _resolved(Path(path), system)
    mounts = _mounts(system)
    mount = _mount_of(absolute, mounts)
    if mount is None:
        return StorageInfo(
            path=absolute, kind="unknown", device=None, filesystem=None, mount_point=None, read_ahead_bytes=None
        )
    kind, device = _classify(mount, mounts, system, layers=_MOST_LAYERS)
    ahead = natural(system.read_text(f"/sys/class/bdi/{mount.number}/read_ahead_kb"))
    return StorageInfo(
        path=absolute,
        kind=kind,
        device=device or mount.source,
        filesystem=mount.filesystem,
        mount_point=mount.point,
        read_ahead_bytes=None if ahead is None else ahead * 1024,
    )


def _resolved(path: Path, system: System) -> str:
    if system.root != Path("/"):
        return "/" + path.as_posix().lstrip("/")
    try:
        return path.resolve().as_posix()
    except (OSError, RuntimeError):
        return path.absolute().as_posix()


def _mounts(system: System) -> list[_Mount]:
    mounts = []
    for line in (system.read_text("/proc/self/mountinfo") or "").splitlines():
        left, dash, right = line.partition(" - ")
        before, after = left.split(), right.split(" ")
        if dash and len(before) >= 5 and len(after) >= 2:
            mounts.append(
                _Mount(
                    point=_unescaped(before[4]),
                    number=before[2],
                    filesystem=after[0],
                    source=_unescaped(after[1]),
                    options=after[2] if len(after) > 2 else "",
                )
            )
    return mounts


def _unescaped(text: str) -> str:
    """mountinfo writes blanks and backslashes as three octal digits."""
    return re.sub(r"\\([0-3][0-7]{2})", lambda match: chr(int(match[1], 8)), text)


def _mount_of(path: str, mounts: list[_Mount]) -> _Mount | None:
    """The deepest mount point above the path; of two at the same place the later one hides the earlier."""
    above = [m for m in mounts if m.point == "/" or path == m.point or path.startswith(m.point + "/")]
    depth = max((len(m.point) for m in above), default=0)
    return next((m for m in reversed(above) if len(m.point) == depth), None)


def _classify(mount: _Mount, mounts: list[_Mount], system: System, layers: int) -> tuple[StorageKind, str | None]:
    name = mount.filesystem
    if name in _MEMORY:
        return "tmpfs", None
    if name in _NETWORK:
        return "network", None
    if name in _HOST_SHARES:
        return "host-share", None
    if name in ("overlay", "fuse.fuse-overlayfs"):
        upper = re.search(r"(?:^|,)upperdir=([^,]+)", mount.options)
        below = _mount_of(_unescaped(upper[1]), mounts) if upper else None
        if below is None or below == mount or below.filesystem == "overlay" or layers <= 0:
            return "overlay", None
        return _classify(below, mounts, system, layers - 1)
    device = _block_device(mount, system)
    return ("unknown", None) if device is None else _device_kind(device, system, layers)


def _block_device(mount: _Mount, system: System) -> Path | None:
    """Folder of the device in /sys, by number, or by name where a file system has a number of its own (btrfs)."""
    by_name = f"/sys/class/block/{mount.source.rpartition('/')[2]}"
    for place in (f"/sys/dev/block/{mount.number}", by_name if mount.source.startswith("/dev/") else ""):
        path = system.path(place)
        try:
            if place and path.is_dir():
                return path.resolve()
        except (OSError, RuntimeError):
            continue
    return None


def _device_kind(folder: Path, system: System, layers: int) -> tuple[StorageKind, str | None]:
    """Kind and name of a block device, following partitions and stacked devices down."""
    if (folder / "partition").exists():
        folder = folder.parent
    slaves = sorted(_children(folder / "slaves"))
    if slaves and layers > 0:
        return _device_kind(slaves[0].resolve(), system, layers - 1)
    name, place = folder.name, folder.relative_to(system.root.resolve()).as_posix()
    if name.startswith("nvme"):
        return "nvme", name
    if name.startswith("mmcblk"):
        return ("emmc" if system.read_text(folder / "device" / "type") == "MMC" else "sd-card"), name
    if name.startswith("vd"):
        return "virtio", name
    if name.startswith("xvd"):
        return "xen", name
    if name.startswith(("ram", "zram")):
        return "ram", name
    if "/usb" in place:
        return "usb", name
    if "ufs" in place:
        return "ufs", name
    if name.startswith("sd"):
        turns = natural(system.read_text(folder / "queue" / "rotational"))
        return ("hdd" if turns else "ssd" if turns == 0 else "unknown"), name
    return "unknown", name


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
