"""From the start of a process to its first image: a student on disk, warm caches, nothing loaded.

    python benchmarks/start_to_image.py [--case cifar10] [--images 1] [--limit 0.4] [--json FILE]

Measures fresh processes, `boot sample` and `python -c`, and says where the time of the second goes.
Kernels are chosen by timing once per machine (see boot/kernel_cache.py); the first run is shown on
its own.
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

from harness import HERE, environment, save
from networks import CASES, write_teacher

CODE = """
import time; start = time.perf_counter()
import json, sys
import numpy; numpy_at = time.perf_counter()
from boot import _core; core = time.perf_counter()
from boot.student import Student; package = time.perf_counter()
student = Student.from_pretrained(sys.argv[1]); loaded = time.perf_counter()
student.sample(int(sys.argv[2])); first = time.perf_counter()
times = [start, numpy_at, core, package, loaded, first]
names = ["numpy", "core and oneDNN", "package", "read weights", "first image"]
print(json.dumps(dict(zip(names, (b - a for a, b in zip(times, times[1:]))))))
"""


def write_student(case: str, folder: Path) -> str:
    """Write a student with random weights."""
    import boot
    from boot.student import Student
    from boot.student_info import StudentInfo

    teacher = boot.Teacher.from_pretrained(write_teacher(CASES[case], folder / "teacher"))
    student = Student.from_teacher(teacher, StudentInfo(t_max=CASES[case].t_max, t_min=0.001))
    student.save_pretrained(folder / "student")
    return str(folder / "student")


def timed(command: list[str], env: dict[str, str]) -> tuple[float, str]:
    """Wall seconds of a process, and what it printed."""
    start = time.perf_counter()
    done = subprocess.run(command, check=True, env=env, capture_output=True, text=True, cwd=HERE)
    return time.perf_counter() - start, done.stdout


def main() -> None:
    """Print the figures; exit code 1 beyond the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=list(CASES), default="cifar10")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=0.4, help="seconds allowed, by the median")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        student = write_student(options.case, Path(folder))
        env = environment({"threads": options.threads})
        env["BOOT_KERNEL_CACHE"] = str(Path(folder) / "kernels.json")
        # Bytecode as an installed package has it, also where this checkout may not be written to.
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        env["PYTHONPYCACHEPREFIX"] = str(Path(folder) / "bytecode")
        count = str(options.images)
        image = str(Path(folder) / "image.png")
        sample = ["sample", student, "--num-images", count, "--output", image]
        commands = {
            "python -c": [sys.executable, "-c", CODE, student, count],
            "boot sample": [sys.executable, "-m", "boot", *sample],
        }
        bare = min(timed([sys.executable, "-c", "pass"], env)[0] for _ in range(options.repeats))
        results: dict[str, Any] = {"bare interpreter": bare}
        print(f"{'bare interpreter':16s} {bare:.3f} s")
        for name, command in commands.items():
            timed([*command[:1], "-c", "import boot.student, boot.images, boot.cli"], env)
            first, _ = timed(command, env)
            runs = [timed(command, env) for _ in range(options.repeats)]
            median = statistics.median(seconds for seconds, _ in runs)
            print(f"{name:16s} {median:.3f} s (limit {options.limit}); without cache {first:.3f} s")
            results[name] = {"median_seconds": median, "first_seconds": first}
            if name == "python -c":
                parts = [json.loads(out) for _, out in runs]
                for part in parts[0]:
                    value = statistics.median(p[part] for p in parts)
                    results[name][part] = value
                    print(f"    {part:16s} {value:.3f} s")
    save(argparse.Namespace(**vars(options), max_isa=None), {"benchmark": "start", **results})
    worst = max(results[name]["median_seconds"] for name in commands)
    sys.exit(worst > options.limit)


if __name__ == "__main__":
    main()
