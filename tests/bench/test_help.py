"""`--help` of every command of bench/, models/ and release/, and of their parts."""

from __future__ import annotations

import argparse
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("bench", "models", "release")
    for path in (ROOT / folder).rglob("*.py")
    if "ArgumentParser(" in path.read_text(encoding="utf-8")
)


class Parsed(Exception):
    """Instead of what the command does."""


def helps(parser: argparse.ArgumentParser) -> list[str]:
    texts = [parser.format_help()]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for part in action.choices.values():
                texts += helps(part)
    return texts


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []

    def parse(parser: argparse.ArgumentParser, *_: object) -> None:
        found.extend(helps(parser))
        raise Parsed

    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    takes = inspect.signature(module.main).parameters
    with pytest.raises(Parsed):
        module.main([]) if takes else module.main()
    assert all("usage: " in text for text in found)
