"""A fork of a process that has used the core is told to spawn instead; it never hangs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import textwrap
import time

import numpy as np
import pytest
from models import PLAIN, make, make_teacher, noise
from processes import run_python

from boot import _core
from boot.callbacks import Callback
from boot.locks import locked_folder


def in_child(function):
    """What `function` raises or returns in a fork of this process, as text, within 10 seconds."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # nothing but the call: no pytest, no atexit
        try:
            text = repr(function())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(write, text.encode()[:4000])
        os._exit(0)
    os.close(write)
    deadline = time.monotonic() + 10
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(read)
            pytest.fail("the child hangs")
        time.sleep(0.005)
    with os.fdopen(read) as pipe:
        return pipe.read()


X, PER_IMAGE = noise(2), np.ones(2)
TEACHER = make_teacher(PLAIN)
VECTOR = np.ones(8, np.float32)
STEP = {"step": 1, "learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8,
        "weight_decay": 0.0, "max_grad_norm": 1.0, "ema_decay": 0.9}  # fmt: skip
ENTRIES = {
    "forward": lambda: TEACHER.model(X, 5),
    "backward": lambda: TEACHER.model.core.backward(X),
    "plan": lambda: TEACHER.model.core.plan(1, 8, 8, False),
    "profile": lambda: TEACHER.model.core.profile(1, 8, 8, False, 1),
    "sample": lambda: TEACHER.sample(1, num_inference_steps=1),
    "create": lambda: make_teacher(PLAIN),
    "op_forward": lambda: _core.op_forward("activation", {"x": X}, {"act": 1}),
    "op_backward": lambda: _core.op_backward("activation", {"x": X}, {"act": 1}, X),
    "bench_conv": lambda: _core.bench_conv(1, 4, 4, 4, 4, 3, 1, 1, 1, "plain", 0, 1),
    "diffuse": lambda: _core.diffuse(X, X, PER_IMAGE, PER_IMAGE),
    "guide": lambda: _core.guide(X, X, PER_IMAGE),
    "signal_step": lambda: _core.signal_step(X, X, PER_IMAGE),
    "signal_step_heun": lambda: _core.signal_step_heun(X, X, X, PER_IMAGE),
    "signal_from_output": lambda: _core.signal_from_output("sample", X, X, PER_IMAGE, PER_IMAGE, 1),
    "weighted_mse": lambda: _core.weighted_mse(X, X, PER_IMAGE),
    "normal": lambda: _core.normal(0, 0, 0, 0, (64, 64)),
    "adamw_step": lambda: _core.adamw_step(VECTOR, VECTOR, VECTOR, VECTOR, None, **STEP),
}  # fmt: skip


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 says so too
def test_a_fork_after_use_is_refused_and_does_not_hang(name):
    TEACHER.model(X, 5)
    text = in_child(ENTRIES[name])
    assert text.startswith("RuntimeError: process "), text
    assert f"is a fork of process {os.getpid()}" in text and '"spawn"' in text
    TEACHER.model(X, 5)  # the parent goes on


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_may_draw_what_one_thread_draws():
    TEACHER.model(X, 5)
    here = _core.normal(1, 2, 3, 4, (9, 30)), _core.uniform(1, 2, 3, 4, 9)
    assert in_child(lambda: _core.normal(1, 2, 3, 4, (9, 30)).tobytes().hex()[:999]) == repr(
        here[0].tobytes().hex()[:999]
    )
    assert in_child(lambda: _core.uniform(1, 2, 3, 4, 9).tolist()) == repr(here[1].tolist())


@pytest.mark.parametrize("name", ["save_checkpoint", "fit", "step", "plan", "check", "evaluate"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_does_not_write_into_the_folder_of_its_parents_run(tmp_path, name):
    distiller = make(PLAIN, TEACHER, output_dir=str(tmp_path), logging_steps=1)
    distiller.fit(3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    distiller.step()
    text = in_child(getattr(distiller, name))
    assert text.startswith("RuntimeError: process "), text
    assert '"spawn"' in text
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert distiller.save_checkpoint().name == "checkpoint-4"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_forked_during_fit_can_be_ended(number):
    ended = []

    class Forks(Callback):
        def on_step_end(self, *args, **kwargs):
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    os.write(write, b"1")
                    time.sleep(20)
                    os._exit(0)
                except KeyboardInterrupt:
                    os._exit(130)
            os.read(read, 1)  # Python forgets signals that come before its child is set up
            os.kill(child, number)
            ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    assert not make(PLAIN, TEACHER, max_train_steps=1).fit(callbacks=[Forks()]).interrupted
    assert ended == [130 if number == signal.SIGINT else -number]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_forked_during_fit_neither_frees_the_folder_nor_keeps_it(tmp_path):
    def refused():
        with locked_folder(tmp_path):
            return "free"

    with locked_folder(tmp_path):
        child = os.fork()
        if child == 0:
            time.sleep(20)
            os._exit(0)
        assert "another run is writing" in in_child(refused)
    try:
        assert refused() == "free"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_what_needs_no_threads_works_in_a_fork():
    assert in_child(lambda: _core.get_num_threads() > 0) == "True"
    assert "isa" in in_child(lambda: sorted(_core.show_config()))
    TEACHER.model(X, 5)
    assert in_child(lambda: TEACHER.model.weights.size > 0) == "True"
    assert in_child(lambda: len(TEACHER.model.kernels) > 0) == "True"


def square_of_weights(count):
    """For a spawned process: some use of the core."""
    return make_teacher(PLAIN).sample(count, num_inference_steps=1).shape


def test_a_spawned_process_works():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(square_of_weights, (2,)) == (2, 1, 8, 8)


def test_a_fork_before_the_first_use_works():
    code = """
        import os, sys
        from boot import _core
        import numpy as np
        child = os.fork()
        x = np.ones((1, 1, 2, 2), np.float32)
        assert _core.diffuse(x, x, np.ones(1), np.ones(1)).sum() == 8
        if child:
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = run_python("-W", "ignore", "-c", textwrap.dedent(code), timeout=60)
    assert done.returncode == 0, done.stderr
