"""What one setting of a config is: its type, limits and help, and the check of a value.

`config.DistillConfig` lists the settings; `flags` makes the command line from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from boot.errors import (
    ConfigError,
    check_bool,
    check_choice,
    check_float,
    check_int,
    check_path,
    check_seed,
    shown,
    type_name,
)
from boot.sizes import check_bytes

LARGEST = 2**62  # of an integer without a limit of its own: what is larger, no file could hold


@dataclass(frozen=True)
class Option:
    """What one setting allows: enough to check it, to document it, and to make a flag of it.

    kind: int, float, bool or str. optional: None is allowed (then `help` says what None means).
    lo, hi: allowed range, exclusive where `above` / `below`. choices: allowed words, () for any.
    unit: "bytes": text such as "2GB" is understood too.
    """

    kind: type
    help: str
    optional: bool = False
    lo: float | None = None
    hi: float | None = None
    above: bool = False
    below: bool = False
    choices: tuple[str, ...] = ()
    name: str = ""
    default: Any = None
    unit: str = ""


def setting(default: Any, kind: type, text: str, **limits: Any) -> Any:
    """Return a dataclass field that carries an Option; a default of None makes it optional."""
    limits.setdefault("optional", default is None)
    if kind is int and "unit" not in limits:
        limits.setdefault("hi", LARGEST)
    option = Option(kind, text, default=default, **limits)
    return field(default=default, metadata={"option": option, "help": text})


def checked(option: Option, value: Any) -> Any:
    """Return `value` as a plain Python value if the option allows it.

    Raises TypeError for a wrong type, ConfigError (a ValueError) for a value out of range,
    OverflowError for a seed beyond 64 bits.
    """
    name = option.name
    if value is None:
        if option.optional:
            return None
        raise TypeError(f"{name} must be of type {option.kind.__name__}, got None")
    if name == "seed":
        return check_seed(name, value)
    if option.unit == "bytes":
        return check_bytes(name, value)
    if option.kind is bool:
        return check_bool(name, value)
    if option.kind is int:
        return _checked_int(option, value)
    if option.kind is float:
        limits: Sequence[float | None] = (option.lo, option.hi)
        above, below = option.above, option.below
        return check_float(name, value, *limits, above=above, below=below, error=ConfigError)
    if option.choices:
        return check_choice(name, value, option.choices, error=ConfigError)
    try:
        return str(check_path(name, value))
    except ValueError as problem:
        raise ConfigError(str(problem)) from None


def _checked_int(option: Option, value: Any) -> int:
    lo = None if option.lo is None else int(option.lo)
    hi = None if option.hi is None else int(option.hi)
    return check_int(option.name, value, lo, hi, error=ConfigError)


def string_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as a dict; TypeError for what is no mapping or has other keys than words."""
    if not isinstance(values, Mapping):
        raise TypeError(f"settings must be a mapping, got {type_name(values)}")
    for key in values:
        if not isinstance(key, str):
            raise TypeError(f"names of settings must be strings, got {shown(key)}")
    return dict(values)
