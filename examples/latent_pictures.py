"""Makes the pictures of docs/latent.md: class swap, guidance sweep and interpolation of the digits.

    python examples/latent_pictures.py [--student FOLDER] [--output-dir docs/images]

Without a student, one of guidance scales 1 ... 5 is distilled from the packaged digits teacher
first: a few minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from boot import Distiller, Student
from boot.demo import TEACHER_FOLDER
from boot.latent import as_grid, class_swap, guidance_sweep, interpolate

SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0)


def distilled(steps: int) -> Student:
    """Distil the packaged teacher for a range of guidance scales."""
    distiller = Distiller(TEACHER_FOLDER, max_train_steps=steps, guidance_scale_max=5.0)
    distiller.fit()
    return distiller.student


def main() -> None:
    """Load or distil the student, and write the three pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", help="folder of a student of a range of guidance scales")
    parser.add_argument("--max-train-steps", type=int, default=1000, help="[1000]")
    parser.add_argument("--output-dir", default="docs/images", help="[docs/images]")
    options = parser.parse_args()
    if options.student is None:
        student = distilled(options.max_train_steps)
    else:
        student = Student.from_pretrained(options.student)
    low, high = student.info.scale_range
    scales = [scale for scale in SCALES if low <= scale <= high]
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "class_swap": class_swap(student, 4, seed=1),
        "guidance_sweep": guidance_sweep(student, scales, 4, class_labels=[2, 3, 5, 8], seed=2),
        "interpolation": interpolate(student, 4, steps=9, class_labels=[0, 3, 6, 9], seed=3),
    }
    for name, images in pictures.items():
        print(as_grid(images).save(folder / f"{name}.png"))


if __name__ == "__main__":
    main()
