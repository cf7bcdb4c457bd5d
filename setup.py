"""Builds the C core `boot._core` against oneDNN and NumPy; everything else is in pyproject.toml.

oneDNN 3.x is taken from the wheels that pyproject.toml names (headers and library are found through
the wheels' own file lists), or from the folder named by ONEDNN_ROOT. Environment switches:
BOOT_DEBUG=1 (-O0 -g), BOOT_SANITIZE=1 (address, undefined), BOOT_COVERAGE=1 (gcov), BOOT_WERROR=1.
"""

from __future__ import annotations

import ctypes
import glob
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SONAME = "libdnnl.so.3"
WHEELS = {"headers": "onednn-devel-cpu-gomp", "library": "onednn-cpu-gomp"}
WHEEL_VERSION = "2023.1.0"
MINIMUM = (3, 1)
RUNTIME_SYCL = 0x200  # dnnl_runtime2 value of a SYCL (DPC++) engine in dnnl_version()
ROOT_RECORD = "boot/onednn.path"  # beside the core if that was built against ONEDNN_ROOT

SOURCES = sorted(glob.glob("csrc/**/*.c", recursive=True))
HEADERS = sorted(
    path for end in ("h", "inc", "def") for path in glob.glob(f"csrc/**/*.{end}", recursive=True)
)
COMPILE_ARGS = [
    "-std=gnu11",
    "-O3",
    "-fopenmp",
    "-fvisibility=hidden",
    "-fno-wrapv",  # Python's flags say the opposite: loops are unrolled late then, or never
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
]
LINK_ARGS = ["-fopenmp"]
SWITCHES = {  # environment variable -> (compile flags, link flags)
    "BOOT_DEBUG": (["-O0", "-g", "-UNDEBUG"], []),
    "BOOT_SANITIZE": (
        [
            *["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"],
            "-fno-sanitize-recover=all",  # a process that goes on hides what it said
        ],
        ["-fsanitize=address,undefined"],
    ),
    "BOOT_COVERAGE": (["-O1", "-g", "--coverage", "-fprofile-update=atomic"], ["--coverage"]),
    "BOOT_WERROR": (["-Werror"], []),
}
# The wheel puts libdnnl.so.3 into <prefix>/lib; the core lies in <prefix>/lib/pythonX.Y/
# site-packages/boot, or under lib64 where a distribution says so.
RPATHS = ["$ORIGIN/../../..", "$ORIGIN/../../../../lib"]


def fail(sentence: str) -> NoReturn:
    """End the build with one sentence: SystemExit, so that no front end adds a traceback."""
    raise SystemExit(f"boot cannot be built: {sentence}")


class OneDNN(NamedTuple):
    """Where the headers and the library are, and which version they say they are."""

    include: Path
    library: Path
    version: str
    root: Path | None  # the folder named by ONEDNN_ROOT, None for the wheels


class LibraryVersion(ctypes.Structure):
    """What dnnl_version() points to."""

    _fields_ = [
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
        ("patch", ctypes.c_int),
        ("hash", ctypes.c_char_p),
        ("cpu_runtime", ctypes.c_uint),
        ("gpu_runtime", ctypes.c_uint),
    ]


def file_of_wheel(wheel: str, ending: str) -> Path | None:
    """The installed file of `wheel` whose path ends so, or None."""
    try:
        files = importlib.metadata.files(wheel) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.as_posix().endswith(ending):
            path = Path(str(file.locate())).resolve()
            return path if path.is_file() else None
    return None


