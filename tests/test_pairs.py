"""The paired error during training: right numbers, logged in step, and without any influence."""

from __future__ import annotations

import json

import numpy as np
import pytest
from models import SMALL, assert_same, make, pin_like, weights_of

from boot.demo import TEACHER_FOLDER
from boot.distiller import Distiller
from boot.early_stopping import EarlyStopping
from boot.errors import ConfigError
from boot.pairs import Pairs
from boot.signal_ode import diffuse, step


def test_the_error_is_that_against_a_heun_path_from_the_same_noise():
    distiller = make(guidance_scale=1.5)
    pairs = Pairs(distiller)
    schedule, teacher, labels = distiller.teacher.schedule, distiller.teacher, pairs.labels
    times = schedule.times(distiller._t_max, distiller._t_min, 20)
    full = np.ones(len(pairs.noise))

    def signal(x, t):
        return teacher.signal(x, t, labels, distiller._guidance, distiller._clip)

    y = signal(pairs.noise, times[0] * full)
    for t, s in zip(times[:-1], times[1:], strict=True):
        f = signal(diffuse(schedule, y, pairs.noise, t * full), t * full)
        y = step(schedule, signal, pairs.noise, y, f, t * full, s * full, "heun")
    wanted = y.astype(np.float64) - distiller.student(pairs.noise, class_labels=labels)
    assert pairs.errors(distiller)[-1] == pytest.approx(np.sqrt((wanted**2).mean()), rel=1e-4)
    assert pairs.times[[0, -1]] == pytest.approx([distiller._t_max, distiller._t_min])
    assert len(pairs.times) == 5


def test_training_brings_the_error_down_and_logs_it(tmp_path):
    options = {"output_dir": str(tmp_path), "eval_steps": 30, "max_train_steps": 60}
    distiller = Distiller(TEACHER_FOLDER, train_batch_size=16, logging_steps=20, **options)
    untrained = Pairs(distiller).errors(distiller)[-1]
    history = distiller.fit().history
    assert history["step"] == [20, 30, 40, 60]
    assert history["paired_error"][0] is history["paired_error"][2] is None
    assert history["paired_error"][3] < history["paired_error"][1] < untrained
    assert {len(values) for values in history.values()} == {4}
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert "paired_error" not in lines[0]
    assert lines[3]["paired_error"] == history["paired_error"][3]
    assert sum(name.startswith("paired_error_t") for name in lines[1]) == 4
    assert (tmp_path / "samples/teacher.png").exists()


def test_measuring_has_no_influence_on_the_run():
    plain, measured = make(eval_steps=0), make(eval_steps=1)
    plain.step()
    measured.step()  # the kernels are chosen now
    pin_like(measured, plain)
    again = make(eval_steps=0)
    pin_like(again, plain)
    once_more = make(eval_steps=1)
    pin_like(once_more, plain)
    first, second = again.fit(max_train_steps=4), once_more.fit(max_train_steps=4)
    assert_same(weights_of(again), weights_of(once_more))
    assert first.history["step"] == [4]  # the last one is logged in any case
    assert "paired_error" not in first.history
    assert len(second.history["paired_error"]) == 4


def test_a_resumed_run_logs_the_same_numbers(tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    options = {"eval_steps": 2, "logging_steps": 2, "max_train_steps": 6}
    one = make(output_dir=str(whole), checkpointing_steps=3, **options)
    one.fit()
    two = make(output_dir=str(part), checkpointing_steps=3, **options)
    pin_like(two, one)
    two.fit(max_train_steps=3)
    three = make(output_dir=str(part), resume_from_checkpoint="latest", **options)
    pin_like(three, one)
    history = three.fit(max_train_steps=6).history
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    numbers = {line["step"]: line["paired_error"] for line in lines}
    for number, error in zip(history["step"], history["paired_error"], strict=True):
        assert error == pytest.approx(numbers[number], rel=1e-3)


# ------------------------------------------------------------------------------- early stopping


class Feed:
    """Sends made-up numbers to a callback until it asks to stop."""

    def __init__(self, distiller, callback):
        self.distiller, self.callback = distiller, callback

    def __call__(self, values):
        from boot.callbacks import Control

        control, state = Control(), self.distiller.state
        for value in values:
            state.step += 1
            logs = {"step": state.step, "loss": 1.0, "paired_error": value}
            self.callback.on_log(self.distiller.config, state, control, logs=logs)
            if control.should_training_stop:
                return state.step
        return None


@pytest.mark.parametrize(
    ("options", "values", "stop"),
    [
        ({"patience": 2}, [3, 2, 1, 1, 1, 0], 5),
        ({"patience": 2}, [3, 2, 2.5, 1, 0.9, 0.8], None),
        ({"patience": 2, "min_delta": 0.5}, [3, 2.9, 2.8, 1], 3),
        ({"patience": 1}, [float("nan")], 1),
        ({"patience": 2, "monitor": "loss"}, [3, 2, 1], 3),
    ],
)
def test_early_stopping_counts_measurements_without_progress(options, values, stop):
    callback = EarlyStopping(**options)
    assert Feed(make(), callback)(values) == stop


def test_early_stopping_ends_a_run_with_its_student_saved(tmp_path):
    options = {**SMALL, "output_dir": str(tmp_path), "eval_steps": 2, "learning_rate": 1e-12}
    distiller = make(**options)
    history = distiller.fit(callbacks=[EarlyStopping(patience=2, min_delta=1e-3)])
    assert distiller.state.step == 6
    assert len(history.history["paired_error"]) == 3
    assert (tmp_path / "model_index.json").exists()
    assert (tmp_path / "checkpoint-6").is_dir()


def test_early_stopping_goes_on_counting_after_a_resume(tmp_path):
    options = {"output_dir": str(tmp_path), "eval_steps": 2, "learning_rate": 1e-12}
    make(checkpointing_steps=3, **options).fit(max_train_steps=3)
    again = make(resume_from_checkpoint="latest", **options)
    again.fit(max_train_steps=40, callbacks=[EarlyStopping(patience=2, min_delta=1e-3)])
    assert again.state.step == 4  # measured at 2, 3 (the end of the first fit) and 4


def test_early_stopping_refuses_what_cannot_work():
    with pytest.raises(ValueError, match="patience must be"):
        EarlyStopping(patience=0)
    with pytest.raises(ValueError, match="min_delta must be finite and >= 0"):
        EarlyStopping(min_delta=-1.0)
    with pytest.raises(TypeError, match="monitor must be a string"):
        EarlyStopping(monitor=3)
    with pytest.raises(ConfigError, match="eval_steps must be > 0"):
        make(eval_steps=0).fit(callbacks=[EarlyStopping()])


def test_early_stopping_says_if_it_watched_nothing(caplog):
    options = {"eval_steps": 2, "logging_steps": 1}
    watch = EarlyStopping(patience=1, monitor="paired_eror")
    make(**options).fit(max_train_steps=2, callbacks=[watch])
    assert "watched nothing: the logs had no 'paired_eror' (did you mean 'paired_err" in caplog.text
    caplog.clear()
    make(**options).fit(
        max_train_steps=2, callbacks=[EarlyStopping(), EarlyStopping(monitor="loss")]
    )
    assert "watched nothing" not in caplog.text
    shown = "EarlyStopping(patience=1, min_delta=0, monitor='paired_eror')"
    assert repr(watch) == shown
