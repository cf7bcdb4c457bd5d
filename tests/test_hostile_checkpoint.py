"""Checkpoints by strangers: signed correctly, with a content that no run has written."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil

import numpy as np
import pytest
from models import assert_same, make, make_teacher, weights_of

from boot.checkpoint import read_manifest
from boot.errors import CheckpointError, ResumeMismatch
from boot.manifest import signed
from boot.reading import to_json
from boot.safetensors_io import load_tensors, save_tensors

OPTIONS = {"max_train_steps": 6, "checkpointing_steps": 2, "checkpoints_total_limit": None}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A teacher, and a folder with checkpoints of steps 2 and 4."""
    teacher, folder = make_teacher(), tmp_path_factory.mktemp("run")
    make(teacher=teacher, output_dir=str(folder), **OPTIONS).fit(4)
    return teacher, folder


def change(path, edit):
    """Edit a manifest, and sign it anew."""
    values = json.loads((path / "manifest.json").read_text())
    edit(values)
    (path / "manifest.json").write_text(to_json(signed(values)))


def change_arrays(path, **arrays):
    """Replace arrays of a checkpoint (None: leave it out), and write down the new hash."""
    file = path / "state.safetensors"
    stored = {**load_tensors(file), **arrays}
    save_tensors(file, {name: array for name, array in stored.items() if array is not None})
    data = file.read_bytes()
    facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(path, lambda values: values["files"].update({file.name: facts}))


def put(place, **values):
    """An edit that sets values somewhere: "state.counters", say."""

    def edit(manifest):
        for key in place.split("."):
            manifest = manifest[key] if key else manifest
        manifest.update(values)

    return edit


def drop(place, key):
    def edit(manifest):
        for inner in place.split("."):
            manifest = manifest[inner] if inner else manifest
        del manifest[key]

    return edit


COUNTERS = "state.counters"
EDITS = {
    "no state": (drop("", "state"), "state is missing"),
    "state is a list": (put("", state=[]), "state must be dict"),
    "no counters": (drop("state", "counters"), "state.counters is missing"),
    "no kernels": (drop("state", "kernels"), "state.kernels is missing"),
    "kernels are a list": (put("state", kernels=[]), "state.kernels must be dict"),
    "kernels of a network": (put("state.kernels", training=[]), r"kernels.'training' must be"),
    "a kernel is no word": (put("state.kernels", training={"a": 5}), r"'training' must map"),
    "no machine": (drop("state", "machine"), "state.machine is missing"),
    "no layout": (drop("", "layout"), "layout is missing"),
    "no teacher": (drop("", "teacher"), "teacher is missing"),
    "teacher is a number": (put("", teacher=5), "teacher must be str"),
    "no files": (drop("", "files"), "files is missing"),
    "files are a list": (put("", files=["state.safetensors", "config.json"]), "files must be dict"),
    "a file more": (put("files", x={}), "files must be state.safetensors and"),
    "no step": (drop("", "step"), "step must be an integer"),
    "step is true": (put("", step=True), "step must be an integer"),
    "an unknown counter": (put(COUNTERS, steps=1), r"'steps' is not a counter .did you mean"),
    "a counter less": (drop(COUNTERS, "updates"), "state.counters.updates is missing"),
    "steps differ": (put(COUNTERS, step=2), "counters.step is 2, but step is 4"),
    **{
        f"step {step}": (put(COUNTERS, step=step), "state.counters.step must be")
        for step in ("abc", None, True, -5, 2**63)
    },
    "updates -1": (put(COUNTERS, updates=-1), "state.counters.updates must be"),
    "updates beyond the steps": (put(COUNTERS, updates=5), "state.counters.updates must be"),
    "more updates and skipped": (put(COUNTERS, skipped=3), "are 4 and 3 of 4 steps"),
    "bad in a row": (put(COUNTERS, bad_in_a_row=1), "state.counters.bad_in_a_row must be"),
    "roll-backs": (put(COUNTERS, rollbacks=-1), "state.counters.rollbacks must be"),
    "critic": (put(COUNTERS, critic_updates=5), "state.counters.critic_updates must be"),
    "bad steps are text": (put(COUNTERS, bad_steps="x"), "state.counters.bad_steps must be list"),
    "bad steps too many": (put(COUNTERS, bad_steps=[1]), "state.counters.bad_steps has 1"),
    "a bad step": (
        put(COUNTERS, updates=3, skipped=1, bad_steps=["x"]),
        r"state.counters.bad_steps\[0\] must be",
    ),
    **{
        f"rate {rate}": (put(COUNTERS, rate_factor=rate), "state.counters.rate_factor must be")
        for rate in (-1, 0, 1e300, "x", None)
    },
}


@pytest.mark.parametrize("name", EDITS)
def test_a_manifest_that_no_run_wrote_is_refused_by_file_and_field(run, tmp_path, name):
    edit, message = EDITS[name]
    path = tmp_path / "checkpoint-4"
    shutil.copytree(run[1] / "checkpoint-4", path)
    read_manifest(path)
    change(path, edit)
    with pytest.raises(CheckpointError, match=f"checkpoint-4/manifest.json: .*{message}"):
        read_manifest(path)


NAN = np.float32("nan")
DAMAGE = {
    "a manifest": (lambda path: change(path, put(COUNTERS, step="x")), "state.counters.step"),
    "nan": (lambda path: change_arrays(path, v=spoilt(path, "v", NAN)), "'v' has 1 NaN"),
    "inf": (lambda path: change_arrays(path, ema=spoilt(path, "ema", -np.inf)), "'ema' has 1 NaN"),
    "an array less": (lambda path: change_arrays(path, m=None), "no array 'm'"),
    "another shape": (lambda path: change_arrays(path, m=np.zeros((3, 4), "f4")), "no array 'm'"),
}


