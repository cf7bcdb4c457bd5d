"""`boot demo`: distil the digits teacher that ships with the package, and show what came of it.

Leaves `student/`, `samples.png` and `report.json` in one folder. Teacher and student start from the
same noise at the same time t_max, so the columns of the picture are one trajectory each.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boot import _core
from boot._version import __version__
from boot.distiller import Distiller
from boot.errors import check_int, check_seed
from boot.files import check_output_folder, write_atomically
from boot.images import FigureRow, side_by_side
from boot.metrics import Statistics, measure
from boot.network import Images
from boot.reading import to_json
from boot.student import Student
from boot.teacher import Teacher

DATA_FOLDER = Path(__file__).parent / "data"
TEACHER_FOLDER = DATA_FOLDER / "digits_teacher"
REFERENCE_FILE = DATA_FOLDER / "digits_reference.npz"

TRAIN_STEPS = 600  # fits two minutes on two cores; everything else is DistillConfig's default
TEACHER_STEPS = (50, 10, 4, 1)
NUM_IMAGES = 2000  # per row of the table: Fréchet distance and recall depend on it
IMAGES_PER_CLASS = 2  # in the picture
METRICS = ("frechet_distance", "recall", "class_accuracy")

_log = logging.getLogger("boot")


def run_demo(
    output_dir: str | os.PathLike[str],
    *,
    max_train_steps: int = TRAIN_STEPS,
    num_images: int = NUM_IMAGES,
    seed: int = 0,
) -> dict[str, Any]:
    """Distil the packaged teacher, print a table, and write student, picture and report.

    output_dir: a new or empty folder. num_images: how many each row of the table is measured on,
    at least 100. Returns what `report.json` holds: `teacher` (rows by number of steps, as text),
    `student` (one row), each with frechet_distance, recall, class_accuracy, ms_per_image; and
    `run`, the circumstances. Raises FileExistsError, NotADirectoryError or PermissionError before
    any work, KeyboardInterrupt if training was stopped.
    """
    check_int("max_train_steps", max_train_steps, 1)
    check_int("num_images", num_images, 100)
    check_seed("seed", seed)
    folder = check_output_folder("output_dir", output_dir)
    began = time.monotonic()
    reference = Statistics.load(REFERENCE_FILE)
    teacher = Teacher.from_pretrained(TEACHER_FOLDER)
    student = _distil(teacher, max_train_steps, seed)
    trained = time.monotonic()
    noise, labels = student.inputs(num_images, seed=seed)
    assert labels is not None  # the digits have classes
    rows, images = _compare(teacher, student, reference, noise, labels)
    report = {
        **rows,
        "run": {
            "boot_version": __version__,
            "train_steps": max_train_steps,
            "seed": seed,
            "num_images": num_images,
            "guidance_scale": student.info.guidance_scale,
            "t_start": student.info.t_max,
            "threads": _core.get_num_threads(),
            "training_seconds": round(trained - began, 1),
            "seconds": round(time.monotonic() - began, 1),
        },
    }
    student.save_pretrained(folder / "student")
    _draw(report, images, labels).save(folder / "samples.png")
    write_atomically(folder / "report.json", to_json(report))
    print(format_table(report))
    print(f"\nwrote {folder / 'samples.png'}, {folder / 'report.json'}, {folder / 'student'}")
    return report


def _distil(teacher: Teacher, steps: int, seed: int) -> Student:
    distiller = Distiller(teacher, max_train_steps=steps, seed=seed)
    _log.info("distilling %r into a one-step student, without data: %d steps", teacher.name, steps)
    if distiller.fit().interrupted:
        raise KeyboardInterrupt
    return distiller.student


# ----------------------------------------------------------------------------------- comparison


def _compare(
    teacher: Teacher,
    student: Student,
    reference: Statistics,
    noise: Images,
    labels: NDArray[np.int64],
) -> tuple[dict[str, Any], dict[str, Images]]:
    """Sample by every method from the same noise; return the report's rows, and the images.

    The images are keyed as the rows are: "50", "10", ... for the teacher, and "student".
    """
    guidance = student.info.guidance

    def by_teacher(steps: int) -> Callable[[], Images]:
        return lambda: teacher.sample(
            noise=noise,
            class_labels=labels,
            num_inference_steps=steps,
            guidance_scale=guidance.scale,
            null_class_label=guidance.null_label,
            t_start=student.info.t_max,
        )

    methods: dict[str, Callable[[], Images]] = {str(s): by_teacher(s) for s in TEACHER_STEPS}
    methods["student"] = lambda: student.sample(noise=noise, class_labels=labels)
    by_teacher(1)()  # the first call of a network plans it and chooses its kernels
    methods["student"]()
    rows: dict[str, Any] = {}
    images: dict[str, Images] = {}
    for name, sample in methods.items():
        _log.info("sampling %d images: %s", len(noise), describe_row(name))
        start = time.perf_counter()
        images[name] = sample()
        seconds = time.perf_counter() - start
        numbers = measure(images[name], reference, labels)
        rows[name] = {key: round(numbers[key], 4) for key in METRICS}
        rows[name]["ms_per_image"] = round(1000 * seconds / len(noise), 4)
    return {"student": rows.pop("student"), "teacher": rows}, images


def describe_row(name: str) -> str:
    """Return what a row of the report is, for people: "50" -> "teacher, 50 steps"."""
    if name == "student":
        return "student, 1 step"
    return f"teacher, {name} step{'' if name == '1' else 's'}"


def _rows(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the rows in the order in which they are shown: most steps first, student last."""
    teacher = report["teacher"]
    ordered = {name: teacher[name] for name in sorted(teacher, key=int, reverse=True)}
    return {**ordered, "student": report["student"]}


