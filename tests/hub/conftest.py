"""A Hub on loopback with a repository, and an empty cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub_server import HubServer, serving, use_hub

REPO = "someone/tiny-GGUF"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The Hub that HF_ENDPOINT names; its repository has three models and other files."""
    with serving() as server:
        use_hub(server, tmp_path / "cache", monkeypatch)
        server.files[REPO] = {
            "README.md": b"# Tiny",
            "mmproj-tiny-f16.gguf": b"a projector",
            "tiny-BF16.gguf": b"b" * 3000,
            "tiny-Q4_K_M.gguf": bytes(range(256)) * 16,
            "tiny-q8_0-00001-of-00002.gguf": b"1" * 1000,
            "tiny-q8_0-00002-of-00002.gguf": b"2" * 500,
        }
        yield server
