"""How long `import boot` takes in a fresh process, and that it imports nothing heavy.

python benchmarks/import_time.py [--limit 0.3]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from harness import HERE, environment

HEAVY = ("torch", "matplotlib", "diffusers", "PIL", "tqdm", "jsonargparse", "huggingface_hub")
CHECK = f"import boot, sys; print([m for m in {HEAVY!r} if m in sys.modules])"


def seconds(code: str, repeats: int = 7) -> float:
    """Fastest of some fresh processes running this code."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        command = [sys.executable, "-c", code]
        subprocess.run(command, check=True, cwd=HERE, env=environment({"threads": 1}))
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    """Print the figures; exit code 1 beyond the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--limit", type=float, default=0.3, help="seconds allowed for `import boot`"
    )
    limit = parser.parse_args().limit
    bare = seconds("pass")
    package = seconds("import boot") - bare
    core = seconds("import boot; boot.Distiller") - bare
    command = [sys.executable, "-c", CHECK]
    loaded = subprocess.run(
        command,
        check=True,
        cwd=HERE,
        env=environment({"threads": 1}),
        capture_output=True,
        text=True,
    ).stdout.strip()
    print(f"bare interpreter            {bare:.3f} s")
    print(f"import boot                 {package:.3f} s more (limit {limit} s)")
    print(f"import boot; boot.Distiller {core:.3f} s more")
    print(f"heavy modules loaded by `import boot`: {loaded}")
    if package > limit or loaded != "[]":
        sys.exit(1)


if __name__ == "__main__":
    main()
