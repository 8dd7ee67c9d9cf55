"""LiteLLM, where it is installed."""

from __future__ import annotations

import pytest
from lariat import LLM, SamplingParams

from tests.support.servers import NAME, Running

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of its own types
litellm = pytest.importorskip("litellm")


def test_an_answer_and_a_stream(server: Running, llm: LLM) -> None:
    asked = {
        "model": f"openai/{NAME}", "api_base": server.base_url, "api_key": "none",
        "messages": [{"role": "user", "content": "Once upon a time"}], "temperature": 0,
        "max_tokens": 6,
    }  # fmt: skip
    expected = llm.generate("Once upon a time", SamplingParams(temperature=0, max_tokens=6)).text
    assert litellm.completion(**asked).choices[0].message.content == expected
    chunks = litellm.completion(**asked, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected
