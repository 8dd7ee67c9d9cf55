"""All routes: one line for each file of them."""

from __future__ import annotations

from lariat.server import (
    arranged,
    chat,
    completions,
    contexts,
    documents,
    embeddings,
    health,
    messages,
    models,
    page,
    responses,
    tokens,
)
from lariat.server.endpoint import Endpoint

ENDPOINTS: tuple[Endpoint, ...] = (
    *models.ENDPOINTS,
    *chat.ENDPOINTS,
    *arranged.ENDPOINTS,
    *responses.ENDPOINTS,
    *messages.ENDPOINTS,
    *completions.ENDPOINTS,
    *embeddings.ENDPOINTS,
    *tokens.ENDPOINTS,
    *contexts.ENDPOINTS,
    *documents.ENDPOINTS,
    *health.ENDPOINTS,
    *page.ENDPOINTS,
)
