"""Some of the cases of each test, where all would take hours: under checks, or under an emulator.

As a plugin of pytest (`-p tests.support.some_cases`) it keeps as many cases of each test and
instruction set as LARIAT_CASES says; 0, or nothing, for all.
"""

from __future__ import annotations

import collections
import os
import zlib

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out cases of tests that have many."""
    leave_some(config, items, int(os.environ.get("LARIAT_CASES", "0")), at_each_level=True)


def leave_some(
    config: pytest.Config, items: list[pytest.Item], n: int, at_each_level: bool = False
) -> None:
    """Deselect all but `n` cases of each test, or of each test and instruction set; none for 0."""
    if n:
        drawn = set(some_cases(items, n, at_each_level))
        config.hook.pytest_deselected(items=[item for item in items if item not in drawn])
        items[:] = [item for item in items if item in drawn]


def some_cases(items: list[pytest.Item], n: int, at_each_level: bool = False) -> list[pytest.Item]:
    """At most `n` of the cases of each test, as `leave_some` counts them.

    They are drawn by their names, always the same; so drawing keeps no step with the order of
    parameters.
    """
    cases: dict[tuple[str, object], list[pytest.Item]] = collections.defaultdict(list)
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        level = parameters.get("isa") if at_each_level else None
        cases[item.nodeid.partition("[")[0], level].append(item)
    for of_one in cases.values():
        of_one.sort(key=lambda item: zlib.crc32(item.nodeid.encode()))
    return [item for of_one in cases.values() for item in of_one[:n]]
