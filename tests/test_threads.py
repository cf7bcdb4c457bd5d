"""Eight threads over every public call: right results, or the documented refusal, never a crash."""

from __future__ import annotations

import inspect
import re
import threading

import numpy as np
import pytest
from models import ADAMW, CONFIG, LEAST, PLAIN, make, make_teacher, noise, save_teacher
from test_student import make_student

from boot import Distiller, Student, Teacher, _core
from boot.safetensors_io import load_tensors, save_tensors
from boot.schedule import Schedule

THREADS, ROUNDS = 8, 4
X, PER_IMAGE = noise(2), np.full(2, 0.5)
VECTOR = np.linspace(0, 1, 5000, dtype=np.float32)


def together(function, rounds=ROUNDS):
    """Call function(i) in eight threads behind a barrier, some rounds; their results by thread."""
    barrier = threading.Barrier(THREADS, timeout=60)
    results, problems = [[] for _ in range(THREADS)], []

    def work(i):
        try:
            for _ in range(rounds):
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
    _core.adamw_step(*state, None, **ADAMW)
    return state[0]


TEACHER = make_teacher(PLAIN)
LOG_ABAR, TIMES = np.linspace(0, -9, 100), np.linspace(0.1, 1, 50)
SHARED = {  # functions without state, or on objects that only read
    "diffuse": lambda i: _core.diffuse(X, X, PER_IMAGE, PER_IMAGE),
    "guide": lambda i: _core.guide(X, X, PER_IMAGE),
    "signal_step": lambda i: _core.signal_step(X, X, PER_IMAGE),
    "signal_step_heun": lambda i: _core.signal_step_heun(X, X, -X, PER_IMAGE),
    "signal_from_output": lambda i: _core.signal_from_output(
        "epsilon", X, X, PER_IMAGE, PER_IMAGE, 1.0
    ),
    "weighted_mse": lambda i: _core.weighted_mse(X, -X, PER_IMAGE)[1],
    "weighted_huber": lambda i: _core.weighted_huber(X, -X, PER_IMAGE, 0.1)[1],
    "adamw_step": lambda i: adamw(),
    "check_grads": lambda i: _core.check_grads(VECTOR, 1.0),
    "normal": lambda i: _core.normal(1, 2, 3, 4, (50, 8, 8)),
    "uniform": lambda i: _core.uniform(1, 2, 3, 4, 50),
    "alphas_cumprod": lambda i: _core.alphas_cumprod("linear", 99, 1e-4, 0.02, None, True),
    "table_alpha_sigma": lambda i: _core.table_alpha_sigma(LOG_ABAR, TIMES)[1],
    "table_lambda": lambda i: _core.table_lambda(LOG_ABAR, TIMES),
    "table_step_coefficient": lambda i: _core.table_step_coefficient(LOG_ABAR, TIMES, TIMES / 2),
    "op_forward": lambda i: _core.op_forward("activation", {"x": X}, {"act": 1}),
    "op_backward": lambda i: _core.op_backward("activation", {"x": X}, {"act": 1}, X)["x"],
    "conv2d": lambda i: _core.op_forward(
        "conv2d",
        {"x": np.ones((1, 4, 4, 8), "f4"), "weight": np.ones((8, 8, 3, 3), "f4")},
        {"stride": 1, "pad_begin": 1, "pad_end": 1, "scale": 1, "kernel": 1},
    ),
    "schedule": lambda i: Schedule.from_config(TEACHER.scheduler).alphas_cumprod,
    "parameters": lambda i: len(TEACHER.model.core.parameters),
    "ops": lambda i: sorted(_core.ops()),
    "conv_kernels": lambda i: _core.conv_kernels(),
    "peak_array_bytes": lambda i: _core.peak_array_bytes(lambda: np.ones(5000).sum())[1] >= 40000,
    "bench_conv": lambda i: _core.bench_conv(1, 8, 8, 8, 8, 3, 1, 1, 1, "direct", 0, 1) > 0,
    "get_num_threads": lambda i: _core.get_num_threads(),
    "set_num_threads": lambda i: _core.set_num_threads(_core.get_num_threads()) or 0,
    "show_config": lambda i: sorted(_core.show_config()),
    "UNet2D": lambda i: make_teacher(PLAIN).model.weights.copy(),
}


METHODS = {  # of one network that all threads use
    "parameters": lambda net: net.parameters,
    "weights": lambda net: net.weights.sum(),
    "grads": lambda net: net.grads.sum(),
    "kernels": lambda net: net.kernels,
    "timed_kernels": lambda net: net.timed_kernels,
    "chosen_kernels": lambda net: net.chosen_kernels,
    "memory": lambda net: net.memory(),
    "hint_kernels": lambda net: net.hint_kernels({}),
    "pin_kernels": lambda net: net.pin_kernels({}),
    "weights_changed": lambda net: net.weights_changed(),
    "weights_away": lambda net: net.weights_away,
    "weights_back": lambda net: net.weights_back(),
    "discard_grads": lambda net: net.discard_grads(),
    "configure": lambda net: net.configure(keep_packed=True),
    "share_arena": lambda net: net.share_arena(TEACHER.model.core),
    "plan": lambda net: net.plan(2, 8, 8, True),
    "profile": lambda net: net.profile(1, 8, 8, False, 1),
    "forward": lambda net: net.forward(X, 500 * PER_IMAGE),
    "backward": lambda net: (net.forward(X, 500 * PER_IMAGE, train=True), net.backward(X)),
}


