"""The scripts that compare benchmark figures: what they call worse, and what they leave alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from boot import toy
from boot.continuous import EDMSchedule
from boot.distiller import Distiller
from boot.metrics import Statistics

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="needs the source tree")


def figures(ratio, memory=400, benchmark="step"):
    """A result file as `harness.save` writes it, with one case."""
    sides = {"boot": {"median_ms": 10.0}, "torch fp32": {"ours_is_of_this": ratio}}
    peaks = {"boot": memory, "torch fp32": 1000}
    cases = {"digits": {"sides": sides, "peak_rss_bytes": peaks}}
    return {"benchmark": benchmark, "machine": {}, "cases": cases}


def compare(tmp_path, old, new, *flags):
    paths = [tmp_path / "old.json", tmp_path / "new.json"]
    for path, content in zip(paths, (old, new), strict=True):
        path.write_text(json.dumps(content))
    command = [sys.executable, str(BENCHMARKS / "compare.py"), *map(str, paths), *flags]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_ratio_that_grew_is_an_error_that_names_it(tmp_path):
    done = compare(tmp_path, figures(0.40), figures(0.43))
    assert done.returncode == 1
    assert "0.400 -> 0.430   +7.5 %" in done.stdout
    assert "worse by more than 5 %: digits: time, torch fp32" in done.stderr
    assert compare(tmp_path, figures(0.40), figures(0.43), "--worse", "0.1").returncode == 0
    assert compare(tmp_path, figures(0.40), figures(0.30)).returncode == 0


def test_memory_counts_as_well_as_time(tmp_path):
    done = compare(tmp_path, figures(0.4), figures(0.4, memory=450))
    assert done.returncode == 1 and "digits: memory, torch fp32" in done.stderr


def test_files_of_two_benchmarks_are_not_compared(tmp_path):
    done = compare(tmp_path, figures(0.4), figures(0.4, benchmark="sample"))
    assert done.returncode == 1 and "'sample'" in done.stderr


def test_instruction_counts_that_grew_are_named(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import instructions

    old = {"counts": {"forward": 1000, "update": 50}}
    new = {"counts": {"forward": 1030, "update": 50, "backward": 7}}
    assert instructions.compare(old, new, 0.02) == ["forward"]
    assert instructions.compare(old, new, 0.05) == []
    assert "+3.00 %" in capsys.readouterr().out


def test_the_committed_counts_are_complete(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import instructions

    kept = json.loads(instructions.BASELINE.read_text())
    assert set(kept["counts"]) == set(instructions.FUNCTIONS.values())
    assert all(count > 10**6 for count in kept["counts"].values())
    assert kept["compiler"] and kept["flags"]


def test_the_dials_count_their_calls_and_start_the_teacher_where_it_starts(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import dials

    for name, few in {"TRUTH_STEPS": 4, "TIMES": (0.2,), "RESAMPLES": [(0.6, 2)]}.items():
        monkeypatch.setattr(dials, name, few)
    mixture = toy.GaussianMixture.random((1, 4, 4), classes=3)
    teacher = mixture.teacher(EDMSchedule(), "epsilon")  # whose noise is far longer than 1
    run = Distiller(teacher, student=toy.small_network(teacher), guidance_scale=2.0)
    images = teacher.sample(40, seed=9, num_inference_steps=4)
    reference = Statistics.from_images(images, run.student.inputs(40)[1])
    benches = [dials.Bench(run.student, teacher, 8, reference, draw) for draw in (0, 1)]
    bench = benches[0]
    sampling = {"guidance_scale": 2.0, "t_start": run.student.info.t_max}
    expected = teacher.sample(
        noise=bench.noise, class_labels=bench.labels, num_inference_steps=4, **sampling
    )
    np.testing.assert_array_equal(bench.truth, expected)
    calls = {row["dial"]: row["calls"] for row in dials.run(benches)}
    assert calls["student, one call"] == 1
    assert calls["jump to t = 0.2, 4 dpm steps"] == 1 + 2 * 4
    assert calls["jump to t = 0.2, 4 heun steps"] == 1 + 2 * 7
    assert calls["resample at t = 0.6, 2 rounds"] == 1 + 2 * 5
    assert "| student, one call | 1 | " in capsys.readouterr().out


def test_the_figures_of_a_dial_are_means_over_the_draws(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import dials

    draws = [{"dial": "a", "calls": 3, "paired_rmse": None, "recall": r} for r in (0.5, 0.7)]
    assert dials.mean_rows(draws) == {**draws[0], "recall": pytest.approx(0.6)}
