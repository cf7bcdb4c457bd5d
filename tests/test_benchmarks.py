"""The scripts that compare benchmark figures: what they call worse, and what they leave alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
