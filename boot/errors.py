"""The exceptions of `boot` and the small input checks that every other module uses.

Order of the checks everywhere: type (TypeError), then value (ValueError), then files. Every message
has the argument's name, what was found, and what is allowed.
"""

from __future__ import annotations

import difflib
import math
import numbers
import operator
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Shape = Sequence["int | None"]

SEED_MAX = 2**64 - 1
MOST_LISTED = 20  # names in one message
_LONGEST_WORD = 100


class BootError(Exception):
    """Base class of every exception that `boot` itself defines."""


class FormatError(BootError, ValueError):
    """A file is malformed or does not hold what its config promises."""


class UnsupportedModel(BootError, NotImplementedError):
    """A well-formed model that `boot` cannot run; the message names the config key."""


class CheckpointError(BootError, OSError):
    """A checkpoint could not be written or read."""


class ResumeMismatch(BootError, ValueError):
    """A checkpoint belongs to another teacher, config or seed; the message lists what differs."""


class TrainingDiverged(BootError, ArithmeticError):
    """Training gave NaN or Inf again after two roll-backs; the message names step and tensor."""


class TeacherError(BootError, ValueError):
    """A teacher does not behave as its config says; the message names the time or the setting."""


class ConfigError(BootError, ValueError):
    """A configuration has an unknown key or a value out of range."""


class BootWarning(UserWarning):
    """Something is odd but usable; the message says what `boot` did about it."""


# ------------------------------------------------------------------------------------- messages


def type_name(value: object) -> str:
    """Return the type of a value as an error message should show it."""
    if isinstance(value, np.ndarray):
        return f"ndarray of {value.dtype}"
    return type(value).__name__


def shown(value: object, limit: int = 80) -> str:
    """`repr` of a value, cut to `limit` characters so that no message becomes a page."""
    if isinstance(value, (str, bytes)):
        value = value[: limit + 1]  # before the copy: it may be a whole file
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def plain(word: str) -> str:
    """A name from a file as a message should show it: as `shown`, but without quotes."""
    return shown(word)[1:-1]


def nearest_hint(word: str, allowed: Iterable[str]) -> str:
    """' (did you mean "x"?)' when an allowed word is close to `word`, else an empty string."""
    if len(word) > _LONGEST_WORD:  # comparing takes the square of the length
        return ""
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def listed(names: Iterable[object], limit: int = MOST_LISTED) -> str:
    """Up to `limit` names joined by commas, with a count of those left out."""
    items = [str(name) for name in names]
    more = f", and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def _allowed_range(lo: float | None, hi: float | None, above: bool, below: bool) -> str:
    if hi is None:
        return f"{'>' if above else '>='} {lo}"
    if lo is None:
        return f"{'<' if below else '<='} {hi}"
    return f"{'>' if above else '>='} {lo} and {'<' if below else '<='} {hi}"


# -------------------------------------------------------------------------------------- scalars


def check_int(
    name: str,
    value: object,
    lo: int | None = None,
    hi: int | None = None,
    *,
    error: type[Exception] = ValueError,
) -> int:
    """Return `value` as int in [lo, hi]. TypeError for bool, float, str; `error` out of range."""
    if isinstance(value, (bool, np.bool_, np.ndarray)):
        raise TypeError(f"{name} must be an integer, got {shown(value)} ({type_name(value)})")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        found = f"{shown(value)} ({type_name(value)})"
        raise TypeError(f"{name} must be an integer, got {found}") from None
    if (lo is not None and number < lo) or (hi is not None and number > hi):
        allowed = _allowed_range(lo, hi, False, False)
        raise error(f"{name} must be an integer {allowed}, got {number}")
    return number


def check_float(
    name: str,
    value: object,
    lo: float | None = None,
    hi: float | None = None,
    *,
    above: bool = False,
    below: bool = False,
    error: type[Exception] = ValueError,
) -> float:
    """Return `value` as a finite float in [lo, hi]; `above`/`below` make that end exclusive.

    TypeError for bool, str, None and arrays; `error` for NaN, Inf and values out of range.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {shown(value)} ({type_name(value)})")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    too_low = lo is not None and (number < lo or (above and number == lo))
    too_high = hi is not None and (number > hi or (below and number == hi))
    if not math.isfinite(number) or too_low or too_high:
        limited = lo is not None or hi is not None
        allowed = f"finite and {_allowed_range(lo, hi, above, below)}" if limited else "finite"
        raise error(f"{name} must be {allowed}, got {shown(value)}")
    return number


def check_bool(name: str, value: object) -> bool:
    """Return `value` as bool; anything but a bool (0 and 1 included) is a TypeError."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {shown(value)} ({type_name(value)})")


