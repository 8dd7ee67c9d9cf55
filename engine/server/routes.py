"""All routes: one line for each file of them."""

from __future__ import annotations

from lariat.server import chat, completions, health, models, tokens
from lariat.server.endpoint import Endpoint

ENDPOINTS: tuple[Endpoint, ...] = (
    *models.ENDPOINTS,
    *chat.ENDPOINTS,
    *completions.ENDPOINTS,
    *tokens.ENDPOINTS,
    *health.ENDPOINTS,
)
