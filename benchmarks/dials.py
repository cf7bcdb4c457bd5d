"""Quality dials: what further network calls buy a student, and what they buy its teacher alone.

    python benchmarks/dials.py [--teacher FOLDER] [--student FOLDER] [--reference NPZ] [--draws 4]

Without a student one is trained first, with the default settings for --max-train-steps. Without a
reference, images are compared with the teacher's own 50-step images of another seed; the packaged
digits have a reference of real images. Paired error is against the teacher's 50-step DDIM from the
same noise; where fresh noise is drawn there is no such pair. Calls count evaluations of a network
for one image: a guided teacher step is two, and a Heun step twice that except for the last. Every
figure is the mean over --draws of start noise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from boot import Distiller, Student, Teacher
from boot.demo import REFERENCE_FILE, TEACHER_FOLDER
from boot.evaluation import load_reference
from boot.metrics import Statistics, measure, paired_rmse
from boot.refine import teacher_steps

TRUTH_STEPS = 50
TIMES = (0.1, 0.2, 0.3, 0.5)  # where the teacher takes over
# Sampler, steps. One step is the same for all three, and two of dpm are two of ddim.
JUMPS = (("ddim", 1), ("ddim", 2), ("ddim", 4), ("heun", 2), ("heun", 4), ("dpm", 4), ("dpm", 8))
RENOISINGS = (("ddim", 1), ("ddim", 4), ("dpm", 4))
RESAMPLES = [(0.4, 1), (0.6, 1), (0.6, 2)]  # t, rounds
ALONE = (("ddim", 1), ("ddim", 2), ("ddim", 4), ("ddim", 8), ("heun", 4), ("dpm", 4), ("dpm", 8))
CORRECTIONS = 4
REFERENCE_SEED = 1000  # of noise, beyond those of the draws


class Row(NamedTuple):
    """A dial, the network calls an image, whether it keeps the noise, and its images."""

    name: str
    calls: int
    paired: bool
    images: Any


class Bench:
    """A student, its teacher, and the noise and labels that every row starts from."""

    def __init__(
        self, student: Student, teacher: Teacher, count: int, reference: Any, draw: int
    ) -> None:
        """Draw the noise, and make the 50-step images that rows are paired with."""
        self.student, self.teacher, self.seed = student, teacher, 1 + draw
        self.noise, self.labels = student.inputs(count, seed=self.seed)
        self.cost = 2 if student.info.guidance.active else 1
        self.truth = self.by_teacher("ddim", TRUTH_STEPS, self.noise)
        if reference is None:
            other, _ = student.inputs(count, seed=REFERENCE_SEED)
            images = self.by_teacher("ddim", TRUTH_STEPS, other)
            reference = Statistics.from_images(images, self.labels)
        self.reference = reference

    def by_teacher(self, sampler: str, steps: int, noise: Any) -> Any:
        """Images of the teacher, guided as it taught, from the student's start time."""
        times = self.teacher.schedule.times(self.student.info.t_max, 0.0, steps)
        scales = self.student.check_scales(None, len(noise))
        start = self.teacher.schedule.start(noise, times[0])
        images = teacher_steps(
            self.student, self.teacher, start, self.labels, scales, times, sampler
        )
        return np.clip(images, -1.0, 1.0)

    def calls(self, sampler: str, steps: int) -> int:
        """Network calls of so many steps of the teacher."""
        return self.cost * (2 * steps - 1 if sampler == "heun" else steps)

    def rows(self) -> Iterator[Row]:
        """Every dial, the student's one call first."""
        start = {"noise": self.noise, "class_labels": self.labels}
        yield Row("student, one call", 1, True, self.student.sample(**start))
        for fresh, ways in ((False, JUMPS), (True, RENOISINGS)):
            for t, (sampler, k) in product(TIMES, ways):
                if t > self.student.info.t_max:
                    continue
                images = self.student.refine(
                    self.teacher,
                    t=t,
                    num_teacher_steps=k,
                    sampler=sampler,
                    fresh_noise=fresh,
                    seed=self.seed,
                    **start,
                )
                name = f"{'noise again' if fresh else 'jump'} to t = {t}, {k} {sampler} steps"
                yield Row(name, 1 + self.calls(sampler, k), not fresh, images)
        for t, rounds in RESAMPLES:
            images = self.student.resample(
                t=t, num_rounds=rounds, num_corrections=CORRECTIONS, seed=self.seed, **start
            )
            calls = 1 + rounds * (CORRECTIONS + 1)
            yield Row(f"resample at t = {t}, {rounds} rounds", calls, False, images)
        for sampler, k in ALONE:
            images = self.by_teacher(sampler, k, self.noise)
            yield Row(f"teacher alone, {k} {sampler} steps", self.calls(sampler, k), True, images)

    def measured(self) -> Iterator[dict[str, Any]]:
        """Every dial with its figures."""
        for row in self.rows():
            found = measure(row.images, self.reference, self.labels)
            error = paired_rmse(row.images, self.truth) if row.paired else None
            yield {"dial": row.name, "calls": row.calls, "paired_rmse": error, **found}


def mean_rows(draws: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of one dial's figures over the draws."""
    first = draws[0]
    return {
        key: float(np.mean([row[key] for row in draws])) if isinstance(value, float) else value
        for key, value in first.items()
    }


def run(benches: list[Bench]) -> list[dict[str, Any]]:
    """Measure every row in every draw, print the means, and return them."""
    print("| dial | calls | Fréchet distance | recall | paired error |\n|---|---|---|---|---|")
    table = []
    for draws in zip(*(bench.measured() for bench in benches), strict=True):
        row = mean_rows(list(draws))
        error = "-" if row["paired_rmse"] is None else f"{row['paired_rmse']:.3f}"
        numbers = f"{row['frechet_distance']:.3f} | {row['recall']:.3f}"
        print(f"| {row['dial']} | {row['calls']} | {numbers} | {error} |", flush=True)
        table.append(row)
    return table


def main() -> None:
    """Read the command line, train or load a student, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default=str(TEACHER_FOLDER), help="folder [the digits]")
    parser.add_argument("--student", help="folder of a student of it; none: train one")
    parser.add_argument("--reference", help="statistics or images of real data, .npz")
    parser.add_argument("--max-train-steps", type=int, default=1000, help="[1000]")
    parser.add_argument("--num-images", type=int, default=2000, help="[2000]")
    parser.add_argument("--draws", type=int, default=1, help="of the start noise, averaged [1]")
    parser.add_argument("--json", help="write the rows to this file")
    options = parser.parse_args()
    teacher = Teacher.from_pretrained(options.teacher)
    if options.student is None:
        distiller = Distiller(teacher, max_train_steps=options.max_train_steps)
        distiller.fit()
        student = distiller.student
    else:
        student = Student.from_pretrained(options.student)
    digits = Path(options.teacher) == TEACHER_FOLDER
    reference = options.reference or (REFERENCE_FILE if digits else None)
    statistics = None if reference is None else load_reference(reference)
    count = options.num_images
    rows = run([Bench(student, teacher, count, statistics, i) for i in range(options.draws)])
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
