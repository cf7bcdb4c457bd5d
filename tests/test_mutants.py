"""The list of planted mistakes fits the code: a mistake that cannot be planted proves nothing."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from mutants import MUTANTS

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="needs the source tree")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.file}: {m.old[:40]}")
def test_a_mutant_can_be_planted(mutant):
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.new != mutant.old
    for word in shlex.split(mutant.tests):
        assert not word.endswith(".py") or (ROOT / word).is_file(), word


def test_there_are_enough_of_both_languages():
    in_c = sum(mutant.file.startswith("csrc/") for mutant in MUTANTS)
    assert len(MUTANTS) >= 60 and in_c >= 30 and len(MUTANTS) - in_c >= 15
    assert len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS)
