"""The soak scripts with few trials: what the long versions count must hold for these too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parent / "soak"


@pytest.mark.parametrize(
    "command, figures",
    [
        ("kill9.py --kills 5 --inside 2", ["unbroken run: 5/5"]),
        ("signals.py --signals 4 --twice 2", ["unbroken run: 4/4", "unbroken run: 2/2"]),
        ("corrupt.py --cases 100", ["previous checkpoint used: 100/100"]),
    ],
)
def test_soak(command, figures, tmp_path):
    script, *options = command.split()
    result = subprocess.run(
        [sys.executable, str(SOAK / script), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for figure in figures:
        assert figure in result.stdout
