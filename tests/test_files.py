"""Strict JSON, and writing that leaves either the old or the new content, never a mixture."""

import errno
import os
import tracemalloc

import pytest

from boot import files
from boot.errors import FormatError
from boot.files import folder_atomically, parse_json, read_json_object, write_atomically


def test_parse_json_reads_plain_json():
    text = b'{"a": [1, -2.5, 1e3, true, null, "\xc3\xa9"], "b": {"c": 18446744073709551615}}'
    assert parse_json(text, "f") == {
        "a": [1, -2.5, 1000.0, True, None, "é"],
        "b": {"c": 2**64 - 1},
    }


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' appears twice"),
        (b'{"x": {"a": 1, "a": 1}}', "the key 'a' appears twice"),
        (b'{"a": NaN}', "'NaN' is not a number that JSON allows"),
        (b'{"a": -Infinity}', "'-Infinity' is not a number"),
        (b'{"a": 1e999}', "'1e999' is not a number"),
        (b'{"a": 18446744073709551616}', "is not a number"),
        (b'{"a": -9223372036854775809}', "is not a number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not a number"),
        (b"[" * 66 + b"]" * 66, "nested deeper than 64"),
        (b"[" * 100_000 + b"]" * 100_000, "nested deeper than 64"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested deeper than 64"),
        (b'{"a": "\xff"}', "not UTF-8 text: byte 7"),
        (b'{"a": 1', "not valid JSON"),
        (b'{"a": 1} x', "not valid JSON: Extra data"),
        (b"", "not valid JSON"),
        (b"{'a': 1}", "not valid JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html></html>", "an HTML page"),
        (b"<html><body>404</body></html>", "an HTML page"),
        (b"<?xml version='1.0'?><Error/>", "an XML page"),
        (b" " * 101, "101 bytes of JSON, at most 100"),
    ],
)
def test_parse_json_refuses(data, text):
    with pytest.raises(FormatError, match=text):
        parse_json(data, "f", max_bytes=100 if data.isspace() else files.JSON_MAX_BYTES)


def test_parse_json_allows_64_levels():
    assert parse_json(b"[" * 64 + b"]" * 64, "f")


def test_a_small_json_file_takes_little_memory(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    tracemalloc.start()
    try:
        read_json_object(tmp_path / "x.json")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_read_json_object_names_the_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("[1]")
    with pytest.raises(FormatError, match="config.json must hold a JSON object, got list"):
        read_json_object(path)
    path.write_text("{}")
    assert read_json_object(path) == {}
    with pytest.raises(FileNotFoundError):
        read_json_object(tmp_path / "gone.json")
    with pytest.raises(IsADirectoryError):
        read_json_object(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="not a regular file"):
        read_json_object(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"PK\x03\x04rest", "zip"),
        (b"\x80\x02}q\x00", "pickle"),
        (b"\x80\x04\x95\x00", "pickle"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"GGUF\x03", "GGUF"),
        (b"\xef\xbb\xbf<html>", "HTML"),
    ],
)
def test_impostor_knows(head, kind):
    assert kind in (files.impostor(head) or "")


def test_impostor_leaves_others_alone():
    assert files.impostor(b'{"a": 1}') is None
    assert files.impostor(b"") is None


# ---------------------------------------------------------------------------------------- writing


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
