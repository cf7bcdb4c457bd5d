"""What is made durable before what: after a power cut, no name may stand for less than it says.

A disk may keep any write that was not synced, in any order. So the order of the calls is the proof.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from models import make

from boot import files
from boot.files import folder_atomically, write_synced


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """The calls so far, with paths relative to tmp_path and temporary names as TEMP."""
    made: list[tuple[str, ...]] = []

    def short(path):
        parts = Path(os.path.relpath(path, tmp_path)).parts or (".",)
        return "/".join("TEMP" if part.endswith(files.TEMP_SUFFIX) else part for part in parts)

    def spy(owner, name, what):
        real = getattr(owner, name)

        def call(*paths, **options):
            if name == "fsync":
                made.append((what, short(os.readlink(f"/proc/self/fd/{paths[0]}"))))
            else:
                made.append((what, *map(short, paths)))
            return real(*paths, **options)

        monkeypatch.setattr(owner, name, call)

    spy(os, "fsync", "sync")
    spy(os, "rename", "rename")
    spy(os, "replace", "rename")
    spy(files, "_exchange", "exchange")
    spy(files, "remove", "remove")
    spy(Path, "mkdir", "make")
    return made


SAVE = [  # what every checkpoint does in its temporary folder, the manifest last
    ("make", "out/TEMP"),
    ("sync", "out/TEMP/TEMP"),
    ("rename", "out/TEMP/TEMP", "out/TEMP/state.safetensors"),
    ("sync", "out/TEMP"),
    ("sync", "out/TEMP/config.json"),
    ("sync", "out/TEMP/manifest.json"),
    ("sync", "out/TEMP"),
]


def test_a_checkpoint_syncs_files_folder_rename_and_parent_in_this_order(tmp_path, calls):
    distiller = make(output_dir=str(tmp_path / "out"))
    distiller.step()
    calls.clear()
    distiller.save_checkpoint()
    place = "out/checkpoint-1"
    safe = [("sync", place), ("sync", "out"), ("remove", "out/TEMP")]
    assert calls == [*SAVE, ("rename", "out/TEMP", place), *safe]
    calls.clear()
    distiller.save_checkpoint()  # over the one that is there, which goes when this one is safe
    assert calls == [*SAVE, ("exchange", "out/TEMP", place), *safe]


def test_a_replaced_folder_goes_last_also_where_names_cannot_be_exchanged(
    tmp_path, calls, monkeypatch
):
    def refuse(one, other):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(files, "_exchange", refuse)
    (tmp_path / "a").mkdir()
    with folder_atomically(tmp_path / "a"):
        calls.clear()
    assert calls == [
        ("sync", "TEMP"),
        ("rename", "a", "TEMP"),
        ("rename", "TEMP", "a"),
        ("sync", "a"),
        ("sync", "."),
        ("remove", "TEMP"),
        ("remove", "TEMP"),
    ]


def test_every_folder_of_a_tree_is_synced_before_it_gets_its_name(tmp_path, calls):
    with folder_atomically(tmp_path / "a") as folder:
        (folder / "unet").mkdir()
        write_synced(folder / "unet/weights", lambda file: file.write(b"1"))
    assert calls == [
        ("make", "TEMP"),
        ("make", "TEMP/unet"),
        ("sync", "TEMP/unet/weights"),
        ("sync", "TEMP"),
        ("sync", "TEMP/unet"),
        ("rename", "TEMP", "a"),
        ("sync", "a"),
        ("sync", "."),
        ("remove", "TEMP"),
    ]


def test_the_name_of_a_new_output_folder_is_durable_before_anything_is_in_it(tmp_path, calls):
    make(output_dir=str(tmp_path / "a/b"))
    assert calls[-4:] == [("make", "a"), ("sync", "."), ("make", "a/b"), ("sync", "a")]


def test_what_vouches_for_a_folder_of_files_comes_after_the_names_of_its_folders(tmp_path, calls):
    (tmp_path / "a").mkdir()
    with folder_atomically(tmp_path / "a", last="index") as folder:
        (folder / "unet").mkdir()
        for name in ("unet/weights", "index"):
            write_synced(folder / name, lambda file: file.write(b"1"))
        calls.clear()
    assert calls == [
        ("sync", "a/TEMP"),
        ("sync", "a/TEMP/unet"),
        ("make", "a/unet"),
        ("sync", "a"),
        ("rename", "a/TEMP/unet/weights", "a/unet/weights"),
        ("sync", "a/unet"),
        ("rename", "a/TEMP/index", "a/index"),
        ("sync", "a"),  # and not what is above it, which may be closed to us
        ("remove", "a/TEMP"),
    ]


def test_log_lines_are_synced_before_the_checkpoint_that_they_lead_to(tmp_path, calls):
    options = {"max_train_steps": 4, "checkpointing_steps": 2, "logging_steps": 1}
    make(output_dir=str(tmp_path), **options).fit()
    for step in (2, 4):
        named = calls.index(("rename", "TEMP", f"checkpoint-{step}"))
        since = calls.index(("sync", "checkpoint-2")) if step == 4 else 0
        assert ("sync", "log.jsonl") in calls[since:named]
        first = calls.index(("sync", "TEMP/TEMP"), since)
        assert calls.index(("sync", "log.jsonl"), since) < first
