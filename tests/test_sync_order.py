"""What is made durable before what: after a power cut, no name may stand for less than it says.

A disk may keep any write that was not synced, in any order. So the order of the calls is the proof.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from models import make

from boot import files
from boot.files import folder_atomically, write_synced


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """The syncs and renames so far, with paths relative to tmp_path; temporary names as TEMP."""
    made: list[tuple[str, ...]] = []

    def short(path):
        parts = Path(os.path.relpath(path, tmp_path)).parts or (".",)
        return "/".join("TEMP" if part.endswith(files.TEMP_SUFFIX) else part for part in parts)

    def spy(owner, name, what):
        real = getattr(owner, name)

        def call(*paths):
            if name == "fsync":
                made.append((what, short(os.readlink(f"/proc/self/fd/{paths[0]}"))))
            else:
                made.append((what, *map(short, paths)))
            return real(*paths)

        monkeypatch.setattr(owner, name, call)

    spy(os, "fsync", "sync")
    spy(os, "rename", "rename")
    spy(os, "replace", "rename")
    spy(files, "_exchange", "exchange")
    return made


SAVE = [  # what every checkpoint does in its temporary folder, the manifest last
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
    assert calls == [
        *SAVE,
        ("rename", "out/TEMP", place),
        ("sync", place),
        ("sync", "out"),
    ]
    calls.clear()
    distiller.save_checkpoint()  # over the one that is there: deleted after its successor is safe
    assert calls[: len(SAVE) + 3] == [
        *SAVE,
        ("exchange", "out/TEMP", place),
        ("sync", place),
        ("sync", "out"),
    ]


def test_every_folder_of_a_tree_is_synced_before_it_gets_its_name(tmp_path, calls):
    with folder_atomically(tmp_path / "a") as folder:
        (folder / "unet").mkdir()
        write_synced(folder / "unet/weights", lambda file: file.write(b"1"))
    assert calls == [
        ("sync", "TEMP/unet/weights"),
        ("sync", "TEMP"),
        ("sync", "TEMP/unet"),
        ("rename", "TEMP", "a"),
        ("sync", "a"),
        ("sync", "."),
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
