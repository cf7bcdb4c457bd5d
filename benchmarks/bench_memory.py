"""Peak resident memory of training: fresh processes of `boot` and of PyTorch, a few steps each.

python benchmarks/bench_memory.py [--cases cifar10] [--low-memory] [--json FILE]
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from bench_step import add_settings, settings_of, sides_of
from harness import Unavailable, Worker, arguments, base_job, save
from networks import CASES, write_teacher


def main() -> None:
    """Measure one side after the other."""
    parser = arguments("peak resident memory of the BOOT training step", rounds=1)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["cifar10"])
    parser.add_argument("--precisions", nargs="*", choices=["fp32", "bf16"], default=["fp32"])
    parser.add_argument("--batch", type=int, help="instead of the case's own")
    add_settings(parser)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--ema", action="store_true", help="average the weights, on both sides")
    parser.add_argument("--layout", choices=["contiguous_format", "channels_last"])
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for name in options.cases:
        print(f"{name}, {options.steps} steps", flush=True)
        peaks: dict[str, int] = {}
        with tempfile.TemporaryDirectory() as folder:
            teacher = write_teacher(CASES[name], Path(folder) / name)
            for side, (script, job) in sides_of(
                CASES[name], teacher, base_job(options), options
            ).items():
                # One layout only: trying both would leave the other one's memory behind.
                job["layout"] = job.get("layout") or "channels_last"
                try:
                    worker = Worker(side, script, job)
                except Unavailable as reason:
                    print(f"  skipped {reason}")
                    continue
                worker.run(options.steps)
                peaks[side] = worker.peak_rss_bytes()
                worker.close()
        for side, peak in peaks.items():
            ratio = peaks["boot"] / peak
            print(f"  {side:24s} {peak / 2**20:9.1f} MiB   ours/this {ratio:.3f}", flush=True)
        results[name] = {"peak_rss_bytes": peaks, "steps": options.steps}
    about = {"benchmark": "memory", "ema": options.ema, "settings": settings_of(options)}
    save(options, {**about, "cases": results})


if __name__ == "__main__":
    main()
