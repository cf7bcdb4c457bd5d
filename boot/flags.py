"""Command-line flags made from `DistillConfig`: one loop, no second list of settings.

Plain argparse and not a library: the ones that build flags from dataclasses do not offer
`--output-dir` for `output_dir`, help text from field metadata, and errors of one line together.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from boot.config import DistillConfig
from boot.errors import ConfigError, nearest_hint
from boot.options import Option
from boot.sizes import check_bytes


class UsageError(Exception):
    """A command line that cannot be understood; the message is one line."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are exceptions, for the caller to print in one line."""

    def __init__(self, **kwargs: Any) -> None:
        """Refuse abbreviations: a flag added later must not change what a script means."""
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(**kwargs)
        self._given: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Note the command line, for hints."""
        self._given = list(args or ())
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, with the nearest flag for an unknown one."""
        _, colon, rest = message.partition("unrecognized arguments: ")
        if colon:
            flag = rest.split()[0].split("=")[0]
            known = [text for action in self.every_action() for text in action.option_strings]
            message = f"unknown argument {flag}{nearest_hint(flag, known)}"
        raise UsageError(message)

    def every_action(self) -> list[argparse.Action]:
        """Return the actions of this parser and of the subcommand that was given."""
        actions = list(self._actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                names = [name for name in self._given if name in action.choices][:1]
                for name in names:
                    actions += action.choices[name]._actions
        return actions


def integer(text: str) -> int:
    """Read an integer, for `type=` of a flag."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from None


def integers(text: str) -> list[int]:
    """Read integers with commas between them."""
    return [integer(part) for part in text.split(",")]


def flag_of(name: str) -> str:
    """`output_dir` -> `--output-dir`."""
    return "--" + name.replace("_", "-")


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add one flag per setting; only those that are given appear in the parsed namespace."""
    group = parser.add_argument_group("settings")
    for option in DistillConfig.options():
        names = [flag_of(option.name)]
        if "_" in option.name:
            names.append(f"--{option.name}")  # the spelling of the diffusers scripts
        group.add_argument(
            *names,
            dest=option.name,
            type=_reader(option),
            default=argparse.SUPPRESS,
            metavar=_metavar(option),
            help=_help(option),
        )


def config_values(namespace: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given on the command line."""
    names = {option.name for option in DistillConfig.options()}
    return {name: value for name, value in vars(namespace).items() if name in names}


def _reader(option: Option) -> Callable[[str], Any]:
    words = {"true": True, "false": False}

    def read(text: str) -> Any:
        if option.optional and text.lower() == "none":
            return "none" if "none" in option.choices else None
        try:
            if option.unit == "bytes":
                return check_bytes(option.name, text)
            return words[text.lower()] if option.kind is bool else option.kind(text)
        except ConfigError as problem:
            raise argparse.ArgumentTypeError(str(problem)) from None
        except (ValueError, KeyError):
            kind = {int: "an integer", float: "a number", bool: "true or false"}[option.kind]
            none = " or none" if option.optional else ""
            raise argparse.ArgumentTypeError(f"must be {kind}{none}, got {text!r}") from None

    return read


def _metavar(option: Option) -> str:
    if option.choices:
        return "{" + ",".join(option.choices) + "}"
    if option.unit:
        return option.unit.upper()
    return {int: "N", float: "X", bool: "{true,false}", str: "PATH"}[option.kind]


def _help(option: Option) -> str:
    limits = []
    if option.lo is not None:
        limits.append(f"{'>' if option.above else '>='} {option.lo}")
    if option.hi is not None:
        limits.append(f"{'<' if option.below else '<='} {option.hi}")
    limit = f" ({', '.join(limits)})" if limits else ""
    return f"{option.help}{limit} [default: {option.default}]".replace("%", "%%")
