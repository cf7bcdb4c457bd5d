"""A teacher whose weights are in memory only while it runs: the same bits, or a clear refusal."""

from __future__ import annotations

import dataclasses
import gc
import os
import threading
import weakref

import numpy as np
import pytest
from models import (
    CONFIG,
    PLAIN,
    assert_same,
    make,
    make_teacher,
    noise,
    pin_like,
    poison,
    save_teacher,
    weights_of,
)
from pipelines import WEIGHTS, shard
from test_fit import Recorder, interrupt

from boot import offload as module
from boot.errors import ConfigError, TeacherError
from boot.safetensors_io import load_tensors, save_tensors
from boot.teacher import Teacher

BY_RULE = {"thread_independent": True}  # no kernels by timing: the same bits at once
BOTH = {"offload_teacher": True, "moments_dtype": "bfloat16"}


@pytest.fixture
def folder(tmp_path):
    return save_teacher(tmp_path / "teacher")


def load(folder):
    return Teacher.from_pretrained(folder)


def offloaded(folder, **settings):
    return make(teacher=load(folder), offload_teacher=True, **BY_RULE, **settings)


def raw_weights(distiller):
    """The teacher's weights as they are in memory, without asking for them."""
    return distiller.teacher.network.core.weights


# -------------------------------------------------------------------------------- the same bits


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ema_decay": 0.0, "solver": "euler", "guidance_scale": 1.0},
        {"correction": "distribution", "correction_start": 0.02, "ema_decay": 0.0},
        {"student": dataclasses.replace(CONFIG, block_out_channels=(8, 8))},
        {"student": dataclasses.replace(CONFIG, block_out_channels=(8, 32))},
        {"correction": "rollout", "gradient_checkpointing": True},
        {"guidance_scale_min": 1.0, "guidance_scale_max": 3.0, "correction": "distribution"},
    ],
)
def test_a_run_is_the_same_and_its_teacher_is_away_after_each_step(folder, settings):
    plain = make(teacher=load(folder), **BY_RULE, **settings)
    away = offloaded(folder, **settings)
    whole = raw_weights(plain).copy()
    for _ in range(3):
        assert away.step() == plain.step()
        assert not raw_weights(away).any()
        assert away._training.model.core.grads.any()
    assert_same(weights_of(away), weights_of(plain))
    np.testing.assert_array_equal(away.teacher.network.weights, whole)
    assert not away._training.model.core.grads.any()  # in turn
    assert raw_weights(plain).any()


def test_large_weights_are_read_by_two_threads_and_small_ones_by_one(folder, monkeypatch):
    teacher = load(folder)
    whole = teacher.network.weights.copy()
    make(teacher=teacher, offload_teacher=True)
    calls: list[int] = []
    real = module._read
    monkeypatch.setattr(
        module, "_read", lambda files, pieces: calls.append(len(pieces)) or real(files, pieces)
    )
    monkeypatch.setattr(module._core, "get_num_threads", lambda: 2)
    np.testing.assert_array_equal(teacher.network.weights, whole)
    monkeypatch.setattr(module, "LEAST_SHARED", 1)
    teacher.network.offload.leave()
    np.testing.assert_array_equal(teacher.network.weights, whole)
    assert calls[0] == sum(calls[1:]) == len(teacher.network.parameters) and len(calls) == 3


def test_whoever_asks_for_the_weights_gets_them(folder):
    fresh = make(teacher=load(folder), **BY_RULE).teacher
    distiller = offloaded(folder)
    teacher = distiller.teacher
    uses = {
        "sample": lambda t: t.sample(3, num_inference_steps=4),
        "call": lambda t: t.model(noise(2), 500, [0, 1]),
        "parameters": lambda t: np.concatenate([a.ravel() for a in t.model.parameters.values()]),
        "weights": lambda t: t.model.weights.copy(),
        "fingerprint": lambda t: np.frombuffer(t.fingerprint.encode(), np.uint8),
    }
    for name, use in uses.items():
        expected = use(fresh)
        vars(teacher).pop("fingerprint", None)  # it is computed once
        distiller.step()
        assert not raw_weights(distiller).any()
        np.testing.assert_array_equal(use(teacher), expected, err_msg=name)
    distiller.step()
    again = make(teacher=teacher, offload_teacher=False)  # its student is a copy
    np.testing.assert_array_equal(
        again.student.model.parameters["conv_in.weight"], fresh.model.parameters["conv_in.weight"]
    )


