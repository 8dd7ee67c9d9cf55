"""The parser of the command line. The configuration classes check the values of flags."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

from lariat.cli import console, llama_cpp_flags

_Config = TypeVar("_Config")
_MARK = ":"  # begins each value of `Text` on its way through argparse, which would drop "--"


class UsageError(Exception):
    """The command line asks for something that is not possible."""


class Parser(argparse.ArgumentParser):
    """Reports errors as one sentence. Flags are written in full, as in llama.cpp.

    argparse alone takes `-fa` for `-f a`. Here a flag is an argument of its own, and its value is
    the next argument or stands behind `=`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, instead of printing the usage and exiting."""
        raise UsageError(f"{message} (see {self.prog} --help)")

    def print_help(self, file: Any = None) -> None:
        """Write the help to standard output. Raises OutputError."""
        console.write(self.format_help())

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but no flag is split or guessed."""
        given = sys.argv[1:] if args is None else args
        return super().parse_known_args(list(self._prepared(given)), namespace)

    def _prepared(self, args: Sequence[str]) -> Iterator[str]:
        """The arguments, with values that begin with a dash joined to their flags.

        Ends with an error at an unknown flag.
        """
        flags = self._option_string_actions
        rest = iter(args)
        for arg in rest:
            if arg == "--" or (self._subparsers is not None and not arg.startswith("-")):
                yield arg
                yield from rest  # positional arguments, or those of the command
                return
            name, equals, value = arg.partition("=")
            action = flags.get(name)
            if action is None and _is_flag(arg):
                reason = llama_cpp_flags.reason(name)
                self.error(f"unrecognized argument {name}" + (reason and f": {reason}"))
            if action is None or action.nargs is not None:  # not a flag, or one without a value
                yield arg
                continue
            following = value if equals else next(rest, None)
            if following is None:
                yield arg
            elif isinstance(action, Text):
                yield f"{name}={_MARK}{following}"
            elif equals or _is_number(following):
                yield f"{name}={following}"
            else:
                yield from (name, following)


class Text(argparse.Action):
    """A flag whose value may be any text, even one that looks like a flag."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store the text."""
        setattr(namespace, self.dest, values.removeprefix(_MARK))


class Texts(Text):
    """The same for a flag that may be given several times; its default is a list."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Add the text to those before it."""
        texts = [*getattr(namespace, self.dest), values.removeprefix(_MARK)]
        setattr(namespace, self.dest, texts)


def _is_flag(arg: str) -> bool:
    # argparse takes an argument with a blank for a value too.
    return arg.startswith("-") and arg != "-" and " " not in arg and not _is_number(arg)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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
