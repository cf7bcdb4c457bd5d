"""Fuzzes one reader guided by coverage: `python tests/fuzz/atheris_run.py TARGET [FLAGS]`.

FLAGS are libFuzzer's. Needs `pip install ".[fuzz]"` (atheris). New inputs go to the folder given
after the target, the committed corpus is read; stop it with Ctrl-C or -max_total_time=SECONDS.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent))

with atheris.instrument_imports(include=["boot"]):
    from targets import TARGETS, run


def main() -> None:
    """Hand the process to libFuzzer."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        sys.exit(f"usage: atheris_run.py {{{','.join(TARGETS)}}} [FOLDER] [-max_total_time=60]")

    def one_input(data: bytes) -> None:
        run(name, data)

    corpus = Path(__file__).resolve().parent / "corpus" / name
    atheris.Setup([sys.argv[0], *sys.argv[2:], str(corpus)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
