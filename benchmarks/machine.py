"""What this machine is, and how fast its multiply-adds are at this moment."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def cpu_flags() -> set[str]:
    """Feature names of the first processor, empty where the system does not say."""
    return set(_cpuinfo("flags").split())


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    values = [line.split(":", 1)[1].strip() for line in lines if line.startswith(key)]
    return values[0] if values else ""


def describe(threads: int) -> dict[str, Any]:
    """Everything that a figure needs beside it to mean something."""
    return {
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores_available": len(os.sched_getaffinity(0)),
        "threads": threads,
        "load_average": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


class Probe:
    """Measures the fp32 FMA peak now; a neighbour on the same cores shows as a lower figure."""

    def __init__(self, threads: int, max_isa: str | None = None) -> None:
        """Compile the probe; without a C compiler it measures nothing."""
        self.threads = threads
        self._folder = tempfile.TemporaryDirectory()
        self._program: Path | None = None
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            return
        wide = "avx512f" in cpu_flags() and max_isa != "avx2"
        isa = ["-mavx512f", "-mprefer-vector-width=512"] if wide else ["-mavx2", "-mfma"]
        program = Path(self._folder.name) / "fma_peak"
        command = [compiler, "-O2", "-fopenmp", "-ffp-contract=fast", *isa]
        command += [f"-DWIDTH={16 if wide else 8}", str(HERE / "fma_peak.c"), "-o", str(program)]
        if subprocess.run(command, capture_output=True).returncode == 0:
            self._program = program

    def gflops(self) -> float | None:
        """GFLOP/s of all threads together; None where it cannot be measured."""
        if self._program is None:
            return None
        command = [str(self._program), str(self.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout)
