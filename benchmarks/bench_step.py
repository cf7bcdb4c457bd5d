"""The BOOT training step: `Distiller.step()` against the same step in PyTorch.

    python benchmarks/bench_step.py [--cases cifar10 digits fashion] [--low-memory] [--json FILE]

Both sides: teacher forward, student forward, student forward and backward, Euler target, clipping
by global norm, AdamW (fused in PyTorch); no boundary term; with guidance where there are classes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from harness import Job, alternate, arguments, base_job, compare, save, start
from machine import Probe
from networks import CASES, Case, write_teacher

LOW_MEMORY = {
    "offload_teacher": True,
    "moments_dtype": "bfloat16",
    "gradient_checkpointing": True,
}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Flags for settings of our own side."""
    parser.add_argument(
        "--low-memory", action="store_true", help="our side with every setting that saves memory"
    )
    parser.add_argument(
        "--settings", nargs="*", default=[], metavar="KEY=VALUE", help="others, values as JSON"
    )


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of DistillConfig that such flags ask for."""
    settings: dict[str, Any] = dict(LOW_MEMORY) if options.low_memory else {}
    for text in options.settings:
        name, _, value = text.partition("=")
        try:
            settings[name] = json.loads(value)
        except ValueError:  # a word
            settings[name] = value
    return settings


def sides_of(case: Case, folder: Path, job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """The workers of one case."""
    job = {
        **job,
        "task": "step",
        "folder": str(folder),
        "batch": options.batch or case.batch,
        "guidance_scale": case.guidance_scale,
        "t_max": case.t_max,
        "ema": options.ema,
    }
    settings = settings_of(options)
    sides: dict[str, Any] = {"boot": ("ours.py", {**job, "settings": settings})}
    if settings:  # what they cost, or save, in the same hour
        sides["boot by default"] = ("ours.py", job)
    for precision in options.precisions:
        peer = {**job, "peer": "torch", "precision": precision, "layout": options.layout}
        sides[f"torch {precision}"] = ("peers.py", peer)
    return sides


def main() -> None:
    """Run the cases."""
    parser = arguments("BOOT training step, ours against PyTorch", rounds=5)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument(
        "--precisions", nargs="*", choices=["fp32", "bf16"], default=["fp32", "bf16"]
    )
    parser.add_argument("--layout", choices=["contiguous_format", "channels_last"])
    parser.add_argument("--batch", type=int, help="instead of the case's own")
    add_settings(parser)
    parser.add_argument("--repeats", type=int, default=3, help="steps in a block")
    parser.add_argument("--ema", action="store_true", help="average the weights, on both sides")
    options = parser.parse_args()
    probe, results = Probe(options.threads, options.max_isa), {}
    for name in options.cases:
        case = CASES[name]
        batch = options.batch or case.batch
        print(f"{name}, batch {batch}, {options.threads} threads", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            teacher = write_teacher(case, Path(folder) / name)
            workers = start(sides_of(case, teacher, base_job(options), options))
            times, notes = alternate(workers, options.rounds, options.repeats, probe)
            info = {worker.name: worker.info for worker in workers}
            for worker in workers:
                worker.close()
        sides = compare(times, "boot", batch)
        results[name] = {"batch": batch, "sides": sides, "workers": info, **notes}
    about = {"benchmark": "step", "ema": options.ema, "settings": settings_of(options)}
    save(options, {**about, "cases": results})


if __name__ == "__main__":
    main()
