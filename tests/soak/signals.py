"""SIGINT, SIGTERM and SIGUSR1 at random instants of a run, loading and saving included.

python tests/soak/signals.py [--signals 50] [--twice 18] [--seed 0]

A run that gets one must save and exit with 75 (0 if it was done; killed if boot had not begun). One
that gets two leaves at once; every pair of the three gets its turn. Either way, the resumed run
must end as if unbroken.
"""

from __future__ import annotations

import itertools
import signal
import sys
from collections.abc import Sequence

from harness import Runs, at, prepared, verdict

STEPS = 120
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
EARLY = 0.005  # of an unbroken run; the child may not have come to boot's own code by then


def wrong_code(code: int, numbers: Sequence[int], early: bool) -> bool:
    """Whether an exit code is not what is promised."""
    allowed = {75, 0}
    if len(numbers) > 1 or early:
        allowed |= {130, *(-number for number in numbers)}
    return code not in allowed


def trial(runs: Runs, numbers: Sequence[int], instant: float) -> str | None:
    """Send the signals at an instant, resume, and say what is wrong; "" if the run had ended."""
    folder = runs.folder()
    code = runs.interrupt(folder, at(instant), *numbers)
    if code is None:
        return ""
    names = [signal.Signals(number).name for number in numbers]
    if wrong_code(code, numbers, instant < EARLY * runs.seconds):
        return f"exit code {code} after {names} at {instant:.3f} s: {runs.output(folder)}"
    problem = runs.complete(folder)
    return problem and f"{problem} after {names} at {instant:.3f} s"


def main() -> int:
    """Run all trials; print how many were resumable with the promised exit code."""
    results = []
    with prepared(STEPS, signals=50, twice=18) as (runs, chance, arguments):
        for count, total in ((1, arguments.signals), (2, arguments.twice)):
            kinds = list(itertools.product(SIGNALS, repeat=count))
            chance.shuffle(kinds)
            good = done = 0
            while done < total:
                numbers = kinds[done % len(kinds)]
                problem = trial(runs, numbers, chance.uniform(0, 0.95 * runs.seconds))
                if problem == "":
                    continue
                done, good = done + 1, good + (problem is None)
                if problem:
                    print(f"signal {done}: {problem}", flush=True)
            name = "one signal, exit code 75" if count == 1 else "two signals"
            results.append(verdict(f"{name}, resumed, equal to the unbroken run", good, done))
    return max(results)


if __name__ == "__main__":
    sys.exit(main())
