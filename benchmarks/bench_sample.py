"""One-step sampling: `Student.sample` against PyTorch, ONNX Runtime and OpenVINO.

    python benchmarks/bench_sample.py [--cases cifar10 digits fashion] [--json FILE]

Every side gets the same network, draws nothing, and returns the clipped image of one network call.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from harness import Job, alternate, arguments, base_job, compare, save, start
from machine import Probe
from networks import CASES, Case, write_teacher

PEERS = {
    "torch fp32": {"peer": "torch", "precision": "fp32"},
    "torch bf16": {"peer": "torch", "precision": "bf16"},
    "onnxruntime fp32": {"peer": "onnxruntime", "precision": "fp32"},
    "openvino fp32": {"peer": "openvino", "precision": "fp32"},
    "openvino bf16": {"peer": "openvino", "precision": "bf16"},
}


def sides_of(case: Case, folder: Path, batch: int, job: Job, peers: list[str]) -> dict[str, Any]:
    """The workers of one case and batch size."""
    job = {
        **job,
        "task": "sample",
        "folder": str(folder),
        "batch": batch,
        "guidance_scale": case.guidance_scale,
        "t_max": case.t_max,
    }
    sides: dict[str, Any] = {"boot": ("ours.py", job)}
    return sides | {name: ("peers.py", {**job, **PEERS[name]}) for name in peers}


def run_case(name: str, batch: int, options: argparse.Namespace, probe: Probe) -> dict[str, Any]:
    """One network at one batch size."""
    print(f"{name}, batch {batch}, {options.threads} threads", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        teacher = write_teacher(CASES[name], Path(folder) / name)
        job = base_job(options)
        workers = start(sides_of(CASES[name], teacher, batch, job, options.peers))
        # Blocks of about half a second of the slowest side, so that fast sides are timed well.
        slowest = max(worker.run(1)[0] for worker in workers)
        repeats = max(3, min(200, int(options.block_seconds / slowest)))
        times, notes = alternate(workers, options.rounds, repeats, probe)
        info = {worker.name: worker.info for worker in workers}
        for worker in workers:
            worker.close()
    sides = compare(times, "boot", batch)
    best = min((n for n in sides if n != "boot" and "fp32" in n), default=None, key=best_of(sides))
    if best:
        print(f"  best fp32 peer: {best}, ours/best {sides[best]['ours_is_of_this']:.3f}")
    return {"batch": batch, "sides": sides, "best_fp32_peer": best, "workers": info, **notes}


def best_of(sides: dict[str, Any]) -> Any:
    """Order sides by their median."""
    return lambda name: sides[name]["median_ms"]


def main() -> None:
    """Run the cases."""
    parser = arguments("one-step sampling, ours against the runtimes", rounds=7)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--batches", nargs="+", type=int, help="instead of the case's own")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--block-seconds", type=float, default=0.5)
    options = parser.parse_args()
    probe, results = Probe(options.threads, options.max_isa), {}
    for name in options.cases:
        for batch in options.batches or CASES[name].sample_batches:
            results[f"{name} batch {batch}"] = run_case(name, batch, options, probe)
    save(options, {"benchmark": "sample", "cases": results})


if __name__ == "__main__":
    main()
