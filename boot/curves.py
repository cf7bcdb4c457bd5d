"""The curves of a training run, from the lines of its log: for the report and for notebooks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from boot.charts import BLUE, FAINT_BLUE, GREY, ORANGE, RAMP, Line, Point, line_chart, smoothed

Log = Sequence[Mapping[str, float]]  # lines in order of their steps; names may be missing

_TIME = "paired_error_t"


def column(log: Log, name: str) -> list[Point]:
    """Return (step, value) of the lines that have the number."""
    return [(line["step"], line[name]) for line in log if name in line]


def step_times(log: Log) -> list[Point]:
    """Return (step, milliseconds per step) between log lines."""
    points = []
    for a, b in zip(log[:-1], log[1:], strict=True):
        steps, seconds = b["step"] - a["step"], b.get("seconds", 0.0) - a.get("seconds", 0.0)
        if steps > 0 and seconds > 0:
            points.append((b["step"], 1000.0 * seconds / steps))
    return points


def paired_chart(log: Log) -> str:
    """Chart the paired error: a line per time from noise to image, the images' own in orange."""
    texts = {name[len(_TIME) :] for line in log for name in line if name.startswith(_TIME)}
    times = sorted((t for t in map(_number, texts) if t is not None), reverse=True)
    lines = []
    for i, t in enumerate(times):
        colour = RAMP[i * len(RAMP) // len(times)]
        lines.append(Line(f"t = {t:.3g}", column(log, f"{_TIME}{t:.3g}"), colour, 1.5, marks=True))
    lines.append(Line("t_min: the images", column(log, "paired_error"), ORANGE, 2.2, marks=True))
    return line_chart("Paired error: student against the teacher's ODE", lines, log_y=True)


def loss_chart(log: Log) -> str:
    """Chart the loss, as logged and as a running mean."""
    loss = column(log, "loss")
    lines = [
        Line("as logged", loss, FAINT_BLUE, 1.0),
        Line("running mean", smoothed(loss, max(3, len(loss) // 12)), BLUE),
    ]
    return line_chart("Loss", lines, log_y=True)


def critic_charts(log: Log) -> list[str]:
    """Chart the critic's own loss, if there was a critic."""
    loss = column(log, "loss_critic")
    lines = [
        Line("as logged", loss, FAINT_BLUE, 1.0),
        Line("running mean", smoothed(loss, max(3, len(loss) // 12)), BLUE),
    ]
    return [line_chart("Loss of the critic", lines, log_y=True)] if loss else []


def all_charts(log: Log) -> list[str]:
    """Return every chart of a run, the most telling first."""
    rate = Line("learning rate", column(log, "learning_rate"))
    norm = Line("gradient norm", column(log, "grad_norm"), GREY, 1.2)
    times = Line("milliseconds", step_times(log), GREY, 1.2)
    return [
        paired_chart(log),
        loss_chart(log),
        *critic_charts(log),
        line_chart("Learning rate", [rate]),
        line_chart("Gradient norm, before clipping", [norm], log_y=True),
        line_chart("Milliseconds per step", [times]),
    ]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
