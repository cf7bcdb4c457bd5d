"""Checkpoints: exact resume, damage that is noticed, and nothing lost when a write fails."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil

import numpy as np
import pytest
from models import CONFIG, PLAIN, assert_same, make, make_teacher, pin_like, weights_of
from test_fit import Recorder, interrupt

from boot import checkpoint as module
from boot._version import __version__
from boot.callbacks import TrainState
from boot.checkpoint import (
    Identity,
    find_latest,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    read_manifest,
    save_checkpoint,
)
from boot.config import DistillConfig
from boot.errors import CheckpointError, ResumeMismatch
from boot.manifest import signed

OPTIONS = {"max_train_steps": 8, "checkpointing_steps": 3, "logging_steps": 1}
WHO = Identity("teacher", "layout", {"seed": 0, "delta": 0.04})


def write(folder, step, value=1.0):
    buffers = {"weights": np.full(500, value, np.float32), "m": np.arange(500, dtype=np.float32)}
    return save_checkpoint(folder, step, buffers, WHO, state_at(step))


def state_at(step):
    return {"counters": vars(TrainState(step)), "kernels": {}, "machine": {}}


def empty():
    return {"weights": np.zeros(500, np.float32), "m": np.zeros(500, np.float32)}


def lines(path):
    """Log lines without the clock."""
    result = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    for line in result:
        del line["seconds"]
    return result


# ---------------------------------------------------------------------------------------- resume


class Numbers(Recorder):
    """Keeps the numbers that callbacks see."""

    def __init__(self, *args):
        super().__init__(*args)
        self.seen = []

    def on_step_end(self, config, state, control, **kwargs):
        self.seen.append(dict(kwargs["logs"]))
        super().on_step_end(config, state, control, **kwargs)


SETTINGS = {
    "defaults": {},
    "raw weights": {"ema_decay": 0.0},
    "euler, cosine": {"solver": "euler", "lr_scheduler": "cosine"},
    "no classes": {"config": PLAIN, "boundary_weight": 0.0},
    "no guidance, no clipping": {"guidance_scale": 1.0, "max_grad_norm": 0.0, "logging_steps": 3},
    "decay": {"adam_weight_decay": 0.1, "lr_warmup_steps": 0, "train_batch_size": 1},
    "guidance as an input": {"guidance_scale_min": 1.0, "guidance_scale_max": 3.0},
    "a critic": {"correction": "distribution", "correction_start": 0.4},
    "moments in bfloat16": {
        "moments_dtype": "bfloat16",
        "correction": "distribution",
        "correction_start": 0.4,
    },
    "sample grids": {"sample_steps": 2, "num_sample_images": 3},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("at", [1, 5])
def test_stop_and_resume_equals_the_unbroken_run_bit_for_bit(tmp_path, settings, at):
    options = {**OPTIONS, **SETTINGS[settings]}
    before, after, whole = Numbers(at, interrupt), Numbers(), Numbers()
    stopped = make(output_dir=str(tmp_path / "b"), **options)
    stopped.fit(callbacks=[before])
    assert stopped.state.step == at
    resumed = make(output_dir=str(tmp_path / "b"), resume_from_checkpoint="latest", **options)
    assert resumed.state == stopped.state
    assert_same(weights_of(resumed), weights_of(stopped))
    resumed.fit(callbacks=[after])
    unbroken = make(output_dir=str(tmp_path / "a"), **options)
    pin_like(unbroken, resumed)
    unbroken.fit(callbacks=[whole])
    assert_same(weights_of(resumed), weights_of(unbroken))
    assert resumed.state == unbroken.state
    assert before.seen + after.seen == whole.seen
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    for path in (tmp_path / "a").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "b/samples" / path.name).read_bytes()


def test_a_run_killed_between_checkpoints_logs_every_step_once(tmp_path):
    first = make(output_dir=str(tmp_path), **OPTIONS)
    with pytest.raises(RuntimeError, match="power"):
        first.fit(callbacks=[Recorder(5, fail)])
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # a line cut short
    second = make(output_dir=str(tmp_path), resume_from_checkpoint="latest", **OPTIONS)
    assert second.state.step == 3
    second.fit()
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 9))


def fail(control):
    raise RuntimeError("power cut")


def test_latest_starts_afresh_where_there_is_none(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="resume_from_checkpoint='latest'"):
        make(output_dir=str(tmp_path))
    distiller = make(output_dir=str(tmp_path), resume_from_checkpoint="latest")
    assert distiller.state.step == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_resume_from_a_named_checkpoint(tmp_path):
    one = make(output_dir=str(tmp_path / "a"), **OPTIONS)
    one.fit(6)
    named = str(tmp_path / "a/checkpoint-3")
    two = make(output_dir=str(tmp_path / "b"), resume_from_checkpoint=named, **OPTIONS)
    assert two.state.step == 3
    with pytest.raises(FileNotFoundError, match=r"no manifest.json; it holds checkpoint-6"):
        make(resume_from_checkpoint=str(tmp_path / "a"))
    with pytest.raises(ValueError, match="needs an output_dir"):
        make(resume_from_checkpoint="latest")


def test_a_longer_run_may_continue_a_shorter_one(tmp_path):
    make(output_dir=str(tmp_path), **OPTIONS).fit()
    options = {**OPTIONS, "max_train_steps": 12, "logging_steps": 5}
    longer = make(output_dir=str(tmp_path), resume_from_checkpoint="latest", **options)
    longer.fit()
    assert longer.state.step == 12


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"train_batch_size": 5}, "train_batch_size was 6, now 5"),
        ({"delta": 0.1, "solver": "euler"}, "delta was 0.04, now 0.1; solver was 'heun'"),
        ({"moments_dtype": "bfloat16"}, "moments_dtype was 'float32', now 'bfloat16'"),
        ({"teacher": make_teacher(seed=1)}, "another teacher"),
        ({"teacher": make_teacher(PLAIN)}, "another teacher"),
    ],
)
def test_another_run_is_refused_with_the_differences(tmp_path, changes, message):
    distiller = make(CONFIG, output_dir=str(tmp_path), **OPTIONS)
    distiller.fit(3)
    options = {**OPTIONS, **changes}
    with pytest.raises(ResumeMismatch, match=message):
        make(output_dir=str(tmp_path), resume_from_checkpoint="latest", **options)


def test_every_setting_is_either_compared_or_known_to_be_free():
    known = {option.name for option in DistillConfig.options()}
    assert known > module.FREE_SETTINGS


def test_another_machine_is_a_warning(tmp_path, caplog):
    make(output_dir=str(tmp_path), **OPTIONS).fit(3)
    manifest = tmp_path / "checkpoint-3/manifest.json"
    values = json.loads(manifest.read_text())
    values["state"]["machine"]["isa"] = "abacus"
    manifest.write_text(json.dumps(signed(values)))
    resumed = make(output_dir=str(tmp_path), resume_from_checkpoint="latest", **OPTIONS)
    assert resumed.state.step == 3
    assert "another kind of machine" in caplog.text
    assert "abacus" in caplog.text


def test_other_versions_are_a_warning(tmp_path, caplog):
    make(output_dir=str(tmp_path), **OPTIONS).fit(3)
    make(output_dir=str(tmp_path), resume_from_checkpoint="latest", **OPTIONS)
    assert "the run continues" not in caplog.text
    manifest = tmp_path / "checkpoint-3/manifest.json"
    values = json.loads(manifest.read_text())
    assert values["numpy_version"] == np.__version__
    values |= {"boot_version": "0.0.1", "numpy_version": "1.99"}
    manifest.write_text(json.dumps(signed(values)))
    resumed = make(output_dir=str(tmp_path), resume_from_checkpoint="latest", **OPTIONS)
    assert resumed.state.step == 3
    assert f"has boot_version '0.0.1', now it is {__version__}: the run continues" in caplog.text
    assert f"has numpy_version '1.99', now it is {np.__version__}: the run" in caplog.text


# ---------------------------------------------------------------------------------------- damage


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    path = write(tmp_path, 7, 2.5)
    assert path.name == "checkpoint-7"
    assert sorted(p.name for p in path.iterdir()) == [
        *("config.json", "manifest.json", "state.safetensors"),
    ]
    buffers = empty()
    manifest = load_checkpoint(path, buffers, WHO)
    assert manifest["step"] == 7
    assert manifest["state"] == state_at(7)
    assert (buffers["weights"] == 2.5).all()
    assert (buffers["m"] == np.arange(500)).all()


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "one bit": flip,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", ["state.safetensors", "config.json", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed_and_the_one_before_is_used(tmp_path, caplog, name, damage):
    good, bad = write(tmp_path, 1), write(tmp_path, 2)
    DAMAGE[damage](bad / name)
    with caplog.at_level(logging.WARNING, "boot"):
        assert find_latest(tmp_path) == good
    assert "checkpoint-2" in caplog.text
    buffers = empty()
    with pytest.raises(CheckpointError, match="checkpoint-2"):
        load_checkpoint(bad, buffers, WHO)
    assert not buffers["weights"].any()


def test_any_flipped_bit_of_the_manifest_is_noticed(tmp_path):
    path = write(tmp_path, 1) / "manifest.json"
    good = path.read_bytes()
    for i in range(0, 8 * len(good), 7):
        data = bytearray(good)
        data[i // 8] ^= 1 << i % 8
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            read_manifest(path.parent)
    path.write_bytes(good)
    read_manifest(path.parent)


def test_files_of_two_checkpoints_are_not_mixed(tmp_path):
    one, two = write(tmp_path, 1, 1.0), write(tmp_path, 2, 2.0)
    shutil.copy(one / "state.safetensors", two / "state.safetensors")
    with pytest.raises(CheckpointError, match=r"checkpoint-2/state.safetensors is damaged"):
        read_manifest(two)
    assert find_latest(tmp_path) == one


@pytest.mark.parametrize("text", ["[]", "{}", '{"files": 3}', "null", "{", '{"format_version": 9}'])
def test_a_manifest_that_is_none_is_named(tmp_path, text):
    path = write(tmp_path, 1)
    (path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest.json"):
        read_manifest(path)
    assert find_latest(tmp_path) is None


def test_leftovers_and_other_folders_are_not_checkpoints(tmp_path):
    for name in (".checkpoint-9.1-ab.tmp", "checkpoint-x", "checkpoint-", "student"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-5").write_text("a file")
    path = write(tmp_path, 10)
    write(tmp_path, 9)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-9"]
    assert find_latest(tmp_path) == path
    assert find_latest(tmp_path / "nowhere") is None


def test_old_ones_are_deleted_after_the_new_one_was_verified(tmp_path):
    paths = {step: write(tmp_path, step) for step in (1, 2, 3, 4)}
    prune_checkpoints(paths[4], None)
    assert len(list_checkpoints(tmp_path)) == 4
    flip(paths[4] / "state.safetensors")
    with pytest.raises(CheckpointError, match="checkpoint-4"):
        prune_checkpoints(paths[4], 2)
    assert len(list_checkpoints(tmp_path)) == 4
    write(tmp_path, 4)  # written again over the damaged one
    prune_checkpoints(paths[4], 2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-3"]
    prune_checkpoints(paths[3], 1)  # the one just written stays, even if it is not the newest
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-3"]


def test_damaged_ones_do_not_count_and_go_when_there_are_enough_intact_ones(tmp_path, caplog):
    def names():
        return [path.name for path in list_checkpoints(tmp_path)]

    paths = {step: write(tmp_path, step) for step in (2, 4, 7, 8)}
    for step in (8, 4):
        flip(paths[step] / "state.safetensors")
    new = write(tmp_path, 5)
    prune_checkpoints(new, 4)
    assert names() == [f"checkpoint-{step}" for step in (8, 7, 5, 4, 2)]
    prune_checkpoints(new, 3)
    assert names() == ["checkpoint-7", "checkpoint-5", "checkpoint-2"]
    assert "checkpoint-8" in caplog.text
    flip(paths[7] / "config.json")
    prune_checkpoints(write(tmp_path, 6), 1)
    assert names() == ["checkpoint-6"]


def test_a_damaged_checkpoint_of_a_higher_step_takes_no_slot_of_the_run_that_goes_on(tmp_path):
    options = {**OPTIONS, "checkpointing_steps": 1, "checkpoints_total_limit": 2}
    make(output_dir=str(tmp_path), **options).fit(4)
    flip(tmp_path / "checkpoint-4/state.safetensors")
    (tmp_path / "checkpoint-4").rename(tmp_path / "checkpoint-9")
    resumed = make(output_dir=str(tmp_path), resume_from_checkpoint="latest", **options)
    assert resumed.state.step == 3

    class Watch(Recorder):
        def on_save(self, config, state, control, **kwargs):
            intact = []
            for path in list_checkpoints(tmp_path):
                with contextlib.suppress(CheckpointError):
                    intact.append(read_manifest(path)["step"])
            self.events.append(intact)

    watch = Watch()
    resumed.fit(7, callbacks=[watch])
    saves = [event for event in watch.events if isinstance(event, list)]
    assert saves == [[4, 3], [5, 4], [6, 5], [7, 6]]


def test_latest_where_every_checkpoint_is_damaged_is_refused_and_cuts_no_log(tmp_path):
    make(output_dir=str(tmp_path), **OPTIONS).fit()
    log = (tmp_path / "log.jsonl").read_bytes()
    for path in list_checkpoints(tmp_path):
        flip(path / "state.safetensors")
    with pytest.raises(CheckpointError, match=r"damaged \(checkpoint-8, checkpoint-6\); move them"):
        make(output_dir=str(tmp_path), resume_from_checkpoint="latest", **OPTIONS)
    assert (tmp_path / "log.jsonl").read_bytes() == log
    for path in list_checkpoints(tmp_path):
        shutil.rmtree(path)
    again = make(output_dir=str(tmp_path), resume_from_checkpoint="latest", **OPTIONS)
    assert again.state.step == 0


def test_saving_needs_a_folder():
    with pytest.raises(ValueError, match="output_dir must be set"):
        make().save_checkpoint()
