"""Runs entry points of the core with their n-th allocation failing, n = 1, 2, ... until they pass.

`LD_PRELOAD=alloc.so python tests/fault/sweep.py [--python] [--without=NAME] [NAME ...]`: a line of
JSON per entry point. Each failing call must raise MemoryError; the object must then compute what an
undisturbed one does; and once it is gone, as many core blocks must be alive as before. Every n is
tried twice: with that one allocation failing, and with every later one failing too. With --python
the failing allocations are the interpreter's (PyMem), inside the same calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from cases import CASES, attrs_of, make_inputs
from models import ADAMW, CONFIG, LEAST, make, make_teacher, noise, pin_like, save_teacher

from boot import _core
from boot.network import Network
from boot.student import Student
from boot.teacher import Teacher

MOST = 20_000  # no entry point comes near so many allocations
X, X1, DY = noise(2), noise(1), noise(2, seed=2)
LABELS = np.array([0, 1])
CORE_CONFIG = CONFIG.to_core()
IMAGES, PER_IMAGE = noise(3), np.linspace(0.1, 0.9, 3)
KERNELS: dict[str, str] = {}  # of `network()`, once timed: pinned, so that results are comparable

DISTILLER: list[Any] = []  # one that has timed its kernels

Call = Callable[[], Any]


def network(pinned: bool = True) -> Any:
    """A small class-conditional network of the core with fixed weights."""
    core = Network(CONFIG).core
    core.weights[:] = np.random.default_rng(5).standard_normal(core.weights.size) * 0.05
    core.weights_changed()
    if pinned:
        core.pin_kernels(KERNELS)
    return core


def forward(core: Any, x: Any = X, train: bool = False) -> Any:
    """One call, with times and labels that fit."""
    return core.forward(x, np.full(len(x), 500.0), LABELS[: len(x)], train=train)


def train(core: Any) -> Any:
    """Forward and backward; the gradients."""
    forward(core, train=True)
    core.backward(DY)
    return core.grads.copy()


def bound(function: Callable[[Any], Any], **options: Any) -> Callable[[], Call]:
    """An entry point on a fresh network."""

    def make_call() -> Call:
        core = network(**options)
        return lambda: function(core)

    return make_call


def second_size() -> Call:
    """Forward of another size than the arena has."""
    core, larger = network(), noise(2, size=16)
    forward(core, X1)
    return lambda: forward(core, larger)


def packed(kernel: str) -> Callable[[], Call]:
    """The second forward with packed weights kept, which packs: attention of one head and all."""

    def make_call() -> Call:
        core = Network(dataclasses.replace(CONFIG, attention_head_dim=None)).core
        core.weights[:] = np.random.default_rng(5).standard_normal(core.weights.size) * 0.05
        core.configure(keep_packed=True)
        forward(core, X1)
        able = [key for key, _, _ in core.kernels if " s1 " in key and "doubled" not in key]
        core.pin_kernels(dict.fromkeys(able, kernel))
        forward(core, X1)
        return lambda: forward(core, X1)

    return make_call


def shared() -> Call:
    """Another network grows the arena that a pending backward lives in."""
    core, other = network(), network()
    other.share_arena(core)
    expected = train(network())

    def call() -> Any:
        forward(core, train=True)
        try:
            big = forward(other, noise(2, size=32))
        finally:  # backward is refused, or right if the other one failed before it took the arena
            with contextlib.suppress(RuntimeError):
                core.backward(DY)
                assert same(core.grads.copy(), expected), "backward ran on memory given away"
        return big

    return call


def operation(case: Any, backward: bool) -> Callable[[], Call]:
    """One operation on one set of shapes."""
    inputs, attrs = make_inputs(case), attrs_of(case)
    if not backward:
        return lambda: lambda: _core.op_forward(case.op, inputs, attrs)
    dy = np.ones_like(_core.op_forward(case.op, inputs, attrs))
    return lambda: lambda: list(_core.op_backward(case.op, inputs, attrs, dy).values())


def optimiser() -> Call:
    """One step of AdamW; the state is not changed by a failure."""
    state = [np.full(5000, v, np.float32) for v in (0.5, 0.1, 0.0, 0.0, 0.5)]

    def call() -> Any:
        _core.adamw_step(*state, **ADAMW)
        return state[0].copy()

    return call


def distiller_step() -> Call:
    """A whole training step."""
    distiller = make(LEAST)
    if DISTILLER:
        pin_like(distiller, DISTILLER[0])
    else:
        distiller.step()
        DISTILLER.append(distiller)

    def call() -> Any:
        return distiller.step()["step"] > 0

    return call


def sampling() -> Call:
    """Two steps of a teacher."""
    teacher = make_teacher(LEAST)
    return lambda: teacher.sample(2, num_inference_steps=2)


def loading(folder: Path) -> Call:
    """A teacher from its folder, and one call of it."""
    return lambda: Teacher.from_pretrained(folder).model.weights.copy()


def save(folder: Path) -> Call:
    """A student to a folder and back."""
    if not folder.exists():
        make(LEAST).student.save_pretrained(folder)
    return lambda: Student.from_pretrained(folder).model.weights.copy()


def entry_points() -> dict[str, Callable[[], Call]]:
    """{name: function that makes a fresh call}."""
    folder = Path(tempfile.mkdtemp())
    teacher = save_teacher(folder / "teacher", LEAST)
    points: dict[str, Callable[[], Call]] = {
        "create": lambda: lambda: _core.UNet2D(CORE_CONFIG).weights.size,
        "grads": bound(lambda core: core.grads.size),
        "parameters": bound(lambda core: len(core.parameters)),
        "weights": bound(lambda core: core.weights.copy()),
        "kernels": bound(lambda core: len(core.kernels)),
        "plan": bound(lambda core: core.plan(2, 8, 8, False)["peak_bytes"]),
        "plan_train": bound(lambda core: core.plan(2, 8, 8, True)["peak_bytes"]),
        "forward": bound(forward),
        "forward_timing": bound(forward, pinned=False),
        "second_size": second_size,
        "packed": packed("winograd"),
        "packed_direct": packed("direct"),
        "train": bound(train),
        "shared": shared,
        "profile": bound(lambda core: len(core.profile(1, 8, 8, True, 1))),
        "pin_kernels": bound(lambda core: core.pin_kernels({f"k{i}": "direct" for i in range(99)})),
        "adamw_step": optimiser,
        "weighted_mse": lambda: lambda: _core.weighted_mse(IMAGES, -IMAGES, PER_IMAGE)[1],
        "diffuse": lambda: lambda: _core.diffuse(IMAGES, IMAGES, PER_IMAGE, PER_IMAGE),
        "guide": lambda: lambda: _core.guide(IMAGES, IMAGES, PER_IMAGE),
        "signal_step": lambda: lambda: _core.signal_step(IMAGES, IMAGES, PER_IMAGE),
        "signal_step_heun": lambda: (
            lambda: _core.signal_step_heun(IMAGES, IMAGES, IMAGES, PER_IMAGE)
        ),
        "signal_from_output": lambda: (
            lambda: _core.signal_from_output("epsilon", IMAGES, IMAGES, PER_IMAGE, PER_IMAGE, 1.0)
        ),
        "alphas_cumprod": lambda: lambda: _core.alphas_cumprod("linear", 9, 1e-4, 0.02, None, True),
        "bench_conv": lambda: (
            lambda: _core.bench_conv(1, 8, 8, 8, 8, 3, 1, 1, 1, "direct", 0, 1) > 0
        ),
        "show_config": lambda: lambda: len(_core.show_config()),
        "ops": lambda: lambda: len(_core.ops()),
        "conv_kernels": lambda: lambda: len(_core.conv_kernels()),
        "peak_array_bytes": lambda: lambda: _core.peak_array_bytes(IMAGES.copy)[0],
        "distiller_step": distiller_step,
        "sample": sampling,
        "load_teacher": lambda: loading(teacher),
        "load_student": lambda: save(folder / "student"),
    }
    for case in CASES:
        small = all(np.prod(shape) < 4000 for shape in case.shapes.values())
        if small and f"{case.op}_forward" not in points:
            points[f"{case.op}_forward"] = operation(case, False)
            if _core.ops()[case.op]["differentiable"]:
                points[f"{case.op}_backward"] = operation(case, True)
    return points


# ---------------------------------------------------------------------------------- the sweep


class CoreFaults:
    """The preloaded library: allocations that the core itself makes."""

    def __init__(self) -> None:
        """Tell it where the core's code lies."""
        self.library = ctypes.CDLL(None)
        self.library.fault_live.restype = self.library.fault_seen.restype = ctypes.c_long
        spans = [
            [int(part, 16) for part in line.split()[0].split("-")]
            for line in Path("/proc/self/maps").read_text().splitlines()
            if Path(_core.__file__).name in line
        ]
        low, high = min(span[0] for span in spans), max(span[1] for span in spans)
        self.library.fault_range(ctypes.c_size_t(low), ctypes.c_size_t(high))

    def arm(self, n: int, all_later: bool) -> None:
        """Fail allocation n, counted from now."""
        self.library.fault_arm(ctypes.c_long(n), int(all_later))

    def disarm(self, n: int) -> bool:
        """Stop failing; whether allocation n was reached."""
        seen: int = self.library.fault_seen()
        self.library.fault_arm(ctypes.c_long(0), 0)
        return seen >= n

    def live(self) -> int:
        """Blocks of the core that are not given back."""
        gc.collect()
        count: int = self.library.fault_live()
        return count


