"""Bodies are decoded strictly, and need no server."""

from __future__ import annotations

import subprocess
import sys

import pytest
from lariat.protocol import bodies
from lariat.protocol.completions import CompletionRequest
from lariat.protocol.errors import ApiError


def test_bodies_need_no_server() -> None:
    code = (
        "import sys, lariat.protocol.chat, lariat.protocol.completions, lariat.protocol.messages\n"
        "import lariat.protocol.responses, lariat.protocol.embeddings, lariat.protocol.models\n"
        "print([m for m in ('starlette', 'uvicorn', 'anyio', 'prometheus_client')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("data", "param", "word"),
    [
        (b'{"prompt": "a", "x": 1}', "x", "unknown"),
        (b'{"prompt": "a", "stream_options": {"y": 1}}', "stream_options.y", "unknown"),
        (b'{"prompt": "a", "n": "2"}', "n", "int"),
        (b'{"prompt": {}}', "prompt", "expected"),
        (b"{}", None, "prompt"),
        (b"{", None, "truncated"),
        (b'{"prompt": "\xff"}', None, "UTF-8"),
        (b'{"prompt": ' + b"[" * 200 + b"]" * 200 + b"}", None, "levels deep"),
    ],
)
def test_a_wrong_body_names_its_field(data: bytes, param: str | None, word: str) -> None:
    with pytest.raises(ApiError) as refused:
        bodies.decode(data, CompletionRequest)
    assert refused.value.status == 400
    assert refused.value.param == param
    assert word in refused.value.message


def test_values_that_are_nested_within_the_limit_pass() -> None:
    inner = b"[" * (bodies.MAX_DEPTH - 1) + b"]" * (bodies.MAX_DEPTH - 1)
    data = b'{"prompt": "a", "metadata": {"a": %s}}'
    bodies.decode(data % inner[1:-1], CompletionRequest)
    with pytest.raises(ApiError):
        bodies.decode(data % (b"[" + inner + b"]"), CompletionRequest)
