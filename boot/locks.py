"""One run in a folder at a time, also after a crash: locks that end with their process."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_locks: set[int] = set()  # handles of the folders that are locked now


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for it out of a folder; leaves no file, and ends with us.

    Raises RuntimeError if one is in it. Where the file system has no locks, nothing is locked.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    _locks.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another run is writing into {str(folder)!r}") from None
        except OSError:
            pass
        yield
    finally:
        if handle in _locks:
            _locks.discard(handle)
            os.close(handle)


def _drop_locks() -> None:
    """In a fork: a child that outlives a killed run must not keep the next one out."""
    while _locks:
        os.close(_locks.pop())


os.register_at_fork(after_in_child=_drop_locks)
