"""`GET /v1/models`. Bodies are `lariat.protocol.models`'s."""

from __future__ import annotations

from lariat.protocol import models
from lariat.protocol.models import Model, ModelList
from lariat.server.endpoint import Call, Endpoint


async def _models(call: Call) -> ModelList:
    return models.models(call.served)


async def _model(call: Call) -> Model:
    call.served.check_name(call.path["model"])
    return next(m for m in models.models(call.served).data if m.id == call.path["model"])


ENDPOINTS = (
    Endpoint("GET", "/v1/models", _models, "The models that are served.", answer=ModelList),
    Endpoint("GET", "/v1/models/{model:path}", _model, "One of the models.", answer=Model),
)
