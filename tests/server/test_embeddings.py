"""`/v1/embeddings`, with OpenAI's own client, which asks for base64."""

from __future__ import annotations

import numpy as np
import openai
import pytest
from lariat import LLM

from tests.support.servers import NAME, Running


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)


@pytest.mark.parametrize("form", [None, "float", "base64"])
def test_vectors_are_those_of_the_engine(client: openai.OpenAI, llm: LLM, form: str | None) -> None:
    more = {} if form is None else {"encoding_format": form}
    texts = ["Once upon a time", "One day", "One day"]
    answer = client.embeddings.create(model=NAME, input=texts, **more)  # type: ignore[call-overload]
    assert [item.index for item in answer.data] == [0, 1, 2]
    for item, text in zip(answer.data, texts, strict=True):
        vector = item.embedding
        if form == "base64":
            import base64

            vector = np.frombuffer(base64.b64decode(vector), "<f4")
        assert np.allclose(vector, llm.embed(text), atol=1e-6)
    assert answer.usage.prompt_tokens == sum(len(llm.tokenize(text)) for text in texts)


def test_the_last_token_and_other_lengths(server: Running, llm: LLM) -> None:
    ids = llm.tokenize("Once upon a time")
    body = {"input": ids, "pooling": "last", "normalize": False}
    (item,) = server.post("/v1/embeddings", body).json()["data"]
    assert np.allclose(item["embedding"], llm.embed(ids, "last", normalize=False), atol=1e-5)
    assert np.linalg.norm(item["embedding"]) > 1.5


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"input": []}, "input"),
        ({"input": [[]]}, None),
        ({"input": ["a", [999999]]}, "input[1]"),
        ({"dimensions": 7}, "dimensions"),
        ({"pooling": "max"}, "pooling"),
        ({"input": [[5] * 1025]}, None),
    ],
)
def test_what_cannot_be_a_vector_is_refused(
    server: Running, change: dict[str, object], field: str | None
) -> None:
    answer = server.post("/v1/embeddings", {"input": "a"} | change)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
