"""Deterministic mutations of files: of bytes, of JSON tokens, and of the structure around them."""

from __future__ import annotations

import json
import random
import re
import struct
from typing import Any

# Values that have broken readers before: limits of integer types, odd floats, deep and wide things.
NUMBERS = [0, 1, -1, 2, 7, 8, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**62,
           2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, -(2**63), 0.5, 1e-300, 1e300, 1e308, -0.0,
           0.9999999]  # fmt: skip
TEXTS = ["", "a", "__metadata__", "../x", "/etc/passwd", "x.safetensors", "../x.safetensors", "F32",
         "BF16", "I64", "F4", "a\0b", "\u202e", "\ud800", "x" * 600, "DownBlock2D", "epsilon",
         "linear", "UNet2DModel", "DDPMScheduler", "silu", "latest", "auto"]  # fmt: skip
BYTES = [b"\0", b"\xff", b"{", b"}", b"[", b"]", b'"', b",", b":", b"NaN", b"-", b"e999",
         b"\\u0000", b"9" * 30, b"\xef\xbb\xbf", b"\xc0\xaf", b"PK\x03\x04", b"\x80\x02}",
         b" " * 9]  # fmt: skip


def _value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 5:
        return rng.choice(TEXTS)
    if kind == 5:
        return rng.choice([None, True, False])
    if depth > 3:
        return []
    if kind == 6:
        return [_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(TEXTS): _value(rng, depth + 1) for _ in range(rng.randrange(3))}


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    items: Any = ()
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, inner in items:
        found.append((value, key))
        _places(inner, found)
    return found


def structure(rng: random.Random, value: Any) -> Any:
    """Change, remove, copy or move parts of a JSON value."""
    places = _places(value, [])
    if not places:
        return _value(rng)
    container, key = rng.choice(places)
    other, other_key = rng.choice(places)
    kind = rng.randrange(6)
    if kind < 3:
        container[key] = _value(rng)
    elif kind == 3:
        del container[key]
    elif kind == 4:
        container[key] = json.loads(json.dumps(other[other_key]))
    elif isinstance(container, dict):
        container[rng.choice(TEXTS)] = container.pop(key)
    else:
        container.extend([container[key]] * rng.randrange(1, 10))
    return value


def some_bytes(rng: random.Random, data: bytes) -> bytes:
    """Overwrite, insert, delete, repeat or cut bytes."""
    text = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(text):
            text[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            text[at:at] = rng.choice(BYTES)
        elif kind == 2:
            del text[at : at + rng.randint(1, 9)]
        elif kind == 3:
            text[at:at] = text[at : at + rng.randint(1, 40)]
        elif kind == 4 and rng.random() < 0.2:
            del text[at:]
        elif at < len(text):
            text[at] = rng.randrange(256)
    return bytes(text)


def _tokens(rng: random.Random, text: bytes) -> bytes:
    """Replace one number or string of JSON text, which may stay invalid."""
    spans = [m.span() for m in re.finditer(rb'-?\d+|"[^"]*"', text)]
    if not spans:
        return text
    begin, end = rng.choice(spans)
    return text[:begin] + json.dumps(_value(rng)).encode() + text[end:]


def _json(rng: random.Random, text: bytes) -> bytes:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _tokens(rng, text)
    for _ in range(rng.randint(1, 3)):
        value = structure(rng, value)
    return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def mutate(rng: random.Random, data: bytes, framed: bool) -> bytes:
    """Return a changed file; `framed`: 8 bytes of length, JSON, data (safetensors)."""
    kind = rng.randrange(4)
    if kind == 0:
        return some_bytes(rng, data)
    if not framed:
        return _tokens(rng, data) if kind == 1 else _json(rng, data)
    length = struct.unpack("<Q", data[:8].ljust(8, b"\0"))[0]
    if length > len(data):
        return some_bytes(rng, data)
    header, rest = data[8 : 8 + length], data[8 + length :]
    header = _tokens(rng, header) if kind == 1 else _json(rng, header)
    if rng.random() < 0.1:
        rest = some_bytes(rng, rest)
    claimed = len(header) if rng.random() < 0.9 else rng.choice(NUMBERS[:18])
    return struct.pack("<Q", int(claimed) % 2**64) + header + rest
