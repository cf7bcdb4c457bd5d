"""Loads oneDNN before `boot._core` needs it, from wherever pip put the wheel's library.

The core names its library only as `libdnnl.so.3`, and the loader takes one that the process already
has. Loading it here by its full path makes editable installs work and an `LD_LIBRARY_PATH` that
leads to some other oneDNN harmless. The core's rpath stays as a second way.
"""

from __future__ import annotations

import ctypes
import os
import site
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SONAME = "libdnnl.so.3"
WHEEL = "onednn-cpu-gomp"
SPIN_COUNT = "10000"  # about a tenth of a millisecond
ROOT_RECORD = "onednn.path"  # written by setup.py beside a core that was built with ONEDNN_ROOT


def load() -> None:
    """Load oneDNN; call before importing `boot._core`.

    Raises ImportError if no library is found or the one found does not load.
    """
    for path in _places():
        if path.is_file():
            try:
                # Not RTLD_GLOBAL: a package with a oneDNN of its own, under the same symbol names,
                # would then call this one.
                with _short_spins():
                    ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
            except OSError as error:
                raise ImportError(f"boot cannot load the oneDNN library {path}: {error}") from error
            return
    raise ImportError(
        f"boot needs oneDNN and found no {SONAME}: run 'pip install {WHEEL}==2023.1.0', or set "
        f"ONEDNN_ROOT to a folder that holds lib/{SONAME} (oneDNN 3.1 or newer)"
    )


@contextmanager
def _short_spins() -> Iterator[None]:
    """Have OpenMP, which is loaded with the library, wait at barriers briefly before it sleeps.

    By default its threads spin for milliseconds. Where another process shares the cores, each
    barrier then burns a time slice of the thread it waits for: measured, training is 10 to 50 times
    slower. libgomp reads these variables only while it is loaded, so they are put back at once; a
    choice of the user's is left alone.
    """
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


def _places() -> Iterator[Path]:
    """Files to try, in this order; the cheap guesses come before reading package metadata."""
    package = Path(__file__).resolve().parent
    record = package / ROOT_RECORD
    root = os.environ.get("ONEDNN_ROOT")
    if root:
        yield from (Path(root, folder, SONAME) for folder in ("lib", "lib64"))
    if record.is_file():
        yield Path(record.read_text(encoding="utf-8").strip())
    # <prefix>/lib/pythonX.Y/site-packages/boot, then the same under lib64.
    yield from (folder / SONAME for folder in package.parents[2:3])
    yield from (folder / "lib" / SONAME for folder in package.parents[3:4])
    yield Path(sys.prefix, "lib", SONAME)
    if site.ENABLE_USER_SITE and site.USER_BASE:
        yield Path(site.USER_BASE, "lib", SONAME)
    yield from _files_of_wheel()


def _files_of_wheel() -> Iterator[Path]:
    """The library according to the wheel's own file list."""
    import importlib.metadata  # slow to import, and rarely needed

    try:
        files = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name == SONAME:
            yield Path(str(file.locate()))
