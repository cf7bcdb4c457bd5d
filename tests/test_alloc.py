"""Memory runs out in the core: MemoryError, nothing leaks, and the object works afterwards.

`tests/fault/alloc.c` is compiled and preloaded under the core as it is shipped; the sweep itself is
`tests/fault/sweep.py`. The long version, every entry point, is `tests/soak/alloc.py`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from processes import SANITIZED, run_python

FAULT = Path(__file__).parent / "fault"

# What differs in kind: building, planning, running, running backwards, growing, packing, one op.
CORE = [
    "create", "grads", "plan_train", "second_size", "packed_direct", "shared", "pin_kernels",
    "bench_conv", "conv2d_backward", "peak_array_bytes",
]  # fmt: skip
GLUE = [
    "create", "grads", "parameters", "weights", "kernels", "plan", "forward", "train",
    "pin_kernels", "weighted_mse", "diffuse", "guide", "signal_from_output",
    "alphas_cumprod", "show_config", "ops", "conv_kernels", "add_backward", "attention_forward",
]  # fmt: skip


def sweep(*arguments: str, preload: str = "") -> list[dict[str, object]]:
    """Run the sweep in a process of its own; its reports."""
    environment = {"LD_PRELOAD": preload} if preload else {}
    done = run_python(str(FAULT / "sweep.py"), *arguments, **environment)
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (
        f"exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    )
    return reports


@pytest.mark.skipif(SANITIZED, reason="the sanitizer owns the allocator")
def test_every_allocation_of_the_core_may_fail(tmp_path):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path / "alloc.so"
    source = [str(FAULT / "alloc.c"), "-o", str(library), "-ldl"]
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", *source], check=True)
    reports = sweep(*CORE, preload=str(library))
    assert [r["entry"] for r in reports] == CORE
    for report in reports:
        assert "problem" not in report and report["once"], report  # 0 would mean nothing was tried


@pytest.mark.skipif(SANITIZED, reason="the sanitizer owns the allocator")
def test_every_allocation_of_the_glue_may_fail():
    pytest.importorskip("_testcapi", reason="this Python comes without its test modules")
    reports = sweep("--python", *GLUE)
    assert [r["entry"] for r in reports] == GLUE
    for report in reports:
        assert "problem" not in report, report
