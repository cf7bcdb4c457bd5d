"""Numbers that go wrong: found in the same step, never written into a weight, then rolled back."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from models import assert_same, make, make_teacher, poison, weights_of

from boot import _core, steps
from boot.errors import TrainingDiverged
from boot.network import worst_gradient

OPTIONS = {"max_train_steps": 30, "checkpointing_steps": 4, "logging_steps": 1}


def counters(distiller):
    return vars(distiller.state)


def train(distiller, bad, until=12):
    """Step up to `until`; the teacher gives NaN in the steps of `bad`."""
    while distiller.state.step < until:
        poison(distiller, distiller.state.step + 1 in bad)
        distiller.step()
    poison(distiller, False)


# ------------------------------------------------------------------------------ one bad step


def bad_teacher(value):
    return lambda distiller, monkeypatch: poison(distiller, True, value)


def bad_student(distiller, monkeypatch):
    real = distiller._training.signal

    def signal(*args):
        y = real(*args)
        y[1, 0, 2, 3] = np.inf
        return y

    monkeypatch.setattr(distiller._training, "signal", signal)


def bad_output(distiller, monkeypatch):
    real = distiller._training.signal_train

    def signal(*args):
        y = real(*args)
        y[0, 0, 0, 0] = np.nan
        return y

    monkeypatch.setattr(distiller._training, "signal_train", signal)


def bad_loss(distiller, monkeypatch):
    real = distiller._training.signal_train  # finite, but its square is not even in float64
    monkeypatch.setattr(distiller._training, "signal_train", lambda *a: real(*a) + np.float32(3e38))
    monkeypatch.setattr("boot.distiller.weights", lambda *args: np.full(len(args[-1]), 1e300))


def bad_gradient(*values):
    def change(distiller, monkeypatch):
        real = distiller._training.backward

        def backward(dy):
            real(dy)
            for (name, _, offset), value in zip(
                distiller._training.model.core.parameters, values, strict=False
            ):
                assert name
                distiller._training.model.core.grads[offset] = value

        monkeypatch.setattr(distiller._training, "backward", backward)

    return change


BAD = {
    "teacher NaN": (bad_teacher(np.nan), "the teacher's output has 512 NaN or Inf among 512"),
    "teacher Inf, which a clip would hide": (bad_teacher(np.inf), "the teacher's output has 512"),
    "student": (bad_student, r"the student's signal y\(eps, t\) has 1 .* inf at \[1, 0, 2, 3\]"),
    "output": (bad_output, "loss is nan"),
    "loss": (bad_loss, "loss is inf"),
    "gradient": (bad_gradient(np.nan), r"norm is nan.*: the gradient of [\w.]+ has 1 NaN or Inf"),
    "two": (bad_gradient(np.inf, -np.inf), "norm is inf.*: the gradient of .*, and 1 more tensors"),
}


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_number_is_found_in_its_step_and_changes_no_weight(monkeypatch, caplog, kind, clip):
    spoil, message = BAD[kind]
    distiller = make(teacher=make_teacher(clip_sample=clip))
    distiller.step()
    before = weights_of(distiller)
    with monkeypatch.context() as patch:
        spoil(distiller, patch)
        logs = distiller.step()
    assert (logs["step"], logs["skipped"], logs["rollbacks"]) == (2, 1, 0)
    assert not np.isfinite(logs["grad_norm"])
    assert_same(weights_of(distiller), before)
    assert "step 2 skipped, weights unchanged: " in caplog.text
    assert re.search(message, caplog.text)
    poison(distiller, False)
    assert np.isfinite(distiller.step()["loss"])
    assert counters(distiller)["bad_in_a_row"] == 0
    assert counters(distiller)["updates"] == 2


def test_a_gradient_whose_square_overflows_is_refused_instead_of_freezing_the_weights():
    w, m, v = (np.zeros(8, np.float32) for _ in range(3))
    options = {"step": 1, "learning_rate": 0.1, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8}
    options |= {"weight_decay": 0.0, "ema_decay": 0.0}
    g = np.full(8, 1e20, np.float32)
    with pytest.raises(FloatingPointError, match=r"norm is 2.8\d*e\+20 after clipping"):
        _core.adamw_step(w, g, m, v, None, max_grad_norm=0.0, **options)
    assert not (w.any() or m.any() or v.any())
    _core.adamw_step(w, g, m, v, None, max_grad_norm=1.0, **options)
    assert w.all()


def test_the_largest_gradient_is_named_where_all_are_finite():
    distiller = make()
    distiller.step()
    name, _, offset = distiller._training.model.core.parameters[3]
    distiller._training.model.core.grads[offset] = -1e20
    assert (
        worst_gradient(distiller._training.model) == f"the gradient of {name} is as large as 1e+20"
    )


# ------------------------------------------------------------------------------ many bad steps


def test_three_in_a_row_bring_back_the_last_checkpoint_at_half_the_rate(tmp_path, caplog):
    distiller = make(output_dir=str(tmp_path), **OPTIONS)
    distiller.fit(4)
    good = weights_of(distiller)
    train(distiller, {7, 8}, until=8)
    assert not np.array_equal(weights_of(distiller)[0], good[0])
    train(distiller, {9}, until=9)
    assert_same(weights_of(distiller), good)
    assert counters(distiller) == {
        "step": 9,
        "updates": 4,
        "skipped": 3,
        "bad_in_a_row": 0,
        "bad_steps": [],
        "rollbacks": 1,
        "rate_factor": 0.5,
        "critic_updates": 0,
    }
    assert "3 steps in a row up to step 9" in caplog.text
    assert "checkpoint-4, learning rate times 0.5" in caplog.text
    full = distiller.config.learning_rate * distiller.config.learning_rate_factor(9)
    assert distiller.step()["learning_rate"] == full / 2


def test_a_checkpoint_of_a_bad_step_and_a_damaged_one_are_passed_over(tmp_path):
    distiller = make(output_dir=str(tmp_path), **{**OPTIONS, "checkpoints_total_limit": None})
    distiller.fit(4)
    good = weights_of(distiller)
    distiller.fit(8)
    state = tmp_path / "checkpoint-8/state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    train(distiller, {10}, until=10)
    distiller.save_checkpoint()
    train(distiller, {11, 12}, until=12)
    assert counters(distiller)["rollbacks"] == 1
    assert_same(weights_of(distiller), good)


@pytest.mark.parametrize("every, back_to", [(4, 4), (0, 0)])
def test_without_a_folder_the_copy_in_memory_or_the_start_comes_back(every, back_to):
    distiller = make(checkpointing_steps=every)
    states = {0: weights_of(distiller)}
    for step in range(1, 7):
        distiller.step()
        states[step] = weights_of(distiller)
    train(distiller, {7, 8, 9}, until=9)
    assert_same(weights_of(distiller), states[back_to])
    assert counters(distiller)["updates"] == back_to


def test_one_percent_of_the_last_thousand_steps_is_too_many(monkeypatch):
    distiller = make()
    train(distiller, set(range(1, 19, 2)), until=18)
    assert (distiller.state.skipped, distiller.state.rollbacks) == (9, 0)
    train(distiller, {19}, until=19)
    assert (distiller.state.skipped, distiller.state.rollbacks) == (10, 1)
    monkeypatch.setattr(steps, "WINDOW", 12)  # bad steps further back do not count
    train(distiller, set(range(20, 60, 2)), until=60)
    assert (distiller.state.skipped, distiller.state.rollbacks) == (30, 1)


def test_the_third_time_is_divergence_with_step_and_tensor_named():
    distiller = make()
    distiller.step()
    poison(distiller, True)
    for _ in range(8):
        distiller.step()
    assert (distiller.state.rollbacks, distiller.state.rate_factor) == (2, 0.25)
    with pytest.raises(TrainingDiverged, match=r"up to step 10 .* 2 roll-backs.*teacher's output"):
        distiller.step()
    assert distiller.state.step == 10
    assert all(np.isfinite(buffer).all() for buffer in weights_of(distiller))


def test_resume_keeps_counts_and_rate_and_goes_on_bit_for_bit(tmp_path):
    bad = {3, 6, 7, 8, 13}
    whole = make(output_dir=str(tmp_path / "a"), **OPTIONS)
    train(whole, bad, until=4)
    whole.save_checkpoint()
    train(whole, bad, until=10)
    whole.save_checkpoint()
    again = make(output_dir=str(tmp_path / "a"), resume_from_checkpoint="latest", **OPTIONS)
    assert counters(again) == counters(whole)
    assert counters(again)["rollbacks"] == 1
    for distiller in (whole, again):
        train(distiller, bad, until=14)
    assert_same(weights_of(again), weights_of(whole))
    assert counters(again) == counters(whole)


def test_roll_backs_are_in_the_log(tmp_path):
    distiller = make(output_dir=str(tmp_path), check_teacher=False, **OPTIONS)
    poison(distiller, True)
    with pytest.raises(TrainingDiverged):
        distiller.fit()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["rollbacks"] for line in lines] == [0, 0, 1, 1, 1, 2, 2, 2]
    assert {line["loss"] for line in lines} == {None}


def test_a_roll_back_passes_over_the_checkpoint_of_another_run(tmp_path):
    other = make(output_dir=str(tmp_path / "b"), seed=7)
    for _ in range(3):
        other.step()
    other.save_checkpoint()
    first = make(output_dir=str(tmp_path / "a"))
    first.step()
    path = first.save_checkpoint()
    run = make(output_dir=str(tmp_path / "b"), resume_from_checkpoint=str(path))
    train(run, bad={3, 4, 5}, until=5)
    assert run.state.rollbacks == 1
    assert_same(weights_of(run), weights_of(first))
