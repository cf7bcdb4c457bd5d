"""A teacher whose weights are in memory only while it runs: they are read again from its own files.

The teacher runs before the student's training pass in each step, and the gradients are done with
when it runs again. So the teacher's weights and the student's gradients take turns: the pages of
one go back to the system while the other is needed. Arrays of them stay valid throughout; while the
weights are away they read as zeros, until whatever asks the network for them brings them back.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from boot import _core
from boot.diffusers_io import find_tensors
from boot.errors import ConfigError, FormatError, TeacherError
from boot.network import Network
from boot.reading import open_regular
from boot.safetensors_io import READABLE, as_float32
from boot.teacher import Teacher

READERS = 2  # threads; one copies 136 MiB from the page cache in 11 ms, two in 6
AT_ONCE = 2**18  # bytes of a block to read into: a larger one, once freed, stays in the heap
LEAST_SHARED = 8 * 2**20  # bytes from which a second one pays

_log = logging.getLogger("boot")


class Piece(NamedTuple):
    """A stretch of one tensor: its numbers in memory, and where and how they lie in a file."""

    file: Path
    begin: int
    dtype: str
    numbers: NDArray[np.float32]

    def parts(self, size: int) -> Iterator[Piece]:
        """Cut it into pieces of so many stored bytes at most."""
        item = np.dtype(READABLE[self.dtype]).itemsize
        for start in range(0, len(self.numbers), size // item):
            numbers = self.numbers[start : start + size // item]
            yield self._replace(begin=self.begin + start * item, numbers=numbers)


class Mark(NamedTuple):
    """What tells a file from another one, and from itself after a change."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, descriptor: int) -> Mark:
        """Look at an open file."""
        status = os.fstat(descriptor)
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class Offload:
    """Brings the weights of one teacher back, and gives their memory away; see above."""

    def __init__(self, teacher: Teacher) -> None:
        """Find the weights in their files, and compare them bit by bit.

        Raises ConfigError for a teacher that cannot be offloaded, TeacherError if the files cannot
        be read or hold other weights than the teacher.
        """
        self._core, self._pieces = _pieces_of(teacher)
        self._lock = threading.Lock()
        self._students: weakref.WeakSet[Network] = weakref.WeakSet()
        self._stays = False
        self._marks: dict[Path, Mark] = {}
        with self._open() as files:
            self._marks = {path: Mark.of(descriptor) for path, descriptor in files.items()}
            for piece in self._pieces:
                _compare_numbers(files, piece)

    def join(self, student: Network) -> None:
        """Let the gradients of a network take turns with the weights."""
        self._students.add(student)
        student.before_training = weakref.WeakMethod(self.leave)

    def leave(self) -> None:
        """Give the memory of the weights back."""
        with self._lock:
            if not self._stays:
                self._core.discard_weights()

    def fetch(self) -> None:
        """Bring the weights back if they are away.

        Raises TeacherError, naming the file, if one has changed or cannot be read, and RuntimeError
        while another thread needs the gradients.
        """
        if not self._core.weights_away:
            return
        with self._lock:
            if any(student.gradients_held for student in self._students):
                raise RuntimeError(
                    "the teacher's weights are away (offload_teacher) until the step that another "
                    "thread is in has done its update"
                )
            for student in self._students:
                student.core.discard_grads()
            with self._open() as files:
                _read_shared(files, self._pieces)
                self._compare(files)  # once more: it may have been written while it was read
            self._core.weights_back()

    def stay(self) -> None:
        """Never give the weights away again: they were changed, and are in no file."""
        with self._lock:
            if not self._stays and not self._core.weights_away:
                self._stays = True
                _log.warning("the teacher's weights were changed: they stay in memory from now on")

    @contextlib.contextmanager
    def _open(self) -> Iterator[dict[Path, int]]:
        """Open the files, and compare them with those that were opened first."""
        with contextlib.ExitStack() as stack:
            try:
                paths = dict.fromkeys(piece.file for piece in self._pieces)
                files = {p: stack.enter_context(open_regular(p)).fileno() for p in paths}
                self._compare(files)
                yield files
            except (OSError, FormatError) as problem:
                raise TeacherError(f"the teacher's weights cannot be read: {problem}") from problem

    def _compare(self, files: dict[Path, int]) -> None:
        for path, mark in self._marks.items():
            if Mark.of(files[path]) != mark:
                raise TeacherError(f"{path} has changed since the teacher was loaded from it")