def spoilt(path, name, number):
    array = load_tensors(path / "state.safetensors")[name]
    array[-1] = number
    return array


@pytest.mark.parametrize("name", DAMAGE)
def test_the_checkpoint_before_is_used_instead(run, tmp_path, caplog, name):
    teacher, folder = run
    damage, message = DAMAGE[name]
    shutil.copytree(folder, tmp_path / "run")
    damage(tmp_path / "run/checkpoint-4")
    with caplog.at_level(logging.WARNING, "boot"):
        resumed = make(
            teacher=teacher,
            output_dir=str(tmp_path / "run"),
            resume_from_checkpoint="latest",
            **OPTIONS,
        )
    assert resumed.state.step == 2
    assert "checkpoint-4" in caplog.text and message in caplog.text
    before = make(teacher=teacher, resume_from_checkpoint=str(folder / "checkpoint-2"), **OPTIONS)
    assert_same(weights_of(resumed), weights_of(before))
    assert resumed.step()["step"] == 3
    with pytest.raises(CheckpointError, match=message):
        make(
            teacher=teacher,
            resume_from_checkpoint=str(tmp_path / "run/checkpoint-4"),
            **OPTIONS,
        )


def test_without_a_good_one_latest_is_refused(run, tmp_path):
    teacher, folder = run
    for name in ("checkpoint-2", "checkpoint-4"):
        shutil.copytree(folder / name, tmp_path / name)
        change_arrays(tmp_path / name, v=spoilt(tmp_path / name, "v", NAN))
    with pytest.raises(CheckpointError, match=r"damaged \(checkpoint-4, checkpoint-2\); move them"):
        make(teacher=teacher, output_dir=str(tmp_path), resume_from_checkpoint="latest", **OPTIONS)


def test_a_roll_back_passes_over_one_with_nan(run, tmp_path, caplog):
    teacher, folder = run
    shutil.copytree(folder, tmp_path / "run")
    path = str(tmp_path / "run")
    going = make(teacher=teacher, output_dir=path, resume_from_checkpoint="latest", **OPTIONS)
    change_arrays(tmp_path / "run/checkpoint-4", m=spoilt(tmp_path / "run/checkpoint-4", "m", NAN))
    signal = going.teacher.signal
    try:
        going.teacher.signal = lambda x, *rest: np.full_like(x, NAN)
        for _ in range(3):
            going.step()
    finally:
        going.teacher.signal = signal
    assert "checkpoint-2, learning rate times 0.5" in caplog.text
    assert (going.state.updates, going.state.rollbacks) == (2, 1)


@pytest.mark.parametrize("content", ["{}", '{"kernels": [], "machine": {}}', '{"machine": 3}'])
def test_kernel_choices_that_are_none_are_a_warning(run, tmp_path, caplog, content):
    (tmp_path / "kernels.json").write_text(content)
    make(
        teacher=run[0], output_dir=str(tmp_path), resume_from_checkpoint="latest", **OPTIONS
    ).step()
    assert "ignoring the kernel choices" in caplog.text


def test_kernels_of_another_version_are_chosen_anew(run, tmp_path, caplog):
    teacher, folder = run
    shutil.copytree(folder, tmp_path / "run")
    file = tmp_path / "run/kernels.json"
    values = json.loads(file.read_text())
    for kernels in values["kernels"].values():
        kernels |= dict.fromkeys(kernels, "abacus")
    file.write_text(json.dumps(values))
    path = str(tmp_path / "run")
    going = make(teacher=teacher, output_dir=path, resume_from_checkpoint="latest", **OPTIONS)
    assert "got 'abacus'; choosing kernels anew" in caplog.text
    going.step()
    assert "abacus" not in going._training.model.kernels.values()


def test_a_state_that_could_not_be_read_back_is_not_written(run, tmp_path):
    going = make(teacher=run[0], output_dir=str(tmp_path), **OPTIONS)
    going.step()
    going.state.rate_factor = 2.0
    with pytest.raises(CheckpointError, match=r"not written.*state.counters.rate_factor"):
        going.save_checkpoint()
    assert not list(tmp_path.glob("*checkpoint*"))


def test_settings_that_differ_are_listed_up_to_twenty(run, tmp_path):
    path = tmp_path / "checkpoint-4"
    shutil.copytree(run[1] / "checkpoint-4", path)
    file = path / "config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {f"z{i}{'x' * 999}": i for i in range(100)}))
    facts = {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    change(path, lambda values: values["files"].update({file.name: facts}))
    with pytest.raises(ResumeMismatch, match="z0xx.*; and 80 more$") as caught:
        make(teacher=run[0], resume_from_checkpoint=str(path), **OPTIONS)
    assert len(str(caught.value)) < 4000


def test_more_kernels_than_can_be_pinned_in_time_are_a_warning(run, tmp_path, caplog):
    path = tmp_path / "checkpoint-4"
    shutil.copytree(run[1] / "checkpoint-4", path)
    kernels = {f"forward {i}": "direct" for i in range(10_000)}
    change(path, put("state.kernels", average=kernels))
    resumed = make(teacher=run[0], resume_from_checkpoint=str(path), **OPTIONS)
    assert resumed.state.step == 4
    assert "too many kernels" in caplog.text
