"""The house rules that a grep can keep: dependencies point one way, files are short and say why."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC, PACKAGE = ROOT / "csrc", ROOT / "boot"

# What a layer of the C core may include, besides itself.
MAY_INCLUDE = {
    "base": set(),
    "ops": {"base"},
    "net": {"base", "ops"},
    "diffusion": {"base"},
    "optim": {"base"},
    "python": {"base", "ops", "net", "diffusion", "optim"},
}

# The package, a layer a line: a module imports only from lines further up.
LAYERS = [
    line.split()
    for line in """
    _version errors interrupts _onednn htmlparts threads locks
    charts choices
    curves
    __init__
    _core sizes
    files noise reading distances scheduler_config unet_config options learning_rate
    kernel_cache
    combinations
    config metrics safetensors_io unet_keys image_model
    network presets schedule
    diffusers_io guidance flags
    continuous callable_model signal_ode inputs images targets correction
    samplers draws moments
    teacher model_card student_info
    critic export resolve offload
    refine
    student callbacks probe student_init toy
    early_stopping
    manifest
    checkpoint calls
    resume plan
    steps check
    evaluation describe latent
    pairs
    report
    fit
    distiller
    demo
    cli
    __main__
    """.strip().splitlines()
]
RANK = {module: i for i, line in enumerate(LAYERS) for module in line}

pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="needs the source tree")

C_FILES = sorted(f for f in CSRC.glob("*/*") if f.suffix in {".c", ".h", ".inc", ".def"})
PYTHON_FILES = sorted(
    f
    for folder in ("boot", "tests", "benchmarks", "examples")
    for f in (ROOT / folder).rglob("*.py")
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_comments(text: str) -> str:
    """C source with comments and string literals blanked."""
    pattern = r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"'
    return re.sub(pattern, lambda m: '""' if m[0][0] == '"' else " ", text, flags=re.S)


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), flags=re.M)


def test_there_is_something_to_check():
    assert {f.parent.name for f in C_FILES} == set(MAY_INCLUDE)
    assert len(C_FILES) > 30
    assert len(PYTHON_FILES) > 15


@pytest.mark.parametrize("path", C_FILES, ids=name_of)
def test_c_layers_point_one_way(path):
    layer = path.parent.name
    for included in includes(path):
        target = included.split("/")[0]
        if (CSRC / included).exists():
            assert target == layer or target in MAY_INCLUDE[layer], included
        else:  # a system header: no relative paths, no quotes around ours that do not exist
            assert not included.startswith("."), included
            assert target not in MAY_INCLUDE, f"{included} does not exist"


@pytest.mark.parametrize("path", C_FILES, ids=name_of)
def test_python_and_numpy_headers_stay_in_the_glue(path):
    if path.parent.name != "python":
        for included in includes(path):
            assert included != "Python.h" and not included.startswith("numpy/"), included


@pytest.mark.parametrize("path", C_FILES, ids=name_of)
def test_only_base_and_calling_ops_know_onednn(path):
    layer, code = path.parent.name, without_comments(path.read_text())
    may_call = layer == "base" or (layer == "ops" and "dnnl" in path.name)
    direct = [i for i in includes(path) if "dnnl" in i and not (CSRC / i).exists()]
    assert layer == "base" or not direct, direct
    calls = re.findall(r"(?<![\w])dnnl_\w+(?=\s*\()", code)
    assert may_call or not calls, calls


@pytest.mark.parametrize("path", C_FILES, ids=name_of)
def test_the_core_never_prints_or_exits(path):
    code = without_comments(path.read_text())
    forbidden = (
        r"\b(printf|fprintf|vprintf|vfprintf|puts|putchar|fputs|perror|exit|_exit|abort)\s*\("
    )
    assert not re.findall(forbidden, code)
    assert not re.findall(r"\b(setjmp|longjmp|signal|raise)\s*\(", code)
    if path.name != "memory.c":
        assert not re.findall(r"\b(malloc|calloc|realloc|free|alloca)\s*\(", code), (
            "use base/memory.h"
        )


@pytest.mark.parametrize(
    "path", [f for f in C_FILES if f.suffix != ".def"] + PYTHON_FILES, ids=name_of
)
def test_the_first_line_says_what_the_file_is_for(path):
    first = path.read_text().split("\n", 1)[0]
    if path.suffix == ".py":
        assert re.match(r'(#|"""|r""").{15,}', first), first
    else:
        assert first.startswith(f"/* {path.name}: ") and len(first) > len(path.name) + 20, first


@pytest.mark.parametrize("path", C_FILES + PYTHON_FILES, ids=name_of)
def test_files_are_short(path):
    lines = path.read_text().count("\n")
    assert lines <= 400, f"{lines} lines"


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


@pytest.mark.parametrize("path", PYTHON_FILES, ids=name_of)
def test_python_functions_are_short(path):
    for function in functions(ast.parse(path.read_text())):
        length = (function.end_lineno or 0) - function.lineno + 1
        assert length <= 60, f"{function.name}: {length} lines"


# -------------------------------------------------------------------------------- the package


def imported_modules(path: Path) -> set[str]:
    """Modules of `boot` that a file imports when it runs (not those for type checkers only)."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            if node.module == "boot":  # from boot import x: a module, or a name of __init__
                names = [f"boot.{alias.name}" for alias in node.names]
            else:
                names = [node.module or ""]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "boot":
                inner = parts[1] if len(parts) > 1 else "__init__"
                found.add(inner if inner in RANK else "__init__")
    return found


def test_every_module_is_in_the_list():
    assert {f.stem for f in PACKAGE.glob("*.py")} <= set(RANK)


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=name_of)
def test_modules_import_only_from_above(path):
    for other in imported_modules(path):
        assert RANK[other] < RANK[path.stem], f"{path.stem} imports {other}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=name_of)
def test_the_package_does_not_need_torch(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        roots = {name.split(".")[0] for name in names}
        assert not roots & {"torch", "diffusers", "transformers", "tests"}, roots
