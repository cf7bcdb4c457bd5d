"""Writing that leaves either the old or the new content, never a mixture."""

import errno
import os

import pytest

from boot.files import folder_atomically, write_atomically


def test_write_atomically_replaces_and_honours_the_umask(tmp_path):
    path = tmp_path / "f"
    write_atomically(path, "first")
    write_atomically(path, b"second")
    write_atomically(path, lambda file: file.write(b"third"))
    assert path.read_bytes() == b"third"
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def failing(name, code=errno.ENOSPC):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return name, fail


@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
def test_a_failing_write_keeps_the_old_file_and_leaves_no_temporary(tmp_path, monkeypatch, call):
    path = tmp_path / "f"
    path.write_text("old")

    def fill(file):
        file.write(b"new")
        if call == "write":
            raise OSError(errno.EIO, "write")

    if call != "write":
        monkeypatch.setattr(os, *failing(call))
    with pytest.raises(OSError):
        write_atomically(path, fill)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_write_atomically_syncs_the_file_before_the_rename_and_the_folder_after(
    tmp_path, monkeypatch
):
    order = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(handle):
        order.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    def spy_replace(source, target):
        order.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    write_atomically(tmp_path / "f", "x")
    assert order == ["file", "rename", "folder"]


def fill_folder(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "a").write_text("new a")
    (folder / "index").write_text("new index")


def test_folder_atomically_makes_a_new_folder(tmp_path):
    with folder_atomically(tmp_path / "deep" / "out", last="index") as temporary:
        fill_folder(temporary)
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "sub" / "a").read_text() == "new a"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]


def test_folder_atomically_keeps_other_files_and_moves_the_last_one_last(tmp_path, monkeypatch):
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    for name in ("index", "sub/a", "sub/other", "log"):
        (out / name).write_text("old")
    moved = []
    replace = os.replace

    def spy(source, target):
        moved.append(os.path.basename(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    with folder_atomically(out, last="index") as temporary:
        fill_folder(temporary)
        assert (out / "index").read_text() == "old"
    assert moved == ["a", "index"]
    assert (out / "sub" / "a").read_text() == "new a"
    assert (out / "sub" / "other").read_text() == "old"
    assert sorted(p.name for p in out.iterdir()) == ["index", "log", "sub"]


def test_folder_atomically_leaves_all_as_it_was_if_the_body_fails(tmp_path):
    out = tmp_path / "out"
    for target in (out, tmp_path / "new"):
        if target is out:
            out.mkdir()
            (out / "index").write_text("old")
        with pytest.raises(RuntimeError), folder_atomically(target, last="index") as temporary:
            fill_folder(temporary)
            raise RuntimeError
    assert (out / "index").read_text() == "old"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["index", "out"]
