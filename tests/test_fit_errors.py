"""Trouble around the steps of a run: what may not end it, what must be refused before it begins."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import sys
import types

import pytest
from models import DDPM, PLAIN, make, make_teacher, save_teacher, tensors, weights_of
from processes import run_python
from test_fit import Recorder

from boot import callbacks as callbacks_module
from boot import checkpoint as checkpoint_module
from boot import diffusers_io
from boot.callbacks import Callback, TensorBoardLog
from boot.diffusers_io import save_pipeline
from boot.errors import CheckpointError, ConfigError, TeacherError
from boot.student import Student

QUICK = ["--train-batch-size", "4", "--correction", "none", "--sample-steps", "0"]
OPTIONS = {"max_train_steps": 8, "checkpointing_steps": 2, "logging_steps": 1}


def full_disk():
    return OSError(errno.ENOSPC, "No space left on device")


# ------------------------------------------------------------------------------------ TensorBoard


class Writers:
    """Stands in for tensorboard's: like the real one, a writer that has failed stays broken."""

    def __init__(self, monkeypatch):
        self.broken, self.made, self.written, self.closed = False, 0, [], 0
        summary = types.ModuleType("tensorboard.summary")
        summary.Writer = self.make
        monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
        monkeypatch.setitem(sys.modules, "tensorboard.summary", summary)
        monkeypatch.setattr(TensorBoardLog, "RETRY_SECONDS", 0.0)

    def make(self, folder):
        if self.broken:
            raise full_disk()
        self.made += 1
        points, dead = [], []

        def add_scalar(name, value, step):
            points.append((name, step))

        def flush():
            if self.broken:
                dead.append(True)
            if dead:
                raise full_disk()
            self.written += points
            points.clear()

        def close():
            self.closed += 1
            if dead:
                raise full_disk()

        return types.SimpleNamespace(add_scalar=add_scalar, flush=flush, close=close)

    def steps(self):
        return [step for name, step in self.written if name == "train/loss"]


def test_a_failing_tensorboard_does_not_end_a_run_and_gets_its_numbers_later(
    tmp_path, monkeypatch, caplog
):
    writers = Writers(monkeypatch)

    class Breaker(Recorder):
        def on_step_begin(self, config, state, control, **kwargs):
            writers.broken = 3 <= state.step < 5

    distiller = make(output_dir=str(tmp_path), report_to="tensorboard", **OPTIONS)
    distiller.fit(callbacks=[Breaker()])
    assert distiller.state.step == 8
    assert writers.steps() == list(range(1, 9))
    assert (writers.made, writers.closed) == (2, 2)
    assert caplog.text.count("TensorBoard's numbers not written, they will be tried again") == 2


def test_a_tensorboard_that_never_comes_back_is_a_warning_at_the_end(tmp_path, monkeypatch, caplog):
    writers = Writers(monkeypatch)
    monkeypatch.setattr(TensorBoardLog, "RETRY_SECONDS", 1e9)
    distiller = make(output_dir=str(tmp_path), report_to="tensorboard", **OPTIONS)
    distiller.fit(2)
    distiller.fit(8, callbacks=[Recorder(3, lambda control: setattr(writers, "broken", True))])
    assert distiller.state.step == 8
    assert writers.steps() == [1, 2]
    assert caplog.text.count("they will be tried again") == 1
    assert caplog.text.count("TensorBoard's numbers not written, the run has ended") == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_real_tensorboard_goes_on_in_a_new_file(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(TensorBoardLog, "RETRY_SECONDS", 0.0)
    folder = tmp_path / "tensorboard"
    gone = Recorder(3, lambda control: shutil.rmtree(folder))
    distiller = make(output_dir=str(tmp_path), report_to="tensorboard", **OPTIONS)
    distiller.fit(callbacks=[gone])
    assert distiller.state.step == 8
    (file,) = folder.iterdir()
    assert b"train/loss" in file.read_bytes()


# ------------------------------------------------------------------------------ the end of a run


def break_student(monkeypatch):
    def refuse(*args, **kwargs):
        raise full_disk()

    monkeypatch.setattr(diffusers_io, "folder_atomically", refuse)


def test_a_student_that_cannot_be_saved_names_the_checkpoint_that_saves_it_later(
    tmp_path, monkeypatch
):
    distiller = make(output_dir=str(tmp_path), **OPTIONS)
    with monkeypatch.context() as patch:
        break_student(patch)
        message = r"at step 8, but the student was not saved: No space left on device; .*intact "
        message += r"checkpoint is .*/checkpoint-8: the same run with resume_from_checkpoint="
        with pytest.raises(CheckpointError, match=message) as caught:
            distiller.fit()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))
    assert not (tmp_path / "model_index.json").exists()
    again = make(output_dir=str(tmp_path), resume_from_checkpoint="latest", **OPTIONS)
    again.fit()
    assert Student.from_pretrained(tmp_path).info.training["steps"] == 8


