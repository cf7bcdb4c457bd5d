"""The plan of a run: its bytes against what is held and resident, its limit, and its silence."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from models import (
    CONFIG,
    PLAIN,
    assert_same,
    make,
    make_teacher,
    pin_like,
    save_teacher,
    weights_of,
)
from numpy._core.multiarray import get_handler_name
from pipelines import WEIGHTS
from processes import SANITIZED, run_python

from boot import _core
from boot.cli import main
from boot.config import DistillConfig
from boot.errors import ConfigError
from boot.pairs import Pairs
from boot.sizes import check_bytes, size_text

WORKING = ("activations", "kernel scratch")


def held(distiller):
    """Bytes that the core holds for a run, counted by itself."""
    cores = {id(net.core): net.core for net in distiller._networks().values()}
    memory = [core.memory() for core in cores.values()]
    return {
        "weights": sum(m["weights"] for m in memory),
        "grads": sum(m["grads"] for m in memory),
        "arena": max(m["arena"] for m in memory),
        "packed": sum(m["packed"] for m in memory),
    }


def test_arrays_of_a_call_are_counted_at_their_peak_and_those_of_other_threads_are_not():
    def call():
        zeros, ones = np.zeros(1000), np.ones(10**6, np.float32)
        del ones
        thread = threading.Thread(target=lambda: kept.append(np.ones(10**7)))
        thread.start(), thread.join()
        zeros.resize(3000, refcheck=False)
        return zeros

    kept: list = []
    found, peak = _core.peak_array_bytes(call)
    assert 4_008_000 <= peak < 4_010_000
    np.testing.assert_array_equal(found, np.zeros(3000))
    assert get_handler_name(found) != get_handler_name() == get_handler_name(kept[0])


def test_a_counted_call_that_fails_says_so_and_is_counted_no_longer():
    outer = get_handler_name()
    with pytest.raises(ZeroDivisionError):
        _core.peak_array_bytes(lambda: 1 / 0)
    with pytest.raises(TypeError, match="not callable"):
        _core.peak_array_bytes(5)
    with pytest.raises(MemoryError):
        _core.peak_array_bytes(lambda: np.empty(2**62, np.uint8))
    assert get_handler_name() == outer


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (CONFIG, {}),
        (CONFIG, {"solver": "euler", "guidance_scale": 1.0, "ema_decay": 0.0}),
        (PLAIN, {"boundary_weight": 0.0, "gradient_checkpointing": True}),
        (CONFIG, {"thread_independent": True}),
    ],
)
def test_planned_bytes_are_those_that_the_core_then_holds(config, settings):
    teacher = make_teacher(config)
    teacher.model.keep_packed(True)  # as for a small one that was loaded
    distiller = make(teacher=teacher, check_teacher=False, sample_steps=0, **settings)
    plan = distiller.plan(timed=False)
    for _ in range(2):  # packed weights are kept from a plan's second run on
        distiller.step()
        Pairs(distiller).errors(distiller)  # as `fit` does now and then
    parts, found = plan.parts, held(distiller)
    weights = ("teacher weights", "student weights", "weight average")
    assert found["weights"] == sum(parts.get(name, 0) for name in weights)
    assert found["grads"] == parts["gradients"] >= parts["moments of AdamW"] // 2
    assert found["arena"] == sum(parts[name] for name in WORKING)
    assert found["packed"] == parts["packed weights"] > 0
    assert max(plan.working.values()) == found["arena"]
    assert plan.peak_bytes == sum(parts.values())


def test_planning_changes_nothing():
    planned = make()
    plan = planned.plan()
    plain = make()
    pin_like(plain, planned)
    for distiller in (planned, plain):
        for _ in range(2):
            distiller.step()
    assert_same(weights_of(planned), weights_of(plain))
    assert set(plan.seconds) == {"losses", "backward", "update"}
    assert plan.seconds_total == pytest.approx(plan.seconds_per_step * 40)
    assert planned.plan(timed=False).seconds_per_step is None


def test_a_plan_reads_as_a_table_and_as_json():
    plan = make(memory_limit="1GB").plan()
    text = repr(plan)
    assert "peak memory of the run" in text and "time of 40 steps" in text
    assert size_text(plan.peak_bytes) in text
    assert plan._repr_html_().count("<tr>") == text.count("\n")
    values = json.loads(json.dumps(plan.to_dict()))
    assert values["memory_limit"] == 10**9 and values["peak_bytes"] == plan.peak_bytes


RESIDENT = """
import dataclasses, sys
from models import PLAIN, make, make_teacher
def resident(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
make().step()  # libraries, threads and heap are there
before = resident("VmRSS")
wide = dataclasses.replace(PLAIN, sample_size=32, block_out_channels=(32, 64))
distiller = make(wide, train_batch_size=16, check_teacher=False, eval_steps=0, sample_steps=0)
plan = distiller.plan(timed=False)
for _ in range(2):
    distiller.step()
print(plan.peak_bytes, resident("VmHWM") - before)
"""


@pytest.mark.skipif(SANITIZED, reason="the sanitizer keeps freed memory resident")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_the_planned_peak_is_the_resident_one_within_a_tenth():
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr
    planned, resident = map(int, done.stdout.split())
    assert planned > 40 * 2**20
    assert abs(resident / planned - 1) < 0.1, (planned, resident)


LOW = """
import ctypes, dataclasses, gc, sys
if sys.argv[3] == "small pages":
    assert ctypes.CDLL(None).prctl(41, 1, 0, 0, 0) == 0  # PR_SET_THP_DISABLE
from pathlib import Path
from boot.teacher import Teacher
from models import PLAIN, make, save_teacher
def resident(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
make().step()  # libraries, threads and heap are there
before = resident("VmRSS")
settings = eval(sys.argv[2])
distiller = make(
    teacher=Teacher.from_pretrained(sys.argv[1]), train_batch_size=4, thread_independent=True,
    ema_decay=0.0, checkpointing_steps=0, eval_steps=0, sample_steps=0, check_teacher=False,
    **settings
)
gc.collect()
for _ in range(3):
    distiller.step()
plan = distiller.plan(timed=False)
print(plan.peak_bytes, resident("VmHWM") - before)
"""
LOW_SETTINGS = [
    {},
    {"offload_teacher": True},
    {"moments_dtype": "bfloat16"},
    {"offload_teacher": True, "moments_dtype": "bfloat16"},
]


@pytest.mark.skipif(SANITIZED, reason="the sanitizer keeps freed memory resident")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_offloading_and_smaller_moments_save_what_they_promise(tmp_path):
    wide = dataclasses.replace(PLAIN, block_out_channels=(128, 384))
    folder = save_teacher(tmp_path / "teacher", wide)
    weights = (folder / WEIGHTS).stat().st_size
    assert weights > 40 * 2**20  # above 8 million parameters, where no weights are packed
    peaks, plans = [], []
    for settings in LOW_SETTINGS:
        found = []
        # The last page of each array is one of 2 MB as long as the kernel has such: 20 MB more, or
        # less, on which the savings must not depend.
        for pages in ("any pages", "small pages"):
            done = run_python("-c", LOW, str(folder), repr(settings), pages)
            assert done.returncode == 0, done.stderr
            found.append(tuple(map(int, done.stdout.split())))
        planned, resident = found[0]
        assert abs(resident / planned - 1) < 0.1, (settings, planned, resident)
        peaks.append(found[1][1])
        plans.append(planned)
    for peak, plan in zip(peaks[1:3], plans[1:3], strict=True):
        assert 0.95 < (plans[0] - plan) / weights < 1.05, plans
        assert 0.9 < (peaks[0] - peak) / weights < 1.1, peaks
    assert 1.9 < (plans[0] - plans[3]) / weights < 2.1, plans
    assert 1.9 < (peaks[0] - peaks[3]) / weights < 2.1, peaks


# ---------------------------------------------------------------------- the command, and sizes


def test_the_command_prints_the_plan(tmp_path, capsys):
    teacher = save_teacher(tmp_path / "teacher")
    flags = ["--train-batch-size", "6", "--memory-limit", "1GB"]
    assert main(["plan", str(teacher), *flags, "--json", "--quiet"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["train_batch_size"] == 6 and values["seconds_per_step"] > 0
    assert main(["plan", str(teacher), "--memory-limit", "20KB", "--quiet"]) == 1
    assert "memory_limit" in capsys.readouterr().err
    assert main(["plan", str(teacher), "--memory-limit", "2 PB", "--quiet"]) == 2
    assert "bytes or text like '2GB'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "bytes_"),
    [(5, 5), ("7", 7), ("2GB", 2 * 10**9), ("1.5 kib", 1536), ("512MiB", 2**29)],
)
def test_sizes_are_numbers_or_text(given, bytes_):
    assert check_bytes("memory_limit", given) == bytes_
    assert DistillConfig(memory_limit=given).memory_limit == bytes_


@pytest.mark.parametrize("given", ["", "GB", "-1GB", "1 TB", "1e9", "2G B", "0.1", 0, -5, "9" * 16])
def test_other_sizes_are_refused(given):
    with pytest.raises(ConfigError, match="memory_limit"):
        check_bytes("memory_limit", given)


def test_sizes_as_text():
    texts = [size_text(n) for n in (0, 1023, 1024, 1536 * 1024, 5 * 2**30)]
    assert texts == ["0 bytes", "1023 bytes", "1.00 KiB", "1.50 MiB", "5.00 GiB"]
