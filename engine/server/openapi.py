"""The OpenAPI document: made from the endpoints, so it says what is served."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
from lariat.protocol import bodies
from lariat.server.endpoint import Endpoint

_REF = "#/components/schemas/{name}"
_ERRORS = {
    400: "The request is wrong.",
    401: "A valid API key is missing.",
    403: "Another host or origin.",
    404: "There is no such thing.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "Too many requests wait.",
    503: "The model is not ready, or has no room.",
}


def document(endpoints: Sequence[Endpoint]) -> bytes:
    """The document as JSON, in version 3.1."""
    endpoints = [endpoint for endpoint in endpoints if endpoint.is_listed]
    types: list[Any] = []
    for e in endpoints:
        types += [t for t in (e.request, e.answer, e.event, e.error_type) if t is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    refs = {id(type): schema for type, schema in zip(types, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for e in endpoints:
        path = re.sub(r":\w+}", "}", e.path)
        paths.setdefault(path, {})[e.method.lower()] = _operation(e, refs)
    return bodies.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Lariat", "version": "1"},
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                },
            },
            "security": [{}, {"bearer": []}, {"x-api-key": []}],
        }
    )


def _operation(e: Endpoint, refs: dict[int, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {e.media_type: {"schema": refs[id(e.answer)]} if e.answer else {}}
    if e.event is not None:
        content["text/event-stream"] = {"schema": {"type": "string"}, "x-event": refs[id(e.event)]}
    error = {"application/json": {"schema": refs[id(e.error_type)]}}
    has_body = e.request is not None
    statuses = [s for s in _ERRORS if has_body or s not in (400, 408, 413, 415, 429)]
    responses: dict[str, Any] = {"200": {"description": "The answer.", "content": content}}
    responses |= {str(s): {"description": _ERRORS[s], "content": error} for s in statuses}
    if e.path == "/health":
        responses["503"] = {"description": "It is not well.", "content": content}
    operation: dict[str, Any] = {"summary": e.summary, "responses": responses}
    names = re.findall(r"{(\w+)", e.path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if has_body:
        body = {"schema": refs[id(e.request)]}
        operation["requestBody"] = {"required": True, "content": {"application/json": body}}
    if e.is_open:
        operation["security"] = []
    return operation
