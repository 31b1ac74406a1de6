"""`/openapi.json`: the HTTP surface, for clients that generate code."""

from __future__ import annotations

from typing import Any, Final

from edge.version import VERSION

_ADDRESS: Final = [
    {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
    for name in ("tenant", "scope")
]


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


def _make_scope(
    summary: str, content: dict[str, Any], query: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A POST that makes the scope of its path."""
    return {
        "post": {
            "summary": summary,
            "parameters": [*_ADDRESS, *({"name": name, "in": "query", "schema": {"type": "string"}}
                                        for name in query)],
            "requestBody": {"required": True, "content": content},
            "responses": {
                "201": {"description": "tenant, scope, epoch, head, floor"},
                "default": {"$ref": "#/components/responses/Problem"},
            },
        }
    }  # fmt: skip


def _scope_paths() -> dict[str, Any]:
    """What the admin surface does with one scope."""
    show = _get("One scope, with its replica and what the bucket costs (admin)")
    export = _get("The whole scope as a file (admin)", "format", produces="application/x-ndjson")
    export["get"]["responses"]["200"]["content"]["application/vnd.sqlite3"] = {}
    for described in (show, export):
        described["get"]["parameters"] += _ADDRESS
    fork = {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["from"],
                "properties": {"from": {"type": "string"}, "at": {"type": "string"}},
            }
        }
    }
    body: dict[str, Any] = {"application/octet-stream": {}}
    base = "/v1/scopes/{tenant}/{scope}"
    return {
        base: show,
        f"{base}/export": export,
        f"{base}/fork": _make_scope("Begin a scope with another one's state (admin)", fork),
        f"{base}/import": _make_scope(
            "Begin a scope with an export (admin)", body, ("keep_epoch",)
        ),
    }


def _actor_paths() -> dict[str, Any]:
    """Which scopes are awake and why; having them sleep and wake."""
    told = {
        "200": {"description": "tenant, scope, state, process, followers, alarm_due, woken_by,"
                " awake_since, slept_at, kept_by, sleeps_at", "content": {"application/json": {}}},
        "default": {"$ref": "#/components/responses/Problem"},
    }  # fmt: skip

    def one(method: str, summary: str) -> dict[str, Any]:
        return {method: {"summary": summary, "parameters": _ADDRESS, "responses": told}}

    base = "/v1/actors/{tenant}/{scope}"
    return {
        "/v1/actors": _get(
            "Processes, and the scopes that are awake, and why (admin)", "tenant", "prefix", "limit"
        ),
        base: one("get", "One scope, awake or asleep; it is not woken (admin)"),
        f"{base}/sleep": one("post", "Have it sleep once nothing is under way (admin)"),
        f"{base}/wake": one("post", "Have it wake (admin)"),
        f"{base}/move": one("post", "Give it to another actor process: query process (admin)"),
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
            **_scope_paths(),
            **_actor_paths(),
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
