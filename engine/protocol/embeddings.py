"""OpenAI's embeddings: `POST /v1/embeddings`.

https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from lariat.protocol import errors
from lariat.protocol.completions import given_prompts, prompt_ids
from lariat.protocol.served import Served

MAX_INPUTS = 2048  # OpenAI's


class EmbeddingRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Texts or token ids. `pooling` says which tokens a vector is made of; vectors have the length
    1 unless normalize is false. `dimensions` may only be the model's own."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    pooling: Literal["mean", "last"] | None = None
    normalize: bool | None = None
    user: str | None = None  # without effect


class Embedding(msgspec.Struct, kw_only=True):
    """A vector: numbers, or base64 of float32 with the lowest byte first."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct, kw_only=True):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, kw_only=True):
    """All vectors."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


@dataclass
class EmbeddingJob:
    """A request that can be computed: `LLM.embed` for each of `prompts`."""

    served: Served
    prompts: list[list[int]]
    pooling: str
    normalize: bool
    is_base64: bool


def prepare(request: EmbeddingRequest, served: Served) -> EmbeddingJob:
    """Check a request, and tokenize its texts. Raises `ApiError`."""
    served.check_name(request.model)
    dim = served.llm.config.dim
    if request.dimensions not in (None, dim):
        raise errors.bad(
            f"dimensions is {request.dimensions}, and the model has {dim}", "dimensions"
        )
    texts = given_prompts(request.input, "input")
    if len(texts) > MAX_INPUTS:
        raise errors.bad(f"input has {len(texts)} entries, at most {MAX_INPUTS} are taken", "input")
    prompts = []
    for i, text in enumerate(texts):
        ids = prompt_ids(served, text, False, f"input[{i}]")
        served.check_length(ids, 0)
        prompts.append(ids)
    return EmbeddingJob(
        served,
        prompts,
        request.pooling or "mean",
        request.normalize is not False,
        request.encoding_format == "base64",
    )


def answer(job: EmbeddingJob, vectors: Iterable[np.ndarray]) -> EmbeddingList:
    """The body of vectors, float32 [dim] each."""
    n_tokens = sum(map(len, job.prompts))
    return EmbeddingList(
        data=[
            Embedding(index=i, embedding=_encoded(vector, job.is_base64))
            for i, vector in enumerate(vectors)
        ],
        model=job.served.name,
        usage=EmbeddingUsage(prompt_tokens=n_tokens, total_tokens=n_tokens),
    )


def _encoded(vector: np.ndarray, is_base64: bool) -> list[float] | str:
    if is_base64:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
