"""What the sweeps over many short trainings share: one run, the results file, cells of a table."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boot.config import DistillConfig
from boot.distiller import Distiller
from boot.student import Student
from boot.teacher import Teacher

METRICS = ("frechet_distance", "recall", "paired_rmse")
NUM_IMAGES, NUM_PAIRED, EVALUATION_SEED = 2000, 256, 1234


def train(
    teacher: Teacher,
    config: DistillConfig,
    steps: int,
    seed: int,
    kind: type[Student] | None = None,
) -> Distiller:
    """Distil for `steps` steps; a short run has a short warm-up and a short weight average.

    kind: a class whose methods replace the student's.
    """
    config = config.replace(
        max_train_steps=steps,
        seed=seed,
        report_to="none",
        lr_warmup_steps=min(config.lr_warmup_steps, steps // 4),
        ema_decay=max(0.0, min(config.ema_decay, 1.0 - 10.0 / steps)),
    )
    run = Distiller(teacher, config)
    if kind is not None:
        run._training.__class__ = run._average.__class__ = kind
    while run.state.step < steps:
        run.step()
    return run


def arguments(
    description: str, *, results: str, steps: int, seeds: tuple[int, ...] = (0,)
) -> argparse.ArgumentParser:
    """Return the command line of a sweep; the caller adds what it varies."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="what the tables call this teacher or run")
    parser.add_argument("teacher", help="folder of the teacher")
    parser.add_argument("reference", help="statistics of real images, or images, as .npz")
    parser.add_argument("--steps", type=int, default=steps, help=f"of the baseline [{steps}]")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--results", type=Path, default=Path(results))
    parser.add_argument("--table", type=Path, help="Markdown file to write")
    return parser


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Read a results file; an unfinished last line counts as nothing."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def add_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Append and print one JSON line for each row."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    with path.open("a") as file:
        file.write(lines)
    print(lines, end="", flush=True)


def cell(values: list[float]) -> str:
    """`mean +- standard deviation`, or the one value."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return "not finite"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def cells(runs: list[dict[str, Any]]) -> str:
    """Return the number of runs and a cell for each metric."""
    return " | ".join([str(len(runs)), *(cell([run[key] for run in runs]) for key in METRICS)])
