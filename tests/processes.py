"""Starting other Python processes from a test, with what this one imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# The sanitizers keep freed memory and own the allocator: figures of memory mean nothing there.
SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")


def _settings(**environment: str) -> dict[str, Any]:
    return {
        "env": {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        "cwd": Path(__file__).parent,  # not the checkout, whose own package has no core
        "text": True,
    }


def run_python(*arguments: str, timeout: float = 300, **environment: str) -> Any:
    """Run Python with these arguments, one thread, and this process's import path."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, timeout=timeout, **_settings(**environment))


def start_python(*arguments: str) -> subprocess.Popen[str]:
    """Start the same without waiting for it: for tests that send it signals."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *arguments], **pipes, **_settings())
