"""`GET /health`, `/metrics` and `/version`: how the server does."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import msgspec
import prometheus_client
from lariat.protocol import bodies
from lariat.server.endpoint import Call, Endpoint, Raw


class Health(msgspec.Struct, kw_only=True):
    """How the server does.

    `seconds_of_step` is how long the step of the engine has run, or has been missing. With the
    status 503 it is `loading`, `stalled` (no step of the engine ends) or `stopping`.
    """

    status: Literal["ok", "loading", "stalled", "stopping"]
    requests_running: int = 0
    requests_waiting: int = 0
    seconds_of_step: float = 0.0


class Version(msgspec.Struct, kw_only=True):
    """The version of Lariat."""

    version: str


async def _health(call: Call) -> Raw:
    service = call.service
    seconds = service.stalled_for()
    status: Literal["ok", "loading", "stalled", "stopping"] = "ok"
    if service.admission.is_stopping:
        status = "stopping"
    elif not service.is_loaded:
        status = "loading"
    elif seconds > service.options.stall_seconds:
        status = "stalled"
    health = Health(
        status=status,
        requests_running=service.admission.n_running,
        requests_waiting=service.admission.n_waiting,
        seconds_of_step=round(seconds, 3),
    )
    code = 200 if status == "ok" else 503
    return Raw(bodies.encode(health), "application/json", code)


async def _metrics(call: Call) -> Raw:
    return Raw(call.service.metrics.text(), prometheus_client.CONTENT_TYPE_LATEST)


async def _version(call: Call) -> Version:
    try:
        return Version(version=version("lariat"))
    except PackageNotFoundError:
        return Version(version="source")


ENDPOINTS = (
    Endpoint("GET", "/health", _health, "How the server does.", answer=Health, is_open=True),
    Endpoint("GET", "/metrics", _metrics, "Counts for Prometheus.", media_type="text/plain"),
    Endpoint("GET", "/version", _version, "The version of Lariat.", answer=Version),
)
