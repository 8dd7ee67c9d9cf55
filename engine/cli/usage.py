"""The parser of the command line. The configuration classes check the values of flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, TypeVar

_Config = TypeVar("_Config")


class UsageError(Exception):
    """The command line asks for something that is not possible."""


class Parser(argparse.ArgumentParser):
    """Reports errors as one sentence. Flags cannot be abbreviated, as in llama.cpp."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, instead of printing the usage and exiting."""
        raise UsageError(f"{message} (see {self.prog} --help)")


class Flag(NamedTuple):
    """A flag that fills one field of a configuration class, and has the default of that field."""

    names: tuple[str, ...]
    field: str
    type: Callable[[str], Any]
    metavar: str
    help: str


def add_flags(
    group: argparse._ArgumentGroup,
    flags: tuple[Flag, ...],
    config: type[Any],
    *,
    of_file: bool = False,
    **defaults: Any,
) -> None:
    """Add flags with the defaults of the class `config`, or with `defaults`, by field name.

    With `of_file` the model's file may have other values, so a flag that is not given is None.
    """
    for flag in flags:
        default = defaults.get(flag.field, getattr(config, flag.field))
        shown = "" if default is None else f" (default: {default})"
        if of_file:
            shown, default = f" (default: the file's, or {default})", None
        group.add_argument(
            *flag.names,
            dest=flag.field,
            type=flag.type,
            metavar=flag.metavar,
            default=default,
            help=flag.help + shown,
        )


def checked(
    config: type[_Config], flags: tuple[Flag, ...], args: argparse.Namespace, **more: Any
) -> _Config:
    """An instance of `config` with the values of the flags, and `more`.

    A flag that is None was not given, so the default of `config` holds. Raises UsageError that
    names the flag at fault.
    """
    values = {f.field: getattr(args, f.field) for f in flags if getattr(args, f.field) is not None}
    for flag in flags:
        try:
            config(**{name: value for name, value in values.items() if name == flag.field})
        except ValueError as error:
            raise UsageError(f"argument {'/'.join(flag.names)}: {error}") from None
    try:
        return config(**values, **more)
    except ValueError as error:
        raise UsageError(str(error)) from None
