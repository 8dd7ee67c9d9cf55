"""Fixtures of several test files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lariat import ChunkLibrary, _kernels


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
