"""Output folders: a run overwrites nothing but a run, and says so when it starts again."""

from __future__ import annotations

import logging

import pytest
from models import SMALL, make, save_teacher
from test_checkpoint import OPTIONS, fail
from test_fit import Recorder

from boot.distiller import Distiller
from boot.student import Student


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "log.jsonl", "README.md"])
def test_latest_overwrites_nothing_but_a_run(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match="holds no run to continue, but (model|unet|log|REA)"):
        make(output_dir=str(tmp_path), resume_from_checkpoint="latest")
    assert (tmp_path / name).read_text() == "mine"


def test_a_run_does_not_write_into_its_teacher(tmp_path):
    folder = save_teacher(tmp_path / "teacher")
    one = make(output_dir=str(tmp_path / "run"), **OPTIONS)
    one.fit(3)
    for resume in ("latest", str(tmp_path / "run/checkpoint-3")):
        with pytest.raises(FileExistsError, match="another folder than the teacher's"):
            Distiller(folder, **SMALL, output_dir=folder, resume_from_checkpoint=resume)


def test_a_run_that_had_no_checkpoint_yet_says_that_it_starts_again(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    first = make(output_dir=str(tmp_path), **{**OPTIONS, "checkpointing_steps": 0})
    with pytest.raises(RuntimeError, match="power"):
        first.fit(callbacks=[Recorder(5, fail)])
    make(output_dir=str(tmp_path), resume_from_checkpoint="latest", **OPTIONS)
    assert f"no checkpoint in {tmp_path}: starting at step 0" in caplog.text


def test_a_run_may_lie_beside_its_teacher(tmp_path):
    folder = save_teacher(tmp_path / "teacher")
    settings = {
        **SMALL,
        "max_train_steps": 2,
        "checkpointing_steps": 1,
        "output_dir": str(tmp_path),
    }
    for _ in range(2):
        Distiller(folder, **settings, resume_from_checkpoint="latest").fit()
    assert (tmp_path / "checkpoint-2").is_dir()


def test_settings_without_effect_that_older_versions_wrote_are_read(tmp_path):
    settings = {**OPTIONS, "huber_c": 0.1, "snr_gamma": 3.0}
    make(output_dir=str(tmp_path), **settings).fit(3)
    assert Student.from_pretrained(tmp_path).info.settings().huber_c == 0.1
    again = make(output_dir=str(tmp_path), resume_from_checkpoint="latest", **settings)
    assert again.state.step == 3
