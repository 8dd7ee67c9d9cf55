"""Real prose that lies on any machine with Python."""

from __future__ import annotations

import ast
import sysconfig
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

_MIN_CHARACTERS = 150  # of a paragraph that is prose


@cache
def prose() -> list[str]:
    """Paragraphs of the standard library's docstrings and of pydoc's topics, in a fixed order."""
    texts = [topics[name] for name in sorted(topics)]
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                texts.append(ast.get_docstring(node) or "")
    found = {}
    for text in texts:
        for paragraph in text.split("\n\n"):
            words = " ".join(paragraph.split())
            is_sentence = paragraph[:1].isupper() and words.endswith(".")
            if is_sentence and len(words) >= _MIN_CHARACTERS:
                found[words] = None
    return list(found)
