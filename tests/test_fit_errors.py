"""Trouble around the steps of a run: what may not end it, what must be refused before it begins."""

from __future__ import annotations

import errno
import shutil
import sys
import types

import pytest
from models import make
from test_fit import Recorder

from boot.callbacks import TensorBoardLog

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
