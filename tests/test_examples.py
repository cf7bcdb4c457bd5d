"""The scripts in examples/ run, each in a process of its own, where its library is installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import SANITIZED

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
