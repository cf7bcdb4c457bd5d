"""Amounts of memory: read from a number or text such as "2GB", and written for people."""

from __future__ import annotations

import re

from boot.errors import ConfigError, check_int, shown

UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_TEXT = re.compile(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([a-zA-Z]{0,3})\s*", re.ASCII)


def check_bytes(name: str, value: object, lo: int = 1) -> int:
    """Return a number of bytes >= lo: an integer, or text such as "512MiB", "2GB" or "1.5 gb".

    Raises TypeError for another type, ConfigError for text that is no size or one below `lo`.
    """
    if not isinstance(value, str):
        return check_int(name, value, lo, 2**62, error=ConfigError)
    match = _TEXT.fullmatch(value)
    unit = UNITS.get((match[2] or "b").lower()) if match else None
    if match is None or unit is None:
        known = ", ".join(("KB", "MB", "GB", "KiB", "MiB", "GiB"))
        raise ConfigError(f"{name} must be bytes or text like '2GB' ({known}), got {shown(value)}")
    return check_int(name, int(float(match[1]) * unit), lo, 2**62, error=ConfigError)


def size_text(count: float) -> str:
    """Return bytes as text of about three digits: 1234567 -> "1.18 MiB"."""
    size, unit = float(count), "bytes"
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            break
        size /= 1024
    digits = 0 if unit == "bytes" else max(0, 2 - (abs(size) >= 10) - (abs(size) >= 100))
    return f"{size:.{digits}f} {unit}"
