"""The kernels for older processors: operations and networks with the instruction set capped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import boot
from boot import _core

HERE = Path(__file__).parent
LEVELS = ["base", "avx2", "avx512"]  # as in csrc/base/isa.h
FULL = _core.show_config()["isa"]
LOWER = LEVELS[: LEVELS.index(FULL)]


def run_with(variable: str, value: str, *command: str) -> str:
    """Run Python with an environment variable set; the core reads its own once per process."""
    # The same `boot` as here, be it installed or in the source tree.
    where = str(Path(boot.__file__).resolve().parents[1])
    environment = {**os.environ, variable: value, "PYTHONPATH": where}
    command = (sys.executable, *command)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


def run_capped(level: str, *command: str) -> str:
    """Run Python with the instruction set capped."""
    return run_with("BOOT_MAX_ISA", level, *command)


@pytest.mark.parametrize("level", LOWER)
def test_operations_and_networks_are_right_on_older_processors(level):
    code = "from boot import _core; print(_core.show_config()['isa'])"
    assert run_capped(level, "-c", code).strip() == level
    tests = [str(HERE / "test_ops.py"), str(HERE / "test_unet.py"), str(HERE / "test_adamw.py")]
    out = run_capped(level, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "match", *tests)
    assert int(out.rsplit(" passed", 1)[0].split()[-1]) > 300


def test_a_cap_above_the_processor_changes_nothing():
    code = "from boot import _core; print(_core.show_config()['isa'])"
    assert run_capped("avx512", "-c", code).strip() == FULL


PRODUCTS_OF_PAIRS = """
import hashlib, numpy as np
from boot import _core
from test_ops import KERNELS, SAME_SIZE
attrs = {**SAME_SIZE, "kernel": KERNELS.index("winograd_pairs")}
rng = np.random.default_rng(0)
_core.set_num_threads(1)
for rows, inputs, outputs in [(n, k, 48) for n in range(1, 15) for k in (32, 224)]:
    x = rng.standard_normal((rows, 4, 4, inputs), np.float32)  # an image is a tile
    weight = rng.standard_normal((outputs, inputs, 3, 3), np.float32)
    y = _core.op_forward("conv2d", {"x": x, "weight": weight}, attrs)
    print(rows, inputs, hashlib.sha256(y.tobytes()).hexdigest())
"""


@pytest.mark.skipif(FULL != "avx512", reason="products of pairs need AVX-512")
def test_products_of_pairs_have_the_same_bits_on_all_processors():
    """Operands read from memory, or held in registers: tiles of 1 to 12 rows, K whole or cut."""
    read, held = (run_with("BOOT_ADDS_BESIDE", on, "-c", PRODUCTS_OF_PAIRS) for on in "01")
    assert read == held
    assert len(set(read.splitlines())) == 28
