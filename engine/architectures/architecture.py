"""The form of an architecture: three functions, which its file defines and registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lariat.architectures.metadata import Metadata
from lariat.architectures.recorder import Recorder
from lariat.architectures.weights import TensorReader, Weights
from lariat.config import ModelConfig


@dataclass(frozen=True)
class Architecture:
    """How models of one family are read and computed.

    read_config   reads and checks the metadata: shapes, and the RoPE table and the window of
                  each layer. Raises `GGUFError` and `ModelError`
    read_weights  reads all tensors by their names, with the shapes that the configuration says.
                  Raises `GGUFError` and `ModelError`
    forward       records the forward pass of one size of batch
    """

    read_config: Callable[[Metadata], ModelConfig]
    read_weights: Callable[[TensorReader, ModelConfig], Weights[Any]]
    forward: Callable[[Recorder, Weights[Any]], None]