def test_planning_checking_and_two_runs_of_one_teacher_are_no_different(folder):
    plain, teacher = make(teacher=load(folder), **BY_RULE), load(folder)
    one, two = (make(teacher=teacher, offload_teacher=True, **BY_RULE) for _ in range(2))
    for distiller in (one, two):
        distiller.plan()
    assert one.check().ok == plain.check().ok
    for _ in range(2):
        assert one.step() == two.step() == plain.step()
    assert_same(weights_of(one), weights_of(plain))
    assert_same(weights_of(two), weights_of(plain))


def stored_as(dtype, array):
    if dtype == "BF16":  # given by its bits
        return (array.view(np.uint32) >> 16).astype(np.uint16)
    return array.astype({"F16": np.float16, "F64": np.float64}[dtype])


@pytest.mark.parametrize("kind", ["shards", "old names", "F16", "BF16", "F64"])
@pytest.mark.parametrize("at_once", [2**18, 64])
def test_weights_in_every_form_are_read_again(folder, kind, at_once, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    if kind == "shards":
        shard(folder)
    elif kind == "old names":
        names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value."}
        tensors = load_tensors(folder / WEIGHTS)
        for new, old in names.items():
            tensors = {name.replace(new, old): array for name, array in tensors.items()}
        assert sum("query" in name for name in tensors) > 2
        save_tensors(folder / WEIGHTS, tensors)
    else:
        tensors = {name: stored_as(kind, a) for name, a in load_tensors(folder / WEIGHTS).items()}
        save_tensors(folder / WEIGHTS, tensors)
    whole = load(folder).network.weights.copy()
    distiller = offloaded(folder)
    distiller.step()
    np.testing.assert_array_equal(distiller.teacher.network.weights, whole)


# ------------------------------------------------------------------------- stop, resume, go back


@pytest.mark.parametrize("settings", [{}, {"correction": "distribution", "correction_start": 0.4}])
def test_a_run_with_both_options_resumes_bit_for_bit(folder, tmp_path, settings):
    options = {"max_train_steps": 8, "checkpointing_steps": 3, **BOTH, **settings}
    out = {name: str(tmp_path / name) for name in "ab"}
    stopped = make(teacher=load(folder), output_dir=out["b"], **options)
    stopped.fit(callbacks=[Recorder(5, interrupt)])
    options["resume_from_checkpoint"] = "latest"
    # Offloading changes no number, so a run may take it up, or leave it, where it goes on.
    resumed = make(
        teacher=load(folder), output_dir=out["b"], **{**options, "offload_teacher": False}
    )
    assert resumed.state.step == 5
    assert_same(weights_of(resumed), weights_of(stopped))
    resumed.fit()
    unbroken = make(teacher=load(folder), output_dir=out["a"], **options)
    pin_like(unbroken, resumed)
    unbroken.fit()
    assert_same(weights_of(unbroken), weights_of(resumed))
    assert {b.dtype.name for b in unbroken._buffers().values()} == {"float32", "uint16"}


@pytest.mark.parametrize("every, back_to", [(2, 4), (0, 0)])
@pytest.mark.parametrize("out", [None, "out"])
def test_roll_backs_find_the_teacher_and_the_moments(folder, tmp_path, every, back_to, out):
    output_dir = out and str(tmp_path / out)
    options = {"checkpointing_steps": every, "output_dir": output_dir, **BOTH}
    distiller = make(teacher=load(folder), **options)
    states = {0: weights_of(distiller)}
    for step in range(1, 6):
        distiller.step()
        states[step] = weights_of(distiller)
        if out and every and step % every == 0:
            distiller.save_checkpoint()
    poison(distiller, True)
    for _ in range(3):
        distiller.step()
    assert distiller.state.rollbacks == 1
    assert_same(weights_of(distiller), states[back_to])
    poison(distiller, False)
    assert np.isfinite(distiller.step()["loss"])


# ------------------------------------------------------------------------------------- refusals


def rewrite(path):
    path.write_bytes(path.read_bytes())


def cut(path):
    os.truncate(path, path.stat().st_size - 4)


def replace(path):
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    status = path.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, path)


