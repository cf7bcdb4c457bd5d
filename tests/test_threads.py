"""Eight threads over every public call: right results, or the documented refusal, never a crash."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from models import CONFIG, PLAIN, make, make_teacher, noise
from test_student import make_student

from boot import _core
from boot.safetensors_io import load_tensors, save_tensors
from boot.schedule import Schedule

THREADS, ROUNDS = 8, 4
X, PER_IMAGE = noise(2), np.full(2, 0.5)
VECTOR = np.linspace(0, 1, 5000, dtype=np.float32)


def together(function):
    """Call function(i) in eight threads behind a barrier, some rounds; their results by thread."""
    barrier = threading.Barrier(THREADS, timeout=60)
    results, problems = [[] for _ in range(THREADS)], []

    def work(i):
        try:
            for _ in range(ROUNDS):
                barrier.wait()
                results[i].append(function(i))
        except BaseException as problem:
            problems.append(problem)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if problems:
        raise problems[0]
    return results


def adamw():
    state = [VECTOR.copy() for _ in range(4)]
    numbers = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8,
               "weight_decay": 0.0, "max_grad_norm": 1.0, "ema_decay": 0.9}  # fmt: skip
    _core.adamw_step(*state, None, step=1, **numbers)
    return state[0]


TEACHER = make_teacher(PLAIN)
SHARED = {  # functions without state, or on objects that only read
    "diffuse": lambda i: _core.diffuse(X, X, PER_IMAGE, PER_IMAGE),
    "guide": lambda i: _core.guide(X, X, PER_IMAGE),
    "signal_step": lambda i: _core.signal_step(X, X, PER_IMAGE),
    "signal_from_output": lambda i: _core.signal_from_output(
        "epsilon", X, X, PER_IMAGE, PER_IMAGE, 1.0
    ),
    "weighted_mse": lambda i: _core.weighted_mse(X, -X, PER_IMAGE)[1],
    "adamw_step": lambda i: adamw(),
    "alphas_cumprod": lambda i: _core.alphas_cumprod("linear", 99, 1e-4, 0.02, None, True),
    "op_forward": lambda i: _core.op_forward("activation", {"x": X}, {"act": 1}),
    "op_backward": lambda i: _core.op_backward("activation", {"x": X}, {"act": 1}, X)["x"],
    "conv2d": lambda i: _core.op_forward(
        "conv2d",
        {"x": np.ones((1, 4, 4, 8), "f4"), "weight": np.ones((8, 8, 3, 3), "f4")},
        {"stride": 1, "pad_begin": 1, "pad_end": 1, "scale": 1, "kernel": 1},
    ),
    "schedule": lambda i: Schedule.from_config(TEACHER.scheduler).alphas_cumprod,
    "parameters": lambda i: len(TEACHER.model.core.parameters),
    "show_config": lambda i: sorted(_core.show_config()),
    "create": lambda i: make_teacher(PLAIN).model.weights.copy(),
}


@pytest.mark.parametrize("name", SHARED)
def test_functions_give_every_thread_the_same(name):
    function = SHARED[name]
    expected = function(0)
    for results in together(function):
        for result in results:
            np.testing.assert_array_equal(result, expected)


def test_an_object_per_thread_computes_what_it_does_alone():
    first = make_teacher(CONFIG)
    expected = first.sample(2, num_inference_steps=3, seed=5, class_labels=[0, 1])
    teachers = [make_teacher(CONFIG) for _ in range(THREADS)]
    for teacher in teachers:
        teacher.model.pin_kernels(first.model.kernels)
    results = together(
        lambda i: teachers[i].sample(2, num_inference_steps=3, seed=5, class_labels=[0, 1])
    )
    for result in results:
        for images in result:
            np.testing.assert_array_equal(images, expected)


def test_distillers_in_two_threads_train_as_they_do_alone():
    alone = make(PLAIN)
    logs = [alone.step()["loss"] for _ in range(ROUNDS)]
    distillers = [make(PLAIN) for _ in range(THREADS)]
    for results in together(lambda i: distillers[i].step()["loss"]):
        np.testing.assert_allclose(results, logs, rtol=1e-3)


def test_one_object_in_many_threads_is_refused_or_right():
    student, refused = make_student(PLAIN), []
    expected = student.sample(8, seed=3)
    x = noise(64)

    def call(i):
        try:
            if i % 2:
                student.model(x, 5, target_timestep=3)
            return student.sample(8, seed=3)
        except RuntimeError as problem:
            assert "in another thread" in str(problem)
            refused.append(i)
            return expected

    for results in together(call):
        for images in results:
            np.testing.assert_allclose(images, expected, atol=1e-5)
    student.sample(1)  # and it works afterwards


def test_files_are_written_and_read_by_many_threads(tmp_path):
    def call(i):
        path = tmp_path / "same.safetensors"
        save_tensors(path, {"x": np.full(1000, i, np.float32)})
        values = load_tensors(path)["x"]
        assert (values == values[0]).all()  # some thread's file, whole
        return 0

    together(call)
    assert [p.name for p in tmp_path.iterdir()] == ["same.safetensors"]
