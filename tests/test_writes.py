"""Writes that fail: full disks, read-only folders, each call in turn; nothing else is harmed."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess

import pytest
from models import make
from test_fit import Recorder, interrupt

from boot import checkpoint as checkpoint_module
from boot import files
from boot.checkpoint import find_latest, list_checkpoints, read_manifest
from boot.errors import BootWarning, CheckpointError
from boot.files import append, remove_leftovers, write_atomically
from boot.locks import locked_folder
from boot.student import Student

OPTIONS = {"max_train_steps": 8, "checkpointing_steps": 2, "logging_steps": 1}


class Failing:
    """One function of `os` that fails at its n-th call, and from then on if `lasting`."""

    def __init__(self, monkeypatch, name, at, lasting=False):
        self.real, self.at, self.lasting, self.count = getattr(os, name), at, lasting, 0
        monkeypatch.setattr(os, name, self)

    def __call__(self, *args, **kwargs):
        self.count += 1
        if self.count == self.at or (self.lasting and self.count > self.at):
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.real(*args, **kwargs)


def temporaries(folder):
    return [path.name for path in folder.rglob("*") if path.name.endswith(files.TEMP_SUFFIX)]


# ----------------------------------------------------------------------------- every call in turn


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("again", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("name", files.WRITE_CALLS)
def test_each_failing_call_of_a_save_harms_nothing(tmp_path, monkeypatch, name, again, lasting):
    failures, count, reached = 0, 0, True
    while reached:
        count += 1
        folder = tmp_path / str(count)
        distiller = make(output_dir=str(folder), checkpoints_total_limit=2)
        for _ in range(2):
            distiller.step()
            distiller.save_checkpoint()
        if not again:
            distiller.step()
        wanted = folder / f"checkpoint-{distiller.state.step}"
        with monkeypatch.context() as patch:
            failing = Failing(patch, name, count, lasting)
            try:
                distiller.save_checkpoint()
                saved = True
            except CheckpointError as problem:
                saved = False
                failures += 1
                assert (problem.errno, problem.filename) == (errno.ENOSPC, str(wanted))
                assert "bytes needed" in str(problem)
        if name != "open":  # which deleting needs too
            assert not temporaries(folder)
        remove_leftovers(folder)
        for path in list_checkpoints(folder):
            read_manifest(path)
        kept = {path.name for path in list_checkpoints(folder)}
        assert wanted.name in kept or not saved
        # Where it failed the older ones are there; its own name only if just the last sync failed.
        assert "checkpoint-2" in kept
        assert "checkpoint-1" in kept or (saved and not again)
        reached = failing.count >= count
    assert kept == ({"checkpoint-2", "checkpoint-1"} if again else {"checkpoint-3", "checkpoint-2"})
    assert failures >= (1 if name in ("mkdir", "replace", "rename") else 3) or (
        name == "rename" and again  # folders are exchanged, not renamed
    )


def test_a_folder_is_replaced_also_where_names_cannot_be_exchanged(tmp_path, monkeypatch):
    def refuse(one, other):
        raise OSError(errno.EINVAL, "Invalid argument")

    for exchange in (files._exchange, refuse):
        monkeypatch.setattr(files, "_exchange", exchange)
        for text in ("old", "new"):
            with files.folder_atomically(tmp_path / "a") as folder:
                (folder / "b").write_text(text)
        assert (tmp_path / "a/b").read_text() == "new"
        with monkeypatch.context() as patch:
            Failing(patch, "rename", 2)
            if exchange is refuse:  # the second of the two renames
                with (
                    pytest.raises(OSError, match="No space"),
                    files.folder_atomically(tmp_path / "a") as folder,
                ):
                    (folder / "b").write_text("newer")
        assert (tmp_path / "a/b").read_text() == "new"
        assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["open", "write", "fsync", "replace"])
def test_each_failing_call_of_a_file_leaves_the_old_content(tmp_path, monkeypatch, name):
    path = tmp_path / "a"
    path.write_text("old")
    count = 0
    while True:
        count += 1
        with monkeypatch.context() as patch:
            failing = Failing(patch, name, count)
            try:
                write_atomically(path, "new")
            except OSError as problem:
                assert problem.errno == errno.ENOSPC
                assert path.read_text() in ("old", "new")
            assert [p.name for p in tmp_path.iterdir()] == ["a"]
        if failing.count < count:
            break
    assert count > 1
    assert path.read_text() == "new"


def test_a_line_is_appended_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "log"
    append(path, b"one\n")
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: real(handle, data[:2]))
        append(path, b"in pieces\n")
        Failing(patch, "write", 2)
        with pytest.raises(OSError, match="No space"):
            append(path, b"lost\n")
    assert path.read_bytes() == b"one\nin pieces\n"


# ------------------------------------------------------------------------------- a run goes on


def broken(monkeypatch, times):
    """Let the first checkpoints fail."""
    real, count = checkpoint_module.folder_atomically, [0]

    def folder_atomically(*args, **kwargs):
        count[0] += 1
        if count[0] <= times:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(checkpoint_module, "folder_atomically", folder_atomically)


def test_training_goes_on_after_a_failed_checkpoint_and_tries_again(tmp_path, monkeypatch, caplog):
    broken(monkeypatch, 2)
    recorder = Recorder()
    distiller = make(output_dir=str(tmp_path), **OPTIONS)
    distiller.fit(callbacks=[recorder])
    assert distiller.state.step == 8
    assert [e for e in recorder.events if "checkpoint" in e] == ["checkpoint-6", "checkpoint-8"]
    assert caplog.text.count("checkpoint not written: No space left on device") == 2
    assert "training goes on, and tries again" in caplog.text
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-8", "checkpoint-6"]


def test_a_finished_run_without_its_last_checkpoint_warns_and_saves_the_student(
    tmp_path, monkeypatch
):
    broken(monkeypatch, 99)
    distiller = make(output_dir=str(tmp_path), **OPTIONS)
    with pytest.warns(BootWarning, match="training is complete, but the last checkpoint not"):
        distiller.fit()
    assert Student.from_pretrained(tmp_path).info.training["steps"] == 8


def test_a_stopped_run_without_a_checkpoint_is_an_error_and_goes_on_when_called_again(
    tmp_path, monkeypatch
):
    distiller = make(output_dir=str(tmp_path), **OPTIONS)
    distiller.fit(2)
    with monkeypatch.context() as patch:
        broken(patch, 99)
        with pytest.raises(CheckpointError, match=r"newest intact checkpoint is .*checkpoint-2; "):
            distiller.fit(8, callbacks=[Recorder(5, interrupt)])
    assert distiller.state.step == 5
    distiller.fit(8)
    assert find_latest(tmp_path) == tmp_path / "checkpoint-8"


def test_log_lines_that_could_not_be_written_come_later(tmp_path, monkeypatch, caplog):
    from boot import callbacks

    real, count = callbacks.append, [0]

    def failing(path, data):
        count[0] += 1
        if count[0] in (2, 3):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    monkeypatch.setattr(callbacks, "append", failing)
    make(output_dir=str(tmp_path), **OPTIONS).fit()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert caplog.text.count("log line not written") == 2


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes; only root may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full_and_then_read_only(small_disk, caplog):
    class Filler(Recorder):
        """Fills the disk after step 3 and empties it after step 5."""

        def on_step_begin(self, config, state, control, **kwargs):
            if state.step == 3:
                with (small_disk / "filler").open("wb", buffering=0) as file:
                    for size in (1 << 14, 1 << 8, 1):
                        try:
                            while file.write(bytes(size)) == size:
                                pass
                        except OSError:
                            pass
            if state.step == 5:
                (small_disk / "filler").unlink()

    out = small_disk / "out"
    distiller = make(output_dir=str(out), checkpoints_total_limit=1, **OPTIONS)
    distiller.fit(callbacks=[Filler()])
    assert "checkpoint not written: No space left on device" in caplog.text
    assert "checkpoint-4" in caplog.text
    assert [p.name for p in list_checkpoints(out)] == ["checkpoint-8"]
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert not temporaries(out)

    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    distiller.step()
    with pytest.raises(CheckpointError, match="Read-only file system"):
        distiller.save_checkpoint()
    assert find_latest(out) == out / "checkpoint-8"
    with pytest.raises(OSError, match="Read-only"):
        make(output_dir=str(out), resume_from_checkpoint="latest", **OPTIONS)


# ------------------------------------------------------------------------------------ leftovers


def test_leftovers_of_a_killed_run_go_at_the_next_start_and_nothing_else(tmp_path):
    for name in (".checkpoint-9.17-0123abcd.tmp", ".new.4-00000000.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.safetensors").write_text("half")
    (tmp_path / ".log.jsonl.99-deadbeef.tmp").write_text("half")
    mine = ["notes.tmp", ".hidden", ".checkpoint-9.tmp"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    distiller = make(output_dir=str(tmp_path), resume_from_checkpoint="latest", **OPTIONS)
    assert len(temporaries(tmp_path)) == 5
    distiller.fit()
    assert sorted(temporaries(tmp_path)) == sorted(n for n in mine if n.endswith(".tmp"))


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    distiller = make(output_dir=str(tmp_path), **OPTIONS)
    with (
        locked_folder(tmp_path),
        pytest.raises(RuntimeError, match="another run is writing into"),
    ):
        distiller.fit()
    assert distiller.state.step == 0
    distiller.fit()
    assert distiller.state.step == 8


# -------------------------------------------------------------------------------------- kernels


def test_kernel_choices_of_a_critic_are_written_when_it_begins(tmp_path):
    """Else a run that is killed before its next checkpoint would choose them again."""
    options = {
        **OPTIONS,
        "correction": "distribution",
        "correction_start": 0.4,
        "checkpointing_steps": 0,
    }

    class Killed(Exception):
        pass

    def kill(control):
        raise Killed

    run = make(output_dir=str(tmp_path), **options)
    with pytest.raises(Killed):
        run.fit(callbacks=[Recorder(5, kill)])
    chosen = json.loads((tmp_path / "kernels.json").read_text())["kernels"]
    assert chosen == {name: network.kernels for name, network in run._networks().items()}
    assert chosen["critic"]


def test_kernel_choices_are_written_after_the_first_step_and_used_again(tmp_path, caplog):
    class Killed(Exception):
        pass

    def kill(control):
        raise Killed

    first = make(output_dir=str(tmp_path / "a"), **OPTIONS)
    with pytest.raises(Killed):
        first.fit(callbacks=[Recorder(1, kill)])
    file = tmp_path / "a/kernels.json"
    chosen = json.loads(file.read_text())["kernels"]
    assert chosen["training"]
    # Say something else than what timing would say, and see that it is used.
    other = {key: "plain" for key in chosen["training"] if key.startswith("forward")}
    assert other
    values = json.loads(file.read_text())
    values["kernels"]["training"] |= other
    file.write_text(json.dumps(values))
    again = make(output_dir=str(tmp_path / "a"), resume_from_checkpoint="latest", **OPTIONS)
    again.step()
    used = again._training.model.kernels
    assert {key: used[key] for key in other} == other

    for text, message in (("{", "ignoring the kernel choices"), ("{}", "ignoring the kernel")):
        file.write_text(text)
        make(output_dir=str(tmp_path / "a"), resume_from_checkpoint="latest", **OPTIONS)
        assert message in caplog.text
        caplog.clear()
    values["machine"]["isa"] = "abacus"
    file.write_text(json.dumps(values))
    with caplog.at_level(logging.WARNING, "boot"):
        make(output_dir=str(tmp_path / "a"), resume_from_checkpoint="latest", **OPTIONS)
    assert "another kind of machine" in caplog.text