def check_choice(
    name: str,
    value: object,
    allowed: Sequence[str],
    *,
    error: type[Exception] = ValueError,
) -> str:
    """Return `value` if it is one of the `allowed` strings, else TypeError or `error`."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {shown(value)} ({type_name(value)})")
    if value not in allowed:
        hint = nearest_hint(value, allowed)
        options = ", ".join(repr(option) for option in allowed)
        raise error(f"{name} must be one of {options}; got {shown(value)}{hint}")
    return value


def check_supported(key: str, value: object, allowed: Sequence[str]) -> str:
    """Return a model's config value if `boot` supports it, else TypeError or UnsupportedModel."""
    if not isinstance(value, str):
        raise TypeError(f"{key} must be a string, got {shown(value)} ({type_name(value)})")
    if value not in allowed:
        hint = nearest_hint(value, allowed)
        options = ", ".join(allowed)
        raise UnsupportedModel(
            f"{key}: {shown(value)} is not supported{hint}; supported: {options}"
        )
    return value


def check_seed(name: str, value: object) -> int:
    """Return a seed in 0 ... 2**64-1. TypeError for non-integers, OverflowError outside."""
    return check_int(name, value, 0, SEED_MAX, error=OverflowError)


# --------------------------------------------------------------------------------------- arrays


def as_ndarray(name: str, value: object) -> NDArray[Any]:
    """Turn an ndarray or an object with `__array__` into a plain ndarray; TypeError otherwise."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array: fill its masked values first")
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if not hasattr(value, "__array__") or isinstance(value, (type, np.generic)):
        raise TypeError(f"{name} must be an array, got {shown(value)} ({type_name(value)})")
    try:
        return np.asarray(value)
    except Exception as problem:  # a foreign __array__ may raise anything (torch: RuntimeError)
        raise TypeError(f"{name}: {type_name(value)} cannot become an array: {problem}") from None


def check_array(
    name: str, value: object, shape: Shape | None = None, *, finite: bool = True
) -> NDArray[np.float32]:
    """Return a float32, C-contiguous, aligned, native-endian array with the values of `value`.

    value: float16/32/64 ndarray, or an object with `__array__` giving one. Any strides, alignment
    and byte order are read correctly (by copy where needed); the input is never written.
    shape: expected sizes, None for "any size >= 1" in one place, or None for any shape at all.
    Raises TypeError for other kinds (integers, bool, complex, objects, text), ValueError for a
    wrong rank or size, an empty array, and (if `finite`) NaN, Inf or values beyond float32.
    """
    array = as_ndarray(name, value)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise TypeError(f"{name} must hold float16, float32 or float64, got dtype {array.dtype}")
    if shape is not None:
        _check_shape(name, array.shape, shape)
    if array.size == 0:
        raise ValueError(f"{name} must not be empty, got shape {array.shape}")
    out: NDArray[np.float32] = array
    if array.dtype != np.float32 or not (array.flags.c_contiguous and array.flags.aligned):
        with np.errstate(over="ignore"):
            out = np.require(array, np.float32, ["C_CONTIGUOUS", "ALIGNED"])
    if finite and not np.isfinite(out).all():
        bad = int(out.size - np.count_nonzero(np.isfinite(out)))
        raise ValueError(f"{name} must be finite in float32, got {bad} NaN or Inf of {out.size}")
    return out


def _check_shape(name: str, found: tuple[int, ...], wanted: Shape) -> None:
    right_rank = len(found) == len(wanted)
    if not right_rank or any(w not in (None, f) for f, w in zip(found, wanted, strict=True)):
        text = ", ".join("any" if size is None else str(size) for size in wanted)
        raise ValueError(f"{name} must have shape ({text}), got {found}")


def check_computed(name: str, array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an array that was computed; FloatingPointError, naming it, if NaN or Inf is in it."""
    finite = np.isfinite(array)
    if not finite.all():
        bad = int(array.size - np.count_nonzero(finite))
        first = tuple(int(i) for i in np.unravel_index(np.argmin(finite), array.shape))
        raise FloatingPointError(
            f"{name} has {bad} NaN or Inf among {array.size} numbers, the first is "
            f"{array[first]} at {list(first)}"
        )
    return array


