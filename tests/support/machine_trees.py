"""Trees of /proc and /sys as real machines show them, written below a folder: the input of the probe's tests.

The texts follow the kernel's formats line by line, symbolic links included; numbers are those of the named machines.
"""

from __future__ import annotations

import os
from pathlib import Path

from wattwise_devices.system import System

GIB = 1 << 30
_CPU = "sys/devices/system/cpu"


def write_tree(root: Path, files: dict[str, str]) -> System:
    """Files by path below the root; a text that begins with "-> " becomes a symbolic link."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            os.symlink(text.removeprefix("-> "), path)
        else:
            path.write_text(text)
    return System(root=root, run=lambda arguments: None)


def meminfo(total_kib: int, available_kib: int, swap_kib: int = 0, swap_free_kib: int = 0) -> str:
    return (
        f"MemTotal:       {total_kib} kB\nMemFree:          812344 kB\nMemAvailable:   {available_kib} kB\n"
        f"Buffers:           61236 kB\nSwapTotal:      {swap_kib} kB\nSwapFree:       {swap_free_kib} kB\n"
    )


def status(cpus: str) -> str:
    return f"Name:\tpython\nThreads:\t1\nCpus_allowed:\tff\nCpus_allowed_list:\t{cpus}\nMems_allowed_list:\t0\n"


def topology(cpu: int, core_id: int, siblings: str, package: int = 0) -> dict[str, str]:
    folder = f"{_CPU}/cpu{cpu}/topology"
    return {
        f"{folder}/core_id": f"{core_id}\n",
        f"{folder}/physical_package_id": f"{package}\n",
        f"{folder}/thread_siblings_list": f"{siblings}\n",
    }


def cache(cpu: int, index: int, level: int, kind: str, size: str, shared: str) -> dict[str, str]:
    folder = f"{_CPU}/cpu{cpu}/cache/index{index}"
    return {
        f"{folder}/level": f"{level}\n", f"{folder}/type": f"{kind}\n", f"{folder}/size": f"{size}\n",
        f"{folder}/shared_cpu_list": f"{shared}\n", f"{folder}/coherency_line_size": "64\n",
    }  # fmt: skip


def _arm_cpuinfo(parts: list[str], tail: str = "") -> str:
    features = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
    blocks = [
        f"processor\t: {cpu}\nBogoMIPS\t: 48.00\nFeatures\t: {features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x2\nCPU part\t: {part}\nCPU revision\t: 0\n"
        for cpu, part in enumerate(parts)
    ]
    return "\n".join(blocks) + tail


def orange_pi_5(root: Path) -> System:
    """RK3588S: four Cortex-A55 first, then four Cortex-A76; 8 GB; zram swap; system on an SD card."""
    parts = ["0xd05"] * 4 + ["0xd0b"] * 4
    files = {
        f"{_CPU}/online": "0-7\n",
        "proc/cpuinfo": _arm_cpuinfo(parts, "\nSerial\t\t: 0123456789abcdef\n"),
        "proc/device-tree/model": "Xunlong Orange Pi 5\0",
        "proc/meminfo": meminfo(8124880, 7233212, 4062436, 4000000),
        "proc/self/status": status("0-7"),
        "proc/self/cgroup": "0::/user.slice/user-1000.slice/session-3.scope\n",
        "proc/swaps": "Filename\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/zram0  partition\t4062436\t\t62436\t\t5\n",
        "sys/block/zram0/disksize": "4159934464\n",
        "sys/block/zram0/mm_stat": "63934464 20340000 21458944        0 21458944       12        0        3        0\n",
        "proc/self/mountinfo": (
            "24 1 179:2 / / rw,noatime shared:1 - ext4 /dev/mmcblk1p2 rw,errors=remount-ro\n"
            "31 24 0:26 / /tmp rw,nosuid - tmpfs tmpfs rw\n"
        ),
        "sys/dev/block/179:2": "-> ../../devices/platform/fe2c0000.mmc/mmc_host/mmc1/mmc1:aaaa/block/mmcblk1/mmcblk1p2",
        "sys/devices/platform/fe2c0000.mmc/mmc_host/mmc1/mmc1:aaaa/block/mmcblk1/mmcblk1p2/partition": "2\n",
        "sys/devices/platform/fe2c0000.mmc/mmc_host/mmc1/mmc1:aaaa/block/mmcblk1/queue/rotational": "0\n",
        "sys/devices/platform/fe2c0000.mmc/mmc_host/mmc1/mmc1:aaaa/block/mmcblk1/device/type": "SD\n",
        "sys/class/bdi/179:2/read_ahead_kb": "128\n",
    }
    for cpu, part in enumerate(parts):
        small = part == "0xd05"
        files |= topology(cpu, cpu % 4, str(cpu))
        files[f"{_CPU}/cpu{cpu}/cpu_capacity"] = "530\n" if small else "1024\n"
        files[f"{_CPU}/cpu{cpu}/cpufreq/cpuinfo_max_freq"] = "1800000\n" if small else "2352000\n"
        files |= cache(cpu, 0, 1, "Data", "32K" if small else "64K", str(cpu))
        files |= cache(cpu, 1, 2, "Unified", "128K" if small else "512K", str(cpu))
        files |= cache(cpu, 2, 3, "Unified", "3072K", "0-7")
    return write_tree(root, files)


def raspberry_pi_5(root: Path) -> System:
    """Four Cortex-A76; the kernel writes the board's name at the end of cpuinfo too."""
    tail = "\nRevision\t: d04170\nSerial\t\t: 0123456789abcdef\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"
    files = {
        f"{_CPU}/online": "0-3\n",
        "proc/cpuinfo": _arm_cpuinfo(["0xd0b"] * 4, tail),
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "proc/meminfo": meminfo(8245632, 7540112, 204784, 204784),
        "proc/self/status": status("0-3"),
        "proc/self/cgroup": "0::/user.slice/user-1000.slice/session-1.scope\n",
        "proc/swaps": "Filename\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/var/swap    file\t\t204784\t\t0\t\t-2\n",
    }
    for cpu in range(4):
        files |= topology(cpu, cpu, str(cpu))
        files[f"{_CPU}/cpu{cpu}/cpufreq/cpuinfo_max_freq"] = "2400000\n"
    return write_tree(root, files)


