"""Compares two result files of the same benchmark: what became slower or faster, by how much.

    python benchmarks/compare.py OLD.json NEW.json [--worse 0.05]

Only ratios are compared (ours against a peer in the same run), because milliseconds of two machines
or two days do not compare. Exit code 1 if a ratio grew by more than --worse.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def ratios(results: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """(name, ours / peer) of every comparison in a file; lower is better for us."""
    for name, case in results["cases"].items():
        peaks = case.get("peak_rss_bytes", {})
        for side, peak in peaks.items():
            if side != "boot":
                yield f"{name}: memory, {side}", peaks["boot"] / peak
        for side, figures in case.get("sides", {}).items():
            if side != "boot":
                yield f"{name}: time, {side}", figures["ours_is_of_this"]


def main() -> None:
    """Print one line per ratio that both files hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--worse", type=float, default=0.05, help="tolerated relative growth")
    options = parser.parse_args()
    old, new = (json.loads(path.read_text()) for path in (options.old, options.new))
    if old["benchmark"] != new["benchmark"]:
        sys.exit(f"{options.old} is of {old['benchmark']!r}, {options.new} of {new['benchmark']!r}")
    before, worse = dict(ratios(old)), []
    for name, ratio in ratios(new):
        if name not in before:
            continue
        change = ratio / before[name] - 1.0
        print(f"{name:44s} {before[name]:.3f} -> {ratio:.3f}   {100 * change:+.1f} %")
        if change > options.worse:
            worse.append(name)
    if worse:
        sys.exit(f"worse by more than {100 * options.worse:.0f} %: {', '.join(worse)}")


if __name__ == "__main__":
    main()
