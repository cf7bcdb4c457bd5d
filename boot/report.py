"""`report.html`: one page about a run that needs nothing else, made from what lies in its folder.

Curves come from `log.jsonl`, pictures from `samples/`, settings from `distill_config.json`, and
what the run knew of its teacher and machine from `run.json`. So the page can be made again at any
time (`boot report FOLDER`), and a resumed run has one page from its first step on.
"""

from __future__ import annotations

import io
import json
import logging
import math
import platform
import re
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boot import _core
from boot._version import __version__
from boot.callbacks import LOG_FILE, SAMPLES_FOLDER, Callback, Control, TrainState
from boot.checkpoint import list_checkpoints, step_of
from boot.config import RUN_CONFIG_FILE, DistillConfig
from boot.curves import all_charts, column, step_times
from boot.describe import describe
from boot.errors import BootError, check_folder
from boot.files import write_atomically
from boot.htmlparts import escape, facts_table, picture
from boot.pairs import TEACHER_PICTURE
from boot.reading import read_json_object, to_json

if TYPE_CHECKING:
    pass

REPORT_FILE = "report.html"
RUN_FILE = "run.json"
GRIDS = 6  # at most: first, last, and evenly between
MAX_PICTURE = 720  # pixels of width and height; larger grids are made smaller
_GRID_NAME = re.compile(r"step-(\d{1,12})\.png", re.ASCII)
_log = logging.getLogger("boot")

STYLE = """
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;color:#1f2328;background:#f6f7f9;
margin:0}main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:24px;margin:0 0 2px}
h2{font-size:17px;margin:34px 0 10px}.lead{color:#6b7280;margin:0 0 20px}
.tiles,.grids,.tables{display:flex;flex-wrap:wrap;gap:14px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));gap:14px}
.way{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:14px}
.grids img{min-width:min(300px,80vw)}.way img{width:100%}
.tile,.card{background:#fff;border:1px solid #e5e7eb;border-radius:8px}
.tile{padding:10px 16px;min-width:130px}.tile b{display:block;font-size:20px;font-weight:600}
.tile span{color:#6b7280;font-size:13px}.card{padding:12px 14px}
.chart{width:100%;height:auto;display:block}figure{margin:0}
figure img{display:block;max-width:100%;height:auto;image-rendering:pixelated}
figcaption{color:#6b7280;font-size:13px;margin-top:6px}
table{border-collapse:collapse;font-size:13.5px}th,td{padding:2px 0;vertical-align:top}
td{font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.tables{align-items:flex-start}
.tables .card{flex:1 1 300px}caption{text-align:left;font-weight:600;padding-bottom:6px}
details summary{cursor:pointer;font-weight:600}
"""


