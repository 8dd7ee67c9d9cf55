"""OpenAI's list of models: `GET /v1/models`. https://platform.openai.com/docs/api-reference/models"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from lariat.protocol.served import Served


class Model(msgspec.Struct, kw_only=True):
    """A model; `meta` has its sizes, as llama.cpp's server tells them."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "lariat"
    max_model_len: int
    meta: dict[str, Any]


class ModelList(msgspec.Struct, kw_only=True):
    """All models that are served."""

    object: Literal["list"] = "list"
    data: list[Model]


def models(served: Served) -> ModelList:
    """The model under each of its names."""
    llm = served.llm
    meta = {
        "n_vocab": llm.n_vocab,
        "n_ctx": llm.n_ctx,
        "n_ctx_train": llm.config.n_ctx_train,
        "n_embd": llm.config.dim,
        "architecture": llm.config.architecture,
        "cache": llm.settings.cache,
    }
    return ModelList(
        data=[
            Model(id=name, created=served.created, max_model_len=llm.n_ctx, meta=meta)
            for name in served.names
        ]
    )
