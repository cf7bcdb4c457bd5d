"""How right `distiller.plan()` is: predicted against measured seconds of a step, and peak bytes.

    python benchmarks/bench_plan.py [--cases digits fashion cifar10] [--json FILE]

Each case runs in a fresh process: plan, then steps, then its own peak. Predicted / measured
should lie within 0.9 ... 1.1 for both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import HERE, arguments, environment, peak_rss_bytes, save
from networks import CASES, write_teacher


def resident_bytes() -> int:
    """Resident size of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def worker(name: str, folder: str, steps: int) -> None:
    """Plan and run one case in this process; print one JSON object."""
    import boot
    from boot.pairs import Pairs

    case = CASES[name]
    with tempfile.TemporaryDirectory() as small:  # libraries, threads and heap first
        tiny = write_teacher(CASES["digits"], Path(small) / "digits")
        boot.Distiller(tiny, train_batch_size=1).step()
    before = resident_bytes()
    # The critic from the first step on, so every step is the same; and no copy to roll back to,
    # which would be taken long after the last one.
    options = {"train_batch_size": case.batch, "max_train_steps": 10**6, "correction_start": 0.0}
    options["checkpointing_steps"] = 0
    distiller = boot.Distiller(folder, **options)
    planned = distiller.plan()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        distiller.step()
        seconds.append(time.perf_counter() - start)
    for _ in range(2):  # what is measured now and then; weights are packed for the second
        Pairs(distiller).errors(distiller)
    found = {
        "predicted_seconds": planned.seconds_per_step,
        "measured_seconds": statistics.median(seconds),
        "predicted_bytes": planned.peak_bytes,
        "measured_bytes": peak_rss_bytes() - before,
        "plan": planned.to_dict(),
    }
    print(json.dumps(found))


def main() -> None:
    """Run the cases and print the ratios."""
    parser: argparse.ArgumentParser = arguments("predicted against measured", rounds=1)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--worker", nargs=2, metavar=("CASE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker, options.steps)
        return
    results: dict[str, Any] = {}
    for name in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            teacher = write_teacher(CASES[name], Path(folder) / name)
            command = [sys.executable, __file__, "--worker", name, str(teacher)]
            command += ["--steps", str(options.steps)]
            done = subprocess.run(
                command,
                check=True,
                cwd=HERE,
                env=environment({"threads": options.threads}),
                capture_output=True,
                text=True,
            )
        found = json.loads(done.stdout.splitlines()[-1])
        for what, unit, scale in (("seconds", "ms", 1e3), ("bytes", "MiB", 2**-20)):
            predicted, measured = found[f"predicted_{what}"], found[f"measured_{what}"]
            print(
                f"{name:8s} {what:8s} predicted {scale * predicted:9.1f} {unit}   measured "
                f"{scale * measured:9.1f} {unit}   ratio {predicted / measured:.3f}",
                flush=True,
            )
        results[name] = found
    save(options, {"benchmark": "plan", "cases": results})


if __name__ == "__main__":
    main()
