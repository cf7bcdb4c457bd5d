"""Instruction counts of forward, backward and update under callgrind, for CI: no clock, no noise.

    python benchmarks/instructions.py               # compare with baselines/instructions.json
    python benchmarks/instructions.py --update      # write that file anew
    python benchmarks/instructions.py --out a.json  # and keep what was counted

The plain SSE2 code is counted (BOOT_MAX_ISA=base): valgrind knows no AVX-512. Kernels are taken by
rule, on one thread, so that two runs count alike. Counts of two compilers, or of other flags, do
not compare: then the script only says so. Exit code 1 if a count grew by more than --worse.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import HERE
from networks import CASES

BASELINE = HERE / "baselines" / "instructions.json"
FUNCTIONS = {
    "boot_plan_forward": "forward",
    "boot_plan_backward": "backward",
    "boot_adamw_step": "update",
}
BATCH = 2


def worker() -> None:
    """One training pass and update of the digits network, on made-up data."""
    import numpy as np

    from boot import _core
    from boot.network import Network
    from boot.unet_config import UNet2DConfig

    network = Network(
        UNet2DConfig.from_dict({"_class_name": "UNet2DModel", **CASES["digits"].config})
    )
    core = network.core
    core.configure(thread_independent=True)
    core.weights[:] = 0.02 * np.cos(np.arange(core.weights.size, dtype=np.float32))
    x = np.cos(np.arange(BATCH * 64, dtype=np.float32)).reshape(BATCH, 1, 8, 8)
    t, labels = np.array([100.0, 900.0]), np.array([1, 7])
    core.plan(BATCH, 8, 8, True)
    out = network.forward_train(x, t, labels, None)
    network.backward(out)
    moments = [np.zeros_like(core.weights) for _ in range(3)]
    _core.adamw_step(
        core.weights,
        core.grads,
        *moments,
        step=1,
        learning_rate=1e-3,
        beta1=0.9,
        beta2=0.99,
        epsilon=1e-8,
        weight_decay=0.0,
        max_grad_norm=1.0,
        ema_decay=0.99,
    )


def count() -> dict[str, int]:
    """Instructions of each of FUNCTIONS, with everything that it calls."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind.out"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
        command += [f"--toggle-collect={name}" for name in FUNCTIONS]
        command += [sys.executable, __file__, "--worker"]
        env = {**os.environ, "BOOT_MAX_ISA": "base", "ONEDNN_MAX_CPU_ISA": "SSE41"}
        env |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "BOOT_KERNEL_CACHE": "off"}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"callgrind failed:\n{done.stderr[-2000:]}")
        annotate = ["callgrind_annotate", "--inclusive=yes", "--threshold=100", str(out)]
        text = subprocess.run(annotate, check=True, capture_output=True, text=True).stdout
    counts = {}
    for function, name in FUNCTIONS.items():
        found = re.search(rf"^\s*([\d,]+)[^\n]*:{function}[\s\[]", text, flags=re.M)
        if found is None:
            sys.exit(f"{function} was not counted: is the core stripped of its symbols?")
        counts[name] = int(found[1].replace(",", ""))
    return counts


def compare(old: dict[str, Any], new: dict[str, Any], worse: float) -> list[str]:
    """Print one line per count; return those that grew too much."""
    grown = []
    for name, value in new["counts"].items():
        before = old["counts"].get(name)
        if before is None:
            continue
        change = value / before - 1
        print(f"{name:10s} {before:>14,} -> {value:>14,}   {100 * change:+.2f} %")
        if change > worse:
            grown.append(name)
    return grown


def main() -> None:
    """Count, and compare with what was committed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--update", action="store_true", help="write the baseline anew")
    parser.add_argument("--out", type=Path, help="also write the counts here")
    parser.add_argument("--worse", type=float, default=0.02, help="tolerated relative growth")
    options = parser.parse_args()
    if options.worker:
        worker()
        return
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed")
    from boot import _core

    built = {key: _core.show_config()[key] for key in ("compiler", "flags")}
    new = {**built, "batch": BATCH, "counts": count()}
    text = json.dumps(new, indent=2) + "\n"
    if options.out:
        options.out.write_text(text)
    if options.update:
        BASELINE.parent.mkdir(exist_ok=True)
        BASELINE.write_text(text)
        print(text, end="")
        return
    old = json.loads(BASELINE.read_text())
    grown = compare(old, new, options.worse)
    if any(old[key] != new[key] for key in built):
        print(f"not judged: another compiler or other flags than in {BASELINE.name}")
    elif grown:
        sys.exit(f"more instructions by over {100 * options.worse:.0f} %: {', '.join(grown)}")


if __name__ == "__main__":
    main()