def test_no_public_call_is_forgotten():
    def public(*places):
        return {name for place in places for name in dir(place) if not name.startswith("_")}

    assert public(_core) <= set(SHARED) | {"conv2d", "schedule", "parameters"}
    assert public(_core.UNet2D) == set(METHODS) | {"discard_weights"}
    calls = set(re.findall(r"\.(\w+)", inspect.getsource(everything)))
    assert public(Teacher, Student, Distiller) <= calls


def test_every_method_of_one_network_from_eight_threads_is_refused_or_right():
    teacher = make_teacher(PLAIN)
    expected = teacher.model.core.forward(X, 500 * PER_IMAGE)
    names = list(METHODS)

    def call(i):
        for j in range(len(names)):
            try:
                result = METHODS[names[(i + j) % len(names)]](teacher.model.core)
            except RuntimeError as problem:
                assert re.search("in another thread|no training forward", str(problem))
            else:
                if names[(i + j) % len(names)] == "forward":
                    np.testing.assert_allclose(result, expected, atol=1e-5)

    together(call)
    found = teacher.model.core.forward(X, 500 * PER_IMAGE)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_weights_that_a_thread_gives_away_are_nowhere_taken_for_right_ones():
    teacher = make_teacher(PLAIN)
    core, results = teacher.model.core, []
    expected = core.forward(X, 500 * PER_IMAGE)

    def call(i):
        try:
            if i == 3 and results:  # for good
                core.discard_weights()
            results.append(core.forward(X, 500 * PER_IMAGE))
        except RuntimeError as problem:
            assert re.search("in another thread|memory was given back", str(problem))

    together(call)
    core.discard_weights()
    with pytest.raises(RuntimeError, match="memory was given back"):
        core.forward(X, 500 * PER_IMAGE)
    assert results
    for found in results:
        np.testing.assert_allclose(found, expected, atol=1e-5)


def everything(folder):
    """Every public call of a teacher, a distiller and a student of this thread's own."""
    saved = save_teacher(folder / "teacher", LEAST)
    teacher, t = Teacher.from_pretrained(saved), np.full(2, 0.5)
    teacher.check_can_sample()
    assert teacher.fingerprint and teacher.network and teacher.num_classes is None
    x, _ = teacher.inputs(2, seed=1)
    guidance = teacher.guidance(1.0, teacher.null_class_label)
    Teacher.from_callable(
        lambda x, t, labels: teacher.signal(x, t / 1000, guidance=guidance),
        prediction_type="sample", schedule=teacher.scheduler, sample_shape=(1, 8, 8),
    ).sample(1, num_inference_steps=1)  # fmt: skip
    run = make(teacher=teacher, output_dir=str(folder / "run"), max_train_steps=2)
    run.plan(timed=False), run.step(), run.save_checkpoint(), run.fit()
    run.check(), run.evaluate(2)
    run.student.save_pretrained(folder / "student")
    student = Student.from_pretrained(folder / "student")
    assert student.num_classes is None
    eps, _ = student.inputs(2, seed=1)
    student.backward(student.signal_train(eps, t))
    student.check_scales(None, 2), student.with_guidance(1.0), student.clipped(eps)
    refined = student.refine(teacher, 2, num_teacher_steps=1, seed=1)
    Student.from_teacher(teacher, student.info)
    return [x, student.signal(eps, t), student.sample(2), student.resample(2, t=0.5), refined]


def test_every_public_call_in_eight_threads_does_what_it_does_alone(tmp_path):
    expected = everything(tmp_path / "alone")
    for results in together(lambda i: everything(tmp_path / f"thread-{i}"), rounds=1):
        for found, wanted in zip(results[0], expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


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


def test_a_run_is_not_saved_or_planned_while_another_thread_is_in_a_step(tmp_path, monkeypatch):
    run, said = make(PLAIN, output_dir=str(tmp_path / "run")), []
    real = run._update

    def other():
        for call in (run.save_checkpoint, run.plan, run.step):
            with pytest.raises(RuntimeError, match="in a step or a checkpoint of another thread"):
                call()
            said.append(call)

    def update(*args):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(60)
        return real(*args)

    monkeypatch.setattr(run, "_update", update)
    run.step()
    assert len(said) == 3
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert run.save_checkpoint().is_dir()


def test_files_are_written_and_read_by_many_threads(tmp_path):
    def call(i):
        path = tmp_path / "same.safetensors"
        save_tensors(path, {"x": np.full(1000, i, np.float32)})
        values = load_tensors(path)["x"]
        assert (values == values[0]).all()  # some thread's file, whole
        return 0

    together(call)
    assert [p.name for p in tmp_path.iterdir()] == ["same.safetensors"]
