"""Damages the newer of two checkpoints in a random way; it must be noticed and the older one used.

python tests/soak/corrupt.py [--cases 1000] [--seed 0]

A flipped bit, a file cut short, made longer, emptied, missing, or swapped for another one. Noticed
means: `resume_from_checkpoint="latest"` goes on from the older one, and the log names the file.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models import make, make_teacher

from boot.teacher import Teacher

FILES = ("state.safetensors", "config.json", "manifest.json")
OPTIONS = {"max_train_steps": 4, "checkpointing_steps": 2, "ema_decay": 0.0}


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def cut(path: Path, chance: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: chance.randrange(len(data))])


def lengthen(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes() + bytes(chance.randrange(1, 100)))


def drop(path: Path, chance: random.Random) -> None:
    path.unlink()


def swap(path: Path, chance: random.Random) -> None:
    """Put the older checkpoint's file in its place, or another file of its own folder."""
    older = path.parent.with_name("checkpoint-2") / path.name
    others = [path.parent / name for name in FILES if name != path.name]
    if path.name != "config.json":  # that one is the same in both
        others.append(older)
    shutil.copy(chance.choice(others), path)


DAMAGE = (flip, flip, flip, cut, lengthen, drop, swap)


class Lines(logging.Handler):
    """Collects log messages."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage() + "\n"


def noticed(work: Path, teacher: Teacher, damaged: Path) -> str | None:
    """Resume and say what is wrong, None if the damage was noticed and named."""
    lines = Lines()
    logging.getLogger("boot").addHandler(lines)
    try:
        run = make(
            teacher=teacher, output_dir=str(work), resume_from_checkpoint="latest", **OPTIONS
        )
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"
    finally:
        logging.getLogger("boot").removeHandler(lines)
    if run.state.step != 2:
        return f"resumed at step {run.state.step}"
    return None if str(damaged) in lines.text else f"not named: {lines.text}"


def main() -> int:
    """Run all cases; print how many were noticed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance, teacher, good = random.Random(arguments.seed), make_teacher(), 0
    with tempfile.TemporaryDirectory() as root:
        whole = Path(root) / "whole"
        make(teacher=teacher, output_dir=str(whole), **OPTIONS).fit()
        for case in range(arguments.cases):
            work = Path(root) / "work"
            shutil.copytree(whole, work)
            name, damage = chance.choice(FILES), chance.choice(DAMAGE)
            path = work / "checkpoint-4" / name
            damage(path, chance)
            problem = noticed(work, teacher, path)
            good += problem is None
            if problem:
                print(f"case {case}, {damage.__name__} {name}: {problem}", flush=True)
            shutil.rmtree(work)
    print(f"damage noticed, file named, previous checkpoint used: {good}/{arguments.cases}")
    return 0 if good == arguments.cases else 1


if __name__ == "__main__":
    sys.exit(main())
