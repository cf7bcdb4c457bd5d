"""The run around the steps: callbacks, files, Ctrl-C, threads, and numbers that go wrong."""

from __future__ import annotations

import json
import os
import signal
import threading

import numpy as np
import pytest
from models import assert_same, make, pin_like, poison, weights_of
from processes import start_python

from boot import _core
from boot.callbacks import Callback
from boot.checkpoint import list_checkpoints
from boot.config import DistillConfig
from boot.interrupts import STOP_SIGNALS, InterruptGuard
from boot.student import Student


class Recorder(Callback):
    """Remembers the events and acts at a step."""

    def __init__(self, at=None, act=None):
        self.events, self.at, self.act = [], at, act

    def on_train_begin(self, config, state, control, **kwargs):
        self.events.append("begin")

    def on_step_begin(self, config, state, control, **kwargs):
        self.events.append(f"step {state.step + 1}")

    def on_step_end(self, config, state, control, **kwargs):
        if state.step == self.at:
            self.act(control)

    def on_log(self, config, state, control, **kwargs):
        self.events.append(f"log {kwargs['logs']['step']}")

    def on_save(self, config, state, control, **kwargs):
        self.events.append(kwargs["path"].name)

    def on_train_end(self, config, state, control, **kwargs):
        self.events.append("end")


def stop(control):
    control.should_training_stop = True


def interrupt(control):
    os.kill(os.getpid(), signal.SIGINT)


