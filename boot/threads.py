"""How many threads the core uses by default: physical cores that this process may really use.

Two hardware threads of one core share its multipliers, so a second one only adds waiting at
barriers; and a container that may use two processors' worth of time gains nothing from 64 threads.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

ROOT = Path("/")


def default_threads(root: Path = ROOT) -> int | None:
    """Return physical cores within this process's affinity and CPU quota, at least 1.

    None where OMP_NUM_THREADS is set: OpenMP reads that itself. root: of /sys and /proc, for tests.
    """
    if os.environ.get("OMP_NUM_THREADS", "").strip():
        return None
    try:
        cpus = os.sched_getaffinity(0)
    except (AttributeError, OSError):  # not Linux: hardware threads are all that is known
        cpus = set(range(os.cpu_count() or 1))
    count = physical_cores(cpus, root)
    quota = cpu_quota(root)
    return max(1, count if quota is None else min(count, math.ceil(quota)))


def physical_cores(cpus: set[int], root: Path = ROOT) -> int:
    """Return how many cores these processors are; each is one where the system does not say."""
    cores = set()
    for cpu in cpus:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        package, core = (_read(topology / name) for name in ("physical_package_id", "core_id"))
        die = _read(topology / "die_id")
        cores.add((package, die, core) if package and core else cpu)
    return len(cores)


def cpu_quota(root: Path = ROOT) -> float | None:
    """Return the processors' worth of time that control groups allow; None for no limit.

    Version 2: `cpu.max` of the process's group and of those above it. Version 1: `cpu.cfs_quota_us`
    and `cpu.cfs_period_us`. Inside a container the group's own path is often the mount itself.
    """
    limits = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if not controllers:
            limits += [_v2_limit(folder) for folder in _up(root / "sys/fs/cgroup", group)]
        elif "cpu" in controllers.split(","):
            for mount in ("cpu", controllers):
                limits += [_v1_limit(f) for f in _up(root / "sys/fs/cgroup" / mount, group)]
    found = [limit for limit in limits if limit is not None]
    return min(found) if found else None


def _up(mount: Path, group: str) -> list[Path]:
    """The folder of a group and of each group above it, up to the mount."""
    names = [name for name in group.split("/") if name not in ("", "..")]
    return [mount.joinpath(*names[:depth]) for depth in range(len(names), -1, -1)]


def _v2_limit(folder: Path) -> float | None:
    quota, period, *_ = [*_read(folder / "cpu.max").split(), "", ""]
    return _ratio(quota, period)


def _v1_limit(folder: Path) -> float | None:
    return _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    """quota / period, None for "max", -1 and anything else that is no limit."""
    try:
        limit = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return limit if limit > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
