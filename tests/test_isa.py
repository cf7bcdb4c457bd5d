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


def run_capped(level: str, *command: str) -> str:
    """Run Python with BOOT_MAX_ISA set; the cap is read once per process."""
    # The same `boot` as here, be it installed or in the source tree.
    where = str(Path(boot.__file__).resolve().parents[1])
    environment = {**os.environ, "BOOT_MAX_ISA": level, "PYTHONPATH": where}
    command = (sys.executable, *command)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


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
