"""The installed package: `python -m boot`, what `import boot` costs, the names that it offers."""

from __future__ import annotations

import re

import pytest
from processes import run_python


def test_python_m_boot_is_the_command():
    done = run_python("-m", "boot", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"boot \d+\.\d+\.\d+\n", done.stdout)
    done = run_python("-m", "boot", "--help")
    assert done.returncode == 0
    for command in ("distill", "sample", "evaluate", "info", "demo"):
        assert command in done.stdout


def test_importing_boot_is_quick_and_light():
    text = (
        "import sys, time; start = time.perf_counter(); import boot;"
        "print(time.perf_counter() - start);"
        "heavy = {'torch', 'matplotlib', 'numpy', 'tqdm', 'PIL', 'diffusers'} & set(sys.modules);"
        "print(sorted(heavy)); boot.Distiller, boot.Teacher, boot.Student, boot.show_config;"
        "heavy = {'torch', 'matplotlib', 'diffusers', 'PIL', 'tqdm'} & set(sys.modules);"
        "print(sorted(heavy))"
    )
    times = []
    for _ in range(3):
        done = run_python("-c", text)
        assert done.returncode == 0, done.stderr
        took, at_once, after = done.stdout.splitlines()
        assert at_once == after == "[]"
        times.append(float(took))
    assert min(times) <= 0.3


def test_the_names_of_the_package():
    import boot

    for name in boot.__all__:
        assert getattr(boot, name) is not None
    assert set(boot.__all__) <= set(dir(boot))
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        boot.distil  # noqa: B018
    before = boot.get_num_threads()
    boot.set_num_threads(1)
    assert boot.get_num_threads() == 1
    boot.set_num_threads(before)
    assert "onednn_version" in boot.show_config()