def test_a_student_that_cannot_be_saved_and_no_checkpoint_either(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise full_disk()

    distiller = make(output_dir=str(tmp_path), **OPTIONS)
    with monkeypatch.context() as patch:
        break_student(patch)
        patch.setattr(checkpoint_module, "folder_atomically", refuse)
        message = "intact checkpoint is None; the state is intact in memory: call save_checkpoint"
        with pytest.raises(CheckpointError, match=message):
            distiller.fit()
    distiller.fit()
    assert Student.from_pretrained(tmp_path).info.training["steps"] == 8


@pytest.mark.parametrize("lasting", [False, True])
def test_log_lines_that_wait_are_written_at_the_end(tmp_path, monkeypatch, caplog, lasting):
    real, broken = callbacks_module.append, []

    class Breaker(Recorder):
        def on_log(self, config, state, control, **kwargs):
            if state.step == 8 and not lasting:
                broken.clear()

    def append(path, data):
        if broken:
            raise full_disk()
        real(path, data)

    monkeypatch.setattr(callbacks_module, "append", append)
    act = Breaker(6, lambda control: broken.append(True))
    make(output_dir=str(tmp_path), **OPTIONS).fit(callbacks=[act])
    lines = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 6 if lasting else 9))
    assert ("3 log lines not written: [Errno 28]" in caplog.text) == lasting


# ----------------------------------------------------------------------------------- the beginning


class NotACallback:
    on_train_begin = on_step_begin = print


BAD_CALLS = [
    ({"max_train_steps": 0}, ValueError, "max_train_steps must be an integer >= 1"),
    ({"max_train_steps": 2**80}, ValueError, "max_train_steps must be .* <= 999999999999"),
    ({"max_train_steps": -1}, ValueError, "max_train_steps must be an integer >= 1"),
    ({"max_train_steps": 2.5}, TypeError, "max_train_steps must be an integer, got 2.5"),
    ({"max_train_steps": True}, TypeError, "max_train_steps must be an integer, got True"),
    ({"callbacks": None}, TypeError, "callbacks must be a list of Callback objects, got None"),
    ({"callbacks": "abc"}, TypeError, "callbacks must be a list of Callback objects, got 'abc'"),
    ({"callbacks": Recorder()}, TypeError, "callbacks must be a list of Callback objects, got <"),
    ({"callbacks": {"a": Recorder()}}, TypeError, "callbacks must be a list of Callback objects"),
    ({"callbacks": [3]}, TypeError, r"callbacks\[0\] must be a Callback, got 3 without on_train"),
    ({"callbacks": [Recorder(), Callback]}, TypeError, r"callbacks\[1\] .* got the class Callback"),
    ({"callbacks": [NotACallback()]}, TypeError, r"callbacks\[0\] .* without on_step_end"),
]


@pytest.mark.parametrize("arguments, error, message", BAD_CALLS)
def test_a_bad_call_of_fit_is_refused_before_anything_is_done(
    tmp_path, monkeypatch, arguments, error, message
):
    def unexpected(*args):
        raise AssertionError("the teacher was asked")

    distiller = make(output_dir=str(tmp_path), **OPTIONS)
    monkeypatch.setattr("boot.fit.check_before_training", unexpected)
    before, config = weights_of(distiller), distiller.config
    with pytest.raises(error, match=message) as caught:
        distiller.fit(**arguments)
    assert caught.type is error
    assert distiller.config is config
    assert not list(tmp_path.iterdir())
    for old, new in zip(before, weights_of(distiller), strict=True):
        assert (old == new).all()


def test_a_batch_that_the_core_could_not_count_is_refused_before_the_first_step(tmp_path):
    teacher = make_teacher(dataclasses.replace(PLAIN, sample_size=2**14))
    message = "train_batch_size must be smaller for images of 16384x16384, got 1048576: "
    with pytest.raises(ConfigError, match=message):
        make(teacher=teacher, train_batch_size=2**20, output_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    teacher = make_teacher(dataclasses.replace(PLAIN, sample_size=64))
    make(teacher=teacher, train_batch_size=2**20)  # memory may be short, but nothing overflows


def test_a_refused_teacher_leaves_nothing_in_the_folder(tmp_path):
    teacher = make_teacher(PLAIN)
    teacher.model.parameters["conv_out.weight"][:] = 0.0
    teacher.model.weights_changed()
    with pytest.raises(TeacherError, match="does not depend on the image"):
        make(teacher=teacher, output_dir=str(tmp_path / "out"), **OPTIONS).fit()
    assert not list((tmp_path / "out").iterdir())


def test_a_refused_teacher_does_not_block_the_corrected_command(tmp_path):
    def distill(teacher):
        command = ("-m", "boot", "distill", str(tmp_path / teacher), "--output-dir")
        return run_python(*command, str(tmp_path / "out"), *QUICK, "--max-train-steps", "2")

    values = tensors(PLAIN)
    values["conv_out.weight"][:] = 0.0
    scheduler = {"_class_name": "DDPMScheduler", **DDPM.to_dict()}
    save_pipeline(tmp_path / "bad", PLAIN, scheduler, values, pipeline_class="DDPMPipeline")
    save_teacher(tmp_path / "good", PLAIN)
    refused = distill("bad")
    assert refused.returncode == 1
    assert "does not depend on the image" in refused.stderr
    accepted = distill("good")
    assert accepted.returncode == 0, accepted.stderr
    assert Student.from_pretrained(tmp_path / "out").info.training["steps"] == 2


def test_a_missing_tensorboard_leaves_nothing_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    with pytest.raises(ImportError, match=r"pip install tensorboard"):
        make(output_dir=str(tmp_path), report_to="tensorboard", **OPTIONS).fit()
    assert not list(tmp_path.iterdir())
