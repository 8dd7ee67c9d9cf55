"""The program that renders chat templates, where Python does not know its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from lariat import ChatError, GGUFFile, Tokenizer
from lariat.chat import chat_template

from tests.support.model_files import chat_metadata, write_gguf

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def template(tmp_path: Path) -> chat_template.Jinja:
    with GGUFFile(write_gguf(tmp_path / "vocabulary.gguf", chat_metadata(300))) as gguf:
        source = "{{ messages[0]['role'] }}: {{ messages[0]['content'] }}"
        return chat_template.Jinja(source, Tokenizer.from_gguf(gguf))


@pytest.mark.parametrize("unknown", [None, ""])
def test_python_is_found_where_it_does_not_know_its_program(template, monkeypatch, unknown):
    """As in a program that Python is embedded in."""
    monkeypatch.setattr(sys, "executable", unknown)
    assert template.render(HELLO) == "user: hello"
    monkeypatch.setattr(sys, "exec_prefix", "/nowhere")
    assert template.render(HELLO) == "user: hello"


def test_without_any_python_it_is_an_error(template, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", None)
    monkeypatch.setattr(sys, "exec_prefix", "/nowhere")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ChatError, match="needs a Python program, and there is none on PATH"):
        template.render(HELLO)
