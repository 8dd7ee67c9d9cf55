"""A model from its file: the architecture that the file names reads metadata and tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lariat.architectures import ARCHITECTURES, tiles
from lariat.architectures.metadata import Metadata
from lariat.architectures.packed import Places
from lariat.architectures.weights import TensorChecker, TensorLoader, Weights
from lariat.config import ModelConfig
from lariat.errors import ModelError, quote
from lariat.formats.gguf import GGUFFile


def read_config(gguf: GGUFFile) -> ModelConfig:
    """Read and check the metadata. Raises `GGUFError` and `ModelError`."""
    metadata = Metadata(gguf)
    if metadata.architecture not in ARCHITECTURES:
        raise ModelError(
            f"{gguf.path}: architecture {quote(metadata.architecture)} is not supported, "
            f"only {', '.join(ARCHITECTURES)} are"
        )
    return ARCHITECTURES[metadata.architecture].read_config(metadata)


def check_weights(gguf: GGUFFile, config: ModelConfig) -> None:
    """Find all tensors of a model, of the right shapes and types, without reading them.

    Raises `GGUFError` and `ModelError`.
    """
    checker = TensorChecker(gguf)
    ARCHITECTURES[config.architecture].read_weights(checker, config)
    checker.check_all_read()


def load_weights(
    gguf: GGUFFile,
    config: ModelConfig,
    n_threads: int,
    progress: Callable[[float], None] | None = None,
    places: Places | None = None,
) -> Weights[Any]:
    """Read all tensors of a model.

    Each matrix's pages of the file are released once it is interleaved, so that loading needs no
    more memory than the model. `progress` gets the share done, 0 to 1.

    The fastest tiles for them are chosen (`tiles`). Matrices go into `places`, or are there already
    (`prepared.find`); None: into memory of this process. Raises `GGUFError` and `ModelError`, for
    wrong shapes before anything is read.
    """
    check_weights(gguf, config)
    loader = TensorLoader(gguf, n_threads, progress, places)
    weights = ARCHITECTURES[config.architecture].read_weights(loader, config)
    tiles.choose(loader.loaded)
    if progress:
        progress(1.0)  # the embedding stays in the file, and may be a part of its bytes
    return weights
