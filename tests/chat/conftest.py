"""Models that several files of chat tests talk to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lariat import LLM

from tests.support.chats import N_VOCAB
from tests.support.model_files import chat_metadata, write_llama


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "chat.gguf"
    return write_llama(path, n_vocab=N_VOCAB, n_ctx=512, metadata=chat_metadata(N_VOCAB))


@pytest.fixture(scope="module", params=["raw", "roped"])
def llm(path: Path, request: pytest.FixtureRequest) -> Iterator[LLM]:
    with LLM(path, cache=request.param, type_k="f32", type_v="f32", n_threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def raw(path: Path) -> Iterator[LLM]:
    with LLM(path, cache="raw", type_k="f32", type_v="f32", n_threads=1) as llm:
        yield llm
