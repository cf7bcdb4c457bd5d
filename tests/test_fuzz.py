"""Hostile files: the committed corpus is replayed, and some thousand mutants of it are tried.

A million: `python tests/fuzz/fuzz.py --cases 1000000` (SECURITY.md has the last figures).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from processes import SANITIZED, run_python

FUZZ = Path(__file__).parent / "fuzz"
sys.path.insert(0, str(FUZZ))

from fuzz import corpus  # noqa: E402
from targets import TARGETS, run  # noqa: E402

ACCEPTS_NOTHING = {"index"}  # it names other files, which are not there


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_replayed(name):
    outcomes = [run(name, data) for data in corpus(name)]
    assert "accepted" in outcomes or name in ACCEPTS_NOTHING
    assert sum(path.stat().st_size for path in (FUZZ / "corpus" / name).iterdir()) < 2**16


@pytest.mark.skipif(SANITIZED, reason="the sanitizer needs address space beyond any limit")
def test_mutants_are_accepted_or_refused_by_a_documented_class():
    """In a process of its own: it limits the memory, and it must not crash."""
    done = run_python(str(FUZZ / "fuzz.py"), "--cases", "20000", "--seed", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert {report["target"] for report in reports} == set(TARGETS)
    for report in reports:
        assert report["cases"] == 2000 and report["slowest_s"] < 1
        refused = sum(n for kind, n in report["outcomes"].items() if kind != "accepted")
        assert refused > 500, report  # the mutants do reach the checks
        assert report["resident_growth_mib"] < 64
    accepted = [
        r["outcomes"].get("accepted", 0) for r in reports if r["target"] not in ACCEPTS_NOTHING
    ]
    assert min(accepted) > 20, reports


@pytest.mark.skipif(SANITIZED, reason="the sanitizer needs address space beyond any limit")
def test_files_as_large_as_may_be_take_no_second_and_little_memory():
    done = run_python(str(FUZZ / "large.py"), timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    reports = {r["target"]: r for r in map(json.loads, done.stdout.splitlines())}
    assert set(reports) == set(TARGETS)
    for report in reports.values():
        assert report["slowest"][0] < 1, report
    for name in ("safetensors", "json", "unet_config", "student_info", "manifest"):
        assert reports[name]["outcomes"].get("accepted"), name  # the limits are reached, not passed


@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_never_reads_a_pickle(name, tmp_path):
    """Loading one would run code: the code here leaves a file behind."""
    mark = tmp_path / "ran"
    pickle = b"cposix\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR."
    for data in (pickle, b"\x80\x02" + pickle, b"\x80\x04" + pickle):
        assert run(name, data) != "accepted"
    assert not mark.exists()


def test_no_reader_unpickles_or_evaluates():
    package = Path(FUZZ).parent.parent / "boot"
    if not package.is_dir():
        pytest.skip("needs the source tree")
    for path in package.rglob("*.py"):
        text = path.read_text()
        for word in (
            "import pickle",
            "pickle.load",
            "allow_pickle=True",
            "eval(",
            "exec(",
            "marshal",
        ):
            assert word not in text, f"{path.name}: {word}"


def test_the_core_parses_nothing():
    """No file, no stream, no number from text in C: so there is nothing for libFuzzer to feed."""
    core = FUZZ.parent.parent / "csrc"
    if not core.is_dir():
        pytest.skip("needs the source tree")
    for path in core.rglob("*.[ch]"):
        for word in (
            "fopen",
            "fread",
            " read(",
            " open(",
            "sscanf",
            "strtol",
            "strtod",
            "atoi",
            "recv",
        ):
            assert word not in path.read_text(), f"{path.name}: {word}"