def find_onednn() -> OneDNN:
    """Headers and library from ONEDNN_ROOT or the wheels, checked; fails with one sentence."""
    root = Path(os.environ["ONEDNN_ROOT"]).absolute() if os.environ.get("ONEDNN_ROOT") else None
    if root:
        header: Path | None = root / "include/oneapi/dnnl/dnnl.h"
        folders = ["lib", "lib64", f"lib/{sysconfig.get_config_var('MULTIARCH')}"]
        library = next((p for f in folders if (p := root / f / SONAME).is_file()), None)
        remedy = f"ONEDNN_ROOT is {root}: it must hold include/oneapi/dnnl/ and lib/{SONAME}"
    else:
        header = file_of_wheel(WHEELS["headers"], "include/oneapi/dnnl/dnnl.h")
        library = file_of_wheel(WHEELS["library"], f"/{SONAME}")
        remedy = "'pip install " + " ".join(f"{w}=={WHEEL_VERSION}" for w in WHEELS.values())
        remedy += "' gives both, or set ONEDNN_ROOT to an installed oneDNN >= 3.1"
    if header is None or not header.is_file():
        fail(f"the oneDNN headers are missing ({remedy}).")
    include = header.parents[2]
    version = header_version(include)
    if library is None:
        fail(f"the oneDNN library {SONAME} is missing ({remedy}).")
    check_library(library, version)
    return OneDNN(include, library, ".".join(map(str, version)), root)


def header_version(include: Path) -> tuple[int, ...]:
    """Version from the headers; fails on a 2.x oneDNN and on one whose CPU side runs on SYCL."""
    folder = include / "oneapi/dnnl"
    text = "".join(
        (folder / name).read_text(errors="replace")
        for name in ("dnnl_version.h", "dnnl_config.h")
        if (folder / name).is_file()
    )
    found = [re.search(rf"define DNNL_VERSION_{p}\s+(\d+)", text) for p in ("MAJOR", "MINOR")]
    if None in found:
        fail(f"{folder} holds no oneDNN version.")
    version = tuple(int(match.group(1)) for match in found if match)
    if not MINIMUM <= version < (4,):
        fail(f"oneDNN {version[0]}.{version[1]} in {include}: boot needs 3.x, 3.1 or newer.")
    if re.search(r"define DNNL_CPU_RUNTIME\s+DNNL_RUNTIME_(SYCL|DPCPP)", text):
        fail(f"the oneDNN in {include} is a SYCL build: boot needs one with the OpenMP runtime.")
    return version


def check_library(library: Path, version: tuple[int, ...]) -> None:
    """Load the library and compare it with the headers: a mixed pair fails late and obscurely."""
    try:
        loaded = ctypes.CDLL(str(library))
        loaded.dnnl_version.restype = ctypes.POINTER(LibraryVersion)
        found = loaded.dnnl_version().contents
    except (OSError, AttributeError) as error:
        fail(f"the oneDNN library {library} does not load ({error}).")
    if found.cpu_runtime == RUNTIME_SYCL:
        fail(f"{library} is a SYCL build of oneDNN: boot needs one with the OpenMP runtime.")
    if (found.major, found.minor) != version:
        fail(
            f"{library} is oneDNN {found.major}.{found.minor}, but its headers are of "
            f"{version[0]}.{version[1]}: install both from one release."
        )


def numpy_archives(numpy: Path) -> list[str]:
    """NumPy's distributions for C, and what they call; fails if the package holds none."""
    archives = [numpy / "random/lib/libnpyrandom.a", numpy / "_core/lib/libnpymath.a"]
    for archive in archives:
        if not archive.is_file():
            fail(f"{archive} is missing: NumPy's wheels hold it (pip install 'numpy>=2').")
    return [str(archive) for archive in archives]


