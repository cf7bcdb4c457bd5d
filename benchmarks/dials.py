"""Quality dials: what further network calls buy a student, and what they buy its teacher alone.

    python benchmarks/dials.py [--teacher FOLDER] [--student FOLDER] [--reference NPZ] [--json FILE]

Without a student one is trained first, with the default settings for --max-train-steps. Without a
reference, images are compared with the teacher's own 50-step images of another seed; the packaged
digits have a reference of real images. Paired error is against the teacher's 50-step DDIM from the
same noise; where fresh noise is drawn there is no such pair. Calls count evaluations of a network
for one image: a guided teacher step is two.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from boot import Distiller, Student, Teacher
from boot.demo import REFERENCE_FILE, TEACHER_FOLDER
from boot.evaluation import load_reference
from boot.metrics import Statistics, measure, paired_rmse
from boot.refine import teacher_steps

TRUTH_STEPS = 50
JUMPS = [(t, k) for t in (0.1, 0.2, 0.3, 0.5) for k in (1, 2, 4)]
RESAMPLES = [(0.4, 1), (0.6, 1), (0.6, 2)]  # t, rounds
TEACHER_STEPS = (1, 2, 4, 8)
CORRECTIONS = 4


class Bench:
    """A student, its teacher, and the noise and labels that every row starts from."""

    def __init__(self, student: Student, teacher: Teacher, count: int, reference: Any) -> None:
        """Draw the noise, and make the 50-step images that rows are paired with."""
        self.student, self.teacher = student, teacher
        self.noise, self.labels = student.inputs(count, seed=1)
        self.cost = 2 if student.info.guidance.active else 1
        self.truth = self.by_teacher(TRUTH_STEPS, self.noise)
        if reference is None:
            other, _ = student.inputs(count, seed=2)
            reference = Statistics.from_images(self.by_teacher(TRUTH_STEPS, other), self.labels)
        self.reference = reference

    def by_teacher(self, steps: int, noise: Any) -> Any:
        """DDIM of the teacher, guided as it taught, from the student's start time."""
        times = self.teacher.schedule.times(self.student.info.t_max, 0.0, steps)
        images = teacher_steps(
            self.student, self.teacher, noise, self.labels, self._scales(), times, "ddim"
        )
        return np.clip(images, -1.0, 1.0)

    def _scales(self) -> Any:
        return self.student.check_scales(None, len(self.noise))

    def rows(self) -> Iterator[tuple[str, int, bool, Any]]:
        """Every dial: its name, calls an image, whether it keeps the noise, and its images."""
        start = {"noise": self.noise, "class_labels": self.labels}
        yield "student, one call", 1, True, self.student.sample(**start)
        for fresh in (False, True):
            for t, k in JUMPS:
                if t > self.student.info.t_max:
                    continue
                images = self.student.refine(
                    self.teacher, t=t, num_teacher_steps=k, fresh_noise=fresh, seed=3, **start
                )
                name = "noise again to" if fresh else "jump to"
                yield f"{name} t = {t}, {k} teacher steps", 1 + k * self.cost, not fresh, images
        for t, rounds in RESAMPLES:
            images = self.student.resample(
                t=t, num_rounds=rounds, num_corrections=CORRECTIONS, seed=3, **start
            )
            calls = 1 + rounds * (CORRECTIONS + 1)
            yield f"resample at t = {t}, {rounds} rounds", calls, False, images
        for steps in TEACHER_STEPS:
            images = self.by_teacher(steps, self.noise)
            yield f"teacher alone, {steps} DDIM steps", steps * self.cost, True, images

    def run(self) -> list[dict[str, Any]]:
        """Measure every row, print it, and return all."""
        print("| dial | calls | Fréchet | recall | paired error |\n|---|---|---|---|---|")
        table = []
        for name, calls, paired, images in self.rows():
            found = measure(images, self.reference, self.labels)
            error = paired_rmse(images, self.truth) if paired else None
            row = {"dial": name, "calls": calls, "paired_rmse": error, **found}
            text = "-" if error is None else f"{error:.4f}"
            numbers = f"{found['frechet_distance']:.3f} | {found['recall']:.3f}"
            print(f"| {name} | {calls} | {numbers} | {text} |", flush=True)
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
    bench = Bench(
        student,
        teacher,
        options.num_images,
        None if reference is None else load_reference(reference),
    )
    rows = bench.run()
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
