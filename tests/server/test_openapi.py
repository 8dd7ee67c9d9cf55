"""The served OpenAPI document: it describes what is served, and no request from it is a 500."""

from __future__ import annotations

import json
from typing import Any

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from lariat import LLM
from lariat.server import openapi
from lariat.server.routes import ENDPOINTS

from tests.support.servers import Running

DOCUMENT = json.loads(openapi.document(ENDPOINTS))
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)


def test_every_route_is_described(server: Running) -> None:
    served = server.get("/openapi.json").json()
    assert served["paths"].keys() >= DOCUMENT["paths"].keys()
    for endpoint in [endpoint for endpoint in ENDPOINTS if endpoint.is_listed]:
        path = endpoint.path.replace(":path}", "}")
        assert endpoint.method.lower() in served["paths"][path], endpoint.path


def test_the_document_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema({"$defs": DOCUMENT["components"]["schemas"]})
    text = json.dumps(DOCUMENT)
    for name in DOCUMENT["components"]["schemas"]:
        assert f'"{name}"' in text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 1, "logprobs": 1, "echo": True}),
        ("/v1/responses", {"input": "a", "max_output_tokens": 1}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}),
        ("/v1/embeddings", {"input": "a"}),
        ("/tokenize", {"content": "a", "with_pieces": True}),
    ],
)
def test_answers_are_as_described(server: Running, path: str, body: dict[str, Any]) -> None:
    operation = DOCUMENT["paths"][path]["post"]
    answer = server.post(path, body)
    assert answer.status_code == 200
    form = operation["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(answer.json(), {**form, "components": DOCUMENT["components"]})
    asked = operation["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.validate(body, {**asked, "components": DOCUMENT["components"]})


@SCHEMA.parametrize()
@settings(
    max_examples=4, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_requests_from_the_document_are_no_500(case: Any, server: Running, llm: LLM) -> None:
    if isinstance(case.body, dict):  # an answer of a few tokens is enough
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if name in case.body or (name == "max_tokens" and "messages" in case.body):
                case.body[name] = 2
        case.body.pop("n", None)
        case.body.pop("min_tokens", None)
    try:
        answer = case.call(base_url=server.url, timeout=20)
    except httpx.HTTPError as error:
        pytest.fail(f"{case.operation.label}: {error!r}")
    assert answer.status_code not in (500, 501)
    assert "Traceback" not in answer.text
