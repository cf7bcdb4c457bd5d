"""The plan of a run: its bytes against what is held and resident, its limit, and its silence."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from models import (
    CONFIG,
    PLAIN,
    SMALL,
    assert_same,
    make,
    make_teacher,
    noise,
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
from boot.distiller import Distiller
from boot.errors import ConfigError
from boot.network import Network
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
    distiller = make(teacher=teacher, **settings)
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
distiller = make(wide, train_batch_size=16)
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
    ema_decay=0.0, checkpointing_steps=0, **settings
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


# ------------------------------------------------------------------------------------ the limit


def test_a_run_that_cannot_fit_is_refused_with_what_would_fit():
    limit = int(0.7 * unpacked_peak(24))
    with pytest.raises(ConfigError, match=r"the run needs .* train_batch_size to \d") as caught:
        make(memory_limit=limit, train_batch_size=24, **BY_RULE)
    fits = int(str(caught.value).split("train_batch_size to ")[1].split()[0])
    assert 1 <= fits < 24
    distiller = make(memory_limit=limit, train_batch_size=fits, **BY_RULE)
    distiller.step()
    planned = distiller.plan(timed=False)
    assert planned.peak_bytes <= limit
    assert held(distiller)["arena"] <= sum(planned.parts[name] for name in WORKING)


def test_advice_names_every_setting_that_helps(tmp_path):
    with pytest.raises(ConfigError, match=r"gradient_checkpointing to true.*ema_decay to 0"):
        make(memory_limit=int(0.6 * unpacked_peak(64)), train_batch_size=64, **BY_RULE)
    with pytest.raises(ConfigError, match=r"optimiser alone.*moments_dtype bfloat16 they are"):
        make(memory_limit=10_000)
    teacher = save_teacher(tmp_path / "teacher")
    limits = {"memory_limit": int(0.6 * unpacked_peak(64)), "train_batch_size": 64}
    size = r"\(saves [\d.]+ KiB\)"
    both = rf"offload_teacher to true {size}, or moments_dtype to bfloat16 {size}"
    with pytest.raises(ConfigError, match=both):
        Distiller(teacher, **{**SMALL, **limits, **BY_RULE})
    with pytest.raises(ConfigError) as caught:  # a teacher without a file is not offloaded
        make(**limits, **BY_RULE, moments_dtype="bfloat16")
    assert not re.search("offload_teacher|moments_dtype", str(caught.value))


# Kernels by rule: timing may choose one with much scratch, and then a larger batch takes less.
BY_RULE = {"thread_independent": True}


def unpacked_peak(batch):
    """Without packed weights, which a limit gives up before anything else."""
    distiller = make(train_batch_size=batch, **BY_RULE)
    for network in distiller._networks().values():
        network.keep_packed(False)
    return distiller.plan(timed=False).peak_bytes


def test_the_core_itself_keeps_to_the_limit():
    network = make_teacher(PLAIN).model
    few, many = (network.core.plan(n, 8, 8, False) for n in (1, 64))
    limit = few["activation_bytes"] + few["scratch_bytes"] + 100_000
    assert limit < many["activation_bytes"] + many["scratch_bytes"]
    network.core.configure(memory_limit=limit)
    network.forward(noise(1), np.full(1, 500.0))
    with pytest.raises(MemoryError, match="memory limit leaves"):
        network.forward(noise(64), np.full(64, 500.0))
    memory = network.core.memory()
    assert 0 < memory["arena"] + memory["packed"] <= limit
    network.core.configure(memory_limit=0)
    network.forward(noise(64), np.full(64, 500.0))
    assert network.core.memory()["arena"] > limit


def test_packed_weights_make_room_for_activations():
    """They only save time: another network's go too, and a limit that holds without them does."""
    one, two = (make_teacher(CONFIG).model for _ in range(2))
    two.share_arena(one)
    for network in (one, two):
        network.core.configure(thread_independent=True)
        network.keep_packed(True)
    few, many = ((noise(n), np.full(n, 500.0), np.zeros(n, np.int64)) for n in (2, 30))
    expected = [network.forward(*inputs) for network in (one, two) for inputs in (few, many)]
    plan = one.core.plan(30, 8, 8, False)
    limit = plan["activation_bytes"] + plan["scratch_bytes"] + 50_000
    one, two = (make_teacher(CONFIG).model for _ in range(2))
    two.share_arena(one)
    found = []
    for network in (one, two):
        network.core.configure(thread_independent=True, memory_limit=limit)
        network.keep_packed(True)
    for _ in range(2):
        found = []
        for network in (one, two):
            for inputs in (few, many):
                found.append(network.forward(*inputs))
                packed = sum(n.core.memory()["packed"] for n in (one, two))
                assert network.core.memory()["arena"] + packed <= limit
    assert packed > 0
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    fresh = make_teacher(CONFIG).model
    for network in (one, fresh):
        network.weights[:] *= 1.2
        network.weights_changed()
    for inputs in (few, many, few):
        np.testing.assert_allclose(one.forward(*inputs), fresh.forward(*inputs), atol=1e-4)


def test_scratch_ends_where_the_arena_of_another_shard_may_begin():
    """Group norms of 35 channels want an odd number of floats; arenas begin at cache lines."""
    config = dataclasses.replace(
        PLAIN,
        block_out_channels=(35,) * len(PLAIN.block_out_channels),
        norm_num_groups=5,
        attention_head_dim=None,
    )
    core = Network(config).core
    core.configure(keep_packed=True)
    plan = core.plan(2, 8, 8, True)
    assert plan["scratch_bytes"] % (64 * plan["shards"]) == 0


def test_sampling_keeps_to_the_limit_by_smaller_chunks(tmp_path):
    network = make_teacher(PLAIN).model
    x, t = noise(40), np.full(40, 500.0)
    whole = network.forward(x, t)
    six = network.core.plan(6, 8, 8, False, True)
    limit = six["activation_bytes"] + six["scratch_bytes"]
    network = make_teacher(PLAIN).model
    network.limit_memory(limit)
    assert 1 < network.chunk_size(8, 8) < 40
    np.testing.assert_allclose(network.forward(x, t), whole, atol=1e-5)
    assert network.core.memory()["arena"] <= limit


def run(network):
    """Twice: packed weights are kept from a plan's second run on."""
    for _ in range(2):
        network.forward(noise(2), np.full(2, 500.0))


def test_packs_of_kernels_that_are_gone_are_given_back():
    network = make_teacher(PLAIN).model
    network.keep_packed(True)
    run(network)
    able = [key for key in network.kernels if "doubled" not in key]  # what oneDNN can do
    network.pin_kernels(dict.fromkeys(able, "direct"))
    run(network)  # oneDNN's layouts belong to one plan each
    before = network.core.memory()["packed"]
    network.core.configure(gradient_checkpointing=True)  # forgets the plans
    between = network.core.memory()["packed"]
    assert 0 < between < before
    run(network)
    assert network.core.memory()["packed"] == before
    network.keep_packed(False)
    assert network.core.memory()["packed"] == 0


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
