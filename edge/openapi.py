"""`/openapi.json`: the HTTP surface, for clients that generate code."""

from __future__ import annotations

from typing import Any

from edge.version import VERSION


def _get(summary: str, *query: str, produces: str = "application/json") -> dict[str, Any]:
    parameters = [
        {"name": name.rstrip("!"), "in": "query", "required": name.endswith("!"),
         "schema": {"type": "string"}}
        for name in query
    ]  # fmt: skip
    return {
        "get": {
            "summary": summary,
            "parameters": parameters,
            "responses": {
                "200": {"description": "ok", "content": {produces: {}}},
                "default": {"$ref": "#/components/responses/Problem"},
            },
        }
    }


def _publish() -> dict[str, Any]:
    return {
        "post": {
            "summary": "Append one envelope; safe to repeat because of its eventId",
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "required": ["scope", "envelope"],
                            "properties": {
                                "scope": {"type": "string"},
                                "envelope": {"$ref": "#/components/schemas/Envelope"},
                            },
                        }
                    }
                },
            },
            "responses": {
                "200": {"description": "seq, eventId, duplicate"},
                "default": {"$ref": "#/components/responses/Problem"},
            },
        }
    }


def document() -> dict[str, Any]:
    """The whole description."""
    publish = _publish()
    problem = {
        "description": "What went wrong and whether to repeat",
        "content": {
            "application/problem+json": {
                "schema": {
                    "type": "object",
                    "required": ["code", "detail", "status", "retryable", "request_id"],
                }
            }
        },
    }
    envelope = {
        "type": "object",
        "required": ["eventId", "kind"],
        "properties": {
            "eventId": {"type": "string", "minLength": 1, "maxLength": 128},
            "kind": {"enum": ["patch", "snapshot", "invalidate"]},
            "entities": {"type": "array", "maxItems": 1000},
        },
    }
    view = _get("A view, page by page", "p", "page")
    view["get"]["parameters"].append(
        {"name": "view", "in": "path", "required": True, "schema": {"type": "string"}}
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "Holdfast", "version": VERSION},
        "paths": {
            "/healthz": _get("The process answers"),
            "/readyz": _get("New clients are welcome"),
            "/version": _get("Versions"),
            "/metrics": _get("Prometheus metrics (admin)", produces="text/plain"),
            "/v1/scopes": _get("Scopes (admin)", "tenant", "prefix", "after", "limit"),
            "/api/sync/events": _get(
                "One scope as server-sent events", "scope!", "since", produces="text/event-stream"
            ),
            "/api/sync/publish": publish,
            "/api/sync/views/{view}": view,
        },
        "components": {
            "responses": {"Problem": problem},
            "schemas": {"Envelope": envelope},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }
