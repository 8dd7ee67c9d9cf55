"""The parser, and how values of flags are checked: by the classes that will hold them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, TypeVar

_Config = TypeVar("_Config")


class UsageError(Exception):
    """The command line asks for something that makes no sense."""


class Parser(argparse.ArgumentParser):
    """Reports errors as one sentence, and takes no abbreviated flags (nor does llama.cpp)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError instead of printing the usage and leaving."""
        raise UsageError(f"{message} (see {self.prog} --help)")


class Flag(NamedTuple):
    """A flag that fills one field of a configuration class, whose default is its default."""

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
    """Add flags whose defaults are those given by field name, else those of the class `config`.

    With `of_file` a model's file may have others, so a flag that is not given is None.
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
    """An instance of `config` from the flags and `more`. UsageError names the flag at fault.

    A flag that is None was not given: the default of `config` holds.
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
