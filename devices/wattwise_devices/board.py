"""What kind of machine this is: its maker's name, the platform, whether a hypervisor runs it.

Boards name themselves in the device tree, PCs in DMI, phones through Android's properties. Not here: what the name
implies (profile.py).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wattwise_devices.cpu_features import CpuInfo
from wattwise_devices.system import System

Platform = Literal["linux", "android", "darwin", "other"]
_DEVICE_TREES = ("/proc/device-tree", "/sys/firmware/devicetree/base")
_DMI = "/sys/class/dmi/id"
_FILLERS = ("to be filled by o.e.m.", "default string", "system product name", "system manufacturer", "none", "o.e.m.")
_GUEST_MAKERS = {
    "qemu": "qemu", "kvm": "kvm", "vmware": "vmware", "innotek": "virtualbox", "virtualbox": "virtualbox",
    "xen": "xen", "amazon ec2": "kvm", "google compute engine": "kvm", "openstack": "kvm", "bhyve": "bhyve",
    "parallels": "parallels", "apple virtualization": "apple", "bochs": "bochs", "firecracker": "kvm",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardInfo:
    """name: the maker's, None if nobody says. hypervisor: its name, "unknown" for an unnamed one, None for bare metal
    or where nothing tells."""

    name: str | None
    platform: Platform
    hypervisor: str | None


def read_board(system: System, info: CpuInfo) -> BoardInfo:
    """From the device tree, DMI or Android's properties."""
    platform = _platform(system)
    name = _device_tree_model(system) or _dmi_name(system) or info.board
    if platform == "android":
        name = _android_name(system) or name
    return BoardInfo(name=name, platform=platform, hypervisor=_hypervisor(system, info))


def _platform(system: System) -> Platform:
    if system.path("/system/build.prop").exists() or system.path("/system/bin/app_process").exists():
        return "android"
    if system.root != Path("/") or sys.platform.startswith("linux"):
        return "linux"
    return "darwin" if sys.platform == "darwin" else "other"


def _device_tree_model(system: System) -> str | None:
    texts = (system.read_text(f"{folder}/model") for folder in _DEVICE_TREES)
    return next((" ".join(text.replace("\0", " ").split()) for text in texts if text), None)


def _dmi_name(system: System) -> str | None:
    maker, product = (system.read_text(f"{_DMI}/{name}") or "" for name in ("sys_vendor", "product_name"))
    words = [text for text in (maker, product) if text and text.lower() not in _FILLERS]
    if len(words) == 2 and product.lower().startswith(maker.lower()):
        return product
    return " ".join(words) or None


def _android_name(system: System) -> str | None:
    asked = (system.run(["getprop", f"ro.product.{name}"]) or "" for name in ("manufacturer", "model"))
    return " ".join(text.strip() for text in asked if text.strip()) or None


def _hypervisor(system: System, info: CpuInfo) -> str | None:
    named = system.read_text("/sys/hypervisor/type")
    if named:
        return named
    told = " ".join(system.read_text(f"{_DMI}/{name}") or "" for name in ("sys_vendor", "product_name", "bios_vendor"))
    told += " " + " ".join(system.read_text(f"{folder}/hypervisor/compatible") or "" for folder in _DEVICE_TREES)
    guest = next((name for word, name in _GUEST_MAKERS.items() if word in told.lower()), None)
    if guest is not None:
        return guest
    return "unknown" if info.hypervisor else None
