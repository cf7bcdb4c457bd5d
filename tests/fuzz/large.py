"""Files as large as the limits allow, made to cost the most: `python tests/fuzz/large.py`.

Each goes to its reader with a second of CPU time and twice its size plus 64 MiB of memory. Prints
the slowest, and the refusals, as JSON; ends with status 1 if a file takes more.
"""

from __future__ import annotations

import json
import resource
import signal
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fuzz import SLACK_BYTES, address_space, corpus, limited, stop
from targets import TARGETS, run

from boot.manifest import MOST_ITEMS
from boot.reading import JSON_MAX_BYTES, JSON_MAX_ITEMS
from boot.safetensors_io import MAX_TENSORS

BYTES = JSON_MAX_BYTES - 20_000  # room for what is around the large value


def values(items: int) -> dict[str, str]:
    """JSON that takes much memory or time for its size: few bytes a list, a key, a character."""
    items -= 2000
    return {
        "lists": "[" + "[]," * (items // 2 - 1) + "[]]",
        "nested lists": "[" + ("[" * 60 + "]" * 60 + ",") * (items // 62) + "0]",
        "objects": "[" + '{"a":0},' * (items // 3 - 1) + "0]",
        "keys": "{" + ",".join(f'"{i:x}":0' for i in range(items // 2)) + "}",
        "long keys": "{" + ",".join(f'"{i:x}{"y" * 9000}":0' for i in range(BYTES // 9010)) + "}",
        "fractions": "[" + "1e5," * (items - 1) + "0]",
        "whole numbers": "[" + "1000000," * (min(items, BYTES // 8) - 1) + "0]",
        "text": '"' + "ab" * (BYTES // 2) + '"',
        "wide text": '"\U0001f600' + "a" * (BYTES - 9) + '"',
        "unprintable text": '"' + "\U000e0001" * (BYTES // 4) + '"',
        "escapes": '"' + "\\u0001" * (BYTES // 6) + '"',
        "texts": "[" + ",".join(['"ab"'] * items) + "]",
        "huge": "[" + "[]," * (BYTES // 3) + "[]]",
        "many huge": "[" + "0," * 8_000_000 + "0]",
    }


def framed(header: str) -> bytes:
    """A safetensors file of this header and no data."""
    data = header.encode()
    return struct.pack("<Q", len(data)) + data


def headers() -> dict[str, bytes]:
    """Large safetensors headers: any JSON, and as many tensors and notes as there may be."""
    entry = '{"dtype":"F32","shape":[0,1,1,1,1,1,1,1],"data_offsets":[0,0]}'
    files = {kind: framed(f'{{"a":{value}}}') for kind, value in values(JSON_MAX_ITEMS).items()}
    for what, count in (("many", MAX_TENSORS // 2), ("too many", MAX_TENSORS + 1)):
        names = (f'"{i}{"n" * 60}":{entry}' for i in range(count))
        files[f"{what} tensors"] = framed("{" + ",".join(names) + "}")
    notes = ",".join(f'"{i}":""' for i in range(JSON_MAX_ITEMS // 2 - 9))
    return {**files, "metadata": framed(f'{{"__metadata__":{{{notes}}}}}')}


def whole(name: str) -> bytes:
    """The largest file of the corpus that is accepted, or the first one where none is."""
    files = corpus(name)
    good = [data for data in files if run(name, data) == "accepted"]
    return max(good, key=len, default=files[0])


def cases(name: str) -> dict[str, bytes]:
    """Large files for a target: a value in place of one of the first keys, and of an unknown one.

    Their rest is as in the corpus, so that what follows is reached.
    """
    if name == "safetensors":
        return headers()
    if name in ("statistics", "reference"):
        return {}  # no JSON
    items = MOST_ITEMS if name == "manifest" else JSON_MAX_ITEMS
    large = values(items)
    if name == "json":
        return {kind: value.encode() for kind, value in large.items()}
    base = json.loads(whole(name))
    files = {}
    for key in ("zz", *list(base)[:12]):
        for kind in large if key == "zz" else ("lists", "unprintable text"):
            rest = json.dumps({k: v for k, v in base.items() if k != key})
            text = f'{rest[:-1]}{", " if len(rest) > 2 else ""}"{key}": {large[kind]}}}'
            files[f"{kind} in {key}"] = text.encode()
    texts = ",".join(f'"{i:x}":0' for i in range(items // 2 - 500))
    files["unknown keys"] = f"{json.dumps(base)[:-1]}, {texts}}}".encode()
    return files


def main() -> int:
    """Try every case of every target; 1 if anything was found."""
    signal.signal(signal.SIGPROF, stop)
    limited("json", b"{}")
    limited("manifest", corpus("manifest")[0])  # writes the checkpoint first
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    failures = 0
    for name in TARGETS:
        outcomes: Counter[str] = Counter()
        slowest: tuple[float, str] = (0.0, "")
        for kind, data in cases(name).items():
            limit = address_space() + 2 * len(data) + SLACK_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (limit, most))
            try:
                outcome, seconds = limited(name, data)
            except Exception as problem:
                failures += 1
                outcome, seconds = f"find: {problem!r:.200}", 0.0
                print(f"{name}, {kind}, {len(data)} bytes: {problem!r:.300}", file=sys.stderr)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (most, most))
            outcomes[outcome] += 1
            slowest = max(slowest, (round(seconds, 3), kind))
        report: dict[str, Any] = {"target": name, "outcomes": outcomes, "slowest": slowest}
        print(json.dumps(report), flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
