"""Atomic, durable writing of files and folders.

Nothing here leaves a half-written file under its final name: write a temporary beside it, fsync,
rename, fsync the folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from boot.errors import check_path

TEMP_SUFFIX = ".tmp"
_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{8}" + re.escape(TEMP_SUFFIX), re.ASCII)

# The functions of `os` through which everything here is written; tests make each fail in turn.
WRITE_CALLS = ("mkdir", "open", "write", "fsync", "replace", "rename")


def temporary_beside(path: Path) -> Path:
    """Return an unused hidden name in the folder of `path`, recognisable by its `.tmp` ending."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMP_SUFFIX}")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that a killed process left in a folder.

    Only for folders in which nobody else is writing (`locks.locked_folder`).
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        if _TEMPORARY.fullmatch(path.name):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, as far as possible and without errors."""
    with contextlib.suppress(OSError):
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Make renames inside a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Make a folder, and its parents, where they are missing; their names are durable too.

    What is synced inside a folder is lost all the same if the folder's own name is.
    """
    if path.is_dir():
        return
    try:
        path.mkdir(exist_ok=True)
    except FileNotFoundError:
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def check_output_folder(name: str, value: object, *, must_be_empty: bool = True) -> Path:
    """Return a folder that can be written into, making it (and its parents) if it is missing.

    Raises NotADirectoryError, FileExistsError (non-empty and `must_be_empty`), or PermissionError
    and other OSErrors found by writing a probe file (root ignores mode bits, so only trying tells).
    """
    path = check_path(name, value)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{name} must be a folder, but {str(path)!r} is a file")
    if must_be_empty and path.is_dir() and any(path.iterdir()):
        raise FileExistsError(f"{name} must be a new or empty folder, but {str(path)!r} has files")
    try:
        make_folder(path)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise type(problem)(problem.errno, f"{name} is not writable: {reason}", str(path)) from None
    return path


def sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _File(io.FileIO):
    """A file whose writes go through os.write, like every other call of WRITE_CALLS."""

    def write(self, data: Any) -> int:
        return os.write(self.fileno(), data)


def write_synced(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Create a new file, let `write` fill it, and fsync it. FileExistsError if it is there."""
    # os.open with 0o666 honours the umask; the tempfile module would make the file private.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with io.BufferedWriter(_File(handle, "wb")) as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def append(path: Path, data: bytes) -> None:
    """Add bytes to the end of a file: all of them, or none if that raises an OSError."""
    with open(path, "ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[os.write(file.fileno(), data) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


def write_atomically(path: Path, content: bytes | str | Callable[[BinaryIO], object]) -> None:
    """Replace or create a file so that a reader, or a crash, sees the old or the new content.

    content: bytes, text (written as UTF-8), or a function that writes into a binary file.
    Raises the OSError of the failing call, with the file's name; no temporary one is left behind.
    """
    if callable(content):
        fill = content
    else:
        data = content.encode("utf-8") if isinstance(content, str) else content

        def fill(file: BinaryIO) -> object:
            return file.write(data)

    temporary = temporary_beside(path)
    try:
        write_synced(temporary, fill)
        os.replace(temporary, path)
    except BaseException as problem:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(problem, OSError) and problem.filename in (None, str(temporary)):
            problem.filename = str(path)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def folder_atomically(path: Path, *, last: str = "") -> Iterator[Path]:
    """Give a temporary folder to fill; on success its files become those of `path`.

    A `path` that does not exist appears in one rename. One that does is replaced as a whole; with
    `last`, it gets the files by one atomic replacement each, `last` (relative to it) after all
    others, so that this file vouches for the rest. If the body raises, `path` is untouched; the
    temporary folder is removed in any case. The body must sync the files that it writes
    (`write_atomically` does).
    """
    exists = path.is_dir() and bool(last)
    # Inside an existing folder, not beside it: it may be a mount point in a read-only parent.
    temporary = temporary_beside(path / "new" if exists else path)
    make_folder(temporary.parent)
    temporary.mkdir()
    aside = None
    try:
        yield temporary
        for folder, _, _ in os.walk(temporary):
            sync_folder(Path(folder))
        if exists:
            _move_files(temporary, path, last)
        else:
            aside = _move_folder(temporary, path)
            sync_folder(path)
            sync_folder(path.parent)
    finally:
        # Only now: what was replaced must not go before its successor is there for good.
        for old in (temporary, aside):
            if old is not None:
                remove(old)


def _exchange(one: Path, other: Path) -> None:
    """Let two folders swap names in one step; OSError where system or file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename(here, os.fsencode(one), here, os.fsencode(other), ctypes.c_uint(exchange)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(one))


def _move_folder(source: Path, target: Path) -> Path | None:
    """Rename a folder, or exchange it with the one that has the name already.

    Returns where that one is now, unless it has the name of the source.
    """
    if not target.is_dir():
        os.rename(source, target)
        return None
    with contextlib.suppress(OSError):
        _exchange(source, target)
        return None
    aside = temporary_beside(target)
    os.rename(target, aside)
    try:
        os.rename(source, target)
    except BaseException:
        os.rename(aside, target)
        raise
    return aside


def _move_files(source: Path, target: Path, last: str) -> None:
    names = [
        str((Path(folder) / name).relative_to(source))
        for folder, _, files in os.walk(source)
        for name in files
    ]
    for name in sorted(names, key=lambda name: (name == last, name)):
        make_folder((target / name).parent)
        os.replace(source / name, target / name)
        sync_folder((target / name).parent)
