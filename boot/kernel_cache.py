"""Kernels that were chosen by timing, kept between processes so that each machine times them once.

One JSON file per user, `$XDG_CACHE_HOME/boot/kernels.json` (`~/.cache` where that is not set), with
one list per build of the core and kind of processor. BOOT_KERNEL_CACHE names another, or "off".
The file only saves time: whatever is wrong with it is ignored, and deleting it is safe.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boot import _core
from boot.files import write_atomically

VARIABLE = "BOOT_KERNEL_CACHE"
MAX_MACHINES, MAX_KERNELS, MAX_BYTES = 8, 4000, 4_000_000
WINOGRAD = ("winograd", "winograd_pairs", "dnnl_winograd")
THREE_BY_THREE = " k3 s1 p1,1 "
# A name alone does not tell generations apart: clouds call them all "AMD EPYC".
_PROCESSOR = re.compile(r"^(?:cpu family|model|model name)[ \t]*:[ \t]*(.*)$", re.MULTILINE)
_KEY = re.compile(r"[a-z0-9 ,]{1,95}", re.ASCII)

_log = logging.getLogger("boot")


def cache_file() -> Path | None:
    """Return where choices are kept; None: nowhere."""
    text = os.environ.get(VARIABLE, "")
    if text.lower() in ("off", "0", "none"):
        return None
    if text:
        return Path(text)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "boot" / "kernels.json" if os.path.isabs(home) else None


@functools.cache
def machine_key() -> str:
    """Return what a choice depends on, beside what its own key says: the core and the processor."""
    config = _core.show_config()
    try:
        status = os.stat(_core.__file__)
        build = f"{status.st_size}.{status.st_mtime_ns}"
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            first = file.read(2000).split("\n\n")[0]
    except OSError:
        return ""
    model = " ".join(_PROCESSOR.findall(first)) or "unknown"
    names = ("boot_version", "onednn_version", "isa", "onednn_isa")
    return " | ".join([model, *(str(config[name]) for name in names), build])


def known_kernels() -> dict[str, str]:
    """Return {layer shape: kernel} for this machine, {} if nothing is known."""
    path = cache_file()
    return {} if path is None else _read(path).get(machine_key(), {})


def remember_kernels(kernels: Mapping[str, str]) -> None:
    """Add choices of this machine to the file; without a word where it cannot be written."""
    path, key = cache_file(), machine_key()
    if path is None or not key:
        return
    machines = _read(path)
    known = machines.pop(key, {})
    if all(known.get(name) == kernel for name, kernel in kernels.items()):
        return
    merged = dict(list({**known, **kernels}.items())[-MAX_KERNELS:])
    newest = dict([*machines.items(), (key, merged)][-MAX_MACHINES:])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(newest))
    except OSError as problem:
        _log.debug("kernel choices not kept: %s", problem)


def _read(path: Path) -> dict[str, dict[str, str]]:
    """Return the file's content, without anything that is not {machine: {key: kernel}}."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    machines = content.items() if isinstance(content, dict) else ()
    return {machine: _valid(kernels) for machine, kernels in machines}


def _valid(kernels: Any) -> dict[str, str]:
    """Return the choices that the core could have made."""
    if not isinstance(kernels, dict):
        return {}
    return {
        key: name
        for key, name in kernels.items()
        if _KEY.fullmatch(key)
        and (name in ("direct", "taps", "columns") or (name in WINOGRAD and THREE_BY_THREE in key))
    }
