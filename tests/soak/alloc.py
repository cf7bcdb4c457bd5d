"""The long run of tests/test_alloc.py: every entry point, every allocation, both allocators.

`python tests/soak/alloc.py` compiles tests/fault/alloc.c and prints a line per entry point, then
the sums; about 20 minutes. Status 1 if any allocation failure did harm.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

FAULT = Path(__file__).resolve().parent.parent / "fault"
# The operations of `--python` are the calls of the core themselves: above them the interpreter may
# run out of memory in its own code, which is not ours to test: PyContextVar_Set, in which NumPy's
# switch of memory handlers ends, even crashes then.
PURE_PYTHON = (
    "distiller_step", "sample", "load_teacher", "load_student", "shared", "adamw_step",
    "peak_array_bytes",
)  # fmt: skip


def main() -> int:
    """Sweep with the core's allocations failing, then with the interpreter's."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "alloc.so"
        source = [str(FAULT / "alloc.c"), "-o", str(library), "-ldl"]
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", *source], check=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(FAULT / "sweep.py")]
        core = subprocess.run(command, env={**environment, "LD_PRELOAD": str(library)})
        skipped = [f"--without={name}" for name in PURE_PYTHON]
        glue = subprocess.run([*command, "--python", *skipped], env=environment)
    print(f"core: {'failed' if core.returncode else 'clean'}")
    print(f"glue: {'failed' if glue.returncode else 'clean'}")
    return core.returncode or glue.returncode


if __name__ == "__main__":
    sys.exit(main())
