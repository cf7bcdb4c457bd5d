"""What the soak scripts share: runs of a tiny teacher in forked children, and the hash of a run.

The children are forked from a process that has imported boot but never used its core, so that a
run takes a second and not four. They run the command line: what is tested is what users run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models import save_teacher

from boot import cli
from boot.checkpoint import list_checkpoints, read_manifest
from boot.resume import KERNELS_FILE

EVERY = 6  # steps between checkpoints
APART = 0.002  # seconds between two signals: two of a kind at one instant would count as one


class Runs:
    """A teacher, the unbroken run of it, and ways to start the same run elsewhere."""

    def __init__(self, root: Path, steps: int) -> None:
        self.root, self.steps, self.count = root, steps, 0
        self.teacher = save_teacher(root / "teacher")
        self.reference = root / "reference"
        self.reference.mkdir()
        started = time.monotonic()
        code = self.finish(self.start(self.reference))
        self.seconds = time.monotonic() - started
        if code != 0:
            raise SystemExit(f"the unbroken run failed: {self.output(self.reference)}")
        self.digest = self.digest_of(self.reference)

    def folder(self) -> Path:
        """Return a new folder whose run will choose the kernels of the unbroken run."""
        self.count += 1
        folder = self.root / f"run-{self.count}"
        folder.mkdir()
        shutil.copy(self.reference / KERNELS_FILE, folder)
        return folder

    def start(self, folder: Path) -> int:
        """Fork a child that starts or continues the run in a folder; return its process id."""
        arguments = ["distill", self.teacher, "--output-dir", folder, "--max-train-steps"]
        arguments += [self.steps, "--checkpointing-steps", EVERY, "--logging-steps", 1]
        arguments += ["--train-batch-size", 4, "--sample-steps", self.steps // 3]
        arguments += ["--resume-from-checkpoint", "latest"]
        sys.stdout.flush()
        child = os.fork()
        if child:
            return child
        code = 70
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have ignored it
            handle = os.open(
                folder.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666
            )
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            code = cli.main([str(argument) for argument in arguments])
            sys.stdout.flush()
        finally:
            os._exit(code)

    def finish(self, child: int) -> int:
        """Wait for a child; return its exit code, or minus the signal that ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def output(self, folder: Path) -> str:
        """Return what the runs in a folder printed."""
        return folder.with_suffix(".txt").read_text()

    def interrupt(self, folder: Path, when: Callable[[], None], *signals: int) -> int | None:
        """Start a run and send signals when `when` returns; None if it had ended by then."""
        child = self.start(folder)
        when()
        if os.waitpid(child, os.WNOHANG)[0]:
            return None
        for number in signals:
            os.kill(child, number)
            time.sleep(APART)
        return self.finish(child)

    def complete(self, folder: Path) -> str | None:
        """Continue a run to its end; None if it equals the unbroken one, else what is wrong."""
        code = self.finish(self.start(folder))
        if code != 0:
            return f"exit code {code} on resume: {self.output(folder)}"
        left = [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]
        if left:
            return f"left behind: {left}"
        if self.digest_of(folder) != self.digest:
            return "the result differs from that of the unbroken run"
        shutil.rmtree(folder)
        return None

    def digest_of(self, folder: Path) -> str:
        """Return a SHA-256 of student, optimiser state, counters and log (but for its clock)."""
        newest = list_checkpoints(folder)[0]
        total = hashlib.sha256((newest / "state.safetensors").read_bytes())
        total.update(json.dumps(read_manifest(newest)["state"]["counters"]).encode())
        for path in sorted(folder.rglob("*.safetensors")):
            if newest not in path.parents and not path.parent.name.startswith("checkpoint-"):
                total.update(path.read_bytes())
        for line in (folder / "log.jsonl").read_text().splitlines():
            values = json.loads(line)
            del values["seconds"]
            total.update(json.dumps(values, sort_keys=True).encode())
        return total.hexdigest()


def at(seconds: float) -> Callable[[], None]:
    """Return a function that waits."""
    return lambda: time.sleep(seconds)


def inside_a_save(folder: Path, number: int, limit: float, delay: float) -> Callable[[], None]:
    """Return a function that waits for the temporary folder of the n-th checkpoint."""

    def wait() -> None:
        seen, end = set(), time.monotonic() + limit
        while len(seen) < number and time.monotonic() < end:
            with os.scandir(folder) as entries:
                seen |= {e.name for e in entries if e.name.startswith(".checkpoint-")}
        time.sleep(delay)

    return wait


@contextmanager
def prepared(steps: int, **counts: int) -> Iterator[tuple[Runs, random.Random, argparse.Namespace]]:
    """Parse the command line (one flag a count, and --seed), and give the unbroken run."""
    parser = argparse.ArgumentParser()
    for name, default in {**counts, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        runs = Runs(Path(root), steps)
        print(f"unbroken run: {runs.seconds:.1f} s, SHA-256 {runs.digest[:16]}", flush=True)
        yield runs, random.Random(arguments.seed), arguments


def verdict(name: str, good: int, total: int) -> int:
    """Print the figure and return the exit code."""
    print(f"{name}: {good}/{total}", flush=True)
    return 0 if good == total else 1
