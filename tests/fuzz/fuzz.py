"""Fuzzes the file readers: `python tests/fuzz/fuzz.py --cases 1000000` prints figures as JSON.

Needs nothing but boot. The same seed gives the same cases. A case fails if a reader raises a class
that it does not document, takes more than a second of CPU time, or needs memory that the file does
not pay for; it is then written to --finds, and the run ends with status 1.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from mutate import mutate
from targets import TARGETS, run

CORPUS = Path(__file__).resolve().parent / "corpus"
HANG_S = 1.0
SLACK_BYTES = 64 * 2**20  # beyond twice the file: the interpreter's own ups and downs
BYTES_MAX = 1 << 16  # mutants larger than this are not kept growing


def corpus(name: str) -> list[bytes]:
    """The committed files of one target, in a fixed order."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def stop(signum: int, frame: Any) -> None:
    """The timer ran out inside a case."""
    raise TimeoutError(f"more than {HANG_S} s of CPU time")


def limited(name: str, data: bytes) -> tuple[str, float]:
    """Run one case under the timer; its outcome and seconds."""
    start = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, HANG_S)
    try:
        return run(name, data), time.process_time() - start
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def address_space() -> int:
    """Bytes of virtual memory in use now."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def fuzz(name: str, cases: int, seed: int, finds: Path | None) -> dict[str, Any]:
    """Run mutants of one target's corpus; counts of outcomes and the worst figures."""
    rng = random.Random(f"{name} {seed}")
    pool = corpus(name)
    outcomes: Counter[str] = Counter()
    slowest, failures, largest = 0.0, 0, 0
    signal.signal(signal.SIGPROF, stop)
    for i in range(cases):
        data = mutate(rng, rng.choice(pool), name == "safetensors")
        try:
            outcome, seconds = limited(name, data)
        except BaseException as problem:
            if isinstance(problem, KeyboardInterrupt):
                raise
            failures += 1
            print(f"{name} case {i}: {problem!r}: {data[:300]!r}", file=sys.stderr)
            if finds:
                finds.mkdir(parents=True, exist_ok=True)
                (finds / f"{name}-{seed}-{i}").write_bytes(data)
            continue
        outcomes[outcome] += 1
        slowest, largest = max(slowest, seconds), max(largest, len(data))
        if outcome == "accepted" and len(data) < BYTES_MAX and rng.random() < 0.02:
            pool[rng.randrange(len(pool))] = data  # mutants of mutants reach further
        if rng.random() < 0.002:
            pool = corpus(name)
    return {
        "target": name,
        "cases": cases,
        "failures": failures,
        "outcomes": dict(outcomes),
        "slowest_s": round(slowest, 4),
        "largest_file": largest,
    }


def main(arguments: list[str] | None = None) -> int:
    """Fuzz every target (or one) within a memory limit; 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000, help="cases over all targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=sorted(TARGETS))
    parser.add_argument("--finds", type=Path, help="folder for files that failed")
    options = parser.parse_args(arguments)
    names = [options.target] if options.target else list(TARGETS)
    limited("json", b"{}")
    limit = address_space() + 2 * BYTES_MAX * 2 + SLACK_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    failures = 0
    for name in names:
        report = fuzz(name, options.cases // len(names), options.seed, options.finds)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(json.dumps({**report, "resident_growth_mib": round(grown, 1)}), flush=True)
        failures += report["failures"]
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