@pytest.mark.parametrize("change", [rewrite, cut, replace, os.remove])
def test_a_file_that_changed_or_vanished_is_an_error_that_names_it(folder, change):
    distiller = offloaded(folder)
    distiller.step()
    before, state = weights_of(distiller), vars(distiller.state).copy()
    change(folder / WEIGHTS)
    for _ in range(2):
        with pytest.raises(TeacherError, match=r"diffusion_pytorch_model\.safetensors"):
            distiller.step()
    assert_same(weights_of(distiller), before)
    assert vars(distiller.state) == state


def test_a_file_that_comes_back_is_as_good_as_before(folder):
    distiller = offloaded(folder)
    distiller.step()
    (folder / WEIGHTS).rename(folder / "away")
    with pytest.raises(TeacherError, match="cannot be read"):
        distiller.step()
    (folder / "away").rename(folder / WEIGHTS)
    assert np.isfinite(distiller.step()["loss"])


def test_a_file_written_while_it_is_read_is_noticed(folder, monkeypatch):
    distiller = offloaded(folder)
    real = module._read_shared

    def meanwhile(files, pieces):
        real(files, pieces)
        os.utime(folder / WEIGHTS)

    monkeypatch.setattr(module, "_read_shared", meanwhile)
    with pytest.raises(TeacherError, match="has changed since"):
        distiller.step()
    with pytest.raises(RuntimeError, match="memory was given back"):  # nothing runs on halves
        distiller.teacher.network.core.forward(noise(1), np.full(1, 500.0), np.zeros(1))


def test_a_file_with_other_weights_than_the_teacher_is_refused(folder):
    teacher = load(folder)
    teacher.network.parameters["conv_in.bias"][0] += 1
    teacher.network.weights_changed()
    with pytest.raises(TeacherError, match="holds other weights than the teacher"):
        make(teacher=teacher, offload_teacher=True)


def test_weights_that_are_changed_later_stay(folder, caplog):
    distiller = offloaded(folder)
    network = distiller.teacher.network
    network.parameters["conv_in.bias"][0] += 1
    network.weights_changed()
    changed = network.weights.copy()
    distiller.step()
    np.testing.assert_array_equal(raw_weights(distiller), changed)
    assert "were changed: they stay" in caplog.text


def test_teachers_without_a_file_are_refused():
    with pytest.raises(ConfigError, match="offload_teacher must be false .*loaded from a folder"):
        make(teacher=make_teacher(), offload_teacher=True)
    function = Teacher.from_callable(
        lambda x, t, c: x,
        prediction_type="epsilon",
        schedule=make_teacher().scheduler,
        sample_shape=(1, 8, 8),
    )
    with pytest.raises(ConfigError, match="offload_teacher must be false"):
        make(teacher=function, student=PLAIN, offload_teacher=True)


def test_another_thread_does_not_take_the_gradients_before_the_update(folder, monkeypatch):
    distiller, plain = offloaded(folder), make(teacher=load(folder), **BY_RULE)
    real, caught = distiller._training.backward, []

    def ask():
        with pytest.raises(RuntimeError, match="another thread"):
            distiller.teacher.network.weights  # noqa: B018
        caught.append(True)

    def backward(dy):
        real(dy)
        thread = threading.Thread(target=ask)
        thread.start(), thread.join()

    monkeypatch.setattr(distiller._training, "backward", backward)
    assert distiller.step() == plain.step()
    assert caught
    np.testing.assert_array_equal(distiller.teacher.network.weights, plain.teacher.network.weights)


def test_a_teacher_keeps_no_run_alive(folder):
    teacher = load(folder)
    distiller = make(teacher=teacher, offload_teacher=True)
    distiller.step()
    gone = weakref.ref(distiller._training.model)
    student = distiller.student
    del distiller
    gc.collect()
    assert gone() is None and student is not None
    assert np.isfinite(teacher.sample(1, num_inference_steps=2)).all()
