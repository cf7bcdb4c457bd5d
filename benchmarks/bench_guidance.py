"""One student for a range of guidance scales against one student for each scale: quality.

python benchmarks/bench_guidance.py NAME TEACHER REFERENCE [--steps 700] [--scales 1 2 4]
    [--seeds 0] [--settings KEY=VALUE ...] [--results guidance.jsonl] [--table guidance.md]

Trains a student for --steps at each scale, and one with guidance_scale_min ... guidance_scale_max
for as many steps as all of them together; then measures each at its scale from the same noise and
labels. The one student is as good as the others where the ratio of Fréchet distances is near 1.
Appends a JSON line for each student and scale, and skips students whose lines are there already.
--settings (JSON values, of DistillConfig) go to every student; name such a run differently.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from typing import Any

import numpy as np
from sweeps import (
    EVALUATION_SEED,
    NUM_IMAGES,
    NUM_PAIRED,
    add_rows,
    arguments,
    cells,
    rows_of,
    train,
)

from boot.config import DistillConfig
from boot.evaluation import load_reference, teacher_signals
from boot.metrics import Statistics, measure, paired_rmse
from boot.student import Student
from boot.teacher import Teacher

ONE, RANGE = "one scale", "range"


def at_scale(student: Student, scale: float) -> Student:
    """Return the same student with another default scale; one that has only this one as it is."""
    info = dataclasses.replace(student.info, guidance_scale=scale)
    return Student(student.model, student.scheduler, info)


class Truth:
    """Noise and labels that all students start from, and the teacher's images at each scale."""

    def __init__(self, teacher: Teacher, reference: Statistics) -> None:
        self.teacher, self.reference = teacher, reference
        self._images: dict[float, Any] = {}

    def measure(self, student: Student) -> dict[str, float]:
        """Return the numbers of a student at its default scale."""
        scale = student.info.guidance_scale
        null = self.teacher.null_class_label
        classes = [c for c in range(self.teacher.num_classes or 0) if c != null]
        turns = np.array(classes)[np.arange(NUM_IMAGES) % len(classes)]
        noise, labels = student.inputs(NUM_IMAGES, class_labels=turns, seed=EVALUATION_SEED)
        assert labels is not None
        pair, chosen = noise[:NUM_PAIRED], labels[:NUM_PAIRED]
        if scale not in self._images:
            _, signals = teacher_signals(
                student, self.teacher, pair, chosen, delta=0.02, solver="heun"
            )
            self._images[scale] = np.clip(signals[-1], -1.0, 1.0)
        images = student.sample(noise=noise, class_labels=labels)
        found = measure(images, self.reference, labels)
        found["paired_rmse"] = paired_rmse(images[:NUM_PAIRED], self._images[scale])
        return {name: float(value) for name, value in found.items()}


def sweep(options: argparse.Namespace) -> None:
    """Train and measure what is missing in the results file."""
    settings = {}
    for text in options.settings:
        key, _, value = text.partition("=")
        settings[key] = json.loads(value)
    teacher = Teacher.from_pretrained(options.teacher)
    truth = Truth(teacher, load_reference(options.reference))
    scales = sorted(options.scales)
    lo, hi = scales[0], scales[-1]
    students: list[tuple[str, list[float], int, dict[str, Any]]] = [
        (ONE, [scale], options.steps, {"guidance_scale": scale}) for scale in scales
    ]
    own = {"guidance_scale": lo, "guidance_scale_min": lo, "guidance_scale_max": hi}
    students.append((RANGE, scales, options.steps * len(scales), own))
    for seed in options.seeds:
        for kind, at, steps, extra in students:
            if options.only in (None, kind):
                add(options, truth, (kind, at, steps, seed), settings | extra)


def add(
    options: argparse.Namespace,
    truth: Truth,
    which: tuple[str, list[float], int, int],
    settings: dict[str, Any],
) -> None:
    """Train a student and append its lines, unless all of them are there."""
    kind, scales, steps, seed = which
    key = {"name": options.name, "student": kind, "steps": steps, "seed": seed}
    rows = [row for row in rows_of(options.results) if key.items() <= row.items()]
    if {row["scale"] for row in rows} >= set(scales):
        return
    begin = time.process_time()
    student = train(truth.teacher, DistillConfig(**settings), steps, seed).student
    key["cpu_seconds"] = round(time.process_time() - begin, 1)
    measured = [(scale, truth.measure(at_scale(student, scale))) for scale in scales]
    add_rows(options.results, [{**key, "scale": scale, **found} for scale, found in measured])


def tables(rows: list[dict[str, Any]]) -> str:
    """Return one Markdown table per name: each scale, the two kinds of student, and the ratio."""
    text = []
    for name in sorted({row["name"] for row in rows}):
        mine = [row for row in rows if row["name"] == name]
        text += [f"## {name}", "", "| w | student | steps | seeds | Fréchet distance | recall |"]
        text[-1] += " paired RMSE | Fréchet distance, ratio |"
        text += ["|---|---|---|---|---|---|---|---|"]
        for scale in sorted({row["scale"] for row in mine}):
            means = {}
            for kind in (ONE, RANGE):
                runs = [r for r in mine if (r["scale"], r["student"]) == (scale, kind)]
                if not runs:
                    continue
                means[kind] = float(np.mean([row["frechet_distance"] for row in runs]))
                ratio = f"{means[kind] / means[ONE]:.2f}" if ONE in means else ""
                head = f"| {scale:g} | {kind} | {runs[0]['steps']}"
                text += [f"{head} | {cells(runs)} | {ratio} |"]
        text += [""]
    return "\n".join(text)


def main() -> None:
    """Run what is missing, then print the tables, and write them if asked to."""
    parser = arguments(__doc__ or "", results="guidance.jsonl", steps=700)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument("--only", choices=(ONE, RANGE), help="train this kind of student alone")
    parser.add_argument("--settings", nargs="+", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    sweep(options)
    text = tables(rows_of(options.results))
    print(text)
    if options.table:
        options.table.write_text(text)


if __name__ == "__main__":
    main()
