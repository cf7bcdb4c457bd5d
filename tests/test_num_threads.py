"""Threads: how many by default, and the same bits for any number of them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import CASES, attrs_of, make_inputs
from models import CONFIG, assert_same, make, make_teacher, noise, weights_of
from processes import run_python

import boot
from boot import _core
from boot.threads import cpu_quota, default_threads, physical_cores

COUNTS = (1, 2, 3, 4, 8)


@pytest.fixture(autouse=True)
def restore_threads():
    before = boot.get_num_threads()
    yield
    boot.set_num_threads(before)


def machine(root, cores=(), **files):
    """A made-up /sys and /proc. cores: (package, core) of each processor."""
    for cpu, (package, core) in enumerate(cores):
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{package}\n")
        (folder / "core_id").write_text(f"{core}\n")
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def write(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_two_hardware_threads_are_one_core(tmp_path):
    machine(tmp_path, [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0), (0, 1), (1, 0), (1, 1)])
    assert physical_cores(set(range(8)), tmp_path) == 4
    assert physical_cores({0, 4}, tmp_path) == 1  # affinity: both threads of one core
    assert physical_cores({0, 2}, tmp_path) == 2  # core 0 of each package
    assert physical_cores({0, 1, 9, 10}, tmp_path) == 4  # nothing known about 9 and 10


def test_quota_of_version_2_is_the_tightest_on_the_way_up(tmp_path):
    write(tmp_path, "proc/self/cgroup", "0::/pod/app\n")
    assert cpu_quota(tmp_path) is None
    write(tmp_path, "sys/fs/cgroup/pod/app/cpu.max", "max 100000\n")
    assert cpu_quota(tmp_path) is None
    write(tmp_path, "sys/fs/cgroup/pod/cpu.max", "250000 100000\n")
    assert cpu_quota(tmp_path) == 2.5
    write(tmp_path, "sys/fs/cgroup/pod/app/cpu.max", "50000 100000\n")
    assert cpu_quota(tmp_path) == 0.5


def test_quota_of_version_1(tmp_path):
    write(tmp_path, "proc/self/cgroup", "4:memory:/x\n3:cpu,cpuacct:/docker/1\n")
    folder = "sys/fs/cgroup/cpu,cpuacct"  # in a container the group is the mount itself
    write(tmp_path, f"{folder}/cpu.cfs_quota_us", "-1\n")
    write(tmp_path, f"{folder}/cpu.cfs_period_us", "100000\n")
    assert cpu_quota(tmp_path) is None
    write(tmp_path, f"{folder}/cpu.cfs_quota_us", "300000\n")
    assert cpu_quota(tmp_path) == 3


@pytest.mark.parametrize("text", ["", "100000", "x y", "100000 0", "-5 100000", "\xff"])
def test_a_quota_that_makes_no_sense_is_none(tmp_path, text):
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", text)
    assert cpu_quota(tmp_path) is None


def test_default_is_cores_within_the_quota(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    machine(tmp_path, [(0, 0), (0, 1), (0, 2), (0, 2)])
    assert default_threads(tmp_path) == 3
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "150000 100000")
    assert default_threads(tmp_path) == 2
    write(tmp_path, "sys/fs/cgroup/cpu.max", "1000 100000")
    assert default_threads(tmp_path) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert default_threads(tmp_path) is None


def threads_of_a_new_process(**environment):
    known = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    code = "import boot; print(boot.get_num_threads())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**known, **environment},
        cwd=Path(__file__).parent,
    )
    return int(done.stdout)


def test_a_new_process_uses_the_default_or_what_the_user_says(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads_of_a_new_process() == default_threads()
    assert threads_of_a_new_process(OMP_NUM_THREADS="3") == 3


# -------------------------------------------------------------------- the same bits for any number

# Downsampling by a strided convolution and odd widths are where oneDNN's kernels come in.
WIDE = dataclasses.replace(CONFIG, sample_size=16, block_out_channels=(24, 40), norm_num_groups=4)


def run_with(threads, config, packed):
    """A forward pass, gradients, and three training steps."""
    boot.set_num_threads(threads)
    model = make_teacher(config).model
    model.core.configure(thread_independent=True, keep_packed=packed)
    x, t = noise(5, size=config.sample_size), np.linspace(1.0, 900.0, 5)
    labels = np.zeros(5, np.int64)
    out = model.forward(x, t, labels)
    trained = model.forward_train(x, t, labels, None)
    model.backward(trained)
    grads = model.core.grads.copy()
    teacher = make_teacher(config)
    teacher.model.keep_packed(packed)  # small networks that are loaded do: then they run in shards
    distiller = make(teacher=teacher, thread_independent=True, train_batch_size=9)
    for student in (distiller._training, distiller._average):
        student.model.keep_packed(packed)
    norms = np.array([distiller.step()["grad_norm"] for _ in range(3)])
    return [out, trained, grads, norms, *weights_of(distiller)]


# The kernels of a convolution that a team shares.
OURS = ["winograd", "winograd_pairs", "taps", "columns"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operation_gives_the_same_bits_for_any_team(case):
    found = {}
    for kernel in OURS if case.op == "conv2d" else [""]:
        attrs = attrs_of(case, _core.conv_kernels().index(kernel) if kernel else 0)
        for threads in (1, 2, 3, 4):
            boot.set_num_threads(threads)
            inputs = make_inputs(case)
            try:
                y = _core.op_forward(case.op, inputs, attrs)
                arrays = [y]
                if kernel != "taps" and _core.ops()[case.op]["differentiable"]:
                    dy = np.random.default_rng(0).standard_normal(y.shape).astype(np.float32)
                    arrays += _core.op_backward(case.op, inputs, attrs, dy).values()
            except NotImplementedError:  # not for this shape
                break
            assert_same(arrays, found.setdefault(kernel, arrays))


def test_a_list_of_numbers_of_threads_counts_for_its_first(tmp_path):
    """OMP_NUM_THREADS=3,1: inside of a team the next number of the list is the default."""
    code = (
        "import sys, numpy as np; from boot import _core\n"
        "from cases import CASES, attrs_of, make_inputs\n"
        "k = _core.conv_kernels().index('winograd')\n"
        "case = next(c for c in CASES if c.shapes['x'] == (2, 16, 16, 64))\n"
        "y = _core.op_forward('conv2d', make_inputs(case), attrs_of(case, k))\n"
        "np.save(sys.argv[1], y)"
    )
    results = []
    for value in ("1", "3,1", "4,2,2"):
        file = tmp_path / f"{value}.npy"
        run_python("-c", code, str(file), OMP_NUM_THREADS=value).check_returncode()
        results.append(np.load(file))
    assert_same(results[1:], [results[0]] * 2)


def test_backward_runs_on_as_many_threads_as_forward_had():
    """What it works in was planned for them."""
    grads, kernels = [], {}
    for later in (1, 8):
        boot.set_num_threads(1)
        model = make_teacher(WIDE).model
        model.pin_kernels(kernels)
        x, labels = noise(2, size=16), np.zeros(2, np.int64)
        out = model.forward_train(x, np.full(2, 300.0), labels, None)
        boot.set_num_threads(later)
        model.backward(out)
        assert boot.get_num_threads() == later
        grads.append(model.core.grads.copy())
        kernels = model.kernels
    assert_same(grads[1:], grads[:1])


@pytest.mark.parametrize("config", [CONFIG, WIDE], ids=["8x8", "16x16"])
def test_the_size_of_the_team_changes_no_bit(config):
    """Passes over one image try several sizes in turn; see csrc/net/pace.c."""
    boot.set_num_threads(4)
    model = make_teacher(config).model
    model.keep_packed(True)
    x, t, labels = noise(1, size=config.sample_size), np.full(1, 300.0), np.zeros(1, np.int64)
    outs = [model.forward(x, t, labels) for _ in range(40)]  # three sizes, and what follows
    for out in outs[1:]:
        assert_same([out], outs[:1])


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "shards"])
@pytest.mark.parametrize("config", [CONFIG, WIDE], ids=["8x8", "16x16"])
def test_the_number_of_threads_changes_no_bit(config, packed):
    first = run_with(COUNTS[0], config, packed)
    for threads in COUNTS[1:]:
        assert_same(run_with(threads, config, packed), first)


def test_no_kernel_is_timed_where_the_choice_must_not_depend_on_time():
    distiller = make(thread_independent=True)
    distiller.step()
    assert all(network.kernels == {} for network in distiller._networks().values())
