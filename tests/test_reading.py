"""Strict JSON, and files that are something else: what is read, and how the rest is named."""

import os
import tracemalloc

import pytest

from boot.errors import FormatError
from boot.reading import impostor, parse_json, read_json_object


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
        (b" " * (2**22 + 1), "4194305 bytes of JSON, at most 4194304"),
        (b"[" + b"[]," * 200_000 + b"0]", "400001 brackets, commas and colons in JSON, at most"),
    ],
)
def test_parse_json_refuses(data, text):
    with pytest.raises(FormatError, match=text):
        parse_json(data, "f")


def test_a_reader_may_allow_infinite_numbers():
    assert parse_json(b'{"a": -Infinity}', "f", infinite=True) == {"a": float("-inf")}
    for data in (b"[NaN]", b"[1e999]"):
        with pytest.raises(FormatError, match="not a number that JSON allows"):
            parse_json(data, "f", infinite=True)


def test_a_reader_may_allow_fewer_items():
    assert parse_json(b"[1, 2]", "f", max_items=2) == [1, 2]
    with pytest.raises(FormatError, match="3 brackets, commas and colons in JSON, at most 2 are"):
        parse_json(b"[1, 2, 3]", "f", max_items=2)


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
    assert kind in (impostor(head) or "")


def test_impostor_leaves_others_alone():
    assert impostor(b'{"a": 1}') is None
    assert impostor(b"") is None
