"""Strict reading of files that strangers made: JSON, and what a file is by its first bytes.

Nothing here trusts a file: sizes are capped before reading, and a file that is something else (a
Git LFS pointer, a web page, a pickle) is named as such.
"""

from __future__ import annotations

import collections
import io
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from boot.errors import FormatError, shown

# What a parsed text takes is up to 90 bytes for each bracket, comma or colon: so these are counted
# first. Room for the index of a model of 20,000 tensors, or a table of 100,000 betas.
JSON_MAX_BYTES = 4 * 2**20
JSON_MAX_ITEMS = 400_000
JSON_MAX_DEPTH = 64

# How a file starts -> what it is. Saying so saves the user a search: "header too large" is in
# practice almost always one of these.
_IMPOSTORS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself (run `git lfs pull`)"),
    (b"<!doctype", "an HTML page, not the file itself (the download link gave a web page)"),
    (b"<html", "an HTML page, not the file itself (the download link gave a web page)"),
    (b"<?xml", "an XML page, not the file itself (the download link gave an error page)"),
    (b"pk\x03\x04", "a zip archive (PyTorch pickle?); boot never loads pickles"),
    (b"\x89hdf", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"gguf", "a GGUF file"),
)


def impostor(head: bytes) -> str | None:
    """Say what a file is by its first bytes, if it is a known wrong kind; None otherwise."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for magic, kind in _IMPOSTORS:
        if start.startswith(magic):
            return kind
    # A pickle starts with PROTO 2..5 and then an opcode; a safetensors header length of that form
    # would need the same two bytes and a third one that is an opcode, not part of a length.
    if len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5 and head[2] in b"]}(cX\x8a\x8c\x95":
        return "a pickle; boot never loads pickles"
    return None


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading.

    Raises FileNotFoundError, IsADirectoryError, PermissionError, or FormatError for a pipe, socket
    or device (opening one could block for ever).
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{str(path)!r} is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise FormatError(f"{str(path)!r} is not a regular file")
    return open(path, "rb")


def check_inside(path: Path, root: Path) -> Path:
    """Return the path of a file in the folder `root`; FormatError if a link leads out of there.

    In a Hugging Face cache the files of snapshots/REVISION are links to blobs/HASH beside
    snapshots; these are fine.
    """
    real, base = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    caches = [up.parent.parent for up in (base, *base.parents) if up.parent.name == "snapshots"]
    # `blobs` is not resolved: it could be a link itself.
    if real.is_relative_to(base) or real.parent in [cache / "blobs" for cache in caches]:
        return path
    raise FormatError(
        f"{str(path)!r} is a link that leads out of its folder, to {str(real)!r}: not followed; "
        "copy what it leads to (cp -rL copies a whole folder so)"
    )


def parse_json(
    data: bytes, where: str, *, max_items: int = JSON_MAX_ITEMS, infinite: bool = False
) -> Any:
    """Parse UTF-8 JSON strictly.

    Refuses duplicate keys (json.loads would keep the last), NaN and Infinity, numbers that
    overflow, integers beyond 64 bits, nesting beyond 64 levels and oversized input, by bytes and by
    brackets, commas and colons: FormatError starting with `where`, the name of the file. infinite:
    let Infinity and -Infinity pass.
    """
    _check_size(data, where, max_items)

    def refuse(text: str) -> NoReturn:
        raise FormatError(f"{where}: {shown(text, 40)} is not a number that JSON allows")

    def integer(text: str) -> int:
        # Length first: int() of a very long text takes quadratic time on older Pythons.
        number = int(text) if len(text) <= 20 else refuse(text)
        return number if -(2**63) <= number < 2**64 else refuse(text)

    def real(text: str) -> float:
        number = float(text)
        return number if math.isfinite(number) else refuse(text)

    def constant(text: str) -> float:
        return float(text) if infinite and text != "NaN" else refuse(text)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice = collections.Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise FormatError(f"{where}: the key {shown(twice)} appears twice")
        return result

    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=unique,
            parse_constant=constant,
            parse_int=integer,
            parse_float=real,
        )
    except UnicodeDecodeError as problem:
        raise FormatError(f"{where} is not UTF-8 text: byte {problem.start}") from None
    except json.JSONDecodeError as problem:
        message = f"{where} is not valid JSON: {problem.msg} at character {problem.pos}"
        raise FormatError(message) from None
    except RecursionError:
        raise FormatError(f"{where}: nested deeper than {JSON_MAX_DEPTH} levels") from None
    _check_depth(value, where)
    return value


def _check_size(data: bytes, where: str, max_items: int) -> None:
    """Refuse what is no JSON by its first bytes, and what would take much memory or time."""
    kind = impostor(data[:64])
    if kind:
        raise FormatError(f"{where} is {kind}")
    if len(data) > JSON_MAX_BYTES:
        raise FormatError(
            f"{where}: {len(data)} bytes of JSON, at most {JSON_MAX_BYTES} are allowed"
        )
    items = sum(map(data.count, b"[{,:"))
    if items > max_items:
        raise FormatError(
            f"{where}: {items} brackets, commas and colons in JSON, at most {max_items} are allowed"
        )


def _check_depth(value: Any, where: str) -> None:
    level = [value]
    for _ in range(JSON_MAX_DEPTH + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        if not inner:
            return
        level = inner
    raise FormatError(f"{where}: nested deeper than {JSON_MAX_DEPTH} levels")


def read_json_object(
    path: Path, *, max_items: int = JSON_MAX_ITEMS, infinite: bool = False
) -> dict[str, Any]:
    """Read a JSON file that holds one object; FormatError as in `parse_json`, or an OSError."""
    with open_regular(path) as file:
        # Of the file's size: read() takes the memory that it is asked for first.
        data = file.read(min(os.fstat(file.fileno()).st_size, JSON_MAX_BYTES) + 1)
    value = parse_json(data, str(path), max_items=max_items, infinite=infinite)
    if not isinstance(value, dict):
        raise FormatError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def to_json(value: Any) -> str:
    """Write a value as indented JSON with sorted keys and a final newline, as diffusers does."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
