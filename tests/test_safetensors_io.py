"""The safetensors reader refuses every bad file by name; the writer matches the official one."""

import json
import os
import random
import re
import struct
import time

import numpy as np
import pytest

from boot.errors import BootError, FormatError
from boot.safetensors_io import load_tensors, read_header, read_index, save_tensors


def pack(header, data=b""):
    """Build a file from a header (an object, or the bytes of its JSON) and its data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


# ----------------------------------------------------------------------------------- round trips


def sample_tensors():
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.standard_normal((3, 4)).astype(np.float32),
        "b": rng.standard_normal(5).astype(np.float16),
        "c": rng.standard_normal((1, 2, 3)),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "d": rng.standard_normal((4, 6)).astype(np.float32).T[::-1],
        "nan": np.array([np.nan, np.inf], np.float32),
    }


def test_round_trip_gives_float32(path):
    tensors = sample_tensors()
    save_tensors(path, tensors)
    loaded = load_tensors(path)
    assert loaded.keys() == tensors.keys()
    for name, array in tensors.items():
        assert loaded[name].dtype == np.float32 and loaded[name].shape == array.shape, name
        np.testing.assert_array_equal(loaded[name], array.astype(np.float32))
        assert loaded[name].flags.writeable and loaded[name].flags.c_contiguous


def test_a_header_of_ten_thousand_long_names_is_read(path):
    name = "model.down_blocks.0.attentions.1.transformer_blocks.2.attn1.to_out.0.weight"
    tensors = {f"{name}.{i}": np.full((1, 1, 1), i, np.float32) for i in range(10_000)}
    save_tensors(path, tensors)
    assert load_tensors(path)[f"{name}.9999"] == 9999
    index = path.with_name("model.index.json")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, path.name)}, indent=2))
    assert len(read_index(index)) == 10_000


def test_header_says_what_is_where(path):
    save_tensors(path, {"x": np.ones((2, 3), np.float32)}, {"format": "pt", "note": "é"})
    header = read_header(path)
    info = header.tensors["x"]
    assert (info.dtype, info.shape, info.end - info.begin) == ("F32", (2, 3), 24)
    assert header.metadata == {"format": "pt", "note": "é"}
    assert info.begin % 8 == 0


def test_every_float_dtype_is_read(path):
    values = np.array([1.5, -2.0, 0.15625, 2.0**-20], np.float32)  # exact in all four types
    halves = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    data = {"F64": values.astype("<f8").tobytes(), "F32": values.tobytes()}
    data |= {"F16": values.astype("<f2").tobytes(), "BF16": halves}
    header, blob = {}, b""
    for dtype, raw in data.items():
        header[dtype] = entry(dtype, (4,), (len(blob), len(blob) + len(raw)))
        blob += raw
    header["scalar"] = entry("BF16", (), (len(blob), len(blob) + 2))
    path.write_bytes(pack(header, blob + halves[:2]))
    loaded = load_tensors(path)
    for dtype in data:
        np.testing.assert_array_equal(loaded[dtype], values)
    assert loaded["scalar"].shape == () and loaded["scalar"] == 1.5


def test_unaligned_data_is_read(path):
    values = np.arange(3, dtype=np.float32)
    half = np.ones(1, np.float16).tobytes()
    header = {"h": entry("F16", (1,), (0, 2)), "x": entry("F32", (3,), (2, 14))}
    path.write_bytes(pack(header, half + values.tobytes()))
    np.testing.assert_array_equal(load_tensors(path)["x"], values)


def test_an_empty_file_of_tensors_is_allowed(path):
    path.write_bytes(pack({"__metadata__": {"a": "b"}}))
    assert load_tensors(path) == {}
    save_tensors(path, {}, {})
    assert load_tensors(path) == {}


def test_writer_is_byte_identical_to_the_official_one(path, tmp_path):
    official = pytest.importorskip("safetensors.numpy")
    tensors = {name: np.ascontiguousarray(a) for name, a in sample_tensors().items()}
    tensors["scalar"] = np.array(2.5, np.float32)
    save_tensors(path, tensors)
    official.save_file(tensors, tmp_path / "official", metadata={"format": "pt"})
    assert path.read_bytes() == (tmp_path / "official").read_bytes()
    loaded = official.load_file(path)
    assert all(np.array_equal(loaded[n], tensors[n], equal_nan=True) for n in tensors)


# --------------------------------------------------------------------------------------- bad files

X8 = bytes(8)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614\nsize 142973348\n"

BAD_FILES = [
    (b"", "0 bytes, at least 10"),
    (b"\2\0\0\0\0\0\0\0{", "9 bytes, at least 10"),
    (LFS, "is a Git LFS pointer, not the file itself"),
    (b"<!DOCTYPE html><html><body>Not found</body></html>", "is an HTML page"),
    (b"\n  <html lang=en>" + b" " * 50, "is an HTML page"),
    (b"PK\x03\x04" + bytes(60), "is a zip archive .PyTorch pickle.*never loads pickles"),
    (b"\x80\x02}q\x00(X\x06\x00\x00\x00weight" + bytes(40), "is a pickle; boot never loads"),
    (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}" + bytes(9), "is a pickle"),
    (b"\x89HDF\r\n\x1a\n" + bytes(60), "is an HDF5 file"),
    (struct.pack("<Q", 2**63) + b"{}", "claims 9223372036854775808 bytes, at most 2 are possible"),
    (pack(b"{" + b" " * 2**22 + b"}"), "header of 4194306 bytes, at most 4194304 are allowed"),
    (pack({str(i): entry(shape=[0], offsets=(0, 0)) for i in range(20_001)}), "20001 tensors, at "),
    (struct.pack("<Q", 3) + b"{}", "claims 3 bytes, at most 2 are possible.*cut short"),
    (pack(b"[]"), "the header must start with '{', got b'\\['"),
    (pack(b" {}"), "must start with '{'"),
    (pack(b'{"a": '), "not valid JSON"),
    (pack(b'{"a\xff": 1}'), "not UTF-8"),
    (pack(b'{"a": {}, "a": {}}'), "the key 'a' appears twice"),
    (pack(b'{"a": NaN}'), "'NaN' is not a number"),
    (pack(b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}"), "nested deeper than 64"),
    (pack(b'{"a": ' + b"[" * 50000 + b"]" * 50000 + b"}"), "nested deeper than 64"),
    (pack({"__metadata__": []}), "__metadata__ must be an object"),
    (pack({"__metadata__": {"a": 1}}), r"__metadata__\['a'\] must be text, got 1"),
    (pack({"": entry()}, X8), "names must be 1 ... 512 bytes"),
    (pack({"a\0b": entry()}, X8), "without NUL"),
    (pack({"a\nb": entry()}, X8), "names must be printable"),
    (pack({"x" * 513: entry()}, X8), "names must be 1 ... 512 bytes"),
    (pack(b'{"\\ud800": ' + json.dumps(entry()).encode() + b"}", X8), "names must be"),
    (pack({"a": 5}), "tensor 'a' must have dtype, shape and data_offsets, got 5"),
    (pack({"a": {"dtype": "F32"}}), "got keys dtype"),
    (pack({"a": {**entry(), "stride": [1]}}, X8), "got keys dtype, shape, data_offsets, stride"),
    (pack({"a": entry("F31")}, X8), "dtype must be one of BOOL.*got 'F31'"),
    (pack({"a": entry(7)}, X8), "dtype must be one of"),
    (pack({"a": entry(shape=[-2])}, X8), "shape must hold integers >= 0, got -2"),
    (pack({"a": entry(shape=[True, 2])}, X8), "shape must hold integers >= 0, got True"),
    (pack({"a": entry(shape=[2.0])}, X8), "shape must hold integers >= 0, got 2.0"),
    (pack({"a": entry(shape=["2"])}, X8), "got '2'"),
    (pack({"a": {**entry(), "shape": 2}}, X8), "shape must be a list of at most 8 sizes, got 2"),
    (pack({"a": entry(shape=[1] * 9)}, X8), "a list of at most 8 sizes"),
    (pack({"a": entry(shape=[2**40, 2**40])}, X8), "overflows"),
    (pack({"a": entry(shape=[2**63 - 1])}, X8), "overflows"),
    (pack({"a": entry(shape=[2**32, 2**31])}, X8), "overflows"),
    (pack({"a": entry(shape=[0, 2**62], offsets=[0, 0])}), "overflows"),
    (pack({"a": entry(offsets=[0])}, X8), r"data_offsets must be \[begin, end\], got \[0\]"),
    (pack({"a": entry(offsets=[8, 0])}, X8), r"\[begin, end\], got \[8, 0\]"),
    (pack({"a": entry(offsets=[-8, 0])}, X8), "data_offsets must hold integers >= 0"),
    (pack({"a": entry(offsets=[0, 4])}, X8), "needs 8 bytes, but data_offsets .* give 4"),
    (pack({"a": entry("F4", [3], [0, 2])}, b"12"), "needs 1.5 bytes"),
    (pack({"a": entry(offsets=[4, 12])}, bytes(12)), "leaves a hole"),
    (pack({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "'b' overlaps"),
    (pack({"a": entry(), "b": entry()}, X8), "overlaps"),
    (pack({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)), "'b' leaves a hole"),
    (pack({"a": entry()}, X8[:5]), "is cut short: the header describes"),
    (pack({"a": entry()}, X8 + b"tail"), "has bytes after the last tensor"),
]


@pytest.mark.parametrize(("content", "text"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_bad_files_are_refused_by_name(path, content, text):
    path.write_bytes(content)
    with pytest.raises(FormatError, match=text) as caught:
        load_tensors(path)
    assert "model.safetensors" in str(caught.value)


def test_a_header_whose_length_looks_like_a_magic_number_is_still_read(path):
    # 0x280280 bytes of header start with the bytes of a pickle; what follows shows they do not.
    header = b"{}" + b" " * (0x280280 - 2)
    path.write_bytes(pack(header))
    assert path.read_bytes()[:3] == b"\x80\x02("
    assert load_tensors(path) == {}


def test_other_dtypes_are_refused_only_when_read(path):
    path.write_bytes(pack({"n": entry("I64", (1,), (0, 8))}, X8))
    assert read_header(path).tensors["n"].dtype == "I64"
    with pytest.raises(FormatError, match="'n' has dtype I64; boot reads F16, BF16, F32, F64"):
        load_tensors(path)


def test_paths_that_are_not_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "gone")
    with pytest.raises(IsADirectoryError):
        load_tensors(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="not a regular file"):
        load_tensors(tmp_path / "pipe")
    with pytest.raises(TypeError, match="path must be a path, got 3"):
        load_tensors(3)


def test_the_header_alone_does_not_cost_memory_it_only_claims(path):
    # A file of a few bytes that claims 2**40 numbers must fail before anything is allocated.
    path.write_bytes(pack({"a": entry(shape=[2**40], offsets=[0, 2**42])}))
    with pytest.raises(FormatError, match="is cut short"):
        load_tensors(path)


def test_mutated_files_either_load_or_raise_a_boot_error(path):
    rng = random.Random(0)
    save_tensors(path, {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)})
    good = path.read_bytes()
    outcomes = {"loaded": 0, "refused": 0}
    for _ in range(3000):
        bad = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            position = rng.randrange(len(bad)) if rng.random() < 0.3 else rng.randrange(150)
            kind = rng.randrange(3)
            if kind == 0:
                bad[position] = rng.randrange(256)
            elif kind == 1:
                del bad[position : position + rng.randint(1, 8)]
            else:
                bad[position:position] = rng.choice([b"0", b"9" * 9, b"[", b'"', b"{", b"-", b","])
        path.write_bytes(bad)
        started = time.process_time()  # a busy machine is no hang
        try:
            load_tensors(path)
            outcomes["loaded"] += 1
        except BootError:
            outcomes["refused"] += 1
        assert time.process_time() - started < 1.0
    assert outcomes["refused"] > 2000 and outcomes["loaded"] > 10


def test_what_we_accept_the_official_reader_accepts(path):
    official = pytest.importorskip("safetensors")
    rng = random.Random(1)
    save_tensors(path, {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)})
    good = path.read_bytes()
    for _ in range(1000):
        bad = bytearray(good)
        bad[rng.randrange(150)] = rng.randrange(256)
        path.write_bytes(bad)
        try:
            names = set(read_header(path).tensors)
        except BootError:
            continue
        with official.safe_open(path, "np") as file:
            assert set(file.keys()) == names


# -------------------------------------------------------------------------------------------- index


def write_shards(folder):
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_tensors(folder / one, {"a": np.full(2, 1, np.float32), "b": np.full(3, 2, np.float32)})
    save_tensors(folder / two, {"c": np.full(1, 3, np.float32)})
    index = {"metadata": {"total_size": 24}, "weight_map": {"a": one, "b": one, "c": two}}
    (folder / "index.json").write_text(json.dumps(index))
    return index


def test_index_finds_every_tensor(tmp_path):
    write_shards(tmp_path)
    infos = read_index(tmp_path / "index.json")
    assert {name: info.file.name[6:11] for name, info in infos.items()} == {
        "a": "00001",
        "b": "00001",
        "c": "00002",
    }


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/passwd.safetensors",
        "sub/x.safetensors",
        "sub\\x.safetensors",
        "..",
        ".",
        "",
        "x\0.safetensors",
        "model.bin",
        "model.safetensors\n",
        7,
        None,
        ["model-00001-of-00002.safetensors"],
    ],
)
def test_index_may_name_only_files_of_its_folder(tmp_path, name):
    index = write_shards(tmp_path)
    save_tensors(tmp_path.parent / "secret.safetensors", {"a": np.ones(2, np.float32)})
    index["weight_map"]["a"] = name
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match="may name only .*.safetensors files in its own folder"):
        read_index(tmp_path / "index.json")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda i: i.pop("weight_map"), "must have a weight_map object, got None"),
        (lambda i: i.update(weight_map={}), "must have a weight_map object"),
        (lambda i: i.update(weight_map=[]), "must have a weight_map object"),
        (lambda i: i["weight_map"].pop("b"), "the index does not list: b"),
        (
            lambda i: i["weight_map"].update(d="model-00002-of-00002.safetensors"),
            "model-00002-of-00002.safetensors does not hold the tensor 'd'",
        ),
        (lambda i: i["weight_map"].update(a="gone.safetensors"), "'gone.safetensors', which is"),
    ],
)
def test_index_must_agree_with_its_shards(tmp_path, change, text):
    index = write_shards(tmp_path)
    change(index)
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match=text):
        read_index(tmp_path / "index.json")


def test_index_refuses_a_tensor_that_two_shards_hold(tmp_path):
    write_shards(tmp_path)
    two = tmp_path / "model-00002-of-00002.safetensors"
    save_tensors(two, {"a": np.zeros(2, np.float32), "c": np.ones(1, np.float32)})
    with pytest.raises(FormatError, match="1 tensors in two shards"):
        read_index(tmp_path / "index.json")


# ------------------------------------------------------------------------------------------ writing


@pytest.mark.parametrize(
    ("tensors", "error", "text"),
    [
        ({"": np.ones(1, np.float32)}, ValueError, "names must be non-empty"),
        ({3: np.ones(1, np.float32)}, ValueError, "names must be non-empty strings, got 3"),
        ({"__metadata__": np.ones(1, np.float32)}, ValueError, "got '__metadata__'"),
        ({"a\n": np.ones(1, np.float32)}, ValueError, "printable"),
        ({"a" * 513: np.ones(1, np.float32)}, ValueError, "at most 512 bytes"),
        ({"a": [1.0]}, TypeError, "a must be an array"),
        ({"a": np.ones(1, int)}, TypeError, "a must be float16, float32 or float64, got int64"),
        ({"a": np.ones(1, np.longdouble)}, TypeError, "got float128"),
        ({"a": np.ones((1,) * 9, np.float32)}, ValueError, "9 dimensions, at most 8"),
    ],
)
def test_save_tensors_refuses_and_keeps_the_old_file(path, tensors, error, text):
    path.write_text("old")
    with pytest.raises(error, match=re.escape(text)):
        save_tensors(path, tensors)
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
