"""kill -9 at random instants of a run, some inside a save; the resumed run must end as if unbroken.

python tests/soak/kill9.py [--kills 100] [--inside 20] [--seed 0]
"""

from __future__ import annotations

import signal
import sys

from harness import at, inside_a_save, prepared, verdict

STEPS = 120


def main() -> int:
    """Run all trials; print how many ended with the hash of the unbroken run."""
    good = done = halves = 0
    with prepared(STEPS, kills=100, inside=20) as (runs, chance, arguments):
        while done < arguments.kills:
            folder = runs.folder()
            when = at(chance.uniform(0, 0.95 * runs.seconds))
            if done < arguments.inside:
                number, delay = chance.randint(1, STEPS // 6 - 1), chance.uniform(0, 0.004)
                when = inside_a_save(folder, number, 20 * runs.seconds, delay)
            if runs.interrupt(folder, when, signal.SIGKILL) is None:
                continue  # it had ended: no kill, another instant
            done += 1
            halves += any(p.name.startswith(".checkpoint-") for p in folder.iterdir())
            problem = runs.complete(folder)
            good += problem is None
            if problem:
                print(f"kill {done}: {problem}", flush=True)
    print(f"kills that left a checkpoint half-written: {halves}")
    return verdict("kill -9, resumed, equal to the unbroken run", good, done)


if __name__ == "__main__":
    sys.exit(main())
