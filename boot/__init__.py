"""boot: turns a trained diffusion model into a generator that needs one network call, without data.

Start with `boot.Distiller(teacher_folder).fit()`, then `distiller.student.sample(16)`. Everything
named here is imported on first use, so that `import boot` is quick.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from boot._version import __version__

if TYPE_CHECKING:
    from boot._core import get_num_threads, set_num_threads, show_config
    from boot.callbacks import Callback, History
    from boot.config import DistillConfig
    from boot.continuous import (
        CosineSchedule,
        EDMSchedule,
        FlowSchedule,
        LinearSchedule,
        TrigFlowSchedule,
    )
    from boot.distiller import Distiller
    from boot.early_stopping import EarlyStopping
    from boot.errors import (
        BootError,
        BootWarning,
        CheckpointError,
        ConfigError,
        FormatError,
        ResumeMismatch,
        TeacherError,
        TrainingDiverged,
        UnsupportedModel,
    )
    from boot.schedule import Schedule
    from boot.scheduler_config import SchedulerConfig
    from boot.student import Student
    from boot.teacher import Teacher

# Public name -> the module it is imported from on first use.
_EXPORTS = {
    "Distiller": "distiller",
    "Teacher": "teacher",
    "Student": "student",
    "DistillConfig": "config",
    "Callback": "callbacks",
    "History": "callbacks",
    "EarlyStopping": "early_stopping",
    "Schedule": "schedule",
    "SchedulerConfig": "scheduler_config",
    "CosineSchedule": "continuous",
    "LinearSchedule": "continuous",
    "EDMSchedule": "continuous",
    "FlowSchedule": "continuous",
    "TrigFlowSchedule": "continuous",
    "show_config": "_core",
    "set_num_threads": "_core",
    "get_num_threads": "_core",
    **dict.fromkeys(
        (
            "BootError",
            "BootWarning",
            "CheckpointError",
            "ConfigError",
            "FormatError",
            "ResumeMismatch",
            "TeacherError",
            "TrainingDiverged",
            "UnsupportedModel",
        ),
        "errors",
    ),
}

__all__ = [  # noqa: RUF022 - in the order of use
    "Distiller",
    "Teacher",
    "Student",
    "DistillConfig",
    "Callback",
    "History",
    "EarlyStopping",
    "Schedule",
    "SchedulerConfig",
    "CosineSchedule",
    "LinearSchedule",
    "EDMSchedule",
    "FlowSchedule",
    "TrigFlowSchedule",
    "show_config",
    "set_num_threads",
    "get_num_threads",
    "BootError",
    "BootWarning",
    "CheckpointError",
    "ConfigError",
    "FormatError",
    "ResumeMismatch",
    "TeacherError",
    "TrainingDiverged",
    "UnsupportedModel",
    "__version__",
]


def _load_core() -> Any:
    """Import the C core after the library that it needs, and give it the default threads, once."""
    if "boot._core" in sys.modules:
        return sys.modules["boot._core"]
    from boot._onednn import load
    from boot.threads import default_threads

    load()
    try:
        core: Any = importlib.import_module("boot._core")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the C core of boot is not built in {__path__[0]!r}: this is the source tree; "
            "run 'pip install .' and leave this folder, or 'pip install -e .'"
        ) from error
    threads = default_threads()
    if threads is not None:
        core.set_num_threads(threads)
    return core


def __getattr__(name: str) -> Any:
    """Import a public name, or the C core after the library that it needs, on first use."""
    if name == "_core":
        return _load_core()
    if name not in _EXPORTS:
        raise AttributeError(f"module 'boot' has no attribute {name!r}")
    # The core is asked for through its function, never imported directly.
    module = _load_core() if _EXPORTS[name] == "_core" else None
    module = module or importlib.import_module(f"boot.{_EXPORTS[name]}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