class PythonFaults:
    """The interpreter's own allocator, by the test module that comes with CPython."""

    def __init__(self) -> None:
        """Import it here: not every distribution has it."""
        import _testcapi

        self.hooks = _testcapi
        self.raised = False

    def arm(self, n: int, all_later: bool) -> None:
        """Fail the n-th allocation from now."""
        self.hooks.set_nomemory(n, 0 if all_later else n + 1)

    def disarm(self, n: int) -> bool:
        """Stop failing. Reached or not is told by the call: it is over when nothing is raised."""
        self.hooks.remove_mem_hooks()
        return False

    def live(self) -> int:
        """Not counted here: the interpreter keeps free lists."""
        return 0


def same(a: Any, b: Any) -> bool:
    """Equal results: bits for arrays (the kernels are pinned), 1e-4 where kernels are timed."""
    if isinstance(a, list):
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(np.allclose(a, b, rtol=1e-4, atol=1e-4)) if a is not None else b is None


def sweep(make_call: Callable[[], Call], faults: Any, all_later: bool) -> int:
    """Fail each allocation of the call in turn; how many there are. AssertionError if one harms."""
    expected = make_call()()
    before = faults.live()
    for n in range(1, MOST):
        call = make_call()
        problem = result = None
        faults.arm(n, all_later)
        try:
            result = call()
        except BaseException as error:
            problem = error
        reached = faults.disarm(n)
        if problem is not None and not isinstance(problem, MemoryError):
            raise AssertionError(f"allocation {n}: {problem!r} instead of MemoryError") from problem
        if problem is None and not reached:
            return n - 1
        problem = None  # its traceback holds the objects
        again = call()
        assert same(again, expected), f"allocation {n}: the object is damaged afterwards"
        del call, again, result
        alive = faults.live()
        assert alive == before, f"allocation {n}: {alive - before} blocks of the core leaked"
    raise AssertionError(f"more than {MOST} allocations")


def main(arguments: list[str]) -> int:
    """Sweep the named entry points (all of them without names); 1 if any failed."""
    python = "--python" in arguments
    faults = PythonFaults() if python else CoreFaults()
    core = network(pinned=False)
    for x in (X, X1, noise(2, size=16), noise(2, size=32)):
        forward(core, x)
    train(core)
    KERNELS.update({key: kernel for key, kernel, _ in core.kernels})
    del core
    points = entry_points()
    names = [a for a in arguments if not a.startswith("--")] or list(points)
    names = [name for name in names if f"--without={name}" not in arguments]
    failed = 0
    for name in names:
        report: dict[str, Any] = {"entry": name}
        try:
            report["once"] = sweep(points[name], faults, all_later=False)
            report["from_then_on"] = sweep(points[name], faults, all_later=True)
        except AssertionError as problem:
            report["problem"] = str(problem)
            failed += 1
        print(json.dumps(report), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