def take_turns(teacher: Teacher, student: Network) -> None:
    """Let the weights of a teacher and the gradients of a network be in memory in turn.

    Raises ConfigError and TeacherError as `Offload` does.
    """
    network = teacher.network
    offload = (network and network.offload) or Offload(teacher)
    offload.join(student)
    if network is not None:
        network.offload = offload
    offload.leave()  # the moments, or a checkpoint, may take the place until it runs


def can_offload(teacher: Teacher) -> bool:
    """Whether `take_turns` would take a teacher."""
    try:
        _pieces_of(teacher)
    except (ConfigError, TeacherError):
        return False
    return True


def _pieces_of(teacher: Teacher) -> tuple[_core.UNet2D, list[Piece]]:
    """Return the core of a teacher and its tensors in the order of its files."""
    network, path = teacher.network, teacher.weights_file
    refused = f"offload_teacher must be false for the teacher {teacher.name!r}"
    if network is None or path is None:
        raise ConfigError(f"{refused}: only one that was loaded from a folder can be read again")
    try:
        infos = find_tensors(path, network.config)
    except (OSError, FormatError) as problem:
        raise TeacherError(f"the teacher's weights cannot be read: {problem}") from problem
    pieces = [
        Piece(info.file, info.begin, info.dtype, network.parameters[name].reshape(-1))
        for name, info in infos.items()
    ]
    return network.core, sorted(pieces, key=lambda piece: (str(piece.file), piece.begin))


def _compare_numbers(files: dict[Path, int], piece: Piece) -> None:
    """Raise TeacherError unless a tensor in memory is bit by bit the one in its file."""
    for part in piece.parts(AT_ONCE):
        found = part._replace(numbers=np.empty_like(part.numbers))
        _read(files, [found])
        if not np.array_equal(found.numbers.view(np.uint32), part.numbers.view(np.uint32)):
            raise TeacherError(f"{piece.file} holds other weights than the teacher")


def _read(files: dict[Path, int], pieces: list[Piece]) -> None:
    """Fill pieces: float32 straight into place, other types through a small block."""
    for piece in pieces:
        if piece.dtype == "F32":
            _read_bytes(files, piece, piece.numbers.view(np.uint8))
            continue
        for part in piece.parts(AT_ONCE):
            raw = np.empty(part.numbers.shape, READABLE[part.dtype])
            _read_bytes(files, part, raw.view(np.uint8))
            part.numbers[...] = as_float32(raw, part.dtype)


def _read_bytes(files: dict[Path, int], piece: Piece, into: NDArray[np.uint8]) -> None:
    done = 0
    while done < len(into):
        count = os.preadv(files[piece.file], [into[done:].data], piece.begin + done)
        if count == 0:
            raise TeacherError(f"{piece.file} was cut short while it was read")
        done += count


def _read_shared(files: dict[Path, int], pieces: list[Piece]) -> None:
    """Read pieces with several threads, each a stretch of about as many bytes."""
    ends = np.cumsum([piece.numbers.nbytes for piece in pieces])
    count = min(READERS, _core.get_num_threads()) if ends[-1] >= LEAST_SHARED else 1
    cuts = np.searchsorted(ends, ends[-1] * np.arange(count + 1) / count)
    cuts[-1] = len(pieces)
    if count == 1:
        _read(files, pieces)
        return
    with ThreadPoolExecutor(count) as pool:
        stretches = [pieces[a:b] for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
        list(pool.map(_read, [files] * count, stretches))
