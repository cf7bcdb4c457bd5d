"""Create, step, save, load, destroy, again and again: how much resident memory grows.

`python tests/soak/cycles.py --cycles 10000` prints a line of JSON; status 1 beyond --limit-mib.
A cycle makes a teacher and a Distiller, does one training step, saves the student, loads it, draws
an image, runs into an error on purpose, and lets everything go. Files go to memory (/dev/shm) where
there is one: three quarters of a cycle would be waiting for the disk to sync.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models import PLAIN, make, make_teacher, noise, pin_like

from boot.student import Student

WARM_UP = 100
FILES = Path("/dev/shm")


def resident_bytes() -> int:
    """Resident memory of this process, without what its allocator has free."""
    with contextlib.suppress(OSError, AttributeError):  # glibc's; the slack moves by 2 MiB
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def cycle(folder: Path, pinned: object) -> None:
    """Everything that a short run does."""
    teacher = make_teacher(PLAIN)
    distiller = make(PLAIN, teacher, train_batch_size=2, max_train_steps=4)
    pin_like(distiller, pinned)
    distiller.step()
    distiller.student.save_pretrained(folder, overwrite=True)
    student = Student.from_pretrained(folder)
    student.sample(1)
    with contextlib.suppress(ValueError):
        student.sample(noise=noise(1, size=3))
    with contextlib.suppress(RuntimeError):
        teacher.model.core.backward(noise(1))


def measure(cycles: int) -> dict[str, float]:
    """Run warm-up cycles, then `cycles` more; growth in MiB and seconds."""
    pinned = make(PLAIN, train_batch_size=2, max_train_steps=4)
    pinned.step()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=FILES if FILES.is_dir() else None) as folder:
        for _ in range(WARM_UP):
            cycle(Path(folder) / "s", pinned)
        gc.collect()
        before = resident_bytes()
        tracemalloc.start()
        cycle(Path(folder) / "s", pinned)
        gc.collect()
        traced = tracemalloc.get_traced_memory()[0]
        for _ in range(min(cycles, 20)):
            cycle(Path(folder) / "s", pinned)
        gc.collect()
        traced = tracemalloc.get_traced_memory()[0] - traced
        tracemalloc.stop()
        before = resident_bytes()
        for _ in range(cycles):
            cycle(Path(folder) / "s", pinned)
        gc.collect()
    return {
        "cycles": cycles,
        "resident_growth_mib": round((resident_bytes() - before) / 2**20, 3),
        "python_growth_kib": round(traced / 1024, 1),
        "seconds": round(time.monotonic() - start, 1),
    }


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=10_000)
    parser.add_argument("--limit-mib", type=float, default=1.0)
    options = parser.parse_args()
    figures = measure(options.cycles)
    print(json.dumps(figures))
    return int(figures["resident_growth_mib"] > options.limit_mib)


if __name__ == "__main__":
    sys.exit(main())
