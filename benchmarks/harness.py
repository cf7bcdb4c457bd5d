"""Runs the sides of a comparison as worker processes, in alternating blocks, and sums up.

A worker prepares itself once (weights, warm-up, choice of its best setting), then does a block of
calls whenever the driver says so. Two OpenMP runtimes never share a process, and a disturbance of
the machine hits all sides of a round. Messages are JSON lines on the worker's stdin and stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import Probe, describe

HERE = Path(__file__).resolve().parent

Job = dict[str, Any]
Call = Callable[[], object]

# Rounds whose probe is this much below the best one are left out: somebody else was computing.
QUIET = 0.97


class Unavailable(Exception):
    """A side that cannot run here (package missing, export impossible)."""


# -------------------------------------------------------------------------------- worker's side


def peak_rss_bytes() -> int:
    """The largest resident size of this process so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise Unavailable("the system does not report VmHWM")


def serve(prepare: Callable[[Job], tuple[Call, dict[str, Any]]]) -> None:
    """Be a worker: `prepare(job)` returns the call to be timed, and facts to report."""
    job = json.loads(sys.argv[1])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not get between the messages

    def reply(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    if job.get("cpus"):
        os.sched_setaffinity(0, job["cpus"])
    try:
        start = time.perf_counter()
        call, info = prepare(job)
        reply({"ready": {**info, "prepare_seconds": time.perf_counter() - start}})
    except (Unavailable, ImportError) as problem:
        reply({"unavailable": str(problem)})
        return
    for line in sys.stdin:
        order = json.loads(line)
        if "run" in order:
            seconds = []
            for _ in range(order["run"]):
                start = time.perf_counter()
                call()
                seconds.append(time.perf_counter() - start)
            reply({"seconds": seconds})
        elif "memory" in order:
            reply({"peak_rss_bytes": peak_rss_bytes()})
        else:
            return


# -------------------------------------------------------------------------------- driver's side


class Worker:
    """One side of a comparison."""

    def __init__(self, name: str, script: str, job: Job) -> None:
        """Start the process and wait until it is prepared; Unavailable if it cannot be."""
        self.name = name
        command = [sys.executable, str(HERE / script), json.dumps(job)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("BENCH_VERBOSE") else subprocess.DEVNULL,
            text=True,
            env=environment(job),
        )
        answer = self._read()
        if "unavailable" in answer:
            raise Unavailable(f"{name}: {answer['unavailable']}")
        self.info: dict[str, Any] = answer["ready"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise Unavailable(f"{self.name}: the worker ended with code {code} (BENCH_VERBOSE=1)")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._read()

    def run(self, repeats: int) -> list[float]:
        """Seconds of each of `repeats` calls."""
        seconds: list[float] = self._ask({"run": repeats})["seconds"]
        return seconds

    def warm_up(self, limit: int = 10) -> None:
        """Call until two calls in a row agree within 5 percent."""
        before = self.run(1)[0]
        for _ in range(limit):
            now = self.run(1)[0]
            if abs(now - before) <= 0.05 * min(now, before):
                return
            before = now

    def peak_rss_bytes(self) -> int:
        """The largest resident size of the worker so far."""
        return int(self._ask({"memory": True})["peak_rss_bytes"])

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            assert self._process.stdin
            self._process.stdin.close()
            self._process.wait(timeout=60)


def environment(job: Job) -> dict[str, str]:
    """The same threads for every side, and no inherited pinning."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "KMP_", "OMP_"))}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        kept[name] = str(job["threads"])
    kept["HF_HUB_OFFLINE"] = "1"
    kept["BOOT_KERNEL_CACHE"] = "off"  # every run chooses its kernels for itself
    if job.get("max_isa") == "avx2":  # the same cap for everybody
        kept |= {"BOOT_MAX_ISA": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
        kept |= {"DNNL_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    return kept


def start(sides: dict[str, tuple[str, Job]]) -> list[Worker]:
    """Start and warm up every side that can run; says which cannot, and why."""
    workers = []
    for name, (script, job) in sides.items():
        try:
            workers.append(Worker(name, script, job))
        except Unavailable as reason:
            print(f"  skipped {reason}", flush=True)
    for worker in workers:
        worker.warm_up()
    return workers


def alternate(
    workers: list[Worker], rounds: int, repeats: int, probe: Probe
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Blocks A B C A B C ...; returns the seconds of the quiet rounds, and what was left out."""
    blocks: list[dict[str, list[float]]] = []
    peaks: list[float | None] = []
    for _ in range(rounds):
        peaks.append(probe.gflops())
        blocks.append({worker.name: worker.run(repeats) for worker in workers})
    known = [peak for peak in peaks if peak is not None]
    floor = QUIET * max(known, default=0.0)
    kept = [b for b, peak in zip(blocks, peaks, strict=True) if peak is None or peak >= floor]
    times = {w.name: [s for block in kept for s in block[w.name]] for w in workers}
    notes = {"probe_gflops": peaks, "rounds": rounds, "rounds_left_out": rounds - len(kept)}
    return times, notes


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, minimum and spread in milliseconds."""
    ordered = sorted(1e3 * s for s in seconds)
    return {
        "median_ms": statistics.median(ordered),
        "min_ms": ordered[0],
        "max_ms": ordered[-1],
        "calls": len(ordered),
    }


def compare(times: dict[str, list[float]], ours: str, images: int) -> dict[str, Any]:
    """Print one line per side, with our time as a part of that side's; return the figures."""
    sides = {name: summary(seconds) for name, seconds in times.items()}
    if ours not in sides:
        raise SystemExit(f"the side {ours!r} did not run")
    mine = sides[ours]
    for name, side in sides.items():
        side["images_per_second"] = images / side["median_ms"] * 1e3
        side["ours_is_of_this"] = mine["median_ms"] / side["median_ms"]
        side["ours_is_of_this_by_minimum"] = mine["min_ms"] / side["min_ms"]
        print(
            f"  {name:24s} median {side['median_ms']:9.2f} ms   min {side['min_ms']:9.2f} ms   "
            f"{side['images_per_second']:8.1f} images/s   ours/this {side['ours_is_of_this']:.3f} "
            f"(by minimum {side['ours_is_of_this_by_minimum']:.3f})",
            flush=True,
        )
    return sides


def arguments(description: str, rounds: int) -> argparse.ArgumentParser:
    """The options that every comparison has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="alternating rounds, >= 5 counts"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--max-isa", choices=["avx2"], help="cap the instruction set of all sides")
    return parser


def base_job(options: argparse.Namespace) -> Job:
    """What every worker must know."""
    cpus = sorted(os.sched_getaffinity(0))[: options.threads]
    return {"threads": options.threads, "cpus": cpus, "max_isa": options.max_isa}


def save(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Write figures, machine and date as JSON."""
    whole = {"machine": describe(options.threads), "max_isa": options.max_isa, **results}
    if options.json:
        options.json.write_text(json.dumps(whole, indent=2) + "\n")
        print(f"wrote {options.json}")
