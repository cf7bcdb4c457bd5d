"""Links in model folders: those of a Hugging Face cache are followed, others not out of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from models import save_teacher
from pipelines import CONFIG, SCHEDULER, TENSORS, assert_holds_the_tensors, shard
from test_student import make_student

from boot.diffusers_io import load_pipeline, save_pipeline
from boot.errors import FormatError
from boot.safetensors_io import read_index
from boot.student import Student
from boot.teacher import Teacher


def cached(folder: Path, cache: Path) -> Path:
    """Lay a model folder out as huggingface_hub does; the folder of its snapshot."""
    repository = cache / "models--who--what"
    snapshot, blobs = repository / "snapshots" / ("0a" * 20), repository / "blobs"
    blobs.mkdir(parents=True)
    for i, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blobs / f"{i:064x}")
        link.symlink_to(os.path.relpath(blobs / f"{i:064x}", link.parent))
    return snapshot


def elsewhere(file: Path, outside: Path) -> None:
    """Move a file out of its folder and leave a link to it."""
    real = outside / f"secret{file.suffix}"
    shutil.move(os.path.realpath(file), real)
    file.unlink(missing_ok=True)
    file.symlink_to(real)


@pytest.fixture(params=["one file", "shards"])
def folder(request, tmp_path):
    """A valid pipeline folder."""
    save_pipeline(tmp_path / "pipe", CONFIG, SCHEDULER, TENSORS)
    if request.param == "shards":
        shard(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.fixture
def outside(tmp_path):
    """A folder that no model folder may lead to."""
    (tmp_path / "outside").mkdir()
    return tmp_path / "outside"


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


@pytest.mark.parametrize("flat", [False, True])
def test_a_snapshot_of_a_cache_is_read(folder, tmp_path, flat, monkeypatch):
    if flat:
        for path in (*folder.glob("unet/*"), *folder.glob("scheduler/*")):
            path.rename(folder / path.name)
    snapshot = cached(folder, tmp_path / "hub")
    assert any(path.is_symlink() for path in snapshot.rglob("*"))
    assert_holds_the_tensors(load_pipeline(snapshot))
    (tmp_path / "short").symlink_to(snapshot)  # whoever gives the folder may give a link to it
    assert_holds_the_tensors(load_pipeline(tmp_path / "short"))
    (tmp_path / "other").symlink_to(tmp_path / "hub")
    assert_holds_the_tensors(
        load_pipeline(tmp_path / "other" / snapshot.relative_to(snapshot.parents[2]))
    )
    monkeypatch.chdir(snapshot)
    assert_holds_the_tensors(load_pipeline("."))


def test_teacher_and_student_are_read_from_a_cache(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    assert Teacher.from_pretrained(cached(teacher, tmp_path / "hub")).model.num_parameters
    student = make_student()
    student.save_pretrained(tmp_path / "student")
    again = Student.from_pretrained(cached(tmp_path / "student", tmp_path / "other"))
    assert again.info == student.info


@pytest.mark.parametrize("in_cache", [False, True])
def test_no_file_may_link_out_of_its_folder(folder, tmp_path, outside, in_cache):
    for i, name in enumerate(files(folder)):
        there = tmp_path / str(i)
        root = cached(folder, there) if in_cache else Path(shutil.copytree(folder, there))
        elsewhere(root / name, outside)
        with pytest.raises(
            FormatError, match="is a link that leads out of its folder, to .*secret"
        ):
            load_pipeline(root)


@pytest.mark.parametrize("name", ["boot.json", "boot.safetensors"])
def test_no_file_of_a_student_may_link_out_of_its_folder(tmp_path, outside, name):
    make_student().save_pretrained(tmp_path / "student")
    elsewhere(tmp_path / "student" / name, outside)
    with pytest.raises(FormatError, match="is a link that leads out of its folder"):
        Student.from_pretrained(tmp_path / "student")


@pytest.mark.parametrize("part", ["unet", "scheduler"])
def test_no_part_may_link_out_of_its_folder(folder, outside, part):
    (folder / part).rename(outside / part)
    (folder / part).symlink_to(outside / part)
    with pytest.raises(FormatError, match="is a link that leads out of its folder"):
        load_pipeline(folder)


def test_links_within_the_folder_are_followed(folder):
    (folder / "store").mkdir()
    for name in files(folder):
        (folder / name).rename(folder / "store" / Path(name).name)
        (folder / name).symlink_to(folder / "store" / Path(name).name)
    # A shard must lie in the folder of its index, wherever that is linked from.
    if any("index.json" in name for name in files(folder / "unet")):
        with pytest.raises(FormatError, match="is a link that leads out of its folder"):
            load_pipeline(folder)
    else:
        assert_holds_the_tensors(load_pipeline(folder))


@pytest.mark.parametrize("how", ["a link to blobs", "a blob that is a link", "a folder of blobs"])
def test_blobs_must_be_those_of_the_cache(folder, tmp_path, outside, how):
    snapshot = cached(folder, tmp_path / "hub")
    blobs = snapshot.parents[1] / "blobs"
    if how == "a link to blobs":
        blobs.rename(outside / "blobs")
        blobs.symlink_to(outside / "blobs")
    elif how == "a blob that is a link":
        elsewhere(Path(os.path.realpath(snapshot / "model_index.json")), outside)
    else:
        link = snapshot / "model_index.json"
        (blobs / "deep").mkdir()
        Path(os.path.realpath(link)).rename(blobs / "deep" / "x")
        link.unlink()
        link.symlink_to(blobs / "deep" / "x")
    with pytest.raises(FormatError, match="is a link that leads out of its folder"):
        load_pipeline(snapshot)


def test_an_index_in_a_cache_may_not_name_files_elsewhere(folder, tmp_path):
    snapshot = cached(folder, tmp_path / "hub")
    for index in snapshot.glob("unet/*.index.json"):
        for name in ("../x.safetensors", "/x.safetensors", "../../../blobs/x.safetensors"):
            index.unlink()
            index.write_text(f'{{"weight_map": {{"a": "{name}"}}}}')
            with pytest.raises(FormatError, match="may name only"):
                read_index(index)


def test_a_link_to_itself_is_no_file(folder):
    config = folder / "unet" / "config.json"
    config.unlink()
    config.symlink_to(config)
    with pytest.raises(FileNotFoundError, match="has no model_index.json or|has no config.json"):
        load_pipeline(folder)