def check_labels(name: str, value: object, count: int, num_classes: int) -> NDArray[np.int64]:
    """Return class labels as an int64 array of shape (count,), each in 0 ... num_classes-1.

    value: an int, a sequence of ints or an integer array of shape (), (1,) or (count,); one label
    serves the whole batch. TypeError for other kinds, ValueError for a wrong shape or range.
    """
    if isinstance(value, (bool, str, bytes)) or value is None:
        raise TypeError(f"{name} must be integers, got {shown(value)} ({type_name(value)})")
    if isinstance(value, (list, tuple, range)):
        labels = np.array([check_int(f"{name}[{i}]", v) for i, v in enumerate(value)], dtype=object)
    elif isinstance(value, (int, np.integer)):
        labels = np.array([int(value)], dtype=object)
    else:
        labels = as_ndarray(name, value)
        if labels.dtype.kind not in "iu":
            raise TypeError(f"{name} must hold integers, got dtype {labels.dtype}")
    if labels.ndim > 1 or (labels.ndim == 1 and len(labels) not in (1, count)):
        raise ValueError(f"{name} must have shape ({count},), got {labels.shape}")
    for label in (labels.min(), labels.max()) if labels.size > 1 else labels.reshape(-1):
        if not 0 <= label < num_classes:
            raise ValueError(f"{name} must be 0 ... {num_classes - 1}, got {label}")
    return _spread(labels.astype(np.int64), count)


def _spread(values: NDArray[Any], count: int) -> NDArray[Any]:
    """Return values of shape (), (1,) or (count,) as a new array of shape (count,)."""
    flat = values.reshape(-1)
    return flat if len(flat) == count else np.full(count, flat[0])


def check_timesteps(
    name: str, value: object, count: int, lo: float | None = None, hi: float | None = None
) -> NDArray[np.float64]:
    """Return timesteps as a float64 array of shape (count,), finite and within [lo, hi].

    value: a number or an array or list of numbers, of shape (), (1,) or (count,).
    """
    if isinstance(value, (bool, str, bytes)) or value is None:
        raise TypeError(f"{name} must be numbers, got {shown(value)} ({type_name(value)})")
    if isinstance(value, (list, tuple, range)):
        steps = np.array([check_float(f"{name}[{i}]", v) for i, v in enumerate(value)], np.float64)
    elif isinstance(value, numbers.Real):
        steps = np.array([check_float(name, value)], np.float64)
    else:
        steps = as_ndarray(name, value)
        if steps.dtype.kind not in "iuf":
            raise TypeError(f"{name} must hold numbers, got dtype {steps.dtype}")
    if steps.ndim > 1 or (steps.ndim == 1 and len(steps) not in (1, count)):
        raise ValueError(f"{name} must be a number or have shape ({count},), got {steps.shape}")
    for step in (steps.min(), steps.max()):
        check_float(name, float(step), lo, hi)
    return _spread(steps.astype(np.float64), count)


# ---------------------------------------------------------------------------------------- files


def check_path(name: str, value: object) -> Path:
    """Return a path given as str or os.PathLike, ~ for the home folder.

    TypeError for other kinds, ValueError if empty.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, got {shown(value)} ({type_name(value)})")
    text = os.fspath(value)
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a text path, got {shown(text)} ({type_name(text)})")
    if not text or "\0" in text:
        raise ValueError(f"{name} must be a non-empty path without NUL, got {shown(text)}")
    return Path(os.path.expanduser(text))


def check_folder(name: str, value: object) -> Path:
    """Return the path of a folder that exists: FileNotFoundError, NotADirectoryError otherwise."""
    path = check_path(name, value)
    if not path.exists():
        hint = ""
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):  # the name of a model on a hub
            hint = "; if it is a model of the Hugging Face hub, download it into a folder first"
        raise FileNotFoundError(f"{name}: there is no folder {str(path)!r}{hint}")
    if not path.is_dir():
        raise NotADirectoryError(f"{name} must be a folder, but {str(path)!r} is a file")
    return path