def intel_hybrid_laptop(root: Path) -> System:
    """Core i7-1255U: two fast cores with two threads each (CPUs 0-3), eight small ones; disk encrypted on NVMe."""
    flags = "fpu sse4_2 ssse3 avx f16c fma avx2 avx_vnni bmi1 erms"
    block = (
        "processor\t: {}\nvendor_id\t: GenuineIntel\nmodel name\t: 12th Gen Intel(R) Core(TM) i7-1255U\nflags\t\t: {}\n"
    )
    nvme = "sys/devices/pci0000:00/0000:00:06.0/0000:01:00.0/nvme/nvme0/nvme0n1"
    files = {
        f"{_CPU}/online": "0-11\n",
        "proc/cpuinfo": "\n".join(block.format(cpu, flags) for cpu in range(12)),
        "sys/devices/cpu_core/cpus": "0-3\n",
        "sys/devices/cpu_atom/cpus": "4-11\n",
        "sys/class/dmi/id/sys_vendor": "LENOVO\n",
        "sys/class/dmi/id/product_name": "21C6S0XX00\n",
        "proc/meminfo": meminfo(16070988, 11230000),
        "proc/self/status": status("0-11"),
        "proc/self/cgroup": "0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-term.scope\n",
        "proc/swaps": "Filename\t\t\tType\t\tSize\t\tUsed\t\tPriority\n",
        "proc/self/mountinfo": (
            "30 1 253:0 / / rw,relatime shared:1 - ext4 /dev/mapper/luks-root rw\n"
            "40 30 0:35 /@home /home rw,relatime shared:9 - btrfs /dev/nvme0n1p3 rw,subvol=/@home\n"
            "41 40 0:40 / /home/me/my\\040share rw - cifs //nas/share rw\n"
            "42 30 0:41 / /var/lib/box rw - overlay overlay rw,lowerdir=/usr/l,upperdir=/home/me/up,workdir=/home/w\n"
        ),
        "sys/dev/block/253:0": "-> ../../devices/virtual/block/dm-0",
        "sys/devices/virtual/block/dm-0/slaves/nvme0n1p2": "-> ../../../../pci0000:00/0000:00:06.0/0000:01:00.0/nvme/"
        "nvme0/nvme0n1/nvme0n1p2",
        f"{nvme}/nvme0n1p2/partition": "2\n",
        f"{nvme}/nvme0n1p3/partition": "3\n",
        f"{nvme}/queue/rotational": "0\n",
        "sys/class/block/nvme0n1p3": f"-> ../../{nvme.removeprefix('sys/')}/nvme0n1p3",
    }
    for cpu in range(12):
        siblings = f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}" if cpu < 4 else str(cpu)
        files |= topology(cpu, cpu // 2 * 4 if cpu < 4 else cpu + 4, siblings)
        files[f"{_CPU}/cpu{cpu}/cpufreq/cpuinfo_max_freq"] = "4700000\n" if cpu < 4 else "3500000\n"
        files |= cache(cpu, 2, 2, "Unified", "1280K", siblings) if cpu < 4 else {}
        files |= cache(cpu, 3, 3, "Unified", "12288K", "0-11")
    return write_tree(root, files)


def small_virtual_machine(root: Path) -> System:
    """Two virtual CPUs of a KVM guest with control groups of version 1, no names, no clocks."""
    flags = "fpu sse4_2 ssse3 avx f16c fma hypervisor avx2 avx512f avx512bw avx512vl avx512_vnni avx512_bf16"
    block = "processor\t: {}\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t\t: {}\n"
    files = {
        f"{_CPU}/online": "0-1\n",
        "proc/cpuinfo": "\n".join(block.format(cpu, flags) for cpu in range(2)),
        "proc/meminfo": meminfo(24684084, 23900000),
        "proc/self/status": status("0-1"),
        "proc/self/cgroup": "4:memory:/box\n3:cpuset:/\n2:cpuacct:/\n1:cpu:/box\n0::/\n",
        "proc/swaps": "Filename\t\t\tType\t\tSize\t\tUsed\t\tPriority\n",
        "proc/self/mountinfo": "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n",
        "sys/dev/block/254:0": "-> ../../devices/pci0000:00/0000:00:02.0/virtio1/block/vda",
        "sys/devices/pci0000:00/0000:00:02.0/virtio1/block/vda/queue/rotational": "1\n",
        "sys/class/bdi/254:0/read_ahead_kb": "8192\n",
        "sys/devices/system/node/node0/cpulist": "0-1\n",
        "sys/devices/system/node/node0/meminfo": "Node 0 MemTotal:       16607436 kB\nNode 0 MemFree: 15532680 kB\n",
    }
    for cpu in range(2):
        files |= topology(cpu, cpu, str(cpu))
        files[f"{_CPU}/cpu{cpu}/cpu_capacity"] = "1024\n"
        files |= cache(cpu, 0, 1, "Data", "32K", str(cpu)) | cache(cpu, 3, 3, "Unified", "32768K", "0-1")
    return write_tree(root, files)
