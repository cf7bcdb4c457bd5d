"""A short run of tests/soak/cycles.py: memory does not grow with use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import SANITIZED, run_python

SOAK = Path(__file__).parent / "soak"


@pytest.mark.skipif(SANITIZED, reason="the sanitizer keeps freed memory")
def test_memory_does_not_grow_over_cycles_of_everything():
    done = run_python(str(SOAK / "cycles.py"), "--cycles", "150", "--limit-mib", "2")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    figures = json.loads(done.stdout)
    assert figures["python_growth_kib"] < 64, figures
