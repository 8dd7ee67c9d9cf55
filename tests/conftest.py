"""Fixtures of several test files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lariat import ChunkLibrary, _kernels
from lariat.runtime import sampler


@pytest.fixture(autouse=True, scope="session")
def no_prepared_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests, and processes that they start, do not look into the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LARIAT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def put(tmp_path: Path) -> Callable[[bytes], Path]:
    """Writes bytes to a file, always the same one, and returns its path."""

    def write(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def shelf(tmp_path: Path) -> ChunkLibrary:
    """A chunk library whose folder is not there yet."""
    return ChunkLibrary(tmp_path / "shelf")


@pytest.fixture(params=_kernels.variants(), ids="-".join)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction-set level, and each kind of core that it has tiles for."""
    level, core = _kernels.isa(), _kernels.core()
    _kernels.use_isa(request.param[0])
    _kernels.use_core(request.param[1])
    yield request.param[0]
    _kernels.use_isa(level)
    _kernels.use_core(core)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int], list[int]], None]:
    """Make the model say given ids: script(prompt, ids)."""
    answers: dict[tuple[int, ...], list[int]] = {}

    def sample(logits, params, previous, rng, change) -> int:
        n, ids = next((len(p), a) for p, a in answers.items() if tuple(previous[: len(p)]) == p)
        return ids[len(previous) - n]

    monkeypatch.setattr(sampler, "sample", sample)
    return lambda prompt, ids: answers.__setitem__(tuple(prompt), list(ids))
