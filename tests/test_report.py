"""The run's page: complete, self-contained, safe against what its files hold, and made again."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from models import make

from boot.charts import Line, line_chart
from boot.cli import main
from boot.curves import all_charts, paired_chart
from boot.errors import FormatError
from boot.report import read_log, write_report

OPTIONS = {"logging_steps": 1, "eval_steps": 2, "sample_steps": 2, "num_sample_images": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was stopped after three steps and resumed."""
    folder = tmp_path_factory.mktemp("runs") / "out"
    first = make(output_dir=str(folder), checkpointing_steps=3, **OPTIONS)
    first.fit(max_train_steps=3)
    again = make(output_dir=str(folder), resume_from_checkpoint="latest", **OPTIONS)
    return folder, again.fit(max_train_steps=6), again


def polylines(page, title):
    """The numbers of points of each line of the chart with a title."""
    chart = re.search(f'aria-label="{re.escape(title)}".*?</svg>', page, flags=re.S)
    assert chart is not None
    return [len(p.split()) for p in re.findall(r'points="([^"]*)"', chart[0])]


def test_fit_writes_a_page_that_needs_nothing_else(run):
    page = (run[0] / "report.html").read_text()
    assert "step 6 of 6" in page
    assert "One-step student of tiny" in page
    for word in ("train_batch_size", "prediction_type", "onednn_version", "median step"):
        assert word in page
    assert not re.findall(r"<(script|link|iframe|object)", page)
    assert all(s.startswith("data:image/png;base64,") for s in re.findall(r'src="([^"]*)', page))
    assert "http" not in page
    assert "url(" not in page


def test_a_resumed_run_has_one_continuous_page(run):
    page = (run[0] / "report.html").read_text()
    assert polylines(page, "Loss") == [6, 6]
    assert polylines(page, "Learning rate") == [6]
    paired = polylines(page, "Paired error: student against the teacher&#x27;s ODE")
    assert paired == [4] * 5  # five times, measured at 2, 3 (the end of the first fit), 4 and 6
    assert page.count("<img") == 5  # student and teacher, then steps 2, 3 and 4
    assert "teacher, 20 Heun steps from the same noise" in page


def test_boot_report_makes_the_same_page_again(run, capsys):
    page = (run[0] / "report.html").read_bytes()
    (run[0] / "report.html").unlink()
    assert main(["report", str(run[0])]) == 0
    assert capsys.readouterr().out.strip() == str(run[0] / "report.html")
    assert (run[0] / "report.html").read_bytes() == page


def test_seconds_go_on_over_resumed_runs_and_bad_lines_are_skipped(tmp_path):
    lines = ['{"step": 1, "seconds": 2.0}', '{"step": 2, "seconds": 5}', "{", "7", '{"step": null}']
    lines += ['{"step": 3, "seconds": 1.0, "loss": null, "name": "<b>"}', '{"step": 4}']
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    log = read_log(tmp_path / "log.jsonl")
    assert [line["seconds"] for line in log] == [2.0, 5.0, 6.0, 6.0]
    assert all(set(line) == {"step", "seconds"} for line in log)


ATTACK = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"


def test_nothing_in_the_files_can_become_markup(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples/step-000001.png").write_bytes(ATTACK.encode())
    settings = {"max_train_steps": ATTACK, ATTACK: ATTACK}
    (tmp_path / "distill_config.json").write_text(json.dumps(settings))
    facts = {"teacher": {"name": ATTACK, ATTACK: [ATTACK]}, "versions": {ATTACK: ATTACK}}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    line = {"step": 1, "loss": 1.0, ATTACK: 2.0, f"paired_error_t{ATTACK}": 3.0, "note": ATTACK}
    (tmp_path / "log.jsonl").write_text(json.dumps(line))
    page = write_report(tmp_path).read_text()
    assert "<script" not in page
    assert "onerror=alert(1)>" not in page
    assert page.count("<img") == 0
    assert "step-000001.png cannot be read" in page
    assert page.count("&lt;script&gt;") >= 6


def test_a_folder_without_a_run_is_an_error(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        write_report(tmp_path)
    assert main(["report", str(tmp_path / "none")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    (tmp_path / "distill_config.json").write_text("[")
    with pytest.raises(FormatError):
        write_report(tmp_path)


def test_a_page_that_cannot_be_written_does_not_stop_the_run(tmp_path, caplog):
    folder = tmp_path / "out"
    distiller = make(output_dir=str(folder), **OPTIONS)
    (folder / "report.html").mkdir(parents=True)
    distiller.fit(max_train_steps=2)
    assert "report not written" in caplog.text
    assert distiller.state.step == 2


# --------------------------------------------------------------------------------- the charts


@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        [1.0],
        [0.5] * 5,
        [0.0] * 4,
        [-3.0, 2.0, float("nan"), float("inf"), 7.0],
        list(10.0 ** np.linspace(-8, 6, 50)),
        list(np.linspace(1e6, 1e6 + 1, 2000)),
        [],
    ],
)
def test_charts_of_any_numbers_are_drawn_within_their_frame(values, log_y):
    svg = line_chart("a < b", [Line("x & y", list(enumerate(values)))], log_y=log_y)
    root = ET.fromstring(svg)
    width, height = float(root.get("width")), float(root.get("height"))
    for line in root.iter("polyline"):
        places = [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
        assert len(places) <= 400
        assert all(0 <= x <= width and 0 <= y <= height for x, y in places)
    finite = [v for v in values if np.isfinite(v) and (v > 0 or not log_y)]
    assert bool(list(root.iter("polyline"))) == bool(finite)


def test_a_falling_curve_falls_on_the_page():
    svg = line_chart("t", [Line("x", [(0, 4.0), (1, 2.0), (2, 1.0)])])
    points = re.search(r'points="([^"]*)"', svg)[1].split()
    (x0, y0), (x1, y1), (x2, y2) = (tuple(map(float, p.split(","))) for p in points)
    assert x0 < x1 < x2
    assert y0 < y1 < y2  # y grows downwards
    assert (y1 - y0) == pytest.approx(2 * (y2 - y1), abs=0.2)


def test_an_empty_log_has_charts_that_say_so():
    assert all("nothing logged yet" in chart for chart in all_charts([]))
    assert "t = 0.5" in paired_chart([{"step": 1, "paired_error_t0.5": 1.0, "paired_error": 2.0}])


def test_a_critic_has_a_chart_of_its_loss_and_a_run_without_has_none():
    log = [{"step": i, "loss": 1.0} for i in range(4)]
    assert "Loss of the critic" not in "".join(all_charts(log))
    log += [{"step": i, "loss": 1.0, "loss_critic": 0.5} for i in range(4, 7)]
    assert polylines("".join(all_charts(log)), "Loss of the critic") == [3, 3]


# --------------------------------------------------------------------------------- notebooks


def test_notebooks_show_history_distiller_and_student(run):
    _, history, distiller = run
    html = history._repr_html_()
    assert polylines(html, "Loss") == [3, 3]
    assert "History(3 logged steps" in html
    assert "step 6 of 6" in distiller._repr_html_()
    assert distiller.student._repr_html_().count("data:image/png;base64,") == 1
    make().fit(max_train_steps=1)._repr_html_()


def test_a_run_that_logs_nothing_shows_the_step_of_its_checkpoint(tmp_path):
    make(output_dir=str(tmp_path), report_to="none", max_train_steps=3).fit()
    assert "step 3 of 3" in (tmp_path / "report.html").read_text()
