"""What the manifest of a checkpoint must hold, field by field: types, ranges, and that they agree.

Its own SHA-256 tells of damage, not of who wrote it: anybody can sign a manifest anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boot.callbacks import TrainState
from boot.config import MOST_STEPS
from boot.errors import CheckpointError, check_float, check_int, nearest_hint, shown, type_name
from boot.reading import to_json

FORMAT_VERSION = 1
STATE_FILE = "state.safetensors"
CONFIG_FILE = "config.json"

MOST_ITEMS = 50_000  # of JSON: hashing it takes five times as long as reading it
MOST_BAD_STEPS = 1000  # those of the last 1,000 steps are kept


def signed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with the SHA-256 of its own content, so that damage to it is noticed."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return {**content, "sha256": hashlib.sha256(to_json(content).encode()).hexdigest()}


def check_manifest(manifest: Mapping[str, Any], where: Path) -> None:
    """Raise CheckpointError, naming file and field, unless a run can be continued from this."""
    if dict(manifest) != signed(manifest):
        raise CheckpointError(f"{where} is damaged: it does not match its own SHA-256")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{where}: not a manifest of this version of boot")
    try:
        step = check_int("step", manifest.get("step"), 0, MOST_STEPS)
        for key in ("teacher", "layout"):
            _typed(manifest, key, str)
        files = _typed(manifest, "files", dict)
        if set(files) != {STATE_FILE, CONFIG_FILE}:
            raise ValueError(f"files must be {STATE_FILE} and {CONFIG_FILE}, got {shown(files)}")
        state = _typed(manifest, "state", dict)
        _check_counters(_typed(state, "counters", dict, "state."), step)
        _check_kernels(state, "state.")
    except (TypeError, ValueError) as problem:
        raise CheckpointError(f"{where}: {problem}") from None


def check_kernels(stored: Mapping[str, Any], where: Path) -> None:
    """Raise CheckpointError, naming file and field, unless these are kernel choices."""
    try:
        _check_kernels(stored, "")
    except (TypeError, ValueError) as problem:
        raise CheckpointError(f"{where}: {problem}") from None


def _typed(values: Mapping[str, Any], key: str, kind: type, inside: str = "") -> Any:
    if key not in values:
        raise ValueError(f"{inside}{key} is missing")
    if not isinstance(values[key], kind):
        found = f"{shown(values[key])} ({type_name(values[key])})"
        raise TypeError(f"{inside}{key} must be {kind.__name__}, got {found}")
    return values[key]


def _check_counters(counters: Mapping[str, Any], step: int) -> None:
    known = {item.name for item in dataclasses.fields(TrainState)}
    for name in counters:
        if name not in known:
            hint = nearest_hint(name, known)
            raise ValueError(f"state.counters.{shown(name)} is not a counter{hint}")
    if _counter(counters, "step", step) != step:
        raise ValueError(f"state.counters.step is {counters['step']}, but step is {step}")
    # Every step is an update or a skipped one; roll-backs take updates away.
    updates, skipped = _counter(counters, "updates", step), _counter(counters, "skipped", step)
    if updates + skipped > step:
        raise ValueError(
            f"state.counters.updates and skipped are {updates} and {skipped} of {step} steps"
        )
    _counter(counters, "bad_in_a_row", skipped)
    _counter(counters, "rollbacks", skipped)
    _counter(counters, "critic_updates", updates)
    bad_steps = _typed(counters, "bad_steps", list, "state.counters.")
    if len(bad_steps) > min(skipped, MOST_BAD_STEPS):
        raise ValueError(f"state.counters.bad_steps has {len(bad_steps)} entries")
    for i, bad in enumerate(bad_steps):
        check_int(f"state.counters.bad_steps[{i}]", bad, 1, step)
    check_float("state.counters.rate_factor", counters.get("rate_factor"), 0, 1, above=True)


def _counter(counters: Mapping[str, Any], name: str, most: int) -> int:
    _typed(counters, name, int, "state.counters.")
    return check_int(f"state.counters.{name}", counters[name], 0, most)


def _check_kernels(stored: Mapping[str, Any], inside: str) -> None:
    _typed(stored, "machine", dict, inside)
    for network, kernels in _typed(stored, "kernels", dict, inside).items():
        field = f"{inside}kernels.{shown(network, 40)}"
        if not isinstance(kernels, dict):
            raise TypeError(f"{field} must be dict, got {shown(kernels)} ({type_name(kernels)})")
        for name in kernels.values():
            if not isinstance(name, str):
                raise TypeError(f"{field} must map to words, got {shown(name)} ({type_name(name)})")
