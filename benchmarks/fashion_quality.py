"""Students of the fashion teacher against real images: `fashion_quality.py STUDENT ...`.

Real images are Fashion-MNIST (Debian package dataset-fashion-mnist, MIT licence), padded to 32x32
and averaged to 16x16, as that teacher was trained on. Prints Fréchet distance and recall on the 64
leading principal components of 20,000 of them, and the accuracy of a support-vector classifier
(C = 10) of 4,000: what the teacher's own figures are made of. `--reference FILE` writes the
statistics for ablate.py and `boot evaluate --reference`; `--teacher FOLDER` measures the teacher
too, to see that the measure is the same. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from boot import Student, Teacher
from boot.metrics import Statistics, image_features, measure

DATASET = Path("/usr/share/datasets/fashion-mnist")
NUM_IMAGES, NUM_REAL, NUM_CLASSIFIED = 1000, 20_000, 4000
COMPONENTS = 64


def real_images(folder: Path, count: int) -> tuple[Any, Any]:
    """The first training images, float32 (count,1,16,16) in [-1, 1], and their classes (count,)."""
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)[:count]
    with gzip.open(folder / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)[:count]
    scaled = pixels.astype(np.float32) / 127.5 - 1.0
    padded = np.pad(scaled, ((0, 0), (2, 2), (2, 2)), constant_values=-1.0)
    return padded.reshape(count, 1, 16, 2, 16, 2).mean(axis=(3, 5)), labels.astype(np.int64)


def classifier(statistics: Statistics, images: Any, labels: Any) -> Any:
    """A support-vector classifier on the components of some real images."""
    from sklearn.svm import SVC

    rows = statistics.project(image_features(images[:NUM_CLASSIFIED]))
    return SVC(C=10).fit(rows, labels[:NUM_CLASSIFIED])


def numbers(images: Any, labels: Any, statistics: Statistics, judge: Any) -> dict[str, float]:
    """Fréchet distance, precision, recall and class accuracy of made images."""
    found = judge.predict(statistics.project(image_features(images)))
    result = measure(images, statistics)
    return {**result, "class_accuracy": float((found == labels).mean())}


def main() -> None:
    """Measure every student that is named, and the teacher if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("students", nargs="*", help="folders of students")
    parser.add_argument("--teacher", help="measure this teacher's 10 and 50 DDIM steps as well")
    parser.add_argument("--reference", help="write the statistics of the real images here, .npz")
    parser.add_argument("--dataset", type=Path, default=DATASET)
    parser.add_argument("--seed", type=int, default=1234)
    options = parser.parse_args()
    images, labels = real_images(options.dataset, NUM_REAL)
    statistics = Statistics.from_images(images, num_components=COMPONENTS)
    if options.reference:
        statistics.save(options.reference)
    judge = classifier(statistics, images, labels)
    labels = np.arange(NUM_IMAGES) % 10
    for folder in options.students:
        made = Student.from_pretrained(folder).sample(
            NUM_IMAGES, class_labels=labels, seed=options.seed
        )
        print(json.dumps({"student": folder, **numbers(made, labels, statistics, judge)}))
    for count in (10, 50) if options.teacher else ():
        made = Teacher.from_pretrained(options.teacher).sample(
            NUM_IMAGES,
            num_inference_steps=count,
            class_labels=labels,
            guidance_scale=1.5,
            t_start=0.98,
            seed=options.seed,
        )
        print(json.dumps({"teacher, steps": count, **numbers(made, labels, statistics, judge)}))


if __name__ == "__main__":
    main()