class BuildCore(build_ext):
    """build_ext that probes oneDNN and the compiler and compiles changed files in parallel."""

    def build_extensions(self) -> None:
        """Probe, fill in the one Extension, and build it."""
        import numpy as np  # a build requirement: present here, not when metadata is read

        (core,) = self.extensions
        onednn = find_onednn()
        flags, links = list(COMPILE_ARGS), list(LINK_ARGS)
        for switch, (compile_flags, link_flags) in SWITCHES.items():
            if os.environ.get(switch, "0") not in ("", "0"):
                flags += compile_flags
                links += link_flags
        compiler = self.check_compiler()
        rpaths = [str(onednn.library.parent)] if onednn.root else RPATHS
        core.include_dirs += [str(onednn.include), np.get_include()]
        core.extra_compile_args = flags
        core.extra_link_args = [*links, *(f"-Wl,-rpath,{path}" for path in rpaths)]
        core.extra_link_args += ["-Wl,--exclude-libs,ALL"]  # NumPy's stay inside
        core.extra_objects = [str(onednn.library), *numpy_archives(Path(np.__file__).parent)]
        core.libraries = ["m"]
        core.define_macros += [
            ("BOOT_VERSION", f'"{self.distribution.get_version()}"'),
            ("BOOT_COMPILER", f'"{compiler}"'),
            ("BOOT_FLAGS", f'"{" ".join(flags)}"'),
        ]
        # One object folder per set of flags, so that switching builds recompiles nothing twice and
        # mixes nothing. Paths stay out of the key: those of an isolated build change every time.
        key = repr((self.compiler.compiler_so, core.define_macros, onednn.version, np.__version__))
        digest = hashlib.sha256(key.encode()).hexdigest()
        self.build_temp = os.path.join(self.build_temp, digest[:8])
        self.compile_serially = self.compiler.compile
        self.compiler.compile = self.compile_changed
        # Always link, or a core with other flags would stay. compile_changed decides on compiling.
        self.force = self.compiler.force = True
        super().build_extensions()
        self.record_root(onednn)

    def check_compiler(self) -> str:
        """Name and version of the C compiler; fails with a sentence if it cannot do the job."""
        command = self.compiler.compiler_so
        if shutil.which(command[0]) is None:
            # The compiler that built this Python is not here: any other will do.
            other = next((c for c in ("gcc", "cc", "clang") if shutil.which(c)), None)
            if other is None or os.environ.get("CC"):
                fail(f"there is no C compiler '{command[0]}' (Debian, Ubuntu: apt install gcc).")
            for tool in ("compiler", "compiler_so", "linker_so"):
                getattr(self.compiler, tool)[0] = other
        probe = "#include <Python.h>\n#include <omp.h>\nint main(void) { return 0; }\n"
        include = [f"-I{path}" for path in self.compiler.include_dirs]
        with tempfile.TemporaryDirectory() as folder:
            result = subprocess.run(
                [*command, *include, "-fopenmp", "-x", "c", "-", "-c", "-o", f"{folder}/probe.o"],
                input=probe,
                capture_output=True,
                text=True,
            )
        if result.returncode:
            reason = next(
                (s for s in result.stderr.splitlines() if "error" in s), "no reason given"
            )
            fail(
                f"the compiler '{command[0]}' cannot build a Python extension with OpenMP: "
                f"{reason.strip()} (Debian, Ubuntu: apt install gcc libc6-dev python3-dev)."
            )
        version = subprocess.run([command[0], "--version"], capture_output=True, text=True).stdout
        return re.sub(r'["\\]', "", version.splitlines()[0]) if version else command[0]

    def compile_changed(self, sources: list[str], **options: Any) -> list[str]:
        """Compile, in parallel, each source whose object is older than it or than any header."""
        headers = max(os.path.getmtime(path) for path in HEADERS) if HEADERS else 0.0

        def compile_one(source: str) -> str:
            (made,) = self.compiler.object_filenames([source], output_dir=options.get("output_dir"))
            newest = max(os.path.getmtime(source), headers)
            if not os.path.exists(made) or os.path.getmtime(made) <= newest:
                self.compile_serially([source], **options)
            return made

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return list(pool.map(compile_one, sources))

    def record_root(self, onednn: OneDNN) -> None:
        """Write down beside the core, for boot/_onednn.py, a library that is not the wheel's."""
        record = Path(self.build_lib, ROOT_RECORD)
        record.unlink(missing_ok=True)
        if onednn.root:
            record.write_text(f"{onednn.library}\n", encoding="utf-8")

    def copy_extensions_to_source(self) -> None:
        """For --inplace and editable builds: the record goes where the core goes."""
        super().copy_extensions_to_source()
        record = Path(self.build_lib, ROOT_RECORD)
        Path(ROOT_RECORD).unlink(missing_ok=True)
        if record.is_file():
            shutil.copyfile(record, ROOT_RECORD)


setup(
    ext_modules=[Extension("boot._core", SOURCES, include_dirs=["csrc"], depends=HEADERS)],
    cmdclass={"build_ext": BuildCore},
)
