"""The price of `thread_independent`: the same bits for any number of threads, against the default.

    python benchmarks/bench_determinism.py [--cases cifar10 digits fashion] [--json FILE]

Two workers, alternating: `Distiller.step()` with and without the setting.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from harness import alternate, arguments, base_job, compare, save, start
from machine import Probe
from networks import CASES, write_teacher


def main() -> None:
    """Run the cases."""
    parser = arguments("the price of thread_independent", rounds=5)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--batch", type=int, help="instead of the case's own")
    parser.add_argument("--repeats", type=int, default=3, help="steps in a block")
    options = parser.parse_args()
    probe = Probe(options.threads, options.max_isa)
    results: dict[str, Any] = {}
    for name in options.cases:
        case = CASES[name]
        batch = options.batch or case.batch
        print(f"{name}, batch {batch}, {options.threads} threads", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            job = {
                **base_job(options),
                "task": "step",
                "folder": str(write_teacher(case, Path(folder) / name)),
                "batch": batch,
                "guidance_scale": case.guidance_scale,
                "t_max": case.t_max,
                "ema": False,
            }
            fixed = {**job, "settings": {"thread_independent": True}}
            sides = {"boot": ("ours.py", fixed), "default": ("ours.py", job)}
            workers = start(sides)
            times, notes = alternate(workers, options.rounds, options.repeats, probe)
            for worker in workers:
                worker.close()
        sides_found = compare(times, "boot", batch)
        price = sides_found["default"]["ours_is_of_this"] - 1
        print(f"  thread_independent costs {100 * price:+.1f} %")
        results[name] = {"batch": batch, "sides": sides_found, **notes}
    save(options, {"benchmark": "determinism", "cases": results})


if __name__ == "__main__":
    main()
