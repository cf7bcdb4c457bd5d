"""The scripts in examples/ run, each in a process of its own, where its library is installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import SANITIZED

from boot import FlowSchedule, toy

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TEACHERS = {
    "numpy_teacher": [],
    "onnx_teacher": ["onnx", "onnxruntime"],
    "torch_teacher": ["torch"],
}

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="needs the source tree")


def run(script, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if SANITIZED:  # looking for leaks at the end crashes among the threads of other libraries
        environment["ASAN_OPTIONS"] = f"{os.environ.get('ASAN_OPTIONS', '')}:detect_leaks=0"
    command = [sys.executable, str(EXAMPLES / f"{script}.py"), *arguments]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.parametrize("script", TEACHERS)
def test_a_callable_teacher_of_each_kind_is_distilled(script):
    for library in TEACHERS[script]:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"needs {library}")
    lines = run(script, "--max-train-steps", "200").splitlines()
    words = [line.replace(",", "").split() for line in lines if "1 call" in line]
    if script == "numpy_teacher":
        student, teacher = (float(line[-1]) for line in words)
        assert student < teacher / 2
    elif script == "onnx_teacher":
        mean, std = float(words[0][4]), float(words[0][-1])
        assert abs(mean - 0.3) < 0.1 and abs(std - 0.5) < 0.15
    else:
        low, high = float(words[0][6]), float(words[0][8])
        assert abs(low + 0.6) < 0.1 and abs(high - 0.6) < 0.1


def test_the_examples_of_the_page_on_teachers_run_as_written():
    text = (EXAMPLES.parent / "docs" / "teachers.md").read_text()
    blocks = [b for b in text.split("\n\n") if b.startswith("    ")]
    code = "\n".join(line[4:] for block in blocks for line in block.splitlines())
    assert "FlowSchedule()" in code and "class SquareRoots" in code
    mixture = toy.GaussianMixture.random((1, 4, 4))
    names = {"velocity": mixture.teacher(FlowSchedule(), "flow").model.function}
    exec(code.replace("distiller.fit()", "distiller.fit(2)"), names)
    assert names["distiller"].state.step == 2