def format_table(report: dict[str, Any]) -> str:
    """Return the rows of a report as lines of plain ASCII text."""
    run = report["run"]
    lines = [f"{'':18}{'Frechet distance':>18}{'recall':>9}{'class accuracy':>17}{'ms/image':>11}"]
    for name, row in _rows(report).items():
        lines.append(
            f"{describe_row(name):18}{row['frechet_distance']:18.2f}{row['recall']:9.2f}"
            f"{row['class_accuracy']:17.3f}{row['ms_per_image']:11.3f}"
        )
    most = str(max(map(int, report["teacher"])))
    faster = report["teacher"][most]["ms_per_image"] / report["student"]["ms_per_image"]
    lines += [
        "",
        f"DDIM from t = {run['t_start']:g}, guidance {run['guidance_scale']:g}, "
        f"{run['num_images']} images a row from the same noise, against real digits (pixels).",
        f"Training: {run['train_steps']} steps without data, {run['training_seconds']:.0f} s on "
        f"{run['threads']} threads. The student is {faster:.0f} times as fast as {most} steps.",
    ]
    return "\n".join(lines)


def _draw(report: dict[str, Any], images: dict[str, Images], labels: NDArray[np.int64]) -> Any:
    """Draw the first images of every class, method by method."""
    classes = np.unique(labels)
    shown = np.concatenate([np.nonzero(labels == c)[0][:IMAGES_PER_CLASS] for c in classes])
    rows = [
        FigureRow(
            describe_row(name),
            images[name][shown],
            f"Frechet {row['frechet_distance']:.2f} · recall {row['recall']:.2f} · "
            f"{row['ms_per_image']:.2f} ms",
            highlight=name == "student",
        )
        for name, row in _rows(report).items()
    ]
    return side_by_side(
        rows,
        [f"class {c}" for c in classes],
        title="Teacher (DDIM) and one-step student",
        footer="In a column every row starts from the same noise. Distances and recall are "
        "measured against real digits; the student saw none.",
    )