def test_fit_writes_the_student_the_log_the_config_and_checkpoints(tmp_path):
    out = tmp_path / "out"
    recorder = Recorder()
    distiller = make(output_dir=str(out), max_train_steps=6, logging_steps=2, checkpointing_steps=2)
    history = distiller.fit(callbacks=[recorder])
    assert recorder.events == [
        *("begin", "step 1", "step 2", "log 2", "checkpoint-2"),
        *("step 3", "step 4", "log 4", "checkpoint-4"),
        *("step 5", "step 6", "log 6", "checkpoint-6", "end"),
    ]
    assert sorted(p.name for p in out.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert [line["loss"] for line in lines] == history.history["loss"]
    assert not history.interrupted
    assert DistillConfig.load(out / "distill_config.json") == distiller.config
    student = Student.from_pretrained(out)
    np.testing.assert_array_equal(student.model.weights, distiller.student.model.weights)
    assert student.info.training["steps"] == 6
    assert student.info.teacher["sha256"] == distiller.teacher.fingerprint
    assert student.info.guidance_scale == 1.5


def test_fit_counts_total_steps_and_may_be_called_again():
    distiller = make()
    distiller.fit(max_train_steps=3)
    assert distiller.state.step == 3
    distiller.fit(max_train_steps=3)
    assert distiller.state.step == 3
    distiller.fit(max_train_steps=5)
    assert distiller.state.step == 5


def test_a_callback_can_stop_and_ask_for_a_log_and_a_checkpoint(tmp_path):
    def ask(control):
        control.should_log = control.should_save = True

    distiller = make(output_dir=str(tmp_path), checkpointing_steps=0, logging_steps=100)
    recorder, stopper = Recorder(2, ask), Recorder(3, stop)
    distiller.fit(callbacks=[recorder, stopper])
    assert distiller.state.step == 3
    assert "log 2" in recorder.events
    assert "checkpoint-2" in recorder.events
    assert "checkpoint-3" in recorder.events


def test_ctrl_c_stops_at_a_step_border_with_a_checkpoint_and_fit_goes_on(tmp_path):
    distiller = make(output_dir=str(tmp_path / "out"), max_train_steps=6)
    handler = signal.getsignal(signal.SIGINT)
    history = distiller.fit(callbacks=[Recorder(3, interrupt)])
    assert history.interrupted
    assert distiller.state.step == 3
    assert signal.getsignal(signal.SIGINT) is handler
    assert (tmp_path / "out/checkpoint-3/manifest.json").exists()
    assert not (tmp_path / "out/model_index.json").exists()
    history = distiller.fit()
    assert not history.interrupted
    assert distiller.state.step == 6
    assert (tmp_path / "out/model_index.json").exists()


def test_a_second_ctrl_c_acts_at_once():
    def twice(control):
        interrupt(control)
        interrupt(control)

    recorder = Recorder(2, twice)
    distiller = make()
    with pytest.raises(KeyboardInterrupt):
        distiller.fit(callbacks=[recorder])
    assert recorder.events[-1] == "end"
    assert np.isfinite(distiller.step()["loss"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_sigterm_and_sigusr1_save_and_end_a_script_with_75(tmp_path, number):
    distiller = make(output_dir=str(tmp_path), max_train_steps=6)
    with pytest.raises(SystemExit) as ending:
        distiller.fit(callbacks=[Recorder(3, lambda control: signal.raise_signal(number))])
    assert ending.value.code == 75
    assert (tmp_path / "checkpoint-3/manifest.json").exists()
    assert {signal.getsignal(n) for n in STOP_SIGNALS[1:]} == {signal.SIG_DFL}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    distiller.fit()
    assert distiller.state.step == 6


SLOW = """
import time
from models import make
from boot.interrupts import InterruptGuard

def slow():
    print("in a step", flush=True)
    while not InterruptGuard.active().interrupted:
        time.sleep(0.01)
    print("stopping", flush=True)
    time.sleep(20)

distiller = make()
distiller._draw = slow
distiller.fit(callbacks=[])
"""


@pytest.mark.parametrize("first", STOP_SIGNALS)
@pytest.mark.parametrize("second", STOP_SIGNALS)
def test_a_second_signal_ends_the_process_in_the_middle_of_a_step(first, second):
    with start_python("-c", SLOW) as process:
        try:
            for number, line in ((first, "in a step"), (second, "stopping")):
                assert process.stdout.readline().strip() == line
                process.send_signal(number)
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    if second == signal.SIGINT:
        assert process.returncode == -signal.SIGINT and "KeyboardInterrupt" in stderr
    else:
        assert process.returncode == -second, stderr


def test_a_signal_at_the_last_step_or_in_the_final_save_does_not_interrupt(tmp_path, monkeypatch):
    distiller = make(output_dir=str(tmp_path), max_train_steps=3)
    save = Student.save_pretrained

    def interrupted(*args, **kwargs):
        interrupt(None)
        save(*args, **kwargs)

    monkeypatch.setattr(Student, "save_pretrained", interrupted)
    assert not distiller.fit().interrupted
    assert Student.from_pretrained(tmp_path).info.training["steps"] == 3
    history = make(max_train_steps=3).fit(callbacks=[Recorder(3, interrupt)])
    assert not history.interrupted


def test_a_signal_before_the_first_step_is_not_lost():
    distiller = make()
    with InterruptGuard(*STOP_SIGNALS) as guard:
        signal.raise_signal(signal.SIGTERM)
        history = distiller.fit()
    assert (guard.received, history.interrupted) == (signal.SIGTERM, True)
    assert distiller.state.step == 0


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_signal_before_the_first_step_of_fit_saves_the_steps_taken_before(tmp_path, elsewhere):
    options = {"output_dir": str(tmp_path / "a"), "max_train_steps": 4}
    distiller = make(**options)
    distiller.step()
    distiller.step()
    if elsewhere:  # "latest" of the new folder must not mean a run from the start
        options["output_dir"] = str(tmp_path / "b")
        distiller = make(**options, resume_from_checkpoint=str(distiller.save_checkpoint()))
    with InterruptGuard(*STOP_SIGNALS):
        signal.raise_signal(signal.SIGTERM)
        assert distiller.fit().interrupted
    again = make(**options, resume_from_checkpoint="latest")
    assert again.state.step == distiller.state.step == 2
    assert_same(weights_of(again), weights_of(distiller))


def test_two_ctrl_c_in_an_update_leave_weights_and_counters_that_agree(monkeypatch):
    distiller, unbroken = make(max_train_steps=4), make(max_train_steps=4)
    real = distiller._training.model.weights_changed

    def twice():
        interrupt(None)
        interrupt(None)
        real()

    with monkeypatch.context() as patch:
        patch.setattr(distiller._training.model, "weights_changed", twice)
        with pytest.raises(KeyboardInterrupt):
            distiller.fit()
    assert (distiller.state.step, distiller.state.updates) == (1, 1)
    distiller.fit()
    pin_like(unbroken, distiller)
    unbroken.fit()
    assert_same(weights_of(distiller), weights_of(unbroken))


def test_an_applications_own_handlers_stay_in_charge():
    calls = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number))
    try:
        distiller = make()
        act = Recorder(2, lambda control: signal.raise_signal(signal.SIGTERM))
        assert not distiller.fit(4, callbacks=[act]).interrupted
    finally:
        signal.signal(signal.SIGTERM, before)
    assert calls == [signal.SIGTERM]
    assert distiller.state.step == 4


def test_ctrl_c_while_fit_runs_in_another_thread_harms_nothing():
    distiller, running, go_on = make(), threading.Event(), threading.Event()

    def pause(control):
        running.set()
        go_on.wait(30)
        control.should_training_stop = True

    thread = threading.Thread(target=lambda: distiller.fit(callbacks=[Recorder(2, pause)]))
    thread.start()
    running.wait(30)
    with pytest.raises(KeyboardInterrupt):
        interrupt(None)
        thread.join(1)
    go_on.set()
    thread.join(30)
    assert distiller.state.step == 2
    distiller.fit(4)
    assert distiller.state.updates == 4


def test_ctrl_c_inside_a_step_of_ones_own_loop_is_held_back_until_it_is_complete(monkeypatch):
    distiller = make()
    adamw = _core.adamw_step

    def interrupted(*args, **kwargs):
        result = adamw(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(_core, "adamw_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distiller.step()
    assert distiller.state.step == distiller.state.updates == 1
    monkeypatch.undo()
    assert distiller.step()["step"] == 2


def test_an_exception_in_a_callback_ends_the_run_in_order():
    def fail(control):
        raise OSError("disk on fire")

    recorder = Recorder(2, fail)
    distiller = make(eval_steps=0)
    with pytest.raises(OSError, match="disk on fire"):
        distiller.fit(callbacks=[recorder])
    assert recorder.events[-1] == "end"
    assert distiller.fit(max_train_steps=4).history["step"] == [4]
    assert distiller.state.step == 4


def test_running_out_of_memory_leaves_a_checkpoint(tmp_path):
    distiller = make(output_dir=str(tmp_path), checkpointing_steps=0, max_train_steps=9)
    step = distiller.step

    def at_last():
        if distiller.state.step == 5:
            raise MemoryError("activations: too many bytes needed")
        return step()

    distiller.step = at_last
    with pytest.raises(MemoryError, match="activations"):
        distiller.fit()
    again = make(output_dir=str(tmp_path), resume_from_checkpoint="latest", max_train_steps=9)
    assert again.state.step == 5


def test_running_out_of_memory_in_a_callback_leaves_a_checkpoint(tmp_path):
    def fail(control):
        raise MemoryError("a picture")

    distiller = make(output_dir=str(tmp_path), checkpointing_steps=0, max_train_steps=9)
    with pytest.raises(MemoryError, match="a picture"):
        distiller.fit(callbacks=[Recorder(4, fail)])
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-4"]


def test_a_finished_run_is_not_trained_again(tmp_path, caplog):
    options = {"output_dir": str(tmp_path), "logging_steps": 4, "resume_from_checkpoint": "latest"}
    make(**options, max_train_steps=6).fit()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-6"]
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 6]
    again = make(**options, max_train_steps=6)
    assert again.state.step == 6
    again.fit()
    longer = make(**options, max_train_steps=7)
    assert longer.state.step == 6
    longer.fit()
    make(**options, max_train_steps=3).fit()
    assert "the run is at step 7, beyond max_train_steps 3: nothing to train" in caplog.text


def test_one_thread_at_a_time():
    distiller = make()
    distiller.step()
    inside, release, result = threading.Event(), threading.Event(), []
    draw = distiller._draw

    def slow_draw():
        inside.set()
        release.wait(30)
        return draw()

    distiller._draw = slow_draw
    thread = threading.Thread(target=lambda: result.append(distiller.step()))
    thread.start()
    assert inside.wait(30)
    with pytest.raises(RuntimeError, match="use one per thread"):
        distiller.step()
    release.set()
    thread.join(60)
    assert result[0]["step"] == 2


def test_two_distillers_work_in_two_threads():
    alone = make()
    for _ in range(3):
        alone.step()
    pair = [make(), make()]
    for distiller in pair:
        pin_like(distiller, alone)
    threads = [threading.Thread(target=d.fit, kwargs={"max_train_steps": 3}) for d in pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert_same(weights_of(pair[0]), weights_of(pair[1]))
    assert pair[0].state.step == 3


def test_the_log_holds_null_for_numbers_that_json_cannot(tmp_path):
    distiller = make(
        output_dir=str(tmp_path), logging_steps=1, checkpointing_steps=0, check_teacher=False
    )
    poison(distiller, True)
    distiller.fit(max_train_steps=2)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [None, None]
