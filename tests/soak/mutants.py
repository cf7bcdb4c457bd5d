"""Plants the mistakes of tests/mutants.py in a copy of the tree and runs the tests that must see.

`python tests/soak/mutants.py [--only TEXT]` prints a line each and caught/total; about 15 minutes.
Status 1 if a mistake survived. Needs what building boot in place needs: gcc, numpy, and the oneDNN
wheels for run time and headers (or ONEDNN_ROOT).
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent.parent

COPIED = ("boot", "csrc", "tests", "setup.py", "pyproject.toml", "README.md", "LICENSE")
TIMEOUT_S = 900  # a mistake may also make a loop endless: that is noticed too


def build(tree: Path) -> bool:
    """Compile what changed; whether that worked."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=tree, capture_output=True).returncode == 0


def passes(tree: Path, tests: str) -> tuple[bool, str]:
    """Whether the tests pass in the tree, and what they said last."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, *shlex.split(tests)],
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return False, "no end"
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    said = (lines or done.stdout.splitlines() or [f"exit {done.returncode}"])[-1]
    return done.returncode == 0, said


def plant(tree: Path, mutant: Mutant) -> tuple[bool, str]:
    """Make the mistake, build, test, undo it; whether it was caught, and by what."""
    path = tree / mutant.file
    text = path.read_text()
    assert text.count(mutant.old) == 1, f"{mutant.file}: {mutant.old!r}"
    in_c = mutant.file.startswith("csrc/")
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        if in_c and not build(tree):
            return False, "does not compile: not a fair mistake"
        passed, said = passes(tree, mutant.tests)
        return not passed, said
    finally:
        path.write_text(text)
        if in_c:  # or the next mistake, in Python, would be caught by what this one left behind
            build(tree)


def main() -> int:
    """Run them all (or those whose file or text holds --only)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose file or text contains this")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if options.only in m.file + m.old]
    caught = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("*.so"))
            else:
                shutil.copy2(source, tree / name)
        if not build(tree):
            print("the tree does not build as it is", file=sys.stderr)
            return 2
        for mutant in chosen:
            start = time.monotonic()
            found, said = plant(tree, mutant)
            caught += found
            verdict = "caught" if found else "SURVIVED"
            seconds = time.monotonic() - start
            print(
                f"{verdict:8} {seconds:5.1f} s  {mutant.file}: {mutant.old[:50]!r}: {said[:120]}",
                flush=True,
            )
    print(f"{caught}/{len(chosen)} caught")
    return int(caught < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
