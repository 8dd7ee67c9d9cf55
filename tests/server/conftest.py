from __future__ import annotations

from collections.abc import Iterator

import pytest
from lariat import DEMO_MODEL, LLM

from tests.support.servers import Running, running


@pytest.fixture(scope="package")
def llm() -> Iterator[LLM]:
    with LLM(DEMO_MODEL, n_ctx=1024, n_threads=1) as llm:
        yield llm


@pytest.fixture(scope="package")
def server(llm: LLM) -> Iterator[Running]:
    with running(llm) as server:
        yield server
