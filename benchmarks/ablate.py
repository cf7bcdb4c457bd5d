"""What each choice of the method buys: one change at a time, at equal compute, several seeds.

python benchmarks/ablate.py NAME TEACHER REFERENCE [--steps 400] [--seeds 0 1 2] [--only KEY ...]
    [--results ablation.jsonl] [--table ablation.md]

Trains one student after the other in this process and appends a JSON line for each; what is in the
file already is skipped, so a run may be stopped and started again. --table writes the tables of all
teachers in the file. `--steps` are those of the baseline: a variant whose step costs more takes
fewer, in proportion to network calls (`step_cost`).
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from ablation_students import EpsilonMap, InputTimeMap, TeacherTime
from sweeps import (
    EVALUATION_SEED,
    METRICS,
    NUM_IMAGES,
    NUM_PAIRED,
    add_rows,
    arguments,
    cells,
    rows_of,
    train,
)

from boot.config import DistillConfig
from boot.distiller import Distiller
from boot.evaluation import evaluate_student, load_reference
from boot.student import Student
from boot.teacher import Teacher

# name -> (group, settings, class of the student). The baseline: the defaults without a critic.
VARIANTS: dict[str, tuple[str, dict[str, Any], type[Student] | None]] = {
    "defaults": ("", {}, None),
    "epsilon map, frozen at t_max": ("output map", {}, EpsilonMap),
    "v map of the target time": ("output map", {}, InputTimeMap),
    "teacher's own embedding, fed t": ("time embedding", {}, TeacherTime),
    "delta 0.02": ("delta", {"delta": 0.02}, None),
    "delta 0.08": ("delta", {"delta": 0.08}, None),
    "delta 0.16 to 0.04": ("delta", {"delta_schedule": "linear"}, None),
    "euler": ("solver", {"solver": "euler"}, None),
    "heun": ("solver", {"solver": "heun"}, None),
    "euler, 2 sub-steps": ("solver", {"solver": "euler", "teacher_substeps": 2}, None),
    "weight 1/C": ("weight", {"loss_weight": "inverse_c"}, None),
    "weight 1": ("weight", {"loss_weight": "uniform"}, None),
    "weight min(SNR, 5)": ("weight", {"loss_weight": "min_snr_gamma"}, None),
    "pseudo-Huber, 1/C": ("loss", {"loss": "pseudo_huber", "loss_weight": "inverse_c"}, None),
    "boundary weight 0.1": ("boundary", {"boundary_weight": 0.1}, None),
    "boundary weight 1": ("boundary", {"boundary_weight": 1.0}, None),
    "t progressive": ("t distribution", {"t_distribution": "progressive"}, None),
    "guidance drawn from 1 ... 2": ("guidance", {"guidance_scale_max": 2.0}, None),
    "rollout": ("correction", {"correction": "rollout"}, None),
    "distribution": ("correction", {"correction": "distribution"}, None),
}


def step_cost(config: DistillConfig, guided: bool) -> float:
    """Return the network passes of a training step, per sample: a backward pass counts as two."""
    calls = config.teacher_substeps * (1 if config.solver == "euler" else 2)
    ends = config.boundary_fraction if config.boundary_weight > 0 else 0.0
    follow = judged = 0.0
    if config.correction == "rollout":
        follow = (config.correction_fraction or 0.125) * config.correction_steps
    if config.correction in (None, "distribution"):
        # student 1 + 3, teacher 1, critic 3, on average
        judged = 8.0 * (config.correction_fraction or 0.5) * (1.0 - config.correction_start)
    teacher = (2.0 if guided else 1.0) * (calls * (1.0 + follow) + ends)
    return 1.0 + 3.0 * (1.0 + ends + follow) + teacher + judged


def train_variant(teacher: Teacher, name: str, steps: int, seed: int) -> Distiller:
    """Distil one variant for as much compute as `steps` steps of the defaults."""
    _, settings, kind = VARIANTS[name]
    guided = teacher.num_classes is not None
    base = DistillConfig(correction="none")  # a critic needs longer runs to be of use
    config = base.replace(**settings)
    count = max(1, round(steps * step_cost(base, guided) / step_cost(config, guided)))
    return train(teacher, config, count, seed, kind)


def measure(run: Distiller, teacher: Teacher, reference: Any) -> dict[str, float]:
    """Return the numbers of a student; pairs are with the same fine teacher path for all."""
    numbers = evaluate_student(
        run.student,
        teacher,
        num_images=NUM_IMAGES,
        num_paired=NUM_PAIRED,
        reference=reference,
        delta=0.02,
        solver="heun",
        seed=EVALUATION_SEED,
    )
    return {key: float(numbers[key]) for key in (*METRICS, "class_accuracy") if key in numbers}


def sweep(options: argparse.Namespace) -> None:
    """Train and measure what is missing in the results file."""
    names = options.only or list(VARIANTS)
    unknown = set(names) - set(VARIANTS)
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; known: {', '.join(VARIANTS)}")
    have = {
        (row["teacher"], row["variant"], row["seed"], row["base_steps"])
        for row in rows_of(options.results)
    }
    reference = load_reference(options.reference)
    for seed in options.seeds:
        for name in names:
            key = (options.name, name, seed, options.steps)
            if key in have:
                continue
            teacher = Teacher.from_pretrained(options.teacher)
            begin = time.process_time()
            run = train_variant(teacher, name, options.steps, seed)
            row = dict(zip(("teacher", "variant", "seed", "base_steps"), key, strict=True))
            row |= {"steps": run.state.step, "cpu_seconds": round(time.process_time() - begin, 1)}
            row |= {"skipped": run.state.skipped, **measure(run, teacher, reference)}
            add_rows(options.results, [row])


def tables(rows: list[dict[str, Any]]) -> str:
    """Return one Markdown table per teacher and number of steps."""
    text = []
    for teacher, steps in sorted({(row["teacher"], row["base_steps"]) for row in rows}):
        mine = [r for r in rows if (r["teacher"], r["base_steps"]) == (teacher, steps)]
        text += [f"## {teacher}, the compute of {steps} default steps", ""]
        text += ["| | variant | steps | seeds | Fréchet distance | recall | paired RMSE |"]
        text += ["|---|---|---|---|---|---|---|"]
        for name, (group, _, _) in VARIANTS.items():
            runs = [row for row in mine if row["variant"] == name]
            if runs:
                text += [f"| {group} | {name} | {runs[0]['steps']} | {cells(runs)} |"]
        text += [""]
    return "\n".join(text)


def main() -> None:
    """Run the sweep, then write the tables if asked to."""
    parser = arguments(__doc__ or "", results="ablation.jsonl", steps=400, seeds=(0, 1, 2))
    parser.add_argument("--only", nargs="+", metavar="VARIANT")
    options = parser.parse_args()
    sweep(options)
    if options.table:
        options.table.write_text(tables(rows_of(options.results)))


if __name__ == "__main__":
    main()
