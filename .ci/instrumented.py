"""What `.ci/coverage` and `.ci/sanitize` share: an instrumented core in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build(site: Path, switch: str, root: Path = ROOT) -> None:
    """Install boot into `site`, built with a switch of setup.py; the objects stay in build/."""
    environment = {**os.environ, switch: "1"}
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), "."]
    subprocess.run(pip, cwd=root, env=environment, check=True)


def run_tests(site: Path, arguments: list[str], **environment: str) -> int:
    """Run pytest against what lies in `site`; its exit code."""
    # Not `python -m pytest`: that would put the checkout's own, uninstrumented package first.
    pytest = str(Path(sys.executable).with_name("pytest"))
    command = [sys.executable, pytest, "-q", "-p", "no:cacheprovider", *arguments]
    variables = {**os.environ, "PYTHONPATH": str(site), **environment}
    return subprocess.run(command, cwd=ROOT, env=variables).returncode