class ReportPage(Callback):
    """Writes `output_dir/report.html` when a checkpoint is saved and when training ends."""

    def __init__(self, folder: Path) -> None:
        """Write into `folder`."""
        self._folder = folder

    def on_train_begin(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """Note what only the run knows: teacher, versions, machine."""
        facts = {"teacher": describe(kwargs["distiller"].teacher), "versions": _versions()}
        write_atomically(self._folder / RUN_FILE, to_json(facts))

    def on_save(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """Write the page."""
        self._write()

    def on_train_end(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """Write the page, also for a run that failed."""
        self._write()

    def _write(self) -> None:
        try:
            write_report(self._folder)
        except (OSError, BootError, ValueError) as problem:  # a page is no reason to stop a run
            _log.warning("report not written: %s", problem)


def _versions() -> dict[str, Any]:
    core = _core.show_config()
    machine = {key: core[key] for key in ("isa", "onednn_version", "threads")}
    return {
        "boot": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        **machine,
    }


def write_report(folder: Path) -> Path:
    """Write `report.html` of a run's folder, atomically, and return its path.

    Raises FileNotFoundError for a folder without a run, FormatError for damaged JSON files.
    """
    root = check_folder("folder", folder)
    if not (root / RUN_CONFIG_FILE).exists():
        raise FileNotFoundError(f"folder: {str(root)!r} holds no run: it has no {RUN_CONFIG_FILE}")
    settings = read_json_object(root / RUN_CONFIG_FILE)
    facts = read_json_object(root / RUN_FILE) if (root / RUN_FILE).exists() else {}
    saved = max((step_of(path) for path in list_checkpoints(root)), default=0)
    page = _page(settings, facts, read_log(root / LOG_FILE), root / SAMPLES_FOLDER, saved)
    write_atomically(root / REPORT_FILE, page)
    return root / REPORT_FILE


def read_log(path: Path) -> list[dict[str, float]]:
    """Return the numbers of a log.jsonl in order of their steps; bad lines and values are skipped.

    `seconds`, which starts again at 0 in every resumed run, is made to go on.
    """
    lines: dict[int, dict[str, float]] = {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            values = json.loads(line)
            step = int(values["step"])
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
        lines[step] = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        }
    ordered = [lines[step] for step in sorted(lines)]
    before = offset = 0.0
    for values in ordered:
        now = values.get("seconds", before)
        if now < before:
            offset += before
        before = now
        values["seconds"] = now + offset
    return ordered


# --------------------------------------------------------------------------------------- page


def _page(
    settings: dict[str, Any],
    facts: dict[str, Any],
    log: list[dict[str, float]],
    samples: Path,
    saved: int,
) -> str:
    teacher = facts.get("teacher", {})
    name = teacher.get("name", "a teacher") if isinstance(teacher, dict) else "a teacher"
    last = log[-1] if log else {}
    step = max(last.get("step", 0), saved)  # a run may log elsewhere, or not at all
    done = f"step {step:g} of {settings.get('max_train_steps', '?')}"
    tables = [facts_table(settings, "Settings")]
    for title, key in (("Teacher", "teacher"), ("Versions and machine", "versions")):
        if isinstance(facts.get(key), dict):
            tables.append(facts_table(facts[key], title))
    tables.insert(1, facts_table(_timing(log), "Timing"))
    cards = "".join(f'<div class="card">{table}</div>' for table in tables)
    charts = "".join(f'<div class="card">{chart}</div>' for chart in all_charts(log))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(name)}: one-step student</title><style>{STYLE}</style></head><body><main>"
        f"<h1>One-step student of {escape(name)}</h1>"
        f'<p class="lead">{escape(done)}, distilled by boot without data</p>'
        f'<div class="tiles">{_tiles(log)}</div>{_grids(samples)}'
        f'<h2>Curves</h2><div class="charts">{charts}</div>'
        f'<h2>Facts</h2><div class="tables">{cards}</div></main></body></html>\n'
    )


def _tiles(log: list[dict[str, float]]) -> str:
    tiles = []
    paired = [y for _, y in column(log, "paired_error")]
    losses = [y for _, y in column(log, "loss")]
    if paired:
        tiles.append((f"{paired[-1]:.4g}", f"paired error (first {paired[0]:.4g})"))
    if losses:
        tiles.append((f"{statistics.fmean(losses[-10:]):.4g}", "loss, mean of the last 10 lines"))
    if log:
        tiles.append((f"{log[-1]['step']:g}", "steps"))
        tiles += [(value, name) for name, value in _timing(log).items()]
        if log[-1].get("skipped"):
            tiles.append((f"{log[-1]['skipped']:g}", "steps skipped: not finite"))
    return "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for value, name in tiles
    )


def _timing(log: list[dict[str, float]]) -> dict[str, str]:
    """Return total time and the median time of a step."""
    if not log:
        return {"training time": "nothing logged yet"}
    seconds = log[-1]["seconds"]
    total = f"{seconds:.0f} s" if seconds < 300 else f"{seconds / 60:.1f} min"
    rates = [y for _, y in step_times(log)]
    result = {"training time": total}
    if rates:
        result["median step"] = f"{statistics.median(rates):.1f} ms"
    return result


# ---------------------------------------------------------------------------------- pictures


def _grids(samples: Path) -> str:
    """Return the newest grid beside the teacher's, and earlier ones below."""
    found = {int(m[1]): p for p in samples.glob("*.png") if (m := _GRID_NAME.fullmatch(p.name))}
    if not found:
        return ""
    steps = sorted(found)
    last = steps.pop()
    pictures = [_figure(found[last], f"student, step {last}: one network call")]
    if (samples / TEACHER_PICTURE).exists():
        text = "teacher, 20 Heun steps from the same noise"
        pictures.append(_figure(samples / TEACHER_PICTURE, text))
    chosen = {round(i) for i in np.linspace(0, len(steps) - 1, GRIDS)} if steps else set()
    earlier = "".join(_figure(found[steps[i]], f"step {steps[i]}") for i in sorted(chosen))
    body = f'<h2>Images</h2><div class="grids">{"".join(pictures)}</div>'
    return body + (f'<h2>On the way</h2><div class="way">{earlier}</div>' if earlier else "")


def _figure(path: Path, caption: str) -> str:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            image.thumbnail((MAX_PICTURE, MAX_PICTURE))
            buffer = io.BytesIO()
            image.save(buffer, format="PNG")
    except (OSError, ValueError, Image.DecompressionBombError):
        return f'<div class="card">{escape(path.name)} cannot be read</div>'
    return f'<div class="card">{picture(buffer.getvalue(), caption, caption)}</div>'
